"""The command line against a real server over a real socket; what is killed, or interrupted, are real processes."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from selfinstruct.errors import ConfigError
from selfinstruct.plan import plan
from selfinstruct.store import RunView
from tests.backends.endpoint import Endpoint, Reply, Seen, chat, error
from tests.model import model
from tests.program import CANARY, apart, dataset, kill, run_options, selfinstruct, start, wait_for


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    with Endpoint(model()) as server:
        yield server


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, str, str]]:
    """What 120 records look like when nothing happens."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    with Endpoint(model()) as server:
        done = selfinstruct("run", "alpaca", *run_options(server, folder, 120))
    assert done.returncode == 0, done.stderr
    return dataset(folder)


@pytest.mark.slow
def test_a_run_reaches_its_target_exactly_and_says_where(endpoint: Endpoint, tmp_path: Path) -> None:
    # With no option but the target: the novelty engine is the fastest, the server's pace is felt for.
    address = ["-m", "openai/test", "--base-url", endpoint.base_url, "-o", tmp_path / "r"]
    done = apart("run", "alpaca", *address, "-n", 40)
    assert done.returncode == 0, done.stderr
    assert len(dataset(tmp_path / "r")) == 40
    assert "done: 40 of 40 records" in done.stderr
    assert "selfinstruct export" in done.stderr
    assert done.stdout == "", "stdout is for data"
    status = json.loads(apart("status", tmp_path / "r", "--json").stdout)
    assert status["state"] == "done"
    assert (status["target"], status["accepted"]) == (40, 40)
    assert status["requests"] == len(endpoint.requests)
    assert set(status) >= {"rejected", "prompt_tokens", "completion_tokens"}


@pytest.mark.slow
@pytest.mark.parametrize("concurrency", [1, 8, 64])
def test_concurrency_and_order_of_arrival_change_nothing(
    concurrency: int, undisturbed: list[tuple[str, str, str]], tmp_path: Path
) -> None:
    with Endpoint(model(delay=lambda rng: rng.random() * 0.05)) as server:
        done = selfinstruct("run", "alpaca", *run_options(server, tmp_path / "r", 120, concurrency=concurrency))
    assert done.returncode == 0, done.stderr
    assert dataset(tmp_path / "r") == undisturbed


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_fifty_kills_at_random_moments_change_nothing_and_pay_nothing_twice(
    undisturbed: list[tuple[str, str, str]], tmp_path: Path
) -> None:
    rng, kills, hits, quick = random.Random(5), int(os.environ.get("SELFINSTRUCT_KILLS", "50")), 0, 0

    def pace(_: random.Random) -> float:
        """Answer so few requests before each kill that the last one still hits a run at work."""
        nonlocal quick
        if hits < kills and quick >= 24 * (hits + 1) / kills:
            return 30.0
        quick += 1
        return 0.05

    with Endpoint(model(delay=pace)) as server:
        options = run_options(server, tmp_path / "r", 120, concurrency=4)
        while hits < kills:
            seen = len(server.requests)
            kill("run", "alpaca", "-q", *options, server=server, at=seen + 1, pause=rng.random() * 0.3)
            hits += 1
        assert apart("run", "alpaca", *options).returncode == 0
        arrived = [request.body.decode() for request in server.requests if not request.dropped]
    assert dataset(tmp_path / "r") == undisturbed
    database = sqlite3.connect(tmp_path / "r" / "run.sqlite")
    sends, lost = database.execute("SELECT count(*), sum(state = 'lost') FROM sends").fetchone()
    completions = database.execute("SELECT count(*) FROM completions").fetchone()[0]
    database.close()
    assert sends == completions + lost, "a send is neither answered nor accounted for as lost"
    assert lost <= 5 * kills, "more was lost than can be in flight, or on record and about to leave"
    assert len(arrived) <= completions + lost


@pytest.mark.slow
def test_a_second_process_is_refused_and_status_reads_while_the_first_works(tmp_path: Path) -> None:
    with Endpoint(model(delay=lambda _: 0.2)) as server:
        options = run_options(server, tmp_path / "r", 400, concurrency=2)
        first = start("run", "alpaca", *options)
        wait_for(lambda: (tmp_path / "r" / "run.sqlite").exists() and len(server.requests) > 3)
        second = apart("run", "alpaca", *options)
        status = json.loads(selfinstruct("status", tmp_path / "r", "--json").stdout)
        first.send_signal(signal.SIGINT)
        _, talk = first.communicate(timeout=60)
    assert second.returncode == 3, second.stderr
    assert "another process" in second.stderr
    assert str(first.pid) in second.stderr
    assert status["state"] == "running"
    assert first.returncode == 130, talk
    assert "selfinstruct resume" in talk


@pytest.mark.slow
def test_ctrl_c_keeps_what_is_under_way_and_resume_goes_on(
    undisturbed: list[tuple[str, str, str]], tmp_path: Path
) -> None:
    resumed_at: list[int] = []
    with Endpoint(model(delay=lambda _: 0.0 if resumed_at else 0.3)) as server:
        process = start("run", "alpaca", *run_options(server, tmp_path / "r", 120, concurrency=4))
        wait_for(lambda: len(server.requests) >= 6)
        process.send_signal(signal.SIGINT)
        _, talk = process.communicate(timeout=60)
        assert process.returncode == 130, talk
        sent = len(server.requests)
        resumed_at.append(sent)
        with RunView.open(tmp_path / "r") as view:
            summary = view.summary()
        assert summary.completions == sent, "a request under way was thrown away"
        assert summary.state == "interrupted"
        resumed = selfinstruct("resume", tmp_path / "r")
        assert resumed.returncode == 0, resumed.stderr
        bodies = [request.body for request in server.requests]
    assert len(bodies) == len(set(bodies)), "a request was paid twice"
    assert dataset(tmp_path / "r") == undisturbed


@pytest.mark.slow
def test_ctrl_c_twice_stops_at_once(tmp_path: Path) -> None:
    with Endpoint(model(delay=lambda _: 60)) as server:
        process = start("run", "alpaca", *run_options(server, tmp_path / "r"))
        wait_for(lambda: len(server.requests) >= 2)
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        assert process.poll() is None, "the first Ctrl-C did not wait for what is under way"
        process.send_signal(signal.SIGINT)
        _, talk = process.communicate(timeout=20)
    assert process.returncode == 130, talk
    assert "Traceback" not in talk
    assert "selfinstruct resume" in talk


@pytest.mark.slow
@pytest.mark.parametrize(
    ("reply", "code", "words"),
    [
        (error(401, "Incorrect API key provided", code="invalid_api_key"), 4, "OPENAI_API_KEY"),
        (error(404, "The model does not exist", code="model_not_found"), 4, "test"),
        (error(429, "You exceeded your current quota", code="insufficient_quota"), 4, "quota"),
    ],
)
def test_what_only_the_person_can_mend_stops_the_run_at_the_first_answer(
    reply: Reply, code: int, words: str, tmp_path: Path
) -> None:
    with Endpoint(reply) as server:
        done = selfinstruct("run", "alpaca", *run_options(server, tmp_path / "r", concurrency=1))
        assert len(server.requests) == 1
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_budget_stops_the_run_resumably(undisturbed: list[tuple[str, str, str]], tmp_path: Path) -> None:
    with Endpoint(model()) as server:
        done = selfinstruct("run", "alpaca", *run_options(server, tmp_path / "r", 120, max_requests=7))
        assert done.returncode == 5, done.stderr
        assert len(server.requests) == 7
        again = selfinstruct("resume", tmp_path / "r")
        assert again.returncode == 5, "a resumed run keeps its caps"
        assert len(server.requests) == 7
        assert selfinstruct("resume", tmp_path / "r", "--max-requests", 10_000).returncode == 0
    assert dataset(tmp_path / "r") == undisturbed


@pytest.mark.slow
def test_another_config_in_the_same_folder_is_refused_and_named(endpoint: Endpoint, tmp_path: Path) -> None:
    options = run_options(endpoint, tmp_path / "r", 10)
    assert selfinstruct("run", "alpaca", *options).returncode == 0
    requests = len(endpoint.requests)
    other = selfinstruct("run", "alpaca", *options, "--set", "novelty.threshold=0.5")
    assert other.returncode == 3
    assert "novelty.threshold" in other.stderr
    knobs = ["--concurrency", "2", "--rpm", "1000", "--set", "backend.timeout=9m"]
    same = selfinstruct("run", "alpaca", *options, *knobs)
    assert same.returncode == 0, same.stderr
    assert len(endpoint.requests) == requests, "a finished run asked again"


@pytest.mark.slow
@pytest.mark.parametrize("style", ["list", "structured", "stepwise"])
def test_every_style_of_the_recipe(style: str, endpoint: Endpoint, tmp_path: Path) -> None:
    done = selfinstruct("run", "alpaca", *run_options(endpoint, tmp_path / "r", 12), "--set", f"style={style}")
    assert done.returncode == 0, done.stderr
    assert len(dataset(tmp_path / "r")) == 12


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [["alpaca", "-l", "zh"], ["belle"]])
def test_chinese(recipe: list[str], endpoint: Endpoint, tmp_path: Path) -> None:
    done = selfinstruct("run", *recipe, *run_options(endpoint, tmp_path / "r", 30))
    assert done.returncode == 0, done.stderr
    assert all("\u4e00" <= instruction[0] <= "\u9fff" for _, instruction, _ in dataset(tmp_path / "r"))
    prompt = endpoint.requests[0].json["messages"][0]["content"]
    assert "指令:" in prompt
    assert "<无输入>" in prompt


@pytest.mark.slow
def test_the_key_is_nowhere(tmp_path: Path) -> None:
    def echo(seen: Seen) -> Reply:
        # A server that repeats the key in its complaint, as some do.
        return error(401, f"Incorrect API key provided: {seen.headers.get('authorization', '')}")

    with Endpoint(echo) as server:
        done = apart("run", "alpaca", *run_options(server, tmp_path / "r"))
    with Endpoint(model()) as server:
        more = apart("resume", tmp_path / "r", "--base-url", server.base_url)
        assert server.requests[0].headers["authorization"] == f"Bearer {CANARY}"
    assert more.returncode == 0, more.stderr
    assert CANARY not in done.stderr + done.stdout + more.stderr + more.stdout
    for path in (tmp_path / "r").rglob("*"):
        if path.is_file():
            assert CANARY.encode() not in path.read_bytes(), path


@pytest.mark.parametrize(
    ("recipe", "input", "words"),
    [
        ("baize", None, "--seeds: baize starts from topics"),
        ("vicuna", "rows.jsonl", "--seeds: vicuna works through --input"),
        ("alpaca", "rows.jsonl", "--seeds: alpaca works through --input"),
    ],
)
def test_seeds_that_would_not_be_shown_are_refused(recipe: str, input: str | None, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        plan([{"recipe": recipe, "model": "openai/m", "seeds": "own.jsonl", "input": input}])


@pytest.mark.slow
def test_a_bad_line_says_what_was_expected(tmp_path: Path) -> None:
    cases: list[tuple[list[object], int, str]] = [
        (["run", "alpacca"], 2, "'alpaca'"),
        (["run", "alpaca", "--set", "noveltee.threshold=1"], 2, "novelty"),
        (["run", "alpaca", "-m", "openai"], 2, "PROVIDER/MODEL"),
        (["run", "alpaca", "-l", "not a tag"], 2, "BCP 47"),
        (["run", "alpaca", "--seeds", tmp_path / "none.jsonl"], 2, "none.jsonl"),
        (["run", "baize", "--seeds", tmp_path / "none.jsonl"], 2, "--seeds: baize starts from topics"),
        (["run", "alpaca", "-n", "0"], 2, "target"),
        (["run", "alpaca", "-m", "openai/x", "--set", "filters.refusall=false"], 2, "refusal"),
        (["rum"], 2, "'run'"),
        (["resume", tmp_path / "none"], 3, "no run here"),
        (["status", tmp_path / "none"], 3, "no run here"),
    ]
    for arguments, code, words in cases:
        done = selfinstruct(*arguments)
        assert done.returncode == code, (arguments, done.stderr)
        assert words in done.stderr, (arguments, done.stderr)
        assert "Traceback" not in done.stderr


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom selfinstruct.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as e:\n    assert e.code == 0, e.code\n"
        "slow = {'openai', 'numpy', 'rich', 'pydantic', 'httpx2', 'asyncio', 'sqlite3', 'jinja2', 'yaml'}\n"
        "heavy = slow & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "selfinstruct run alpaca" in done.stdout


@pytest.mark.slow
def test_a_pilot_forecasts_and_stops(endpoint: Endpoint, tmp_path: Path) -> None:
    done = selfinstruct("run", "alpaca", *run_options(endpoint, tmp_path / "r", 500, pilot=12))
    assert done.returncode == 5, done.stderr
    assert len(endpoint.requests) == 12
    assert "90 % intervals" in done.stderr
    ahead = json.loads(selfinstruct("status", tmp_path / "r", "--json").stdout)["forecast"]
    assert ahead["tokens"]["low"] < ahead["tokens"]["middle"] < ahead["tokens"]["high"]
    again = selfinstruct("resume", tmp_path / "r", "--pilot", "3")
    assert again.returncode == 5
    assert len(endpoint.requests) == 15


@pytest.mark.slow
def test_money_is_capped_and_an_unknown_price_is_not_guessed(endpoint: Endpoint, tmp_path: Path) -> None:
    unknown = selfinstruct("run", "alpaca", *run_options(endpoint, tmp_path / "r", max_cost="1"))
    assert unknown.returncode == 2
    assert "budget.prices" in unknown.stderr
    assert not endpoint.requests
    prices = tmp_path / "prices.yaml"
    prices.write_text("as_of: 2026-11-01\nmodels:\n  openai/test: {prompt: 100, completion: 200}\n")
    # Each request is answered with 10 + 5 tokens: $0.002, but it may need all of its max_tokens: 300 more.
    more = ["--set", f"budget.prices={prices}", "--set", "sampling.max_tokens=300"]
    done = selfinstruct("run", "alpaca", *run_options(endpoint, tmp_path / "r", 500, max_cost="0.5"), *more)
    assert done.returncode == 5, done.stderr
    assert "--max-cost" in done.stderr
    status = json.loads(selfinstruct("status", tmp_path / "r", "--json").stdout)
    assert float(status["spent_cost"]) == pytest.approx(0.002 * len(endpoint.requests))
    assert float(status["spent_cost"]) <= 0.5


@pytest.mark.slow
def test_trace_shows_all_of_it(endpoint: Endpoint, tmp_path: Path) -> None:
    assert selfinstruct("run", "alpaca", *run_options(endpoint, tmp_path / "r", 20)).returncode == 0
    id, instruction, output = dataset(tmp_path / "r")[0]  # of a draw judged to its end; the last one's may not be
    plain = selfinstruct("trace", tmp_path / "r", id)
    assert plain.returncode == 0, plain.stderr
    origin = json.loads(selfinstruct("trace", tmp_path / "r", id, "--json").stdout)
    assert origin["candidate"]["record"]["instruction"] == instruction
    assert origin["exchanges"][0]["request"]["messages"][0]["content"].endswith("4. Instruction:")
    assert output in origin["exchanges"][0]["completion"]["text"]
    assert len(origin["demonstrations"]) == 3
    assert len(origin["siblings"]) == 3
    assert {each["verdict"] for each in origin["verdicts"]} == {"passed"}
    assert len(origin["verdicts"]) > 10
    missing = selfinstruct("trace", tmp_path / "r", "tasks-999-0")
    assert missing.returncode == 2
    assert "tasks-17-3" in missing.stderr


@pytest.mark.slow
def test_a_run_that_dries_up_says_so(tmp_path: Path) -> None:
    known = "4. Instruction: Describe the {} in the old town square.\n4. Output: It has stood there for ages."
    with Endpoint(
        lambda seen: chat(known.format(("brass bell", "oak tree planted by pupils")[seen.number % 2]))
    ) as server:
        stops = ["--set", "stop.saturation_draws=20"]
        done = selfinstruct("run", "alpaca", *run_options(server, tmp_path / "r", 50, concurrency=2), *stops)
        assert len(server.requests) < 100
    assert done.returncode == 5, done.stderr
    assert "saturated" in done.stderr
    assert len(dataset(tmp_path / "r")) == 2


@pytest.mark.slow
def test_draws_that_all_fail_stop_the_run(tmp_path: Path) -> None:
    with Endpoint(error(400, "this server likes no request")) as server:
        done = selfinstruct("run", "alpaca", *run_options(server, tmp_path / "r"), "--set", "stop.failed_draws=5")
        assert len(server.requests) < 40
    assert done.returncode == 4, done.stderr
    assert "this server likes no request" in done.stderr


@pytest.mark.slow
def test_time_is_noted_while_nothing_is_answered(tmp_path: Path) -> None:
    with Endpoint(model(delay=lambda _: 60.0)) as server:
        process = start("run", "alpaca", *run_options(server, tmp_path / "r", 50, concurrency=2))
        wait_for(lambda: len(server.requests) >= 2)
        with RunView.open(tmp_path / "r") as view:
            wait_for(lambda: view.summary().seconds > 0)
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_time_runs_out_while_nothing_is_answered(endpoint: Endpoint, tmp_path: Path) -> None:
    # What a first run imports and compiles shall not count as time of this one.
    assert selfinstruct("run", "alpaca", *run_options(endpoint, tmp_path / "first", 1)).returncode == 0
    with Endpoint(model(delay=lambda _: 4.0)) as server:
        done = selfinstruct("run", "alpaca", *run_options(server, tmp_path / "r", 50, concurrency=2, max_time="3s"))
        # Whatever was asked is answered a second after the time is up.
        asked = len(server.requests)
    assert 0 < asked <= 2
    assert done.returncode == 5, done.stderr
    assert "--max-time" in done.stderr
    with RunView.open(tmp_path / "r") as view:
        assert view.summary().completions == asked, "what was under way is paid, and kept"
