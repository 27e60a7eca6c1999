"""The child process that serves a GGUF model with llama.cpp on loopback (OpenAI-compatible).

Started by `selfinstruct.backends.llamacpp` as a plain script: it imports nothing of this package. The first
line on stdin is its settings as JSON, its first line on stdout is `{"url": ...}` or `{"error": ..., "missing": ...}`.
It lives for as long as stdin stays open, so it can't outlive its parent however that ends.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import traceback
from typing import Any


def main() -> None:
    """Serve until stdin ends."""
    # Whatever native code prints goes to the log; the parent alone reads the real stdout.
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    line = sys.stdin.buffer.readline()
    if not line:
        os._exit(0)  # the parent died before it said anything
    settings = json.loads(line)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # OpenMP's idle threads spin. By default so long that one busy neighbour on two cores costs a factor of 5
    # to 13; libgomp reads this when it is loaded, so it comes before the import.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    try:
        import xllamacpp
    except ImportError as error:
        _say(answer, {"error": str(error), "missing": True})
        os._exit(3)
    try:
        server = xllamacpp.Server(_parameters(xllamacpp, settings))
    except (RuntimeError, ValueError, MemoryError) as error:
        _say(answer, {"error": f"{type(error).__name__}: {error}", "missing": False})
        os._exit(3)
    _say(answer, {"url": server.listening_address})
    threading.Event().wait()


def _parameters(xllamacpp: Any, settings: dict[str, Any]) -> Any:
    parameters = xllamacpp.CommonParams()
    parameters.model.path = settings["model"]
    parameters.model_alias = {settings["alias"]}
    parameters.n_parallel = settings["slots"]
    parameters.n_ctx = settings["slots"] * settings["context"]  # of all slots together
    parameters.cpuparams.n_threads = settings["threads"]
    parameters.cpuparams_batch.n_threads = settings["threads"]
    # The same seed must give the same text whatever else is in the batch, or a resumed run would differ from an
    # undisturbed one. Flash attention and a reused prefix change the order of additions with what else is there.
    # See docs/adr/0004-deterministic-batching.md, also for what the client does about prompts.
    parameters.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    parameters.cache_prompt = False
    parameters.cache_ram_mib = 0  # the prompt cache in memory would grow to 8 GB
    parameters.api_keys = [settings["key"]]
    parameters.cors_origins = "http://127.0.0.1"
    parameters.ui = False
    parameters.offline = True
    parameters.verbosity = 1  # errors: why a file does not load; warnings come with every repeated prompt
    return parameters


def _say(answer: Any, message: dict[str, Any]) -> None:
    answer.write(json.dumps(message) + "\n")
    answer.flush()


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(0)  # not a clean exit: llama.cpp's destructor waits for ever on an open request


if __name__ == "__main__":
    try:
        main()
    except BaseException:
        traceback.print_exc()
        os._exit(1)  # at a clean exit Python aborts over the thread that reads stdin
