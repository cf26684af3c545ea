"""A file in another form is told what it is and what to do, in one line; JSON lines go through as they are."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import zipfile

import pytest

from billing.errors import InvalidInput
from billing.subscribing.import_files import lines_of

ROWS = [{"customer_reference": "ana", "name": "Ana Nguyễn", "plan": "gold"}, {"customer_reference": "bea", "name": "B"}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


def read(content: bytes, file: str = "subscribers.jsonl") -> list[str]:
    with lines_of(file, io.BufferedReader(io.BytesIO(content))) as lines:
        return list(lines)


def refusal(content: bytes, file: str = "subscribers.jsonl") -> str:
    with pytest.raises(InvalidInput) as refused:
        read(content, file)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def zipped(**files: str) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return packed.getvalue()


@pytest.mark.parametrize(
    ("content", "form", "advice"),
    [
        (LINES.encode("utf-16"), "UTF-16 text", "`iconv -f UTF-16 -t UTF-8 subscribers.jsonl | billing import -`"),
        (LINES.encode("utf-16-le"), "UTF-16LE text", "iconv -f UTF-16LE -t UTF-8"),
        (LINES.encode("utf-16-be"), "UTF-16BE text", "iconv -f UTF-16BE -t UTF-8"),
        (LINES.encode("utf-32"), "UTF-32 text", "iconv -f UTF-32 -t UTF-8"),
        (LINES.encode("utf-32-be"), "UTF-32BE text", "iconv -f UTF-32BE -t UTF-8"),
        (json.dumps(ROWS).encode(), "a JSON list", "`jq -c '.[]' subscribers.jsonl | billing import -`"),
        (json.dumps(ROWS, indent=2).encode(), "a JSON list", "jq -c '.[]'"),
        (b"\xef\xbb\xbf\r\n [\r\n" + LINES.encode() + b"]", "a JSON list", "jq -c '.[]'"),
        (json.dumps(ROWS[0], indent=2).encode(), "JSON with its objects over several lines", "jq -c . subscribers"),
        (b'{"customer_reference": "ana",\n "name": "Ana"}\n', "JSON with its objects over several lines", "jq -c ."),
        (b"customer_reference,name,email\nana,Ana,a@x.id\n", "a table (CSV with commas)", "csv.DictReader(open("),
        (b"ana;Ana;a@example.com;ID\n", "a table (CSV with semicolons)", 'delimiter=";"'),
        (b"reference\tname\temail\n", "a table (CSV with tabs)", r'delimiter="\t"'),
        (b'"customer_reference","name","plan"\r\n"ana","A","g"\r\n', "a table (CSV with commas)", "one JSON object a"),
        (gzip.compress(LINES.encode()), "packed with gzip", "`gunzip -c subscribers.jsonl | billing import -`"),
        (bz2.compress(LINES.encode()), "packed with bzip2", "bunzip2 -c"),
        (lzma.compress(LINES.encode()), "packed with xz", "xz -dc"),
        (zipped(**{"rows.jsonl": LINES}), "a zip archive", "unzip -p"),
        (zipped(**{"[Content_Types].xml": "<Types/>", "xl/workbook.xml": "<x/>"}), "a workbook", "export it as CSV"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(500), "a workbook", "export it as CSV"),
        (b"<?xml version='1.0'?><rows/>", "XML or HTML", "one JSON object a line"),
        (b"\x7fELF\x02\x01\x00\x00", "no text", "one JSON object a line, in UTF-8"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_another_form_is_named_with_what_to_do(content: bytes, form: str, advice: str) -> None:
    said = refusal(content)
    assert said.startswith(f"subscribers.jsonl is {form}")
    assert advice in said


def test_a_file_name_is_quoted_for_the_shell_and_a_pipe_has_none() -> None:
    assert "jq -c '.[]' 'my rows.json' |" in refusal(b"[]", "my rows.json")
    assert refusal(b"[]", "-").startswith("the input is a JSON list; write one object a line: `jq -c '.[]' FILE |")


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (LINES.encode(), LINES.splitlines(keepends=True)),
        (b"\xef\xbb\xbf" + LINES.encode(), LINES.splitlines(keepends=True)),
        (LINES.replace("\n", "\r\n").encode(), LINES.splitlines(keepends=True)),
        (b'{"name": "Ren\xe9"}\n{"name": "R"}\n', ['{"name": "Ren\udce9"}\n', '{"name": "R"}\n']),
        (b"{not json\n{}\n", ["{not json\n", "{}\n"]),
        (b'{"name": "\x00"}\n{}\n', ['{"name": "\x00"}\n', "{}\n"]),
        (b"{not json\nnor this\n", ["{not json\n", "nor this\n"]),
        (b"a, b, c\n{}\n", ["a, b, c\n", "{}\n"]),
        (b"\n\n{}", ["\n", "\n", "{}"]),
        (b"", []),
        (b" \n", [" \n"]),
    ],
)
def test_json_lines_are_read_as_they_are_and_wrong_ones_are_left_to_their_line(
    content: bytes, lines: list[str]
) -> None:
    assert read(content) == lines


def test_the_stream_stays_open_for_its_owner() -> None:
    stream = io.BufferedReader(io.BytesIO(LINES.encode()))
    with lines_of("-", stream) as lines:
        next(lines)
    assert not stream.closed
