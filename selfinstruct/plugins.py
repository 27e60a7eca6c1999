"""From a name to the object behind it: built in, an entry point, or `file.py:name`."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.metadata
import importlib.util
import sys
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from selfinstruct.errors import ConfigError, PluginError

Kind = Literal["recipes", "backends", "filters", "formats", "tools"]

BUILT_IN: Mapping[Kind, Mapping[str, str]] = {
    "recipes": {
        "alpaca": "selfinstruct.recipes.alpaca:RECIPE",
        "baize": "selfinstruct.recipes.baize:RECIPE",
        "belle": "selfinstruct.recipes.belle:RECIPE",
        "bianque": "selfinstruct.recipes.bianque:RECIPE",
        "chatdoctor": "selfinstruct.recipes.chatdoctor:RECIPE",
        "guanaco": "selfinstruct.recipes.guanaco:RECIPE",
        "language-pack": "selfinstruct.recipes.language_pack:RECIPE",
        "moss": "selfinstruct.recipes.moss:RECIPE",
        "oasst": "selfinstruct.recipes.oasst:RECIPE",
        "self-instruct": "selfinstruct.recipes.self_instruct:RECIPE",
        "translate": "selfinstruct.recipes.translate:RECIPE",
        "vicuna": "selfinstruct.recipes.vicuna:RECIPE",
    },
    "backends": {
        "llama.cpp": "selfinstruct.backends.providers:llama_cpp",
        "openai": "selfinstruct.backends.providers:openai",
        "vllm": "selfinstruct.backends.providers:vllm",
        "ollama": "selfinstruct.backends.providers:ollama",
        "llama-server": "selfinstruct.backends.providers:llama_server",
        "deepseek": "selfinstruct.backends.providers:deepseek",
    },
    "tools": {
        "calculator": "selfinstruct.tools.mathematics:calculator",
        "solver": "selfinstruct.tools.mathematics:solver",
        "search": "selfinstruct.tools.search:search",
        "web_search": "selfinstruct.tools.web:web_search",
        "text_to_image": "selfinstruct.tools.images:text_to_image",
        "openapi": "selfinstruct.tools.openapi:openapi",
        "mcp": "selfinstruct.tools.mcp:mcp",
    },
}
"""Built-ins as "module:attribute", imported on first use, so a missing extra hurts only who asks for it."""


def names(kind: Kind) -> list[str]:
    """Return every name of a kind that can be loaded, plugins of installed packages included."""
    return sorted({*BUILT_IN.get(kind, {}), *(point.name for point in _entry_points(kind))})


def load(kind: Kind, name: str, shipped: Iterable[str] = ()) -> Any:
    """Return the object called `name`.

    `name` may be built in, an entry point of the group `selfinstruct.KIND`, or `path/to/file.py:name`.
    `shipped` are names of that kind that the caller keeps itself: they count when the closest one is sought.

    Raises:
        PluginError: unknown (with the closest valid name), claimed by two packages, or it fails to load.
    """
    built_in = BUILT_IN.get(kind, {}).get(name)
    if built_in is not None:
        module, _, attribute = built_in.partition(":")
        return getattr(importlib.import_module(module), attribute)
    if ".py:" in name:
        return _checked(kind, name, _from_file(kind, name))
    points = [point for point in _entry_points(kind) if point.name == name]
    if len(points) > 1:
        packages = ", ".join(sorted(point.dist.name if point.dist else point.value for point in points))
        raise PluginError(f"{kind}: {name!r} is claimed by more than one package: {packages}; uninstall all but one")
    if points:
        try:
            return _checked(kind, name, points[0].load())
        except PluginError:
            raise
        except Exception as error:  # the plugin's own code: whatever it raises is reported with its cause
            raise _broken(kind, f"{name!r} ({points[0].value})", error) from error
    raise PluginError(unknown(kind, name, [*shipped, *names(kind)]))


def split_model(text: str) -> tuple[str, str]:
    """Split PROVIDER/MODEL; the provider may be `path/to/file.py:name`, whose own slashes do not count.

    Raises:
        ConfigError: one of the two is missing.
    """
    end = text.find("/", max(text.find(".py:"), 0))
    provider, model = (text[:end], text[end + 1 :]) if end > 0 else ("", "")
    if not model:
        raise ConfigError(f"model: expected PROVIDER/MODEL such as openai/gpt-4o-mini, got {text!r}")
    return provider, model


def unknown(kind: str, name: str, known: list[str]) -> str:
    """Say that a name is unknown, with the closest valid one."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(known) or 'none'}"
    return f"{kind}: there is no {name!r}; {hint}"


def _entry_points(kind: Kind) -> list[importlib.metadata.EntryPoint]:
    built_in = BUILT_IN.get(kind, {})
    return [
        point for point in importlib.metadata.entry_points(group=f"selfinstruct.{kind}") if point.name not in built_in
    ]


def _from_file(kind: Kind, name: str) -> Any:
    file, _, attribute = name.rpartition(":")
    path = Path(file).expanduser()
    if not path.is_file():
        raise PluginError(f"{kind}: {path} does not exist; expected FILE.py:NAME")
    # A file that holds several plugins is run once, as an imported module would be.
    module_name = f"selfinstruct_plugin_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]}"
    try:
        return getattr(sys.modules.get(module_name) or _run_file(module_name, path), attribute)
    except Exception as error:  # the person's own code: whatever it raises is reported with its cause
        raise _broken(kind, name, error) from error


def _run_file(module_name: str, path: Path) -> types.ModuleType:
    specification = importlib.util.spec_from_file_location(module_name, path)
    if specification is None or specification.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(specification)
    sys.modules[module_name] = module
    try:
        specification.loader.exec_module(module)
    except BaseException:
        del sys.modules[module_name]
        raise
    return module


def _checked(kind: Kind, name: str, found: Any) -> Any:
    if kind in ("backends", "filters") and not callable(found):
        raise PluginError(f"{kind}: {name!r} must be a function, found {type(found).__name__}")
    return found


def _broken(kind: Kind, what: str, error: Exception) -> PluginError:
    return PluginError(f"{kind}: {what} does not load: {type(error).__name__}: {error}")
