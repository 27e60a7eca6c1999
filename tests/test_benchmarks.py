"""The throughput benchmark runs and prints its tables, and what it found slow stays mended; no time is asserted."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from selfinstruct import prompts
from selfinstruct.backends.governor import Governed
from selfinstruct.languages import load_pack
from selfinstruct.parsing import parse_tasks
from selfinstruct.store.view import LAST_ACCEPTED
from selfinstruct.store.writer import SCHEMA
from selfinstruct.testing import Scripted
from selfinstruct.values import Message, Request, Sampling
from tests.backends.virtual import run

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
in_a_checkout = pytest.mark.skipif(not BENCHMARKS.exists(), reason="benchmarks are only in a checkout")
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@contextmanager
def mock(*options: str) -> Iterator[str]:
    command = [sys.executable, str(BENCHMARKS / "mock_endpoint.py"), "--with-stdin", *options]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            yield server.stdout.readline().strip()
        finally:
            server.terminate()


def ask(url: str, text: str) -> Any:
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": text}]}).encode()
    with DIRECT.open(urllib.request.Request(f"{url}/chat/completions", body), timeout=10) as answer:
        return json.load(answer)


def stats(url: str) -> dict[str, float]:
    with DIRECT.open(url.removesuffix("/v1") + "/stats", timeout=10) as answer:
        found: dict[str, float] = json.load(answer)
        return found


@pytest.mark.slow
@in_a_checkout
def test_the_endpoint_answers_with_new_tasks_and_counts_what_was_asked_again() -> None:
    with mock("--tasks", "3") as url:
        first, second, again = ask(url, "one"), ask(url, "two"), ask(url, "one")
        assert again == first
        assert stats(url) | {"seconds": 0} == {
            "requests": 3,
            "served": 3,
            "refused": 0,
            "most_in_flight": 1,
            "asked_again": 1,
            "distinct": 2,
            "seconds": 0,
        }
    texts = [answer["choices"][0]["message"]["content"] for answer in (first, second)]
    found = [parse_tasks(text, load_pack("en"), truncated=False) for text in texts]
    instructions = [c.record.instruction for list_ in found for c in list_ if c.record is not None]  # type: ignore[union-attr]
    assert len(set(instructions)) == 6
    assert min(map(len, texts)) > 800


@pytest.mark.slow
@in_a_checkout
def test_the_endpoint_refuses_beyond_its_bucket_and_says_when_to_come_back() -> None:
    with mock("--rate", "0.001", "--bucket", "2", "--retry-after", "3") as url:
        ask(url, "one")
        ask(url, "two")
        with pytest.raises(urllib.error.HTTPError) as refused:
            ask(url, "three")
        with refused.value as answer:
            assert (answer.code, answer.headers["Retry-After"]) == (429, "3")
        assert stats(url)["refused"] == 1


@pytest.mark.slow
@in_a_checkout
@pytest.mark.parametrize(
    ("part", "rows"),
    [
        ("cpu", ["bare asyncio + openai SDK", "our client alone", "run, 1 candidate a request", "the same with --rpm"]),
        ("refusals", ["run"]),
        ("cost", ["1", "17"]),
        ("memory", ["nothing accepted", "a record a draw"]),
        ("kill", ["run"]),
    ],
)
def test_a_quick_run_prints_every_table(part: str, rows: list[str]) -> None:
    command = [sys.executable, str(BENCHMARKS / "endpoint.py"), "--quick", "--only", part]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    for row in rows:
        assert f"| {row}" in done.stdout
    if part == "kill":
        assert done.stdout.rstrip().endswith("| 300 |"), "every row is there after the second start"
    if part == "refusals":
        assert done.stdout.rstrip().endswith("| 8 (8 to 8) |")


# What the benchmark found


def test_a_commit_does_not_read_every_candidate_of_the_run() -> None:
    """Without its index this query made a commit at 20,000 candidates a thousand times slower."""
    connection = sqlite3.connect(":memory:")
    try:
        connection.executescript(SCHEMA)
        plan = connection.execute(f"EXPLAIN QUERY PLAN {LAST_ACCEPTED}", ("tasks",)).fetchall()
    finally:
        connection.close()
    assert ["COVERING INDEX candidates_accepted" in row[3] for row in plan] == [True]


def test_a_prompt_is_compiled_once() -> None:
    """Compiling it for each draw cost more processor time than all else in the draw."""
    prompt = prompts.Prompt(Path("a.j2"), "en", "{{ word }} once, and no more")
    prompt.render(word="Compiled")
    before = prompts._compiled.cache_info().misses
    assert prompt.render(word="Rendered") == "Rendered once, and no more"
    assert prompts._compiled.cache_info().misses == before


def seconds(requests: int, **limits: Any) -> float:
    """Return the virtual seconds that so many requests take on an endpoint that answers at once."""

    async def main() -> float:
        governed = Governed(Scripted(lambda _: "ok"), concurrency=64, **limits)
        asked = [Request(Sampling(8), messages=(Message("user", "hi"),), nonce=str(n)) for n in range(requests)]
        await asyncio.gather(*map(governed.complete, asked))
        return asyncio.get_running_loop().time()

    return run(main())


def test_answers_shorten_the_start() -> None:
    assert seconds(20) > 2.0, "a small bucket is approached as gently as ever"
    assert seconds(1000) - seconds(100) < 1.0, "once it is passed, the pace follows the answers"


def test_a_limit_that_is_stated_needs_no_gentle_start() -> None:
    assert seconds(60, rpm=6000) == pytest.approx(0.59, abs=0.01)
