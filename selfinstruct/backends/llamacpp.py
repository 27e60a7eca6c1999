"""The embedded model: llama.cpp in a child process behind an OpenAI-compatible endpoint on loopback.

    async with LlamaServer(model) as server:
        client = AsyncOpenAI(base_url=server.base_url, api_key=server.api_key)

Its own process because llama.cpp can crash or hang as a whole: a run must survive that. The child dies with
this process (its stdin ends) and never sees Ctrl-C (its own session).
"""

from __future__ import annotations

import asyncio
import http.client
import importlib.util
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from selfinstruct.errors import ModelFileError, PluginError, Unavailable
from selfinstruct.models import LocalModel

MIN_CONTEXT = 256
"""Tokens; llama.cpp gives a slot no less, and in multiples of this."""

MAX_SLOTS = 256
"""llama.cpp's own limit (LLAMA_MAX_SEQ)."""

_CHILD = Path(__file__).with_name("llamacpp_server.py")
_LOAD_SECONDS = 600.0
_CLOSE_SECONDS = 5.0
_ANSWER_SECONDS = 60.0
_TAIL_BYTES = 3000
_TAIL_LINES = 12
_OUT_OF_MEMORY = ("failed to allocate", "unable to allocate", "bad_alloc", "MemoryError")


def usable_cpus() -> int:
    """Return how many CPUs this process may use: its affinity, and the quota of its container (cgroup v2)."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return count  # no cgroup, so no quota
    return count if quota == "max" else max(1, min(count, int(quota) // int(period)))


class LlamaServer:
    """A llama.cpp server for one model; a context manager, sync or async, or `start` and `stop`.

    After start: `base_url` ends in /v1, `api_key` is random and required, `slots` requests are decoded
    together, `context` is the tokens each of them has, prompt and answer together.
    """

    def __init__(
        self,
        model: LocalModel,
        *,
        slots: int = 8,
        context: int = 1024,
        threads: int | None = None,
        log: Path | None = None,
    ) -> None:
        """Take the settings; nothing starts yet.

        Args:
            model: the model to serve.
            slots: how many requests are decoded together.
            context: tokens for each slot; llama.cpp rounds up to a multiple of 256.
            threads: of the CPU; by default as many as may be used.
            log: file that llama.cpp's messages are added to; by default one that leaves no trace.

        Raises:
            ModelFileError: `slots` or `context` do not fit the model.
        """
        trained = model.header.context_length
        if not 1 <= slots <= MAX_SLOTS:
            raise ModelFileError(f"slots is {slots}, expected 1 to {MAX_SLOTS}.")
        if context < MIN_CONTEXT:
            raise ModelFileError(f"a context of {context} tokens is too small, expected at least {MIN_CONTEXT}.")
        if trained is not None and context > trained:
            raise ModelFileError(
                f"{model.path}: the model was trained for a context of {trained:,} tokens, {context:,} were asked for. "
                "Ask for less, or use another model."
            )
        self.model = model
        self.slots = slots
        self.context = context
        self.api_key = secrets.token_urlsafe(32)
        self._threads = threads or usable_cpus()
        self._log_path = log
        self._log: IO[bytes] | None = None
        self._log_start = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._url = ""
        self._too_late = False

    @property
    def base_url(self) -> str:
        """The endpoint, for example http://127.0.0.1:40123/v1."""
        if not self._url:
            raise Unavailable(f"the llama.cpp server for {self.model.alias} is not running.")
        return f"{self._url}/v1"

    @property
    def pid(self) -> int | None:
        """The child's process id while there is one."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Start the child and wait until it answers (the model is loaded).

        Raises:
            PluginError: llama.cpp (extra `local`) is not installed, or does not run on this machine.
            ModelFileError: llama.cpp can't load the file.
            Unavailable: not enough memory, killed, or no answer in time.
        """
        assert self._process is None, "already started"
        if importlib.util.find_spec("xllamacpp") is None:
            raise PluginError(
                "the embedded model needs llama.cpp, which is not installed. Install it with: "
                "pip install 'selfinstruct[local]', or choose another model with --model."
            )
        self._log = self._open_log()
        self._log_start = os.fstat(self._log.fileno()).st_size
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(_CHILD)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            start_new_session=True,
        )
        try:
            answer = self._handshake(self._process)
            if "url" not in answer:
                raise self._failure(answer)
            self._url = answer["url"]
            self._check_slots()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End the child at once; open requests are cut off. Does nothing when there is none."""
        process, self._process, self._url = self._process, None, ""
        if process is not None:
            assert process.stdin is not None
            assert process.stdout is not None
            with suppress(BrokenPipeError):  # it is gone already
                process.stdin.close()
            try:
                process.wait(_CLOSE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            process.stdout.close()
        if self._log is not None:
            self._log.close()
            self._log = None

    def check(self) -> None:
        """Return when the child is alive.

        Raises:
            Unavailable: it ended; says how, and the end of its log.
        """
        if self._process is None:
            raise Unavailable(f"the llama.cpp server for {self.model.alias} is not running.")
        if self._process.poll() is not None:
            raise Unavailable(
                f"the llama.cpp process of {self.model.path} {self._how_it_ended()}. Nothing written is lost: "
                f"start the same command again to go on.{self._tail()}"
            )

    def __enter__(self) -> LlamaServer:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    async def __aenter__(self) -> LlamaServer:
        starting = asyncio.ensure_future(asyncio.to_thread(self.start))
        try:
            await asyncio.shield(starting)
        except asyncio.CancelledError:
            self._kill()  # so that the thread that waits for it comes back
            await asyncio.wait([starting])
            if not starting.cancelled() and starting.exception() is None:
                self.stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.stop)

    def _kill(self) -> None:
        if (process := self._process) is not None:
            process.kill()

    def _give_up(self) -> None:
        self._too_late = True
        self._kill()

    def _open_log(self) -> IO[bytes]:
        if self._log_path is None:
            return tempfile.NamedTemporaryFile(prefix="selfinstruct-llamacpp-", suffix=".log")
        self._log_path.parent.mkdir(parents=True, exist_ok=True)
        return self._log_path.open("ab")

    def _handshake(self, process: subprocess.Popen[bytes]) -> dict[str, Any]:
        assert process.stdin is not None
        assert process.stdout is not None
        settings = {
            "model": str(self.model.path),
            "alias": self.model.alias,
            "slots": self.slots,
            "context": self.context,
            "threads": self._threads,
            "key": self.api_key,  # not an argument: those are visible to every user of the machine
        }
        too_late = threading.Timer(_LOAD_SECONDS, self._give_up)
        too_late.daemon = True
        too_late.start()
        try:
            process.stdin.write(json.dumps(settings).encode() + b"\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = b""
        finally:
            too_late.cancel()
        if not line:
            process.wait()
            return {}
        answer = json.loads(line)
        assert isinstance(answer, dict)
        return answer

    def decoding(self) -> tuple[int, int]:
        """Return how many slots have a request, and how many of these are past their prompt.

        Raises:
            Unavailable: the child does not answer.
        """
        slots = [slot for slot in self._slots() if slot["is_processing"]]
        past = sum(any(token.get("n_decoded", 0) > 0 for token in slot.get("next_token", ())) for slot in slots)
        return len(slots), past

    def _slots(self) -> list[dict[str, Any]]:
        # A plain connection: loopback is not the proxy's business, whatever HTTP_PROXY says.
        connection = http.client.HTTPConnection(self._url.removeprefix("http://"), timeout=_ANSWER_SECONDS)
        try:
            connection.request("GET", "/slots", headers={"Authorization": f"Bearer {self.api_key}"})
            slots: list[dict[str, Any]] = json.load(connection.getresponse())
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise Unavailable(
                f"llama.cpp loaded {self.model.path} but does not answer: {error}.{self._tail()}"
            ) from error
        finally:
            connection.close()
        return slots

    def _check_slots(self) -> None:
        """Ask the server what it really gives: it rounds up, and would rather shrink than fail."""
        given = [slot["n_ctx"] for slot in self._slots()]
        if len(given) != self.slots or min(given) < self.context:
            raise Unavailable(
                f"llama.cpp gave {len(given)} slots of {min(given, default=0)} tokens for {self.model.path}, "
                f"{self.slots} of {self.context} were asked for. Ask for fewer slots or a smaller context."
            )
        self.context = min(given)

    def _failure(self, answer: dict[str, Any]) -> PluginError | ModelFileError | Unavailable:
        """Say why the child could not start: it told us, or it died."""
        path, tail = self.model.path, self._tail()
        if answer.get("missing"):
            return PluginError(
                f"llama.cpp is installed but does not load: {answer['error']}. Install it again: "
                f"pip install --force-reinstall 'selfinstruct[local]'.{tail}"
            )
        advice = "ask for fewer slots or a smaller context, or use a smaller model"
        evidence = f"{answer.get('error', '')}{tail}"
        if any(sign in evidence for sign in _OUT_OF_MEMORY):
            return Unavailable(
                f"not enough memory to run {path} with {self.slots} slots of {self.context} tokens: {advice}.{tail}"
            )
        if answer:
            return ModelFileError(
                f"llama.cpp can't load {path} ({answer['error']}). The file may be damaged, or need a newer llama.cpp: "
                f"pip install -U xllamacpp.{tail}"
            )
        assert self._process is not None
        if self._too_late:
            return Unavailable(f"llama.cpp did not load {path} within {_LOAD_SECONDS:.0f} s: is its disk slow?{tail}")
        ended = f"llama.cpp {self._how_it_ended()} while it loaded {path}"
        code = self._process.returncode
        if code == -getattr(signal, "SIGILL", 4):
            return PluginError(f"{ended}: this CPU lacks instructions it was built for (AVX2).{tail}")
        if code == -getattr(signal, "SIGKILL", 9):
            return Unavailable(f"{ended}. If memory is short, {advice}.{tail}")
        return Unavailable(f"{ended}. The file may be damaged, or need another llama.cpp.{tail}")

    def _how_it_ended(self) -> str:
        code = self._process.returncode if self._process else 0
        if code >= 0:
            return f"ended with status {code}"
        name = signal.Signals(-code).name
        hint = " (the system does that when memory runs out)" if name == "SIGKILL" else ""
        return f"was killed by {name}{hint}"

    def _tail(self) -> str:
        """Return the end of what llama.cpp logged since this start, as the end of a message."""
        assert self._log is not None
        with Path(self._log.name).open("rb") as log:  # a second handle: the child writes at the first one's position
            end = log.seek(0, os.SEEK_END)
            log.seek(max(self._log_start, end - _TAIL_BYTES))
            lines = log.read().decode("utf-8", errors="replace").splitlines()[-_TAIL_LINES:]
        where = f" (all of it: {self._log_path})" if self._log_path else ""
        return f"\nllama.cpp's log{where}:\n" + "\n".join(f"  {line}" for line in lines) if lines else ""
