"""The parent's side of `algebra`: long-lived processes that compute, killed when they overrun and started anew.

Each is started when it is first needed and does one job at a time; importing sympy, about a second, is paid once. Its
memory and processor time are limited by the system, its wall-clock time from here.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from selfinstruct.errors import PluginError

PATIENCE = 6.0
"""Wall-clock seconds for each second of processor time."""

_CHILD = Path(__file__).with_name("algebra.py")
_START_SECONDS = 120.0  # sympy has a thousand files: a cold disk, a busy machine
_CLOSE_SECONDS = 2.0
_LONGEST_LINE = 1 << 18
_OUT_OF_TIME = -getattr(signal, "SIGXCPU", 0)

Process = asyncio.subprocess.Process
Answer = Mapping[str, Any]


class Workers:
    """Up to `count` computing processes, of one event loop; `compute` waits for a free one.

    `started` counts the processes so far.
    """

    def __init__(self, count: int = 2, *, seconds: float = 10.0, megabytes: int = 512) -> None:
        """Take the limits of a job; no process is started yet.

        Args:
            count: how many jobs run at a time.
            seconds: processor time of a job. The wall clock is given `PATIENCE` times that, so that whether a job ends
                in time does not depend on what else the machine does; where the system limits no processor time
                (Windows), it is the only limit.
            megabytes: address space of a process; sympy itself takes about 100 (not enforced on Windows and macOS).

        Raises:
            PluginError: sympy (extra `tools`) is not installed.
        """
        if importlib.util.find_spec("sympy") is None:
            raise PluginError("the calculator and the equation solver need: pip install 'selfinstruct[tools]'")
        self.started = 0
        self._settings = {"seconds": seconds, "memory": megabytes << 20}
        self._seconds = seconds
        self._patience = PATIENCE * seconds
        self._idle: list[Process] = []
        self._free = asyncio.Semaphore(count)
        self._closed = False

    async def compute(self, job: Mapping[str, Any]) -> Answer:
        """Return the answer to a job, `{"reason": ..., "detail": ...}` when it overran a limit.

        Raises:
            PluginError: the process does not start.
        """
        async with self._free:
            process = self._idle.pop() if self._idle else await self._start()
            line, patience = b"", 0.0
            try:
                async with asyncio.timeout(self._patience):
                    line = await _exchange(process, job)
                patience = _CLOSE_SECONDS
            except TimeoutError:
                return {"reason": "out of time", "detail": f"more than {self._patience:g} s"}
            finally:
                # Without an answer the process is at work or broken; also when this task is cancelled.
                answer = _answer(line)
                if answer is None or answer.get("last") or self._closed:
                    await _end(process, patience)
                else:
                    self._idle.append(process)
            if answer is None and process.returncode == _OUT_OF_TIME:
                return {"reason": "out of time", "detail": f"more than {self._seconds:g} s of processor time"}
            return answer or {"reason": "crashed", "detail": ""}

    async def aclose(self) -> None:
        """End the processes; one at work ends with its job."""
        self._closed = True
        while self._idle:
            await _end(self._idle.pop(), _CLOSE_SECONDS)

    async def _start(self) -> Process:
        # A fixed hash seed: the order in which sympy goes through sets decides between equal forms of a result.
        environment = {**os.environ, "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"}
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            str(_CHILD),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
            limit=_LONGEST_LINE,
        )
        self.started += 1
        ready = b""
        try:
            async with asyncio.timeout(_START_SECONDS):
                ready = await _exchange(process, self._settings)
        except TimeoutError:
            raise PluginError(f"sympy was not loaded in {_START_SECONDS:.0f} s: is the disk slow?") from None
        finally:
            if not ready:
                # A moment's patience: what has ended by itself is to tell its own status, not that it was killed.
                await _end(process, 1.0)
        if not ready:
            raise PluginError(
                f"the computing process ended with status {process.returncode} before it was ready. "
                f"If this fails too, install sympy again: {sys.executable} -c 'import sympy'"
            )
        return process


def _answer(line: bytes) -> Answer | None:
    try:
        answer = json.loads(line)
    except ValueError:
        return None
    return answer if isinstance(answer, dict) and answer.keys() & {"text", "reason"} else None


async def _exchange(process: Process, message: Mapping[str, Any]) -> bytes:
    """Send a line and return the next one, empty when the process has ended or says too much."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(message).encode() + b"\n")
    try:
        await process.stdin.drain()
        return await process.stdout.readline()
    except (ConnectionError, ValueError):  # it is gone; its line is too long
        return b""


async def _end(process: Process, patience: float) -> None:
    """End a process: it goes when its stdin is closed, and is killed when it has not after `patience` seconds."""
    assert process.stdin is not None
    try:
        process.stdin.close()
        if patience:
            with suppress(TimeoutError):
                await asyncio.wait_for(_ended(process), patience)
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            await _ended(process)


async def _ended(process: Process) -> None:
    # Reading on: asyncio does not see the end of a process while its output is backed up.
    assert process.stdout is not None
    while await process.stdout.read(1 << 16):
        pass
    await process.wait()
