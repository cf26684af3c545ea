"""What a proxy, a firewall or a wrong address may answer in the place of Xendit."""

from __future__ import annotations

SOMEBODY_ELSE = [
    (302, b""),
    (302, b"<html>moved</html>"),
    (400, b""),
    (400, {"error": "bad request"}),
    (400, {"error_code": "A_CODE_OF_NEXT_YEAR"}),
    (401, b"<html>log in to the proxy</html>"),
    (401, {"message": "Unauthorized"}),
    (403, b""),
    (403, b"<html>blocked</html>"),
    (403, {"error_code": "WAF_BLOCKED"}),
    (403, {"error_code": ["INVALID_API_KEY"]}),
    (404, b"<html>no such page</html>"),
    (404, {"message": "no Route matched with those values"}),
    (405, b""),
    (407, b"<html>proxy authentication required</html>"),
    (413, b"<html>too large</html>"),
    (429, b"<html>slow down</html>"),
    (429, {"message": "Too many requests"}),
    (451, b""),
    (502, b"<html>"),
    (503, b"<html>down for maintenance</html>"),
]
