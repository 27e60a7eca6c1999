"""From one format to another on the command line, and streaming."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click import Command
from click.testing import CliRunner, Result

from selfinstruct import formats
from selfinstruct.cli.data import convert as command
from selfinstruct.cli.data import dedup, verify
from selfinstruct.cli.inspect import list_
from selfinstruct.convert import convert
from selfinstruct.errors import ConfigError, InputError
from selfinstruct.values import Dialogue, Instance, Message, Task

DIALOGUES = [
    Dialogue((Message("user", "a"), Message("assistant", "b")), id="1"),
    Dialogue((Message("user", "c"), Message("assistant", "d")), system="Be brief.", id="2"),
    Dialogue((Message("user", "e"), Message("assistant", "f", "hm")), id="3"),
]


def source(folder: Path) -> Path:
    path = folder / "in.jsonl"
    formats.write("messages", DIALOGUES, path)
    return path


def run(*arguments: str, stdin: bytes | None = None) -> Result:
    return CliRunner().invoke(command, arguments, input=stdin)


def test_what_the_target_cannot_hold_stops_it_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"in\.jsonl:2: sharegpt can't hold system prompt; --lossy"):
        convert(source(tmp_path), tmp_path / "out.json", to="sharegpt")
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_lossy_writes_the_rest_and_lists_every_loss_with_the_whole_record(tmp_path: Path) -> None:
    result = convert(source(tmp_path), tmp_path / "out.json", to="sharegpt", lossy=True)
    assert (result.records, result.written, result.refused, result.reduced) == (3, 3, 0, 2)
    lost = [json.loads(line) for line in Path(result.lost).read_text(encoding="utf-8").splitlines()]
    assert [line["reason"] for line in lost] == ["written without system prompt", "written without thoughts"]
    assert all(line["written"] for line in lost)
    assert lost[1]["record"]["messages"][1]["thoughts"] == "hm"
    assert lost[0]["place"].endswith("in.jsonl:2")


@pytest.mark.parametrize(
    ("taken", "out", "lost"),
    [
        ("in.jsonl", "out.json", "in.jsonl"),
        ("out.json.lost.jsonl", "out.json", None),
        ("in.jsonl", "out.json", "out.json"),
        ("in.jsonl", "out.json", "link.jsonl"),
    ],
)
def test_the_list_of_what_was_lost_never_replaces_a_file_of_the_conversion(
    taken: str, out: str, lost: str | None, tmp_path: Path
) -> None:
    formats.write("messages", DIALOGUES, tmp_path / taken)
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "in.jsonl")
    before = (tmp_path / taken).read_bytes()
    side = tmp_path / lost if lost else None
    with pytest.raises(InputError, match="the list of what was found can't be the"):
        convert(tmp_path / taken, tmp_path / out, to="sharegpt", lossy=True, lost=side)
    assert (tmp_path / taken).read_bytes() == before
    assert not (tmp_path / out).exists()


@pytest.mark.parametrize(
    ("program", "more"),
    [(dedup, ("-o", "out.json", "--pairs", "in.jsonl")), (dedup, ("-o", "out", "--pairs", "out")),
     (verify, ("--findings", "./in.jsonl"))],
)  # fmt: skip
def test_what_is_listed_on_the_side_replaces_no_data(
    program: Command, more: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = source(tmp_path).read_bytes()
    with pytest.raises(InputError, match=r"what was found can't be the (?:source|target) itself"):
        CliRunner().invoke(program, ["in.jsonl", *more], catch_exceptions=False)
    assert Path("in.jsonl").read_bytes() == before


@pytest.mark.parametrize("target", ["", ".", "/", ".."])
def test_a_folder_is_no_target(target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="is a folder: name a file in it"):
        convert(source(tmp_path), target, to="messages")


def test_what_cleaning_drops_is_listed_and_counted(tmp_path: Path) -> None:
    formats.write("alpaca", [Task("x", (Instance("", y),)) for y in ("fine", "N/A", "Good.")], tmp_path / "in.json")
    result = convert(tmp_path / "in.json", tmp_path / "out.jsonl", to="messages", clean=("na-output", "strip"))
    assert (result.records, result.written) == (3, 2)
    assert (result.cleaned["na-output"].taken, result.cleaned["na-output"].dropped) == (3, 1)
    (line,) = Path(result.lost).read_text(encoding="utf-8").splitlines()
    assert json.loads(line)["reason"] == "dropped by cleaning: na-output"
    with pytest.raises(ConfigError, match='no cleaning step "na-outputs"; closest: na-output'):
        convert(tmp_path / "in.json", tmp_path / "o", to="messages", clean=("na-outputs",))


def test_the_target_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    out.write_text("before", encoding="utf-8")
    with pytest.raises(InputError):
        convert(source(tmp_path), out, to="sharegpt")
    assert out.read_text(encoding="utf-8") == "before"
    convert(source(tmp_path), out, to="sharegpt", lossy=True)
    assert len(json.loads(out.read_bytes())) == 3
    # The same file as input and target is safe too: the new one takes its place at the end.
    convert(out, out, to="belle-3.5m")
    with formats.open_records(out) as reading:
        assert [len(record.id) for record in reading] == [16, 16, 16]


def test_stdin_to_stdout_and_what_it_took_the_file_for() -> None:
    rows = b'[{"instruction": "a", "input": "", "output": "b"}]'
    result = run("-", "-", "--to", "messages", stdin=gzip.compress(rows))
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == {
        "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    }
    assert "JSON array, alpaca" in result.stderr
    assert "1 rows in, 0 bad, 1 records" in result.stderr


def test_a_kind_that_the_target_never_holds_names_the_formats_that_do(tmp_path: Path) -> None:
    rows = b'{"prompt": "a", "chosen": "b", "rejected": "c"}\n'
    with pytest.raises(
        InputError, match=r"in:1: a comparison can't become a task; formats for comparisons: belle-reward"
    ):
        (tmp_path / "in").write_bytes(rows)
        convert(tmp_path / "in", tmp_path / "out", to="alpaca", source_format="preference")


def test_the_list_of_an_earlier_conversion_does_not_stay(tmp_path: Path) -> None:
    side = tmp_path / "out.json.lost.jsonl"
    convert(source(tmp_path), tmp_path / "out.json", to="sharegpt", lossy=True)
    assert side.exists()
    convert(source(tmp_path), tmp_path / "out.json", to="messages")
    assert not side.exists()


def test_list_formats_shows_shape_keys_an_example_and_what_is_lost() -> None:
    text = CliRunner().invoke(list_, ["formats"]).stdout
    for name in formats.names():
        assert f"{name}: {formats.get(name).summary}\n  shape " in f"{text}\n"
    assert '  example              {"id": "nile_0", "conversations": [' in text
    told = {each["format"]: each for each in json.loads(CliRunner().invoke(list_, ["formats", "--json"]).stdout)}
    assert told["sharegpt"]["keys"] == [
        "id",
        "conversations",
        "conversations.from",
        "conversations.value",
        "model",
        "plugins",
        "system",
    ]
    assert told["sharegpt"]["becomes"]["thoughts"] == "only with --lossy, without thoughts"
    assert told["messages"]["becomes"]["parallel tool calls"] == "without id"
    assert told["sharegpt"]["example"][0]["conversations"][0]["from"] == "human"


def test_json_report(tmp_path: Path) -> None:
    (tmp_path / "in").write_text('{"instruction": "a", "output": "b", "text": "t"}\n{"x": 1}\n', encoding="utf-8")
    result = run(str(tmp_path / "in"), str(tmp_path / "o"), "--from", "alpaca", "--to", "dolly", "--skip-bad", "--json")
    report = json.loads(result.stdout)
    assert (report["rows"], report["decoded"], report["bad"], report["written"]) == (2, 1, 1, 1)
    assert report["ignored"] == {"text": 1}


@pytest.mark.parametrize("ending", ["json.gz", "json.zst", "parquet"])
def test_compressed_and_parquet_targets_read_back(ending: str, tmp_path: Path) -> None:
    pytest.importorskip({"parquet": "pyarrow"}.get(ending, "gzip"))
    out = tmp_path / f"x.{ending}"
    for _ in range(2):
        report = formats.write("messages", DIALOGUES, out)
        assert report.written == 3
        back = list(formats.read(out))
        assert [(d.system, d.messages) for d in back] == [(d.system, d.messages) for d in DIALOGUES]  # type: ignore[union-attr]


def test_dedup_keeps_the_first(tmp_path: Path) -> None:
    texts = ["Name three rivers in Africa.", "Name three rivers of Africa.", "Write a haiku about snow."]
    formats.write("alpaca", [Task(text, (Instance("", "x"),)) for text in texts], tmp_path / "in.json")
    result = CliRunner().invoke(dedup, [str(tmp_path / "in.json"), "-o", str(tmp_path / "out.json")])
    assert result.exit_code == 0, result.output
    assert [record.instruction for record in formats.read(tmp_path / "out.json")] == [texts[0], texts[2]]  # type: ignore[union-attr]
    assert "3 records, 1 too near" in result.stderr


def test_dedup_names_the_row_that_breaks_a_rule_and_the_way_on(tmp_path: Path) -> None:
    rows = [{"instruction": text, "input": "", "output": said} for text, said in (("One.", "1"), ("Two.", ""))]
    (tmp_path / "in").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with pytest.raises(
        InputError, match=r"in:2: an output is empty; selfinstruct convert FILE OUT --to alpaca --lossy"
    ):
        CliRunner().invoke(dedup, [str(tmp_path / "in"), "-o", str(tmp_path / "out")], catch_exceptions=False)


def test_plugins_bring_formats(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from dataclasses import replace\nfrom selfinstruct import formats\n"
        "MINE = replace(formats.get('alpaca'), name='mine', indent=1)\n",
        encoding="utf-8",
    )
    formats.write(f"{tmp_path / 'mine.py'}:MINE", [Task("a", (Instance("", "b"),))], tmp_path / "out.json")
    assert (tmp_path / "out.json").read_bytes().startswith(b'[\n {\n  "instruction"')


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from Linux's /proc")
@pytest.mark.parametrize("array", [True, False])
def test_a_large_file_needs_little_memory(array: bool, tmp_path: Path) -> None:
    # 120 MB in, and far less than that in memory: the peak is measured in a process of its own.
    text = "A sentence of some length, repeated. " * 60
    row = json.dumps({"instruction": "Say it again.", "input": "", "output": text})
    with (tmp_path / "in").open("w", encoding="utf-8") as stream:
        stream.write("[" if array else "")
        for index in range(50_000):
            stream.write((",\n" if index and array else "") + row + ("" if array else "\n"))
        stream.write("]" if array else "")
    program = (
        "import re, sys\n"
        "from pathlib import Path\n"
        "from selfinstruct.convert import convert\n"
        "result = convert(sys.argv[1], sys.argv[2], to='messages')\n"
        "assert result.written == 50_000\n"
        "print(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1])\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "in"), str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert int(found.stdout) < 90 * 1024
