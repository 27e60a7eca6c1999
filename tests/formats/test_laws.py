"""The laws of every format, over records and files that nobody would think of."""

from __future__ import annotations

import io
import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from selfinstruct import formats
from selfinstruct.errors import InputError
from selfinstruct.formats import scan, shape
from selfinstruct.formats.writing import own_records
from selfinstruct.values import Record
from tests.formats.records import HELD, any_dialogue, any_record, plain, prose, unicode

NAMES = formats.names()
FLAT = [name for name in NAMES if not formats.get(name).directory and formats.get(name).layout != "parquet"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)


def written(name: str, records: list[Record], **options: Any) -> tuple[bytes, formats.Report]:
    target = io.BytesIO()
    report = formats.write(name, records, target, **options)
    return target.getvalue(), report


def test_every_format_has_its_law() -> None:
    # oasst and oasst-messages hold trees; test_oasst.py has their laws.
    assert set(NAMES) - set(HELD) == {"oasst", "oasst-messages"}


@pytest.mark.parametrize("name", HELD)
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_what_a_format_holds_reads_back_equal(name: str, data: st.DataObject) -> None:
    record = data.draw(HELD[name])
    format = formats.get(name)
    assert [back for row in format.encode(record) for back in format.decode(row)] == [record]
    if name in FLAT:
        content, report = written(name, [record])
        assert (report.refused, report.reduced, report.labels) == ([], [], {})
        assert list(formats.read(io.BytesIO(content), name)) == [record]


def test_rows_that_are_arrays_are_no_parquet_rows(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    report = formats.write("colossalai-lora", [formats.get("colossalai-lora").example], tmp_path / "x.parquet")
    assert report.refused == [(0, "a Parquet row has named columns, here a row is an array: write JSON lines")]


@settings(max_examples=100, deadline=None)
@given(
    opening=st.sampled_from(["The conversation between human and AI assistant.\n", "", "Hello there.\n"]),
    pairs=st.lists(st.tuples(prose, prose), min_size=1, max_size=3),
    tail=st.sampled_from(["", "\n[|Human|] "]),
    topic=unicode,
)
def test_baize_rows_are_written_again_as_they_were(
    opening: str, pairs: list[tuple[str, str]], tail: str, topic: str
) -> None:
    body = "\n".join(f"[|Human|] {asked}\n[|AI|] {said}" for asked, said in pairs)
    row = {"topic": topic, "input": opening + body + tail}
    assert formats.get("baize").encode(formats.get("baize").decode(row)[0]) == [row]


@settings(max_examples=150, deadline=None)
@given(
    turns=st.lists(
        st.tuples(
            prose,
            prose | st.just("None"),
            st.sampled_from(['Calculate("1")', 'Search("a"), Solve("b")', "None", "Non", "Count()", '1. Search("a")']),
            st.sampled_from([" None", "\nNone\n", " Image generated successfully.", "\nCalculate(\"1\") => '1'\n"]),
            prose | prose.map(" {}".format),
        ),
        min_size=1,
        max_size=3,
    ),
    plugins=st.booleans(),
    identity=st.integers(0, 99) | plain,
)
def test_moss_rows_are_written_again_as_they_were(
    turns: list[tuple[str, str, str, str, str]], plugins: bool, identity: int | str
) -> None:
    chat = {
        f"turn_{number}": {
            "Human": f"<|Human|>: {asked}<eoh>\n",
            "Inner Thoughts": f"<|Inner Thoughts|>: {thoughts}<eot>\n",
            "Commands": f"<|Commands|>: {commands}<eoc>\n",
            "Tool Responses": f"<|Results|>:{results}<eor>\n",
            "MOSS": f"<|MOSS|>: {said}<eom>\n",
        }
        for number, (asked, thoughts, commands, results, said) in enumerate(turns, 1)
    }
    system = "You are MOSS.\n- Inner thoughts: enabled.\n" if plugins else "You are MOSS.\n"
    row = {"conversation_id": identity, "meta_instruction": system, "num_turns": len(chat), "chat": chat}
    (record,) = formats.get("moss").decode(row)
    assert formats.get("moss").encode(record) == [row]
    content, report = written("moss", [record])
    assert (report.written, json.loads(content)) == (1, row)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_what_a_format_holds_reads_back_equal_from_parquet(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    pytest.importorskip("pyarrow")
    columns = [name for name in sorted(HELD) if not formats.get(name).directory and not formats.get(name).list_rows]
    name = data.draw(st.sampled_from(columns))
    records = data.draw(st.lists(HELD[name], min_size=1, max_size=4))
    path = tmp_path_factory.getbasetemp() / "held.parquet"
    refused: list[formats.Refusal] = []
    report = formats.write(name, records, path, on_refused=refused.append)
    left = {refusal.index for refusal in refused}
    # What is refused has other types than the rows before it: numbers where they have text, say.
    assert 0 not in left
    assert report.written + len(left) == len(records)
    kept = [record for index, record in enumerate(records) if index not in left]
    back = list(formats.read(path, name))
    assert [replace(record, id="") for record in back] == [replace(record, id="") for record in kept]


@settings(max_examples=150, deadline=None)
@given(name=st.sampled_from(FLAT), records=st.lists(any_record, max_size=3))
def test_any_record_is_written_whole_or_refused(name: str, records: list[Record]) -> None:
    refused: list[formats.Refusal] = []
    target = io.BytesIO()
    report = formats.write(name, records, target, on_refused=refused.append)
    assert report.written + report.refused_count == len(records)
    assert len(refused) == report.refused_count
    left = {refusal.index for refusal in refused}
    kept = [record for index, record in enumerate(records) if index not in left]
    assert report.written == len(kept)
    if not report.rows:
        return
    back = list(formats.read(io.BytesIO(target.getvalue()), name))
    format = formats.get(name)
    alone = itertools.count()
    for _, each in itertools.groupby(kept, format.group_records or (lambda record: next(alone))):
        group = list(each)
        rows = format.rows([part for record in group for part in shape.split(record, format.kinds)])
        own, back = back[: len(format.records(rows))], back[len(format.records(rows)) :]
        for record in group:
            loss = shape.compare(record, own_records(record, own) if len(group) > 1 else own)
            assert (loss.corrupt, loss.content) == ("", ())
    assert back == []


@settings(max_examples=80, deadline=None)
@given(name=st.sampled_from(FLAT), record=any_record)
def test_lossy_drops_parts_and_says_so_but_never_changes_a_turn(name: str, record: Record) -> None:
    content, report = written(name, [record], lossy=True)
    assert report.written + report.refused_count == 1
    if report.written:
        loss = shape.compare(record, list(formats.read(io.BytesIO(content), name)))
        assert loss.corrupt == ""
        assert bool(loss.content) == bool(report.reduced)


@settings(max_examples=150, deadline=None)
@given(name=st.sampled_from(NAMES), row=JSON)
def test_a_row_that_is_none_of_ours_is_an_input_error(name: str, row: Any) -> None:
    format = formats.get(name)
    assert isinstance(int(format.matches(row)), int)
    try:
        records = format.decode([row] if format.group_rows else row)
    except InputError as error:
        assert str(error)
    else:
        assert records


def mutated(row: Any, data: st.DataObject) -> Any:
    """Put any JSON value somewhere into a row."""
    if isinstance(row, dict) and row and data.draw(st.integers(0, 3)):
        key = data.draw(st.sampled_from(sorted(row)))
        return row | {key: mutated(row[key], data)}
    if isinstance(row, list) and row and data.draw(st.booleans()):
        place = data.draw(st.integers(0, len(row) - 1))
        return [*row[:place], mutated(row[place], data), *row[place + 1 :]]
    return data.draw(JSON)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(name=st.sampled_from(NAMES), data=st.data())
def test_a_damaged_row_is_read_or_an_input_error(name: str, data: st.DataObject) -> None:
    format = formats.get(name)
    rows = format.encode([format.example] if format.group_records else format.example)
    row = mutated(json.loads(json.dumps(rows[-1])), data)
    format.matches(row)
    try:
        records = format.decode([*rows[:-1], row] if format.group_rows else row)
    except InputError as error:
        assert str(error)
    else:
        assert records


@pytest.mark.parametrize("name", NAMES)
def test_the_example_is_held_whole_and_its_keys_are_known(name: str) -> None:
    format = formats.get(name)
    rows = format.encode([format.example] if format.group_records else format.example)
    back = format.decode(rows) if format.group_rows else [record for row in rows for record in format.decode(row)]
    assert back == [format.example]
    assert all(format.matches(row) for row in rows)
    if name != "koala":
        assert all(set(row) <= set(format.keys) for row in rows if isinstance(row, dict))


@pytest.mark.parametrize("name", FLAT)
def test_equal_records_make_equal_bytes_and_sniffing_finds_them(name: str, tmp_path: Path) -> None:
    format = formats.get(name)
    content, _ = written(name, [format.example])
    assert content == written(name, [format.example])[0]
    path = tmp_path / "x.bin"
    path.write_bytes(content)
    if format.list_rows:
        # One line that is an array of messages could be an array of rows: it asks.
        return
    with formats.open_records(path) as reading:
        assert list(reading) == [format.example]
        assert name in {reading.format.name, *reading.alike} or name in [m.format.name for m in formats.sniff(content)]


@settings(max_examples=50, deadline=None)
@given(rows=st.lists(JSON, max_size=4), indent=st.none() | st.integers(0, 4))
def test_the_scanner_reads_what_json_reads(rows: list[Any], indent: int | None) -> None:
    document = json.dumps(rows, indent=indent, ensure_ascii=False).encode(errors="surrogatepass")
    for chunk in (1, 2, 3, 7, 1 << 20):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(scan, "CHUNK", chunk)
            found = list(scan.values(io.BytesIO(document)))
        assert [item.value for item in found] == rows
        assert not any(item.fault for item in found)


@settings(max_examples=100, deadline=None)
@given(content=st.binary(max_size=60) | st.text('[]{},:"\\ \n\t1aé', max_size=40).map(lambda text: text.encode()))
def test_the_scanner_ends_on_anything(content: bytes) -> None:
    for chunk in (1, 5, 1 << 20):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(scan, "CHUNK", chunk)
            items = list(scan.values(io.BytesIO(content)))
        assert len(items) <= len(content) + 1
    assert len(list(scan.lines(io.BytesIO(content)))) <= content.count(b"\n") + 1


@settings(max_examples=50, deadline=None)
@given(rows=st.lists(st.builds(lambda t: t, prose), min_size=1, max_size=4))
def test_an_array_is_what_json_dump_writes(rows: list[str]) -> None:
    from selfinstruct.values import Instance, Task

    content, _ = written("alpaca", [Task(text, (Instance("", text),)) for text in rows])
    expected = [{"instruction": text, "input": "", "output": text} for text in rows]
    assert content.decode() == json.dumps(expected, indent=4, ensure_ascii=False) + "\n"
    assert json.loads(written("baize", [])[0]) == []


@settings(max_examples=50, deadline=None)
@given(record=any_dialogue)
def test_a_dialogue_loses_nothing_to_itself(record: Record) -> None:
    assert shape.compare(record, [record]) == shape.Loss()
