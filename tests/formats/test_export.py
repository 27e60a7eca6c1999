"""The accepted records of a run, written for a trainer."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from selfinstruct import formats
from selfinstruct.cli.data import export
from selfinstruct.errors import ConfigError, RunNotFound
from selfinstruct.store import Commit, RunStore
from selfinstruct.testing import ONE_STAGE
from selfinstruct.values import Candidate, Decision, Instance, Rejection, Task


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with two accepted records and a rejected one."""
    folder = tmp_path / "run"
    tasks = [
        Task("Name three colours.", (Instance("", "Red, blue, green."),)),
        Task("Drop me.", (Instance("", "x"),)),
        Task("数到三。", (Instance("从一开始", "一、二、三。"),), is_classification=False),
    ]
    decisions = tuple(
        Decision(f"tasks-0-{n}", Candidate(task), Rejection("length", "short") if n == 1 else None)
        for n, task in enumerate(tasks)
    )
    store = RunStore.create(
        folder, config={"recipe": "alpaca"}, config_yaml="recipe: alpaca\n", fingerprint={}, seeds={}, notes=ONE_STAGE
    )
    with store:
        asyncio.run(store.commit(Commit("tasks", 0, "done", decisions)))
    return folder


def exported(folder: Path, *more: str) -> Result:
    return CliRunner().invoke(export, [str(folder), *more], catch_exceptions=False)


def test_the_default_is_the_recipes_own_format_in_the_runs_folder(run: Path) -> None:
    result = exported(run)
    assert result.exit_code == 0
    rows = json.loads((run / "export" / "alpaca.json").read_bytes())
    assert rows == [
        {"instruction": "Name three colours.", "input": "", "output": "Red, blue, green."},
        {"instruction": "数到三。", "input": "从一开始", "output": "一、二、三。"},
    ]
    assert "2 records in 2 rows" in result.stderr
    assert "1 without is_classification" in result.stderr


@pytest.mark.parametrize(
    "name", ["belle", "sharegpt", "messages", "llama-factory", "deepspeed-chat", "colossalai", "moss"]
)
def test_a_run_of_tasks_goes_to_every_trainer(name: str, run: Path) -> None:
    assert exported(run, "--format", name).exit_code == 0
    (path,) = [path for path in (run / "export").iterdir() if path.name != "dataset_info.json"]
    found = [path] if path.is_file() else sorted(path.iterdir())
    assert sum(len(list(formats.read(part, name))) for part in found) == 2


def test_stdout_is_data_and_ids_are_kept(run: Path) -> None:
    result = exported(run, "--format", "sharegpt", "-o", "-")
    assert [row["id"] for row in json.loads(result.stdout)] == ["tasks-0-0", "tasks-0-2"]
    report = json.loads(exported(run, "--format", "belle", "--json").stdout)
    assert (report["written"], report["refused_count"]) == (2, 0)
    assert report["labels"]["the line between instruction and input"] == 1


@pytest.mark.parametrize(
    ("name", "reason"),
    [("preference", "a task can't become a comparison"), ("self-instruct-instructions", "can't hold instances")],
)
def test_a_format_that_holds_no_record_replaces_nothing(name: str, reason: str, run: Path, tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text("before", encoding="utf-8")
    with pytest.raises(ConfigError, match=rf"{name}: .*{reason}"):
        exported(run, "--format", name, "-o", str(tmp_path / "x.jsonl"))
    assert (tmp_path / "x.jsonl").read_text(encoding="utf-8") == "before"


def test_a_record_that_is_left_out_is_named_with_the_reason(run: Path) -> None:
    store = RunStore.open(run)
    bare = [Task(f"Say {n}.", (Instance("", " "),)) for n in range(7)]
    decisions = tuple(Decision(f"tasks-1-{n}", Candidate(task), None) for n, task in enumerate(bare))
    with store:
        asyncio.run(store.commit(Commit("tasks", 1, "done", decisions)))
    told = exported(run).stderr
    assert "2 records in 2 rows" in told
    assert (
        "  7 not written: an output is empty (tasks-1-0, tasks-1-1, tasks-1-2, tasks-1-3, tasks-1-4 and 2 more, "
        "listed by --json)"
    ) in told
    assert [id for id, _ in json.loads(exported(run, "--json").stdout)["refused"]] == [f"tasks-1-{n}" for n in range(7)]
    side = run / "export" / "alpaca.json.lost.jsonl"
    assert f"listed with reasons: {side}" in told
    listed = [json.loads(line) for line in side.read_text(encoding="utf-8").splitlines()]
    assert listed == [{"place": f"tasks-1-{n}", "reason": "an output is empty", "written": False} for n in range(7)]


def test_the_side_file_of_an_earlier_export_goes_when_nothing_is_lost_any_more(run: Path, tmp_path: Path) -> None:
    side = tmp_path / "out.json.lost.jsonl"
    side.write_text("old", encoding="utf-8")
    exported(run, "-o", str(tmp_path / "out.json"))
    assert not side.exists()


def test_no_run(tmp_path: Path) -> None:
    with pytest.raises(RunNotFound):
        exported(tmp_path)
