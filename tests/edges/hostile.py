"""What a hostile sender of webhooks could think of: every input is a function of a seed and a number.

Most inputs are documented events (tests/xendit/samples) that name records of ours, with a few members made odd:
an input that is refused at the door never meets the code behind it.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SAMPLES = [
    json.loads(path.read_bytes()) for path in sorted((Path(__file__).parents[1] / "xendit/samples").glob("*.json"))
]
EVENTS = sorted({sample["event"] for sample in SAMPLES})
MEMBERS = sorted({name for sample in SAMPLES for name in sample["data"]})

Ours = Mapping[str, Sequence[str]]
"""Ids of our own records, by the name of the member that carries them."""


class Raw(str):
    """Written into the JSON as it is, without quotes."""

    __slots__ = ()


class Pairs(list[tuple[str, Any]]):
    """An object that may hold a member twice."""


@dataclass(frozen=True, slots=True)
class Hostile:
    number: int
    token: Callable[[str], bytes | None]
    chunks: tuple[bytes, ...]
    headers: tuple[tuple[bytes, bytes], ...]

    @property
    def body(self) -> bytes:
        return b"".join(self.chunks)


def hostile(seed: int, number: int, ours: Ours) -> Hostile:
    dice = random.Random(f"{seed}:{number}")
    body = dice.choices(_BODIES, weights=_WEIGHTS)[0](dice, ours)
    return Hostile(number, _token(dice), _chunks(dice, body), _headers(dice, body))


# Bodies ------------------------------------------------------------------------------------------------------


def _odd_event(dice: random.Random, ours: Ours) -> bytes:
    payload = _event_of_ours(dice, ours)
    for _ in range(dice.choice((0, 1, 1, 1, 2, 3, 6))):
        _change(dice, payload)
    return _written(dice, payload)


def _event_of_ours(dice: random.Random, ours: Ours) -> dict[str, Any]:
    payload: dict[str, Any] = json.loads(json.dumps(dice.choice(SAMPLES)))
    if dice.random() < 0.2:
        payload["event"] = dice.choice(EVENTS)
    for holder, name in list(_places(payload)):
        if name in ours and isinstance(holder, dict) and dice.random() < 0.7:
            suffix = f"_{dice.randrange(99)}" if name == "reference_id" and dice.random() < 0.3 else ""
            holder[name] = dice.choice(ours[name]) + suffix
        elif name in ("payment_id", "id", "capture_id") and dice.random() < 0.5:
            holder[name] = f"py-{dice.getrandbits(64):x}"  # a new one, so that it is not the same fact again
    return payload


def _change(dice: random.Random, payload: dict[str, Any]) -> None:
    places = list(_places(payload))
    if not places:
        return
    holder, name = dice.choice(places)
    match dice.randrange(10):
        case 0:
            del holder[name]
        case 1 if isinstance(holder, dict):
            other, other_name = dice.choice(places)
            holder[name] = (
                json.loads(json.dumps(other[other_name], default=str)) if other_name in _keys(other) else None
            )
        case 2 if isinstance(holder, list):
            holder.extend([holder[0]] * dice.choice((1, 30, 2000)) if holder else [])
        case 3 if isinstance(holder, dict):
            holder[dice.choice(MEMBERS)] = holder.pop(name)
        case 4 if isinstance(holder, dict):
            holder[_text(dice)] = _odd(dice)
        case 5:
            holder[name] = _retyped(dice, holder[name])
        case _:
            holder[name] = _odd(dice)


def _places(value: Any) -> Any:
    """Every (holder, key), however deep; in a list the key is an index."""
    for key in _keys(value):
        yield value, key
        yield from _places(value[key])


def _keys(value: Any) -> list[Any]:
    return list(value) if isinstance(value, dict) else list(range(len(value))) if type(value) is list else []


def _retyped(dice: random.Random, value: Any) -> Any:
    """The same thing in another type."""
    number = value if isinstance(value, int | float) else len(str(value))
    kinds: tuple[Any, ...] = (str(value), number, -number, number + 0.5, None, [value], {"value": value}, [], {}, True)
    return dice.choice(kinds)


def _odd(dice: random.Random) -> Any:
    digits = "9" * dice.choice((13, 16, 18, 19, 20, 40, 400, 4299, 4300, 4301, 20_000))
    numbers = (
        digits, "-" + digits, digits + ".5", "0." + digits, "1e999", "-1e999", "1e-999", "1e131071", "1e131072", "1e-16383",
        "1e-16384", "1e999999999999999999", "1e99999999999999999999", "-0", "-0.0", "0e5", "1E5", "0.1", "1e18",
        "9223372036854775807", "9223372036854775808", "-9223372036854775809", "2147483648", "NaN", "Infinity", "-Infinity",
        "01", "1.", ".5", "+1", "0x10", "1_000", "4000000000001091", "true", "True", "undefined",
    )  # fmt: skip
    match dice.randrange(8):
        case 0 | 1:
            return Raw(dice.choice(numbers))
        case 2 | 3:
            return _text(dice)
        case 4:
            return _nested(dice)
        case 5:
            return Pairs([("a", 1), ("a", _text(dice)), ("", None), ("status", "SUCCEEDED"), ("status", 7)])
        case 6:
            return [_odd(dice) for _ in range(dice.randrange(4))]
        case _:
            return dice.choice((None, True, False, 0, 1, -1, [], {}, [[]], [None], [{}], {"": {}}))


def _nested(dice: random.Random) -> Raw:
    deep = dice.choice((3, 40, 47, 48, 49, 60, 400, 900, 1100, 5_000, 40_000))
    opened, closed = dice.choice((("[", "]"), ('{"a":', "}"), ('[{"data":', "}]")))
    return Raw(opened * deep + "1" + closed * (deep - dice.choice((0, 0, 0, 1))))


def _text(dice: random.Random) -> str:
    texts = (
        "", " ", "\x00", "a\x00b", "\ud800", "x\udfff", "\ud83d\ude00", "\u2028", "\ufeff", "\u202e", "\n", "\t", "\x7f", "\x1b[2J",
        "é", "ß" * 300, "İ", "ﬁ", "٣", "\U0010ffff", "__proto__", "None", "null", "NaN", "1e999", "-1", "0", "4000000000001091",
        "4000 0000 0000 1091", "' OR 1=1 --", "%s%n", "{0}", "{{7*7}}", "${jndi:ldap://x}", "../../x", "//evil.example/x",
        "http://127.0.0.1:1/", "javascript:alert(1)", "<script>", "SUCCEEDED", "FAILED", "PENDING", "ACTIVE", "CANCELED",
        "UNHEARD_OF", "IDR", "idr ", "PHP", "XXX", "9999-12-31T23:59:59Z", "0001-01-01T00:00:00Z", "0001-01-01T00:00:00+14:00",
        "9999-12-31T23:59:59-14:00", "2026-02-30T00:00:00Z", "20260101", "2026-W01-1", "x" * 255, "x" * 256, "_" * 300,
        "x" * dice.choice((2_000, 50_000)), "_", "a_", "_a", "att-_", "card_cvv",
    )  # fmt: skip
    return dice.choice(texts)


def _random_json(dice: random.Random, _ours: Ours) -> bytes:
    def value(deep: int) -> Any:
        if deep > 4 or dice.random() < 0.4:
            return _odd(dice)
        if dice.random() < 0.3:
            return [value(deep + 1) for _ in range(dice.randrange(4))]
        return {dice.choice((dice.choice(MEMBERS), _text(dice))): value(deep + 1) for _ in range(dice.randrange(5))}

    payload = {"event": dice.choice((dice.choice(EVENTS), _odd(dice))), "data": value(0)}
    return _written(dice, payload if dice.random() < 0.8 else value(0))


def _broken_bytes(dice: random.Random, ours: Ours) -> bytes:
    body = bytearray(_odd_event(dice, ours))
    for _ in range(dice.choice((1, 1, 2, 5, 20))):
        at = dice.randrange(len(body) + 1)
        match dice.randrange(5):
            case 0:
                body[at : at + 1] = dice.randbytes(1)
            case 1:
                del body[at : at + dice.choice((1, 3, 100))]
            case 2:
                body[at:at] = dice.choice(
                    (b"\x00", b"\xff", b"\xed\xa0\x80", b"\\ud800", b'"', b"{", b"]", b",", b"\\", b"1e999")
                )
            case 3:
                body[at:at] = body[at : at + dice.choice((5, 50, 500))]
            case _:
                body[at:] = b""
    return bytes(body)


def _random_bytes(dice: random.Random, _ours: Ours) -> bytes:
    start = dice.choice(
        (b"", b"{", b'{"event":"payment.capture","data":', b"\xef\xbb\xbf", b"\xff\xfe", b"\x1f\x8b\x08")
    )
    return start + dice.randbytes(dice.choice((0, 1, 7, 60, 2_000)))


def _other_encoding(dice: random.Random, ours: Ours) -> bytes:
    text = _odd_event(dice, ours).decode("utf-8", "replace")
    encoding = dice.choice(("utf-16", "utf-32", "utf-8-sig", "utf-7", "latin-1", "cp037"))
    return text.encode(encoding, "replace")


def _flood(dice: random.Random, _ours: Ours) -> bytes:
    """Large, around the limit of 256 KiB and far beyond it; or small and meant to grow."""
    size = dice.choice((100_000, 262_000, 262_144, 300_000, 1_000_000))
    filling = dice.choice((
        '"' + "x" * size + '"', "[" + "1e131000," * (size // 9) + "1]", "[" + "{}," * (size // 3) + "1]",
        "{" + ",".join(f'"{n}":1' for n in range(size // 12)) + "}", '"' + "4" * size + '"', '"' + "1 " * (size // 2) + '"',
        "[" + '{"capture_id":"c","capture_amount":999999999999},' * (size // 49) + "1]",
    ))  # fmt: skip
    event = f'{{"event":"{dice.choice(EVENTS)}","data":{{"id":"x","payment_id":"py-flood","{dice.choice(MEMBERS)}":'
    return (event + filling + ',"currency":"IDR"}}').encode()


_BODIES: tuple[Callable[[random.Random, Ours], bytes], ...] = (
    _odd_event, _random_json, _broken_bytes, _random_bytes, _other_encoding, _flood,
)  # fmt: skip
_WEIGHTS = (648, 150, 130, 50, 20, 2)


def _written(dice: random.Random, value: Any) -> bytes:
    escaped = dice.random() < 0.7

    def write(value: Any) -> str:
        if isinstance(value, Raw):
            return str(value)
        if isinstance(value, dict | Pairs):
            members = value.items() if isinstance(value, dict) else value
            return "{" + ",".join(f"{write(key)}:{write(member)}" for key, member in members) + "}"
        if isinstance(value, list | tuple):
            return "[" + ",".join(write(entry) for entry in value) + "]"
        return json.dumps(value, ensure_ascii=escaped)

    return write(value).encode("utf-8", "surrogatepass")


# Around the body -----------------------------------------------------------------------------------------------


def _token(dice: random.Random) -> Callable[[str], bytes | None]:
    if dice.random() < 0.97:
        return lambda right: right.encode()
    wrong: tuple[Callable[[str], bytes | None], ...] = (
        lambda _right: None,
        lambda _right: b"",
        lambda right: right[:-1].encode(),
        lambda right: right.encode() + b"\xe4\x00",
        lambda right: right.upper().encode(),
        lambda _right: b"x" * 10_000,
    )
    return dice.choice(wrong)


def _chunks(dice: random.Random, body: bytes) -> tuple[bytes, ...]:
    if dice.random() < 0.9:
        return (body,)
    at = dice.randrange(len(body) + 1)
    return (body[:at], b"", body[at:])


def _headers(dice: random.Random, body: bytes) -> tuple[tuple[bytes, bytes], ...]:
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    if dice.random() < 0.1:
        odd: tuple[tuple[bytes, bytes], ...] = (
            (b"content-type", b"text/plain; charset=utf-16"),
            (b"content-type", b"multipart/form-data; boundary=x"),
            (b"content-type", b"\xff\xfe"),
            (b"content-type", b""),
            (b"content-length", b"-1"),
            (b"content-length", b"\xb2"),
            (b"content-length", b"9" * 5_000),
            (b"content-length", b"1e3"),
            (b"content-length", b"0"),
            (b"content-encoding", b"gzip"),
            (b"expect", b"100-continue"),
            (b"transfer-encoding", b"chunked"),
            (b"host", b"evil.example\x00"),
            (b"x-forwarded-for", b"' OR 1=1 --"),
            (b"content-type", b"application/json" * 1_000),
        )
        changed = dice.choice(odd)
        headers = [header for header in headers if header[0] != changed[0]] + [changed]
    return tuple(headers)
