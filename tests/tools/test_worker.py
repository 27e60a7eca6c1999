"""The computing processes as they are: limits of time and memory, kills, deaths, many jobs at once."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from selfinstruct.errors import PluginError
from selfinstruct.tools import open_tools, worker
from selfinstruct.tools.grammar import parse_expression, parse_system
from selfinstruct.tools.worker import Workers

pytestmark = pytest.mark.slow

ENDLESS = "x^7+y^5+z^3+x*y*z=1; x^5*y^3+z^7=3; x^3+y^7*z^2=5"
"""A system whose Gröbner basis takes longer than anybody waits."""


def calculation(text: str) -> dict[str, Any]:
    return {"job": "calculate", "tree": parse_expression(text)}


def equations(text: str) -> dict[str, Any]:
    system = parse_system(text)
    sides = [(each.left, each.right) for each in system.equations]
    return {"job": "solve", "equations": sides, "names": system.names, "unknowns": system.unknowns}


@asynccontextmanager
async def workers(count: int = 1, **limits: Any) -> AsyncIterator[Workers]:
    made = Workers(count, **limits)
    try:
        yield made
    finally:
        await made.aclose()


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(main())


def alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def gone(pid: int, within: float = 60.0) -> bool:
    end = time.monotonic() + within
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.05)
    return not alive(pid)


linux = pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc, or needs the limits of Linux")


def test_a_process_is_started_once_and_kept() -> None:
    async def main() -> None:
        async with workers() as made:
            assert made.started == 0
            for number in range(20):
                assert (await made.compute(calculation(f"{number}+1")))["text"] == str(number + 1)
            assert made.started == 1

    run(main)


def test_an_endless_job_is_ended_by_the_parent_while_the_loop_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "PATIENCE", 0.05)

    async def main() -> None:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.02)
                ticks += 1

        async with workers(seconds=20.0) as made:
            await made.compute(calculation("1"))  # the import is not the job's time
            ticking = asyncio.ensure_future(tick())
            started = time.monotonic()
            answer = await made.compute(equations(ENDLESS))
            took = time.monotonic() - started
            ticking.cancel()
            assert answer["reason"] == "out of time"
            assert took < 60
            assert ticks > 3
            assert (await made.compute(calculation("2")))["text"] == "2"
            assert made.started == 2

    run(main)


def test_jobs_run_side_by_side_and_no_more_than_allowed() -> None:
    async def main() -> None:
        async with workers(2) as made:
            answers = await asyncio.gather(*(made.compute(calculation(f"{number}^2")) for number in range(40)))
            assert [answer["text"] for answer in answers] == [str(number**2) for number in range(40)]
            assert made.started == 2

    run(main)


def test_a_quick_job_does_not_wait_for_an_endless_one() -> None:
    async def main() -> None:
        async with workers(2, seconds=100.0) as made:
            await asyncio.gather(made.compute(calculation("1")), made.compute(calculation("2")))
            endless = asyncio.ensure_future(made.compute(equations(ENDLESS)))
            await asyncio.sleep(0.1)
            assert (await asyncio.wait_for(made.compute(calculation("3")), 60))["text"] == "3"
            assert not endless.done()
            endless.cancel()
            await asyncio.gather(endless, return_exceptions=True)

    run(main)


@linux
def test_a_cancelled_job_takes_its_process_along() -> None:
    async def main() -> None:
        async with workers(seconds=60.0) as made:
            await made.compute(calculation("1"))
            pid = made._idle[0].pid
            job = asyncio.ensure_future(made.compute(equations(ENDLESS)))
            await asyncio.sleep(0.3)
            job.cancel()
            with pytest.raises(asyncio.CancelledError):
                await job
            assert gone(pid)
            assert (await made.compute(calculation("6*7")))["text"] == "42"

    run(main)


@linux
def test_a_job_that_takes_too_much_memory_is_ended() -> None:
    async def main() -> None:
        async with workers(megabytes=256) as made:
            answer = await made.compute({"job": "calculate", "tree": ["sum", *[["constant", "pi"]] * 2_000_000]})
            assert answer["reason"] == "out of memory", answer
            assert (await made.compute(calculation("1+1")))["text"] == "2"

    run(main)


@linux
def test_the_systems_own_limit_of_processor_time_holds_without_the_parent() -> None:
    """The parent may be stopped while a child computes; the child's limit is its own."""

    async def main() -> None:
        async with workers(seconds=1.0) as made:
            await made.compute(calculation("1"))
            made._patience = 600.0  # the parent's clock is out of the game
            assert (await made.compute(equations(ENDLESS)))["reason"] == "out of time"

    run(main)


@linux
def test_a_killed_process_is_a_failed_job_and_the_next_one_works() -> None:
    async def main() -> None:
        async with workers(seconds=60.0) as made:
            await made.compute(calculation("1"))
            pid = made._idle[0].pid
            job = asyncio.ensure_future(made.compute(equations(ENDLESS)))
            await asyncio.sleep(0.3)
            os.kill(pid, signal.SIGKILL)
            assert (await job)["reason"] == "crashed"
            os.kill((await _idle(made)).pid, signal.SIGKILL)
            await asyncio.sleep(0.2)
            assert (await made.compute(calculation("1+1"))).get("reason") == "crashed"  # it had died while idle
            assert (await made.compute(calculation("1+1")))["text"] == "2"

    run(main)


async def _idle(made: Workers) -> Any:
    await made.compute(calculation("1"))
    return made._idle[0]


@linux
@pytest.mark.parametrize("busy", [False, True])
def test_a_process_does_not_outlive_its_parent(busy: bool, tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import asyncio
            from tests.tools.test_worker import ENDLESS, calculation, equations
            from selfinstruct.tools.worker import Workers

            async def main():
                made = Workers(1, seconds=300)
                await made.compute(calculation("1"))
                print(made._idle[0].pid, flush=True)
                if {busy}:
                    await made.compute(equations(ENDLESS))
                await asyncio.sleep(300)

            asyncio.run(main())
            """
        )
    )
    root = Path(__file__).resolve().parents[2]
    parent = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(root)}
    )
    try:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        time.sleep(0.5)
        assert alive(pid)
        parent.kill()
        assert gone(pid)
    finally:
        parent.kill()
        parent.wait()
        if parent.stdout:
            parent.stdout.close()


@pytest.mark.parametrize(
    "script",
    [
        "print('x' * 1_000_000)",
        "print('no json')",
        "raise SystemExit(3)",
        "import os; os.abort()",
    ],
)
def test_a_process_that_talks_nonsense_is_a_failed_job(
    script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = tmp_path / "child.py"
    child.write_text(f"import sys\nsys.stdin.readline()\nprint('{{}}', flush=True)\nsys.stdin.readline()\n{script}\n")
    monkeypatch.setattr(worker, "_CHILD", child)

    async def main() -> None:
        async with workers() as made:
            assert (await made.compute(calculation("1")))["reason"] == "crashed"

    run(main)


def test_a_process_that_does_not_start_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child = tmp_path / "child.py"
    child.write_text("raise SystemExit(3)\n")
    monkeypatch.setattr(worker, "_CHILD", child)

    async def main() -> None:
        async with workers() as made:
            with pytest.raises(PluginError, match=r"status 3 before it was ready.*import sympy"):
                await made.compute(calculation("1"))

    run(main)


HOSTILE = [
    "9**9**9**9",
    "(((9^999)^999)^999)^999",
    "100000!",
    "comb(10^12, 10^11)",
    "exp(exp(exp(exp(9))))",
    "__import__('os').system('touch hacked')",
    "open('hacked', 'w').write('x')",
    "().__class__.__bases__[0].__subclasses__()",
    "eval('1')",
    "[0]*10**9",
    "'a'*10**9",
    "1" + "+1" * 5000,
    "(" * 1000 + "1" + ")" * 1000,
    "-" * 1000 + "1",
    "sqrt(" * 38 + "2" + ")" * 38,
    "sin(" * 38 + "1" + ")" * 38,
    "2^(1/3)+" * 150 + "1",
    "*".join(f"(sqrt({number})+1)" for number in range(2, 60)),
    "1/(" * 38 + "sqrt(2)+1" + ")" * 38,
    "tan(10^300)",
    "gcd(10^9000, 7^9000)",
    "round(pi, 100)",
    "root(10^9000+1, 999)",
    "log(10^9000+1, 3)",
    "atan(" * 38 + "10^400" + ")" * 38,
    "\ud800",
    "\x00",
]


def test_hostile_text_is_bounded_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    async def main() -> None:
        limits = {"processes": 2, "seconds": 3.0}
        async with open_tools([{"calculator": limits}, {"solver": limits}]) as (calculator, solver):
            calls = [calculator.call({"expression": text}) for text in HOSTILE]
            calls += [solver.call({"equation": f"x = {text}"}) for text in HOSTILE]
            calls += [solver.call({"equation": f"x^2 = {text}; y = x + 1"}) for text in HOSTILE[-12:]]
            started = time.monotonic()
            results = await asyncio.gather(*calls)
            took = time.monotonic() - started
            assert took < 240
            for result in results:
                assert len(result.text) <= 4000
                assert bool(result.reason) == result.failed
                assert result.failed or result.values
            assert {result.reason for result in results if result.failed} <= {
                "too large", "too long", "too deep", "syntax", "unknown function", "unknown name", "out of time",
                "hidden character", "undefined", "cannot solve", "not an equation", "crashed",
            }  # fmt: skip
            assert "crashed" not in {result.reason for result in results}

    run(main)
    assert list(tmp_path.iterdir()) == []
