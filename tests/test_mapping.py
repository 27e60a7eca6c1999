"""Working through an input: each row is asked once, wherever it stands."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.backends.endpoint import Endpoint, Reply, Seen, chat, error
from tests.model import model
from tests.program import RPM, dataset, selfinstruct

pytestmark = pytest.mark.slow
ROWS = [
    f"Explain in plain words what a {thing} is for." for thing in "lantern compass loom ferry kettle quarry".split()
]


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    with Endpoint(model()) as server:
        yield server


def write(path: Path, instructions: Sequence[str]) -> Path:
    rows = [{"instruction": each, "input": "", "output": "old"} for each in instructions]
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n", encoding="utf-8")
    return path


def options(endpoint: Endpoint, folder: Path, data: Path) -> list[str]:
    address = ["-m", "openai/test", "--base-url", endpoint.base_url, "-o", str(folder), "--input", str(data)]
    return [*address, "--rpm", str(RPM)]


def test_every_row_is_answered_in_order_and_old_outputs_are_not_kept(endpoint: Endpoint, tmp_path: Path) -> None:
    done = selfinstruct("run", "alpaca", *options(endpoint, tmp_path / "r", write(tmp_path / "in.jsonl", ROWS)))
    assert done.returncode == 0, done.stderr
    assert [instruction for _, instruction, _ in dataset(tmp_path / "r")] == ROWS
    assert all(output != "old" for *_, output in dataset(tmp_path / "r"))
    assert len(endpoint.requests) == len(ROWS)


@pytest.mark.parametrize("command", ["run", "resume"])
def test_rows_put_in_taken_out_and_moved_cost_only_what_is_new(
    command: str, endpoint: Endpoint, tmp_path: Path
) -> None:
    data = write(tmp_path / "in.jsonl", ROWS)
    flags = options(endpoint, tmp_path / "r", data)
    assert selfinstruct("run", "alpaca", *flags).returncode == 0
    first = {instruction: output for _, instruction, output in dataset(tmp_path / "r")}
    again = ["run", "alpaca", *flags] if command == "run" else ["resume", tmp_path / "r"]
    new = "Say why a lighthouse turns its lamp."
    changes = [
        ([ROWS[0], new, *ROWS[1:]], 1),
        (list(reversed([*ROWS, new])), 0),
        ([*ROWS[:2], *ROWS[4:]], 0),
        ([*ROWS, *ROWS[:1]], 1),
    ]
    for instructions, cost in changes:
        write(data, instructions)
        before = len(endpoint.requests)
        done = selfinstruct(*again)
        assert done.returncode == 0, done.stderr
        assert len(endpoint.requests) - before == cost, instructions
        now = dataset(tmp_path / "r")
        assert [instruction for _, instruction, _ in now] == instructions
        assert all(first.get(each, output) == output for _, each, output in now[: len(instructions) - 1])


def test_a_row_the_endpoint_refuses_is_recorded_and_the_others_go_on(tmp_path: Path) -> None:
    def picky(seen: Seen) -> Reply:
        text = seen.json["messages"][0]["content"]
        return error(400, "not this one") if "loom" in text else chat(f"It serves people well: {text}")

    with Endpoint(picky) as server:
        flags = options(server, tmp_path / "r", write(tmp_path / "in.jsonl", ROWS))
        done = selfinstruct("run", "alpaca", *flags, "--set", "filters.output_repeats_instruction=false")
        assert done.returncode == 0, done.stderr
        assert len(server.requests) == len(ROWS)
    assert len(dataset(tmp_path / "r")) == len(ROWS) - 1
    assert "not this one" in done.stderr


def test_a_target_above_the_rows_is_said_to_be_out_of_reach(endpoint: Endpoint, tmp_path: Path) -> None:
    flags = options(endpoint, tmp_path / "r", write(tmp_path / "in.jsonl", ROWS))
    done = selfinstruct("run", "alpaca", *flags, "-n", "50")
    assert done.returncode == 5
    assert "used up" in done.stderr
    fewer = selfinstruct("run", "alpaca", *flags[:5], tmp_path / "s", *flags[6:], "-n", "2")
    assert fewer.returncode == 0, fewer.stderr
    assert len(dataset(tmp_path / "s")) == 2


def test_refilter_and_replay_know_rows(endpoint: Endpoint, tmp_path: Path) -> None:
    flags = options(endpoint, tmp_path / "r", write(tmp_path / "in.jsonl", ROWS))
    assert selfinstruct("run", "alpaca", *flags).returncode == 0
    paid = len(endpoint.requests)
    same = selfinstruct("replay", tmp_path / "r", "-o", tmp_path / "again")
    assert same.returncode == 0, same.stderr
    cut = selfinstruct("refilter", tmp_path / "r", "--set", "filters.instruction_length.minimum=99")
    assert cut.returncode == 0, cut.stderr
    assert dataset(tmp_path / "r") == []
    assert len(endpoint.requests) == paid


def test_a_recipe_without_input_says_so(endpoint: Endpoint, tmp_path: Path) -> None:
    data = tmp_path / "in.jsonl"
    data.write_text("not data\n", encoding="utf-8")
    bad = selfinstruct("run", "alpaca", *options(endpoint, tmp_path / "r", data))
    assert bad.returncode == 2
    assert "in.jsonl" in bad.stderr
