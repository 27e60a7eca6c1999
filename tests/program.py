"""The program for tests: in this process, where only what it does and says counts, or in real ones of its own."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from click.testing import CliRunner

from selfinstruct.cli import main
from selfinstruct.store import RunView
from selfinstruct.values import Task
from tests.backends.endpoint import Endpoint

CANARY = "sk-canary-5f1c9e77"
RPM = 1_000_000_000
"""Requests a minute, stated: no run feels its way to the pace of a server, which takes seconds each time."""


def environment(**more: str) -> dict[str, str]:
    """Return what a process needs of this one's variables, and a key that must turn up nowhere."""
    kept = {key: value for key, value in os.environ.items() if key in {"PATH", "HOME", "LANG", "TMPDIR", "SYSTEMROOT"}}
    return kept | {"PYTHONUNBUFFERED": "1", "OPENAI_API_KEY": CANARY, "SELFINSTRUCT_OFFLINE": "1"} | more


def line(*arguments: object) -> list[str]:
    """Return the command of a process."""
    return [sys.executable, "-m", "selfinstruct", *map(str, arguments)]


def selfinstruct(*arguments: object, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command line to its end in this process, which has everything imported already."""
    words, wanted = [*map(str, arguments)], environment() if env is None else env
    code: object = None
    with CliRunner().isolation(env=dict.fromkeys(os.environ) | dict(wanted)) as (out, err, _):
        try:
            main(words)
        except SystemExit as left:
            code = left.code
        sys.stdout.flush()
        said, talk = out.getvalue().decode(), err.getvalue().decode()
    assert isinstance(code, int)
    return subprocess.CompletedProcess(words, code, said, talk)


def apart(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a command line to its end in a process of its own, which knows nothing of what went before."""
    return subprocess.run(line(*arguments), capture_output=True, text=True, env=environment(), timeout=240, check=False)


def start(*arguments: object) -> subprocess.Popen[str]:
    """Start a command line in a process of its own."""
    return subprocess.Popen(
        line(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    )


def fork(
    *arguments: object, env: Mapping[str, str] | None = None, streams: Path | None = None, limit: int | None = None
) -> ForkServerProcess:
    """Start a command line in a process forked from one that has imported the program.

    `streams` is a folder for the files `out` and `err`; `limit` is the most bytes a file may have.
    """
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(_IMPORTED)
    words, wanted = [*map(str, arguments)], environment() if env is None else env
    process = server.Process(target=_run, args=(words, wanted, streams, limit))
    process.start()
    return process


def forked(
    *arguments: object, env: Mapping[str, str] | None = None, limit: int | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command line to its end in a process that has imported the program and done nothing yet."""
    with tempfile.TemporaryDirectory() as folder:
        process = fork(*arguments, env=env, streams=Path(folder), limit=limit)
        process.join(150)
        code = process.exitcode
        if code is None:
            process.kill()
            process.join()
        process.close()
        said, talk = (Path(folder, name).read_text(encoding="utf-8") for name in ("out", "err"))
    assert code is not None, f"not done in 150 s: {talk}"
    return subprocess.CompletedProcess([*map(str, arguments)], code, said, talk)


_IMPORTED = [
    __name__,
    "pytest",  # the main module of this process, which each child looks at
    "openai.resources.chat.completions",
    "openai.resources.completions",
    "py3langid.langid",
    "selfinstruct.backends.openai",
    "selfinstruct.backends.providers",
    "selfinstruct.cli.language",
    "selfinstruct.cli.run",
    "selfinstruct.novelty.engine_numpy",
]


def _run(words: list[str], variables: Mapping[str, str], streams: Path | None, limit: int | None) -> None:
    os.environ.clear()
    os.environ.update(variables)
    if streams is not None:
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(streams / name, os.O_WRONLY | os.O_CREAT), number)
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    main(words)


def kill(
    *arguments: object, server: Endpoint, at: int, pause: float = 0.0, env: Mapping[str, str] | None = None
) -> None:
    """Start a command line and kill its process at work: `pause` seconds after the server's request number `at`."""
    process = fork(*arguments, env=env)
    wait_for(lambda: len(server.requests) >= at or not process.is_alive(), 120)
    time.sleep(pause)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL, f"it was over before it was killed: exit code {process.exitcode}"
    process.close()


def run_options(endpoint: Endpoint, folder: Path, target: int = 40, **more: object) -> list[str]:
    """Return the options of a run; its novelty engine is the one that needs nothing compiled or loaded."""
    options = {"-m": "openai/test", "--base-url": endpoint.base_url, "-o": folder, "-n": target, "--rpm": RPM} | {
        f"--{key.replace('_', '-')}": value for key, value in more.items()
    }
    return [*(str(part) for pair in options.items() for part in pair), "--set", "novelty.engine=numpy"]


def dataset(folder: Path) -> list[tuple[str, str, str]]:
    """Return a run's tasks of one instance: identity, instruction and output."""
    with RunView.open(folder) as view:
        tasks = [(id, record) for id, record in view.accepted("tasks") if isinstance(record, Task)]
        return [(id, task.instruction, task.instances[0].output) for id, task in tasks]


def wait_for(condition: Callable[[], object], seconds: float = 60) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)
