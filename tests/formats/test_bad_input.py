"""What is wrong with real files, and what a person is told: file:line, what was expected, and the count."""

from __future__ import annotations

import gzip
import io
import json
import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfinstruct import formats
from selfinstruct.convert import convert
from selfinstruct.errors import InputError
from selfinstruct.formats import scan
from selfinstruct.formats.inputs import zstd

ROW = '{"instruction": "a", "input": "", "output": "b"}'
LINE = ROW.encode() + b"\n"
EMPTY = b'{"instruction": "a", "output": " "}\n'
BAD_LINES = {
    "not JSON": b'{"instruction": "a", "output"\n',
    "array, not object": b"[1, 2]\n",
    "number for text": b'{"instruction": "a", "input": "", "output": 7}\n',
    "null output": b'{"instruction": "a", "input": "", "output": null}\n',
    "missing key": b'{"instruction": "a"}\n',
    "NaN": b'{"instruction": "a", "input": "", "output": NaN}\n',
    "key twice": b'{"instruction": "a", "instruction": "c", "output": "b"}\n',
    "half a surrogate": b'{"instruction": "\\ud83d", "output": "b"}\n',
    "GB18030": '{"instruction": "你好", "output": "b"}\n'.encode("gb18030"),
    "NUL bytes": b"\x00\x00\x00\x00\n",
    "nested deep": b'{"instruction": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n",
    "nested": b'{"instruction": ' + b'{"a": [' * 126 + b"]}" * 126 + b"}\n",
    "number out of range": b'{"instruction": 1e999}\n',
    "huge number": b'{"instruction": ' + b"1" * 5000 + b"}\n",
    "raw tab in a string": b'{"instruction": "a\tb", "output": "b"}\n',
}
REASONS = {
    "not JSON": "not JSON",
    "array, not object": "expected an object, found array",
    "number for text": '"output" must be a string, found number',
    "null output": '"output" must be a string, found null',
    "missing key": 'key "output" is missing',
    "NaN": "NaN is not JSON",
    "key twice": 'key "instruction" is there twice',
    "half a surrogate": "half of a surrogate pair",
    "GB18030": "not UTF-8 .* iconv",
    "NUL bytes": "not JSON",
    "nested deep": "nested deeper than 250 levels",
    "nested": "nested deeper than 250 levels",
    "number out of range": "the number 1e999 is too large",
    "huge number": "a whole number of thousands of digits",
    "raw tab in a string": "not JSON: Invalid control character",
}


@pytest.mark.parametrize("name", BAD_LINES)
def test_a_bad_line_is_told_by_file_and_line_and_can_be_skipped(name: str, tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    path.write_bytes(LINE * 2 + BAD_LINES[name] + LINE)
    with pytest.raises(InputError, match=rf"data\.json:3: .*(?:{REASONS[name]})"):
        list(formats.read(path, "alpaca"))
    bad: list[formats.BadRow] = []
    assert len(list(formats.read(path, on_bad=bad.append))) == 3
    assert [row.place for row in bad] == [f"{path}:3"]


@pytest.mark.parametrize("name", [name for name in BAD_LINES if name not in {"NUL bytes", "not JSON"}])
def test_a_bad_element_of_an_array_can_be_skipped(name: str, tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b"[\n" + LINE.strip() + b",\n" + BAD_LINES[name].strip() + b",\n" + LINE + b"]\n")
    with pytest.raises(InputError, match=r"data\.jsonl:3: "):
        list(formats.read(path, "alpaca"))
    bad: list[formats.BadRow] = []
    assert len(list(formats.read(path, "alpaca", on_bad=bad.append))) == 2
    assert [row.place for row in bad] == [f"{path}:3"]


def test_rows_that_share_a_line_are_told_by_their_number_too(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text(f"[{ROW}, {ROW}, 7,\n{ROW}, {{}}]", encoding="utf-8")
    bad: list[formats.BadRow] = []
    assert len(list(formats.read(path, "alpaca", on_bad=bad.append))) == 3
    assert [row.place for row in bad] == [f"{path}:1 (row 3)", f"{path}:2 (row 5)"]


def test_bom_crlf_blank_lines_and_line_separators_are_no_faults(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"\xef\xbb\xbf\r\n" + '{"instruction": "a\u2028b", "output": "c"}'.encode() + b"\r\n\r\n" + LINE)
    assert [record.instruction for record in formats.read(path)] == ["a\u2028b", "a"]  # type: ignore[union-attr]


@pytest.mark.parametrize("between", ["", " ", ", ", "\r", "\r\r"])
def test_rows_on_one_line_and_lines_that_end_on_a_carriage_return_are_read(between: str, tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text(between.join([ROW] * 3), encoding="utf-8", newline="")
    bad: list[formats.BadRow] = []
    assert len(list(formats.read(path, on_bad=bad.append))) == 3
    assert bad == []
    path.write_text(between.join([ROW, ROW, ROW[:20]]), encoding="utf-8", newline="")
    assert len(list(formats.read(path, on_bad=bad.append))) == 2
    assert [row.reason for row in bad] == ["the file ends inside a record: it may be cut"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"  \n\n", "the file is empty"),
        (ROW.encode("utf-16"), "UTF-16"),
        (b"<!DOCTYPE html><html></html>", "web page"),
        (b"just words\n", "expected JSON lines"),
        (gzip.compress(LINE * 100)[:60], "it may be cut"),
        (gzip.compress(LINE)[:10], "the compressed file is damaged or cut"),
        (b"PAR1 and nothing else", "damaged Parquet"),
    ],
)
def test_what_is_no_data_file_is_told(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        list(formats.read(path))


def packed_zstd(content: bytes) -> bytes:
    module = zstd("x")
    packed: bytes = module.compress(content, options={module.CompressionParameter.checksum_flag: True})
    return packed


@pytest.mark.parametrize("packed", [gzip.compress, packed_zstd])
@pytest.mark.parametrize("how", ["cut", "damaged"])
def test_the_rows_before_a_damage_are_read_and_it_is_told(
    packed: Callable[[bytes], bytes], how: str, tmp_path: Path
) -> None:
    # Random letters: hardly compressed, so that the damage is in the middle and not in the first block.
    letters = random.Random(0)
    texts = ["".join(letters.choices("abcdefghijklmnopqrstuvwxyz", k=400)) for _ in range(20_000)]
    content = b"".join(b'{"instruction": "%s", "output": "b"}\n' % text.encode() for text in texts)
    whole = bytearray(packed(content))
    middle = len(whole) // 2
    whole[middle : middle + 64 if how == "damaged" else None] = b"\xff" * (64 if how == "damaged" else 0)
    (tmp_path / "x").write_bytes(whole)
    bad: list[formats.BadRow] = []
    good = [record.instruction for record in formats.read(tmp_path / "x", "alpaca", on_bad=bad.append)]  # type: ignore[union-attr]
    assert good[:8000] == texts[:8000]
    assert "the compressed file is damaged or cut" in bad[-1].reason
    with pytest.raises(InputError, match=r"x:\d+: "):
        list(formats.read(tmp_path / "x", "alpaca"))


def test_a_damaged_parquet_file_and_a_csv_with_a_double_column_are_told(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("input,input\na,b\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"x\.csv:1: a column name is there twice"):
        list(formats.read(tmp_path / "x.csv", "bianque"))
    (tmp_path / "x.parquet").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(InputError, match=r"x\.parquet:1: damaged Parquet"):
        list(formats.read(tmp_path / "x.parquet", "messages"))


@pytest.mark.parametrize("group", [4000, 100])
def test_a_parquet_file_is_not_kept_in_memory(group: int, tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    texts = [f"{n:08d}" * 1000 for n in range(4000)]
    table = arrow.table({"instruction": ["a"] * len(texts), "output": texts})
    path = tmp_path / "x"
    parquet.write_table(table, path, row_group_size=group, compression="none", use_dictionary=False)
    del table
    tracemalloc.start()
    try:
        assert sum(1 for _ in formats.read(path, "alpaca")) == len(texts)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 0.8 * path.stat().st_size


def test_a_parquet_file_whose_columns_names_are_no_text_is_told() -> None:
    pytest.importorskip("pyarrow")
    content = (Path(__file__).parent / "golden" / "parquet.parquet").read_bytes()
    with pytest.raises(InputError, match="damaged Parquet file"):
        list(formats.read(io.BytesIO(content.replace(b"content", b"\xffontent")), "parquet"))


def test_a_missing_file_is_told() -> None:
    with pytest.raises(InputError, match=r"nowhere\.json: No such file"):
        list(formats.read("nowhere.json"))


def test_a_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder: name a file in it"):
        list(formats.read(tmp_path))


@pytest.mark.parametrize(
    ("content", "good", "reason"),
    [
        (LINE * 3 + LINE[:20], 3, "may be cut"),
        (b"[" + b",".join([LINE] * 3) + b"," + LINE[:20], 3, "ends inside a record"),
        (b"[" + b",".join([LINE] * 3), 3, "not closed"),
        (b"[" + b",".join([LINE] * 3) + b"] x", 3, "after the end of the array"),
    ],
)
def test_a_cut_file_gives_its_whole_rows(content: bytes, good: int, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    bad: list[formats.BadRow] = []
    assert len(list(formats.read(path, on_bad=bad.append))) == good
    assert len(bad) == 1
    assert reason in bad[0].reason


@pytest.mark.parametrize("array", [True, False])
def test_a_row_without_end_is_passed_over(array: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "LONGEST_ROW", 1000)
    monkeypatch.setattr(scan, "CHUNK", 256)
    long = json.dumps({"instruction": 'x"\\' * 3000, "output": "b"}).encode()
    content = b"[" + LINE + b"," + long + b"," + LINE + b"]" if array else LINE + long + b"\n" + LINE
    bad: list[formats.BadRow] = []
    assert len(list(formats.read(io.BytesIO(content), "alpaca", on_bad=bad.append))) == 2
    assert "a row can't be longer" in bad[0].reason


def test_tab_separated_columns_are_read() -> None:
    content = "input\ttarget\n病人：a，b\\n医生：\tc, d\n".encode()
    assert [record.messages[1].content for record in formats.read(io.BytesIO(content))] == ["c, d"]  # type: ignore[union-attr]


def test_rows_that_mostly_fit_nothing_name_what_some_fit() -> None:
    content = LINE + b'{"instruction": 7, "output": "b"}\n' * 2
    with pytest.raises(InputError, match=r"no known format has such rows .*; alpaca fits 1 of the first 3; name one"):
        list(formats.read(io.BytesIO(content)))


def test_bad_csv_rows_are_told(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text('input,target,type\n病人：a\\n医生：,"b\nc",t\nonly,two\n病人：d\\n医生：,e,t\n', encoding="utf-8")
    bad: list[formats.BadRow] = []
    assert len(list(formats.read(path, "bianque", on_bad=bad.append))) == 2
    assert bad == [formats.BadRow(f"{path}:4", "expected 3 columns (input, target, type), found 2")]


@settings(max_examples=60, deadline=None)
@given(
    lines=st.lists(st.sampled_from([*BAD_LINES.values(), EMPTY, LINE, LINE, LINE]), max_size=8),
    clean=st.sampled_from([(), ("duplicates",), ("strip", "empty-output", "duplicates")]),
)
def test_rows_in_are_rows_out_and_rows_reported(
    lines: list[bytes], clean: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("convert")
    (folder / "in").write_bytes(LINE + b"".join(lines))
    result = convert(
        folder / "in",
        folder / "out.json",
        to="sharegpt",
        source_format="alpaca",
        skip_bad=True,
        lossy=True,
        clean=clean,
    )
    assert result.rows == 1 + len(lines) == result.decoded + result.bad
    dropped = sum(count.dropped for count in result.cleaned.values())
    assert result.records - dropped == result.written + result.refused
    assert len(json.loads((folder / "out.json").read_bytes())) == result.rows_out == result.written
    listed = (folder / "out.json.lost.jsonl").read_bytes().count(b"\n") if result.lost else 0
    assert listed == result.bad + result.refused + dropped
