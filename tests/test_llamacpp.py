"""The embedded model: real child processes, real sockets, and (marked `model`) the real model."""

from __future__ import annotations

import asyncio
import concurrent.futures
import http.client
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

from selfinstruct import models
from selfinstruct.backends import llamacpp
from selfinstruct.backends.llamacpp import LlamaServer, usable_cpus
from selfinstruct.errors import ModelFileError, PluginError, Unavailable
from selfinstruct.models import LocalModel

ROOT = Path(__file__).parents[1]


def ask(
    server: LlamaServer, path: str, body: dict[str, Any] | None = None, key: str | None = ""
) -> tuple[int, dict[str, Any]]:
    """Return status and JSON of one request; `key` None sends none, "" the right one."""
    headers = {"Content-Type": "application/json"}
    if key is not None:
        headers["Authorization"] = f"Bearer {key or server.api_key}"
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(server.base_url + path, data=data, headers=headers)
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(request, timeout=120) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def complete(server: LlamaServer, prompt: str = "The capital of France is", **options: Any) -> str:
    body = {"model": server.model.alias, "prompt": prompt, "max_tokens": 12, "seed": 1} | options
    status, reply = ask(server, "/completions", body)
    assert status == 200, reply
    answer = reply["choices"][0]["text"]
    assert isinstance(answer, str)
    return answer


def wait_until(condition: Callable[[], bool]) -> None:
    """Return once it holds; a failing test ends by pytest's time limit, not by a clock of ours."""
    while not condition():
        time.sleep(0.02)


def alive(pid: int) -> bool:
    """Tell whether that process runs; a zombie whose parent does not care is not alive."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return not sys.platform.startswith("linux")
    return state != "Z"


def listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(5)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def port_of(server: LlamaServer) -> int:
    return int(server.base_url.removesuffix("/v1").rpartition(":")[2])


# --- without the model ---------------------------------------------------------------------------------------------


def write_gguf(path: Path, architecture: str = "nonesuch", context: int = 512) -> LocalModel:
    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    head = b"GGUF" + struct.pack("<IQQ", 3, 1, 2)
    head += text("general.architecture") + struct.pack("<I", 8) + text(architecture)
    head += text(f"{architecture}.context_length") + struct.pack("<II", 4, context)
    head += text("token_embd.weight") + struct.pack("<IQIQ", 1, 32, 0, 0)
    path.write_bytes(head + b"\0" * (-len(head) % 32) + b"\0" * 128)
    return models.resolve(str(path))


@pytest.fixture
def tiny(tmp_path: Path) -> LocalModel:
    return write_gguf(tmp_path / "tiny.gguf")


@pytest.mark.parametrize(
    ("slots", "context", "expected"),
    [
        (0, 512, "slots is 0"),
        (257, 512, "slots is 257"),
        (1, 255, "too small"),
        (1, 0, "too small"),
        (1, 513, "trained for a context of 512"),
    ],
)
def test_settings_that_can_not_work(tiny: LocalModel, slots: int, context: int, expected: str) -> None:
    with pytest.raises(ModelFileError, match=expected):
        LlamaServer(tiny, slots=slots, context=context)


def test_before_and_after(tiny: LocalModel) -> None:
    server = LlamaServer(tiny, context=512)
    for _ in range(2):
        with pytest.raises(Unavailable, match="is not running"):
            server.check()
        with pytest.raises(Unavailable, match="is not running"):
            _ = server.base_url
        assert server.pid is None
        server.stop()
    assert len(server.api_key) >= 32
    assert LlamaServer(tiny, context=512).api_key != server.api_key


def test_usable_cpus() -> None:
    assert 1 <= usable_cpus() <= (os.cpu_count() or 1)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no CPU affinity on this system")
def test_usable_cpus_follow_the_affinity() -> None:
    body = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))});"
        "from selfinstruct.backends.llamacpp import usable_cpus; print(usable_cpus())"
    )
    assert run(body).stdout.strip() == "1"


def run(body: str, **changes: str) -> subprocess.CompletedProcess[str]:
    environment = dict(os.environ) | {"PYTHONPATH": str(ROOT)} | changes
    return subprocess.run(
        [sys.executable, "-c", body], env=environment, capture_output=True, text=True, timeout=120, check=True
    )


@pytest.mark.slow
@pytest.mark.parametrize("with_log", [True, False])
def test_a_model_llama_cpp_does_not_know(tiny: LocalModel, tmp_path: Path, with_log: bool) -> None:
    pytest.importorskip("xllamacpp")
    log = tmp_path / "logs" / "llamacpp.log" if with_log else None
    server = LlamaServer(tiny, slots=2, context=512, log=log)
    with pytest.raises(ModelFileError) as caught:
        server.start()
    message = str(caught.value)
    assert f"can't load {tiny.path}" in message
    assert "unknown model architecture: 'nonesuch'" in message
    assert server.pid is None
    if log:
        assert str(log) in message
        assert "nonesuch" in log.read_text()


@pytest.mark.slow
def test_a_model_that_lacks_its_parts(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    model = write_gguf(tmp_path / "hollow.gguf", architecture="llama")
    with pytest.raises(ModelFileError, match=r"hollow\.gguf.*\n.*log"):
        LlamaServer(model, slots=1, context=256).start()


def test_the_log_of_an_earlier_start_is_kept_and_not_shown(tiny: LocalModel, tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    log = tmp_path / "llamacpp.log"
    log.write_text("an earlier start\n")
    with pytest.raises(ModelFileError) as caught:
        LlamaServer(tiny, slots=1, context=256, log=log).start()
    assert "an earlier start" not in str(caught.value)
    assert log.read_text().startswith("an earlier start\n")
    assert len(log.read_text()) > 50


def test_a_missing_extra(tiny: LocalModel) -> None:
    body = f"""
import sys
sys.modules["xllamacpp"] = None
from selfinstruct import models
from selfinstruct.backends.llamacpp import LlamaServer
from selfinstruct.errors import PluginError
try:
    LlamaServer(models.resolve({str(tiny.path)!r}), context=256).start()
except PluginError as error:
    print(error)
"""
    assert "pip install 'selfinstruct[local]'" in run(body).stdout


# Ways to fail that no sound installation of llama.cpp shows on demand: a module of its name that fails so.
FAULTS: dict[str, tuple[str, type[Exception], str]] = {
    "does not load": ("raise ImportError('libgomp.so.1: cannot open')", PluginError, r"does not load: libgomp\.so\.1"),
    "killed": ("import os; os.kill(os.getpid(), 9)", Unavailable, "killed by SIGKILL .*memory runs out"),
    "old CPU": ("import os, signal; os.kill(os.getpid(), signal.SIGILL)", PluginError, "killed by SIGILL.*AVX2"),
    "crash": (
        "import os, signal; os.write(2, b'last words\\n'); os.kill(os.getpid(), signal.SIGSEGV)",
        Unavailable,
        "killed by SIGSEGV.*\n(.*\n)*.*last words",
    ),
    "surprise": ("raise LookupError('odd')", Unavailable, "ended with status 1.*\n(.*\n)*.*odd"),
    "silent": ("import time; time.sleep(600)", Unavailable, "did not load .* within 2 s"),
    "out of memory": (
        "class CommonParams:\n  def __init__(self): raise MemoryError('std::bad_alloc')\nServer = print",
        Unavailable,
        "not enough memory.*fewer slots",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_every_way_to_fail_is_told(
    tiny: LocalModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    source, expected, pattern = FAULTS[fault]
    (tmp_path / "xllamacpp.py").write_text(source)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(llamacpp, "_LOAD_SECONDS", 2.0 if fault == "silent" else 60.0)
    server = LlamaServer(tiny, slots=1, context=256)
    with pytest.raises(expected, match=pattern):
        server.start()
    assert server.pid is None


@pytest.mark.slow
def test_idle_threads_are_told_to_spin_less(tiny: LocalModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "xllamacpp.py").write_text("import os; raise ImportError('spin ' + os.environ['GOMP_SPINCOUNT'])")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    for expected in ("10000", "7"):
        with pytest.raises(PluginError, match=f"spin {expected}"):
            LlamaServer(tiny, slots=1, context=256).start()
        monkeypatch.setenv("GOMP_SPINCOUNT", "7")


@pytest.mark.slow
def test_a_cancelled_start_leaves_no_process(tiny: LocalModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "xllamacpp.py").write_text("import time; time.sleep(600)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    server = LlamaServer(tiny, slots=1, context=256)
    pids: list[int] = []

    async def main() -> None:
        starting = asyncio.create_task(server.__aenter__())
        await asyncio.to_thread(wait_until, lambda: server.pid is not None)
        pids.append(server.pid or 0)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting

    asyncio.run(main())
    assert server.pid is None
    assert not alive(pids[0])


# --- with the model ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> LocalModel:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SELFINSTRUCT_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("SELFINSTRUCT_OFFLINE", raising=False)
        return models.resolve("smollm2-135m", say=lambda line: None, progress=lambda done, total: None)


@pytest.fixture(scope="module")
def server(smollm2: LocalModel) -> Iterator[LlamaServer]:
    with LlamaServer(smollm2, slots=4, context=512) as running:
        yield running


@pytest.mark.model
@pytest.mark.slow
def test_it_answers(server: LlamaServer) -> None:
    assert "Paris" in complete(server, temperature=0)
    body = {"model": "smollm2-135m", "messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 8}
    status, reply = ask(server, "/chat/completions", body)
    assert status == 200
    assert reply["model"] == "smollm2-135m"
    assert reply["usage"]["completion_tokens"] <= 8
    assert (server.slots, server.context) == (4, 512)
    server.check()


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.parametrize("key", ["wrong", None])
@pytest.mark.parametrize("path", ["/chat/completions", "/completions", "/models"])
def test_nothing_without_the_key(server: LlamaServer, key: str | None, path: str) -> None:
    body = None if path == "/models" else {"prompt": "x", "messages": [], "max_tokens": 1}
    status, reply = ask(server, path, body, key)
    assert status == 401
    assert "key" in json.dumps(reply).lower()


@pytest.mark.model
@pytest.mark.slow
def test_the_key_is_visible_to_nobody(server: LlamaServer) -> None:
    for what in ("cmdline", "environ"):
        assert server.api_key.encode() not in Path(f"/proc/{server.pid}/{what}").read_bytes()
    with socket.socket() as probe:  # loopback only
        probe.settimeout(5)
        outside = socket.gethostbyname(socket.gethostname())
        if not outside.startswith("127."):
            assert probe.connect_ex((outside, port_of(server))) != 0


@pytest.mark.model
@pytest.mark.slow
def test_the_same_seed_gives_the_same_text_alone_and_in_a_crowd(server: LlamaServer) -> None:
    prompt, options = "Write a list of things to do:\n1.", {"temperature": 1.0, "max_tokens": 10}
    alone = {seed: complete(server, prompt, seed=seed, **options) for seed in range(4)}
    assert len(set(alone.values())) > 1
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        crowd = [(seed, pool.submit(complete, server, prompt, seed=seed, **options)) for seed in (*range(4),) * 3]
        assert all(future.result() == alone[seed] for seed, future in crowd)


@pytest.mark.model
@pytest.mark.slow
def test_a_prompt_longer_than_the_slot_is_refused_and_the_server_lives(server: LlamaServer) -> None:
    status, reply = ask(server, "/completions", {"prompt": "word " * 2000, "max_tokens": 4})
    assert status == 400
    assert reply["error"]["type"] == "exceed_context_size_error"
    assert complete(server)


@pytest.mark.model
@pytest.mark.slow
def test_the_log_does_not_grow_with_the_requests(smollm2: LocalModel, tmp_path: Path) -> None:
    log = tmp_path / "llamacpp.log"
    with LlamaServer(smollm2, slots=1, context=256, log=log) as running:
        complete(running, max_tokens=1)
        before = log.stat().st_size
        for _ in range(5):
            complete(running, max_tokens=1)
        assert log.stat().st_size == before


@pytest.mark.model
@pytest.mark.slow
def test_a_proxy_setting_does_not_reach_loopback(smollm2: LocalModel, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with LlamaServer(smollm2, slots=2, context=300) as running:
        assert (running.slots, running.context) == (2, 512)  # llama.cpp rounds up


@pytest.mark.model
@pytest.mark.slow
def test_async_use_and_a_stop_with_requests_open(smollm2: LocalModel) -> None:
    async def main() -> tuple[int, int]:
        async with LlamaServer(smollm2, slots=2, context=1024) as running:
            pid, port = running.pid, port_of(running)
            assert pid is not None
            body = json.dumps({"prompt": "Once", "max_tokens": 900, "ignore_eos": True})
            headers = {"Authorization": f"Bearer {running.api_key}", "Content-Type": "application/json"}
            open_request = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            open_request.request("POST", "/v1/completions", body, headers)
            await asyncio.to_thread(wait_until, lambda: any(slot["is_processing"] for slot in slots_of(running)))
        with pytest.raises((http.client.RemoteDisconnected, ConnectionResetError)):
            open_request.getresponse()
        open_request.close()
        return pid, port

    pid, port = asyncio.run(main())
    assert not alive(pid)
    assert not listens(port)


def slots_of(running: LlamaServer) -> list[dict[str, Any]]:
    request = urllib.request.Request(
        running.base_url.removesuffix("/v1") + "/slots", headers={"Authorization": f"Bearer {running.api_key}"}
    )
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30) as reply:
        slots: list[dict[str, Any]] = json.load(reply)
    return slots


@pytest.mark.model
@pytest.mark.slow
def test_a_killed_child_is_noticed_with_requests_open(smollm2: LocalModel, tmp_path: Path) -> None:
    log = tmp_path / "llamacpp.log"
    with LlamaServer(smollm2, slots=2, context=1024, log=log) as running:
        failures: list[Exception] = []

        def request() -> None:
            try:
                complete(running, "Once", max_tokens=900, ignore_eos=True)
            except (OSError, http.client.HTTPException) as error:
                failures.append(error)

        thread = threading.Thread(target=request)
        thread.start()
        wait_until(lambda: any(slot["is_processing"] for slot in slots_of(running)))
        running.check()
        assert running.pid is not None
        os.kill(running.pid, signal.SIGKILL)
        thread.join()
        assert failures
        said: list[str] = []

        def noticed() -> bool:
            """The end of a child is seen a moment later while another thread is waiting for it."""
            try:
                running.check()
            except Unavailable as error:
                said.append(str(error))
            return bool(said)

        wait_until(noticed)
    assert str(smollm2.path) in said[0]
    assert "killed by SIGKILL" in said[0]
    assert "start the same command again" in said[0]


@pytest.mark.model
@pytest.mark.slow
def test_a_server_can_be_started_again(smollm2: LocalModel) -> None:
    again = LlamaServer(smollm2, slots=1, context=256)
    texts = []
    for _ in range(2):
        with again:
            texts.append(complete(again, temperature=1.0))
    assert texts[0] == texts[1]


PARENT = """
import os, sys, threading
from selfinstruct import models
from selfinstruct.backends.llamacpp import LlamaServer
import signal
signal.signal(signal.SIGINT, lambda number, frame: None)  # unlike SIG_IGN, this is not inherited
server = LlamaServer(models.resolve(sys.argv[1]), slots=2, context=256)
if sys.argv[2] == "loading":
    threading.Thread(target=server.start, daemon=True).start()
    while server.pid is None:
        pass
    print(server.pid, 0, "", flush=True)
else:
    server.start()
    print(server.pid, server.base_url, server.api_key, flush=True)
sys.stdin.read()
"""


def parent_of(model: LocalModel, when: Literal["loading", "running"]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PARENT, str(model.path), when],
        env=dict(os.environ) | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.parametrize("when", ["loading", "running"])
@pytest.mark.parametrize("with_signal", [signal.SIGKILL, signal.SIGTERM])
def test_the_child_dies_with_its_parent(
    smollm2: LocalModel, when: Literal["loading", "running"], with_signal: signal.Signals
) -> None:
    with parent_of(smollm2, when) as parent:
        assert parent.stdout is not None
        pid, url, *_ = parent.stdout.readline().split()
        assert alive(int(pid))
        parent.send_signal(with_signal)
        assert parent.wait(60) == -with_signal
        wait_until(lambda: not alive(int(pid)))
        if when == "running":
            # The last of its threads closes the socket, a moment after the first is gone.
            wait_until(lambda: not listens(int(url.removesuffix("/v1").rpartition(":")[2])))


@pytest.mark.model
@pytest.mark.slow
def test_ctrl_c_does_not_reach_the_child(smollm2: LocalModel) -> None:
    with parent_of(smollm2, "running") as parent:
        assert parent.stdout is not None
        pid, url, key = parent.stdout.readline().split()
        os.killpg(parent.pid, signal.SIGINT)  # what the terminal does, to the whole foreground group
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        request = urllib.request.Request(url + "/completions", b'{"prompt": "Hi", "max_tokens": 4}', headers)
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as reply:
            assert reply.status == 200
        assert alive(int(pid))
        parent.communicate("")
        wait_until(lambda: not alive(int(pid)))


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits the memory of a process as Linux does")
def test_too_little_memory_is_told(smollm2: LocalModel) -> None:
    body = f"""
import resource
from selfinstruct import models
from selfinstruct.backends.llamacpp import LlamaServer
from selfinstruct.errors import Unavailable
resource.setrlimit(resource.RLIMIT_AS, (1_500_000_000, 1_500_000_000))
try:
    LlamaServer(models.resolve({str(smollm2.path)!r}), slots=64, context=8192).start()
except Unavailable as error:
    print(error)
"""
    message = run(body).stdout
    assert f"not enough memory to run {smollm2.path}" in message
    assert "fewer slots or a smaller context" in message


@pytest.mark.model
@pytest.mark.slow
def test_flipped_weights_of_a_file_of_ones_own_still_load(smollm2: LocalModel, tmp_path: Path) -> None:
    """Why the registry's files are hashed: llama.cpp itself does not notice."""
    content = bytearray(smollm2.path.read_bytes())
    content[50_000_000:50_000_100] = bytes(100)
    path = tmp_path / "flipped.gguf"
    path.write_bytes(content)
    with LlamaServer(models.resolve(str(path)), slots=1, context=256) as running:
        assert isinstance(complete(running), str)


@pytest.mark.model
@pytest.mark.slow
def test_a_file_cut_short_is_refused_before_llama_cpp_sees_it(smollm2: LocalModel, tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(smollm2.path.read_bytes()[:-1])
    with pytest.raises(ModelFileError, match="is cut short"):
        models.resolve(str(path))
