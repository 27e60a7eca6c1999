"""Where prompts and seeds are: the person's own folder first, then what the package ships; and the cache folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

Kind = Literal["prompts", "seeds"]


def user_folder() -> Path:
    """Return the folder whose `prompts/` and `seeds/` override the shipped ones.

    `$SELFINSTRUCT_HOME`, else the platform's configuration folder for `selfinstruct`. It need not exist.
    """
    chosen = os.environ.get("SELFINSTRUCT_HOME")
    if chosen:
        return Path(chosen)
    import platformdirs

    return platformdirs.user_config_path("selfinstruct", appauthor=False)


def cache_dir() -> Path:
    """Return `$SELFINSTRUCT_CACHE`, else the platform's cache folder; it may not exist yet."""
    chosen = os.environ.get("SELFINSTRUCT_CACHE")
    if chosen:
        return Path(chosen).expanduser().absolute()
    import platformdirs

    return platformdirs.user_cache_path("selfinstruct", appauthor=False)


def shipped(kind: Kind) -> Path:
    """Return the shipped folder: the live one in a checkout, the packaged copy in an installed package.

    Raises:
        FileNotFoundError: the package was built without it.
    """
    here = Path(__file__).resolve()
    live = here.parents[1] / kind
    if (here.parents[1] / "pyproject.toml").is_file() and live.is_dir():
        return live
    packaged = here.parent / "_data" / kind
    if packaged.is_dir():
        return packaged
    raise FileNotFoundError(
        f"selfinstruct was installed without its {kind}/ folder ({packaged} is missing); reinstall it"
    )


def find(kind: Kind, name: str) -> Path | None:
    """Return the path of `name` (such as "en/tasks.jsonl"), the person's own before the shipped one, or None."""
    for root in (user_folder() / kind, shipped(kind)):
        path = root / name
        if path.is_file():
            return path
    return None


def folders(kind: Kind) -> list[str]:
    """Return the names of the sub-folders of `kind` (language tags, recipes), both places merged, sorted."""
    found: set[str] = set()
    for root in (user_folder() / kind, shipped(kind)):
        if root.is_dir():
            found |= {path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")}
    return sorted(found)
