"""How fast a run keeps an endpoint busy, against a bare asyncio + openai SDK client beside it.

    python benchmarks/endpoint.py                        everything of ours, about ten minutes
    python benchmarks/endpoint.py --quick                a few seconds, the shape of the tables only
    python benchmarks/endpoint.py --only limit,cpu       some of: limit, cpu, refusals, cost, memory, kill
    python benchmarks/endpoint.py --only refusals,kill --peer curator=V/bin/python --peer data-designer=V/bin/python

Each measurement is a process of its own against `mock_endpoint.py`, another process; the contenders take turns,
and the median over the turns is printed with the smallest and the largest. A run is measured from opening its
folder's session to its last commit, with journal (fsync), filters, novelty and commit as `selfinstruct run` has
them; interpreter start, imports and the first compilation of the novelty engine are left out on all sides. CPU
time (`process_time`, all threads) stands beside wall time, because a busy machine distorts only the latter.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import importlib.util
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

Result = dict[str, Any]
NO_KEY = "SELFINSTRUCT_BENCH_KEY"
IN_FLIGHT = 64
RATE = 5
ROWS = 100
KILL_ROWS, KILL_IN_FLIGHT = 300, 16


# ---------------------------------------------------------------------------------------------------------------------
# Workers: one measurement each, in a process of its own; one line of JSON comes back. Imports are inside, because the
# peers run in environments where our packages are not.


@dataclass(frozen=True)
class Job:
    """What a worker is asked for."""

    url: str
    requests: int
    in_flight: int
    tasks: int
    folder: Path
    pool: int


class Clock:
    """Wall and CPU seconds since it was made, and how fast things came in the middle."""

    def __init__(self) -> None:
        gc.collect()
        self._marks: list[float] = []
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def mark(self) -> None:
        """Take note that one more is done."""
        self._marks.append(time.perf_counter())

    def read(self) -> Result:
        """Return all three; the middle is from 30 to 90 % of what was done, without start and end."""
        found = {"seconds": time.perf_counter() - self._wall, "cpu": time.process_time() - self._cpu}
        first, last = (int(share * (len(self._marks) - 1)) for share in (0.3, 0.9))
        if first == last:
            return found
        return found | {"middle": (last - first) / (self._marks[last] - self._marks[first])}


def prompt() -> str:
    """Return the prompt that a first draw of the run sends, some 2.5 kB."""
    from selfinstruct.plan import plan

    planned = plan([{"recipe": "alpaca", "model": "openai/mock"}])
    return planned.recipe.preview(planned.lanes[0].brief)


async def in_turn(job: Job, ask: Callable[[int], Any]) -> Result:
    """Ask `job.requests` times with so many workers in flight; returns what the clock says."""
    numbers = iter(range(job.requests))

    async def worker() -> None:
        for number in numbers:
            await ask(number)
            clock.mark()

    clock = Clock()
    await asyncio.gather(*(worker() for _ in range(job.in_flight)))
    return clock.read() | {"requests": job.requests}


async def bare(job: Job) -> Result:
    """The baseline: the SDK as its README has it, answers read and thrown away."""
    import openai

    text = prompt()
    async with openai.AsyncOpenAI(api_key="none", base_url=job.url, max_retries=0) as client:

        async def ask(number: int) -> None:
            answer = await client.chat.completions.create(
                model="mock",
                messages=[{"role": "user", "content": text}],
                max_tokens=3072,
                temperature=1.0,
                top_p=1.0,
                seed=number,
            )
            assert answer.choices[0].message.content

        return await in_turn(job, ask)


async def client(job: Job) -> Result:
    """Our own client alone: what a run stands on, without retry, governor, journal and all above."""
    from selfinstruct.backends.openai import OpenAIBackend
    from selfinstruct.values import Capabilities, Message, Request, Sampling

    text = prompt()
    backend = OpenAIBackend(
        "mock",
        name="openai/mock",
        base_url=job.url,
        api_key="none",
        capabilities=Capabilities(),
        connections=job.in_flight,
    )

    async def ask(number: int) -> None:
        request = Request(Sampling(3072, temperature=1.0, top_p=1.0), messages=(Message("user", text),), seed=number)
        assert (await backend.complete(request)).text

    found = await in_turn(job, ask)
    await backend.aclose()
    return found


async def run(job: Job, backend: Any = None, on_commit: Callable[[int], None] | None = None, **settings: Any) -> Result:
    """A whole run of the Alpaca recipe to `requests * tasks` records."""
    from selfinstruct.errors import Stopped
    from selfinstruct.judge import Judge
    from selfinstruct.novelty import NoveltyIndex
    from selfinstruct.plan import Lane, open_run, plan
    from selfinstruct.run import Session
    from selfinstruct.stages import Stage

    class Timed(NoveltyIndex):
        """Takes the time of what the judge asks.

        It is wall time, and so never less than CPU time, whose clock is a call of the kernel: read twice a candidate
        it made novelty seem half as dear again.
        """

        spent = 0.0

        def weigh(self, text: str) -> Any:
            return self._timed(super().weigh, text)

        def add(self, id: str, text: str) -> None:
            self._timed(super().add, id, text)

        def _timed(self, call: Callable[..., Any], *arguments: str) -> Any:
            started = time.perf_counter()
            found = call(*arguments)
            self.spent += time.perf_counter() - started
            return found

    index = Timed()

    class Measured(Session):
        """A session whose pool may be full from the start."""

        def judge(self, lane: Lane, stage: Stage) -> Judge:
            return Judge(self.plan.filters(lane, stage), {"subject": index})

    planned = plan(
        [
            {
                "recipe": "alpaca",
                "model": "openai/mock",
                "target": job.requests * job.tasks,
                "tasks_per_request": job.tasks,
                "concurrency": job.in_flight,
                "filters": {"language": False},  # what the mock says is in no language
                "backend": {"base_url": job.url or None, "api_key_env": NO_KEY},
            },
            settings,
        ]
    )
    with open_run(job.folder, planned) as store:
        index.add_many((task.id, task.instruction) for task in planned.lanes[0].brief.seeds)
        index.add_many((id, record.instruction) for id, record in store.view.accepted("tasks"))  # type: ignore[union-attr]
        if job.pool:
            from novelty import generate

            index.add_many((f"p{i}", text) for i, text in enumerate(generate(job.pool)))
        warm = NoveltyIndex()  # everything is compiled or loaded before the clock starts
        warm.add_many((str(number), f"a word and {number}") for number in range(100))
        warm.weigh("a word")
        warm.add("last", "another word")
        import openai  # noqa: F401  what the client imports when it is made

        session = Measured(planned, store, lambda _: None, backend=backend)
        loop_before, clock = time.thread_time(), Clock()

        def committed(commit: Any) -> None:
            clock.mark()
            if on_commit is not None:
                on_commit(commit.number)

        with contextlib.suppress(Stopped):
            await session.work(committed)
        found = clock.read() | {"loop": time.thread_time() - loop_before, "novelty": index.spent}
        done = store.view.summary()
    return found | {"requests": done.requests, "records": done.accepted, "candidates": done.candidates}


async def run_stated(job: Job) -> Result:
    """The same where the person states a limit the server does not reach: no ramp."""
    return await run(job, rpm=1_000_000)


class Instant:
    """A backend in the run's own process that answers at once, from `texts` in turn."""

    def __init__(self, texts: Sequence[str], tasks: int) -> None:
        from selfinstruct.values import Capabilities

        self.name, self.capabilities = "openai/mock", Capabilities()
        self._texts, self._tasks, self._at = texts, tasks, 0

    async def complete(self, request: Any) -> Any:
        """Answer."""
        from selfinstruct.values import Completion, Usage

        await asyncio.sleep(0)
        blocks = []
        for n in range(4, 4 + self._tasks):
            text = self._texts[self._at % len(self._texts)]
            self._at += 1
            blocks.append(f"{n}. Instruction: {text}\n{n}. Input:\n<noinput>\n{n}. Output:\nThe answer {self._at}.\n")
        return Completion("###\n".join(blocks), "stop", Usage(600, 250), "mock")

    async def aclose(self) -> None:
        """Nothing to let go of."""


def resident() -> float:
    """Return the MB of memory this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


async def cost(job: Job) -> Result:
    """A whole run without a network: what orchestration costs by itself; the pool and what comes are of one writer."""
    from novelty import generate

    return await run(job, Instant(generate(job.pool + job.requests * job.tasks + 1000)[job.pool :], job.tasks))


async def memory(job: Job, texts: Sequence[str] | None = None) -> Result:
    """Resident MB every tenth of the draws; every candidate but the first is a duplicate, so the pool stays small."""
    from novelty import generate

    marks: list[float] = []

    def on_commit(number: int) -> None:
        if number % (job.requests // 10) == 0:
            gc.collect()
            marks.append(round(resident(), 1))

    backend = Instant(texts or generate(50), job.tasks)
    found = await run(
        job,
        backend,
        on_commit,
        target=10_000_000,
        budget={"max_requests": job.requests},
        stop={"saturation_yield": 0},
    )
    return found | {"marks": [*marks, round(resident(), 1)]}


async def memory_growing(job: Job) -> Result:
    """The same, with a record accepted in nearly every draw."""
    from novelty import generate

    return await memory(job, generate(job.requests))


PEER_PROMPT = "Write one task for a text assistant with its answer, as a numbered list of one entry. Row {row}."


async def curator(job: Job) -> Result:
    """bespokelabs-curator, a row per request, with its cache in the job's folder."""
    os.environ |= {"TELEMETRY_ENABLED": "false", "CURATOR_DISABLE_RICH_DISPLAY": "1", "OPENAI_API_KEY": "none"}
    # It counts tokens with a vocabulary that tiktoken would fetch; litellm, which it brings along, has it on board.
    litellm = importlib.util.find_spec("litellm")
    assert litellm is not None and litellm.origin is not None
    os.environ["TIKTOKEN_CACHE_DIR"] = str(Path(litellm.origin).parent / "litellm_core_utils" / "tokenizers")
    from bespokelabs import curator as package  # type: ignore[import-not-found]

    class Writer(package.LLM):  # type: ignore[misc]
        def prompt(self, row: dict[str, Any]) -> str:
            return PEER_PROMPT.format(row=row["row"])

        def parse(self, row: dict[str, Any], answer: str) -> dict[str, Any]:
            return {"row": row["row"], "text": answer}

    def work() -> int:
        limits = {"max_requests_per_minute": 100_000, "max_tokens_per_minute": 100_000_000}
        writer = Writer(
            model_name="gpt-4o-mini",
            backend="openai",
            backend_params={"base_url": job.url, "max_concurrent_requests": job.in_flight, **limits}
            | {"require_all_responses": False},
        )
        answer = writer([{"row": row} for row in range(job.requests)], working_dir=str(job.folder))
        return len(getattr(answer, "dataset", answer))

    clock = Clock()
    rows = await asyncio.to_thread(work)
    clock.mark()
    return clock.read() | {"requests": job.requests, "records": rows}


async def data_designer(job: Job) -> Result:
    """NVIDIA's data-designer, one column written by the model, artifacts in the job's folder."""
    os.environ |= {"NEMO_TELEMETRY_ENABLED": "false", "OPENAI_API_KEY": "none"}
    import data_designer.config as dd  # type: ignore[import-not-found]
    from data_designer.interface import DataDesigner  # type: ignore[import-not-found]

    provider = dd.ModelProvider(name="mock", endpoint=job.url, provider_type="openai", api_key="OPENAI_API_KEY")
    parameters = dd.ChatCompletionInferenceParams(max_parallel_requests=job.in_flight)
    model = dd.ModelConfig(alias="mock", model="mock", inference_parameters=parameters, provider="mock")
    builder = dd.DataDesignerConfigBuilder(model_configs=[model])
    builder.add_column(dd.SamplerColumnConfig(name="row", sampler_type="uuid", params=dd.UUIDSamplerParams()))
    prompt = PEER_PROMPT.replace("{row}", "{{ row }}")
    builder.add_column(dd.LLMTextColumnConfig(name="text", prompt=prompt, model_alias="mock"))

    def work() -> int:
        job.folder.mkdir(exist_ok=True)
        designer = DataDesigner(artifact_path=job.folder, model_providers=[provider])
        made = designer.create(builder, num_records=job.requests, dataset_name="rows", resume=dd.ResumeMode.IF_POSSIBLE)
        return len(made.load_dataset())

    clock = Clock()
    rows = await asyncio.to_thread(work)
    clock.mark()
    return clock.read() | {"requests": job.requests, "records": rows}


WORKERS: dict[str, Callable[[Job], Any]] = {
    "curator": curator,
    "data-designer": data_designer,
    "bare": bare,
    "client": client,
    "run": run,
    "run_stated": run_stated,
    "cost": cost,
    "memory": memory,
    "memory_growing": memory_growing,
}


# ---------------------------------------------------------------------------------------------------------------------
# The bench: starts endpoints and workers, and makes tables of what they say.


@contextlib.contextmanager
def endpoint(**options: float) -> Iterator[str]:
    """Start a mock endpoint; yields its base URL."""
    flags = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    command = [sys.executable, str(HERE / "mock_endpoint.py"), "--with-stdin", *flags]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            yield server.stdout.readline().strip()
        finally:
            server.terminate()


def told(url: str, path: str) -> Result:
    """Ask the mock for its statistics, or to forget them."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url.removesuffix("/v1") + path, timeout=10) as answer:
        found: Result = json.load(answer)
        return found


def start(name: str, job: Job, python: str = sys.executable) -> subprocess.Popen[str]:
    """Start a worker in a process of its own."""
    flags = {"worker": name, "url": job.url, "requests": job.requests, "in-flight": job.in_flight, "tasks": job.tasks}
    flags |= {"folder": job.folder, "pool": job.pool}
    command = [python, str(HERE / "endpoint.py"), *(str(p) for k, v in flags.items() for p in (f"--{k}", v))]
    kept = {name: value for name, value in os.environ.items() if not name.lower().endswith(("_proxy", "_key"))}
    kept[NO_KEY] = "none"
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=kept, start_new_session=True)


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """Yield a path for a run in a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="selfinstruct-bench-") as name:
        yield Path(name) / "run"


def measure(name: str, url: str, requests: int, *, in_flight: int = IN_FLIGHT, tasks: int = 1, pool: int = 0,
            python: str = sys.executable) -> Result:  # fmt: skip
    """Run a worker to its end; returns what it measured."""
    if url:
        told(url, "/reset")
    with folder() as path, start(name, Job(url, requests, in_flight, tasks, path, pool), python) as process:
        out, _ = process.communicate(timeout=1200)
    if process.returncode != 0:
        raise SystemExit(f"worker {name} failed with {process.returncode}")
    found: Result = json.loads(out.splitlines()[-1])
    return found | ({"endpoint": told(url, "/stats")} if url else {})


def middle(values: Sequence[float], digits: int = 2) -> str:
    """Return the median with the smallest and the largest."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a Markdown table."""
    print(f"\n### {title}\n\n| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for row in rows:
        print(f"| {' | '.join(map(str, row))} |", flush=True)


@dataclass(frozen=True)
class Contender:
    """Who takes part in a measurement of throughput: the worker, what it asks for, the Python it runs on.

    Who takes `slower` times as long for a request makes that many fewer.
    """

    label: str
    worker: str
    tasks: int = 1
    python: str = sys.executable
    slower: int = 1


def throughput(title: str, median: float, requests: int, repeats: int, contenders: Sequence[Contender]) -> None:
    """Let the contenders take turns at one endpoint; the first is the baseline of every ratio."""
    found: dict[str, list[Result]] = {each.label: [] for each in contenders}
    with contextlib.ExitStack() as stack:
        sizes = {each.tasks for each in contenders}
        urls = {tasks: stack.enter_context(endpoint(median=median, tasks=tasks)) for tasks in sizes}
        for _ in range(repeats):
            for each in contenders:
                asked = max(IN_FLIGHT, requests // each.slower)
                url = urls[each.tasks]
                found[each.label].append(measure(each.worker, url, asked, tasks=each.tasks, python=each.python))
    base = found[contenders[0].label]
    rows = []
    for label, results in found.items():
        rates = [r["requests"] / r["seconds"] for r in results]
        ratios = [rate / (b["requests"] / b["seconds"]) for rate, b in zip(rates, base, strict=True)]
        work = [1000 * r["cpu"] / r["requests"] for r in results]
        extra = [mine - 1000 * b["cpu"] / b["requests"] for mine, b in zip(work, base, strict=True)]
        steady = [r["middle"] / b["middle"] for r, b in zip(results, base, strict=True) if "middle" in r]
        rows.append(
            (label, middle(rates, 0), middle(ratios), middle(steady) if steady else "", middle(work), middle(extra))
        )
    head = ("", "requests/s", "of the baseline", "of it in the middle", "CPU ms/request", "CPU ms above the baseline")
    table(f"{title}; {requests} requests, {IN_FLIGHT} in flight, {repeats} turns", head, rows)


def refusals(repeats: int, peers: Sequence[tuple[str, str]], rows: int, bucket: float) -> None:
    """Print how long it takes to get so many answers through a limit, and how often we are refused."""
    lines = []
    for name, python in [("run", sys.executable), *peers]:
        with endpoint(rate=RATE, bucket=bucket, retry_after=3.0, median=0.02) as url:
            results = [measure(name, url, rows, in_flight=16, python=python) for _ in range(repeats)]
        seconds = [r["endpoint"]["seconds"] for r in results]
        refused = [r["endpoint"]["refused"] for r in results]
        lines.append((name, middle(seconds, 1), middle(refused, 0), middle([r["records"] for r in results], 0)))
    ideal = (rows - bucket) / RATE
    title = (
        f"{rows} answers, {RATE} requests a second out of a bucket of {bucket:.0f}, Retry-After: 3; ideal {ideal:.0f} s"
    )
    table(title, ("", "seconds, first request to last answer", "refusals", "rows"), lines)


def orchestration(repeats: int, requests: int, pools: Sequence[int]) -> None:
    """Print the CPU time of everything but the client, and novelty's share of it."""
    lines = []
    for tasks in (1, 17):
        for pool in pools:
            draws = max(20, requests // tasks)
            results = [measure("cost", "", draws, tasks=tasks, pool=pool) for _ in range(repeats)]
            work = [1000 * r["cpu"] / r["requests"] for r in results]
            novelty = [1000 * r["novelty"] / r["requests"] for r in results]
            shares = [100 * n / w for n, w in zip(novelty, work, strict=True)]
            rest = [w - n for n, w in zip(novelty, work, strict=True)]
            lines.append((tasks, f"{pool:,}", middle(work), middle(rest), middle(novelty, 3), f"{middle(shares, 1)} %"))
    head = ("candidates a request", "pool at the start", "CPU ms/request", "without novelty", "novelty", "its share")
    table(f"A run without a network, {requests} candidates, {repeats} turns", head, lines)


def memories(draws: int) -> None:
    """Print resident memory every tenth of the draws."""
    lines = []
    for name, what in (("memory", "nothing accepted"), ("memory_growing", "a record a draw")):
        found = measure(name, "", draws)
        marks = found["marks"]
        growth = (marks[-2] - marks[2]) / (len(marks) - 4) * 10_000 / (draws / 10)
        lines.append((what, found["records"], " ".join(f"{mark:.0f}" for mark in marks), f"{growth:.2f}"))
    head = ("", "accepted", "resident MB every tenth", "MB per 10,000 draws, after the second tenth")
    table(f"{draws:,} draws in one process", head, lines)


def kills(peers: Sequence[tuple[str, str]]) -> None:
    """Print what a SIGKILL half way makes a run pay again."""
    lines = []
    for name, python in [("run", sys.executable), *peers]:
        with endpoint(median=0.1) as url, folder() as path:
            job = Job(url, KILL_ROWS, KILL_IN_FLIGHT, 1, path, 0)
            with start(name, job, python) as process:
                while told(url, "/stats")["served"] < KILL_ROWS // 2 and process.poll() is None:
                    time.sleep(0.02)
                if process.poll() is not None:
                    raise SystemExit(f"worker {name} ended by itself with {process.returncode}")
                os.killpg(process.pid, signal.SIGKILL)
            before = told(url, "/stats")
            with start(name, job, python) as process:
                out, _ = process.communicate(timeout=600)
            after = told(url, "/stats")
        rows = json.loads(out.splitlines()[-1])["records"] if process.returncode == 0 else "failed"
        lines.append((name, before["served"], after["requests"], after["requests"] - KILL_ROWS, rows))
    head = ("", "answered when killed", "requests in all", "paid twice, probes included", "rows")
    table(f"{KILL_ROWS} answers, {KILL_IN_FLIGHT} in flight, SIGKILL half way, started again", head, lines)


def bench(options: argparse.Namespace) -> None:
    """Run the chosen parts."""
    quick: bool = options.quick
    repeats = 1 if quick else options.repeats
    peers = [(name, python) for name, _, python in (peer.partition("=") for peer in options.peer)]
    print(f"{os.cpu_count()} cores, Python {platform.python_version()}, {platform.system()} {platform.machine()}")
    contenders = [
        Contender("bare asyncio + openai SDK", "bare"),
        Contender("our client alone", "client"),
        Contender("run, 1 candidate a request", "run"),
        Contender("the same with --rpm stated", "run_stated"),
        Contender("run, 17 candidates a request", "run", 17, slower=8),
        *(Contender(name, name, python=python, slower=6) for name, python in peers),
    ]
    if "limit" in options.only:
        requests = 40 if quick else 3600
        median = 0.02 if quick else 0.2
        throughput(
            f"The endpoint is the limit: {1000 * median:.0f} ms at the median", median, requests, repeats, contenders
        )
    if "cpu" in options.only:
        throughput("The processor is the limit: no latency", 0.0, 40 if quick else 2400, repeats, contenders)
    if "refusals" in options.only:
        refusals(repeats, peers, 8 if quick else ROWS, 5)
        if not quick:
            refusals(repeats, [], ROWS, 20)
    if "cost" in options.only:
        orchestration(repeats, 100 if quick else 4000, (0,) if quick else (0, 52_000))
    if "memory" in options.only:
        memories(200 if quick else 100_000)
    if "kill" in options.only:
        kills(peers)


PARTS = ("limit", "cpu", "refusals", "cost", "memory", "kill")


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description="Throughput of a run against a bare client.")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(PARTS), help=", ".join(PARTS))
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PYTHON", help="curator, data-designer")
    worker = parser.add_argument_group("one measurement (used by the bench itself)")
    worker.add_argument("--worker", choices=sorted(WORKERS))
    worker.add_argument("--url", default="")
    worker.add_argument("--requests", type=int, default=100)
    worker.add_argument("--in-flight", type=int, default=IN_FLIGHT)
    worker.add_argument("--tasks", type=int, default=1)
    worker.add_argument("--pool", type=int, default=0)
    worker.add_argument("--folder", type=Path)
    options = parser.parse_args()
    if options.worker is None:
        bench(options)
        return
    job = Job(options.url, options.requests, options.in_flight, options.tasks, options.folder, options.pool)
    print(json.dumps(asyncio.run(WORKERS[options.worker](job))))


if __name__ == "__main__":
    main()
