"""What a file is that somebody wants to import: JSON lines in UTF-8, or something else that is told by its name.

Called by `billing import` before the first line is read. Only what the file begins with is looked at, so a pipe is
looked at as well; what goes wrong later is told line by line (subscribing/import_lines.py).
"""

from __future__ import annotations

import codecs
import csv
import json
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader, TextIOWrapper

from billing.errors import InvalidInput

LOOKED_AT = 8192  # bytes
FEWEST_FIELDS = 3  # of a line that is taken for one of a table

_PACKED = {
    b"\x1f\x8b": ("gzip", "gunzip -c"),
    b"BZh": ("bzip2", "bunzip2 -c"),
    b"\xfd7zXZ\x00": ("xz", "xz -dc"),
    b"\x28\xb5\x2f\xfd": ("zstd", "zstd -dc"),
}
_ZIP = b"PK\x03\x04"
_OLD_EXCEL = b"\xd0\xcf\x11\xe0"
# Which of the first four bytes are zeros, for ASCII without a byte order mark.
_UNMARKED: dict[tuple[bool, ...], str] = {
    (False, True, True, True): "UTF-32LE",
    (True, True, True, False): "UTF-32BE",
    (False, True, False, True): "UTF-16LE",
    (True, False, True, False): "UTF-16BE",
}
_SEPARATORS = {
    ",": ("commas", ""),
    ";": ("semicolons", ', delimiter=";"'),
    "\t": ("tabs", ', delimiter="\\t"'),
}
_TABLE_TO_LINES = (
    "python3 -c 'import csv, json, sys;"
    ' [print(json.dumps(row)) for row in csv.DictReader(open(sys.argv[1], encoding="utf-8-sig")OPTION)]\' {file}'
)


@contextmanager
def lines_of(file: str, stream: BufferedReader) -> Iterator[TextIOWrapper]:
    """The file as text. Raises InvalidInput with what the file is and what to do, when it is not JSON lines.

    Bytes that are no UTF-8 become halves of characters, by which their line is refused, and the others go on.
    """
    refuse_other_forms(file, stream.peek(LOOKED_AT)[:LOOKED_AT])
    text = TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape")
    try:
        yield text
    finally:
        text.detach()


def refuse_other_forms(file: str, head: bytes) -> None:
    """`file` as it was typed, `head` what it begins with. Raises InvalidInput: what it is, and what to do."""
    text = head.removeprefix(codecs.BOM_UTF8).decode("utf-8", "replace")
    form = _archive(head) or _wide_text(head) or _other_json(text) or _table(text)
    if form is None:
        return
    name, quoted = ("the input", "FILE") if file == "-" else (file, shlex.quote(file))
    advice = form.advice.format(file=quoted)
    raise InvalidInput(f"{name} is {form.name}; {advice}")


@dataclass(frozen=True, slots=True)
class _Form:
    name: str
    advice: str


def _piped(what: str, command: str) -> str:
    return f"{what}: `{command} | billing import -`"


def _archive(head: bytes) -> _Form | None:
    for magic, (kind, command) in _PACKED.items():
        if head.startswith(magic):
            return _Form(f"packed with {kind}", _piped("unpack it", f"{command} {{file}}"))
    if head.startswith(_OLD_EXCEL) or (head.startswith(_ZIP) and b"[Content_Types].xml" in head):
        return _Form("a workbook", "export it as CSV in UTF-8, and write that as one JSON object a line")
    if head.startswith(_ZIP):
        return _Form("a zip archive", _piped("unpack it", "unzip -p {file}"))
    return None


def _wide_text(head: bytes) -> _Form | None:
    """Text in two or four bytes a letter has zeros in it; with a mark at its beginning or without."""
    encoding = _wide_encoding(head)
    if encoding is not None:
        return _Form(f"{encoding} text", _piped("convert it", f"iconv -f {encoding} -t UTF-8 {{file}}"))
    if b"\0" in head and not head.lstrip().startswith(b"{"):
        return _Form("no text (it holds bytes of 0)", "write one JSON object a line, in UTF-8")
    return None


def _wide_encoding(head: bytes) -> str | None:
    if head.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "UTF-32"
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "UTF-16"
    return _UNMARKED.get(tuple(byte == 0 for byte in head[:4]))


def _other_json(text: str) -> _Form | None:
    text = text.lstrip()
    if text.startswith("["):
        return _Form("a JSON list", _piped("write one object a line", "jq -c '.[]' {file}"))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if text.startswith("{") and len(lines) > 1 and not _is_json(lines[0]) and lines[1][0] in '"}':
        return _Form("JSON with its objects over several lines", _piped("write each on one", "jq -c . {file}"))
    if text.startswith("<"):
        return _Form("XML or HTML", "write one JSON object a line")
    return None


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _table(text: str) -> _Form | None:
    """No line of JSON, and the first in several fields: names at the top, or people already."""
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines or any(line.lstrip().startswith("{") for line in lines):
        return None
    for separator, (called, option) in _SEPARATORS.items():
        if len(next(csv.reader(lines[:1], delimiter=separator))) >= FEWEST_FIELDS:
            return _Form(
                f"a table (CSV with {called})",
                _piped(
                    "write one JSON object a line; where the first line holds the members' names",
                    _TABLE_TO_LINES.replace("OPTION", option),
                ),
            )
    return None
