"""From settings to open tools.

A setting is a name, or a name with options:

    tools: [calculator, search: {corpus: docs}, prices.py:lookup]

Behind a name stands, as `selfinstruct.plugins` finds it, a `Tool`; an *opener*, which is a function of keyword options
that is annotated to return a tool, or a tuple of them; or any other typed function, which then is the tool.
"""

from __future__ import annotations

import asyncio
import inspect
import typing
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pydantic

from selfinstruct import plugins
from selfinstruct.errors import ConfigError, PluginError
from selfinstruct.languages import closest
from selfinstruct.tools.function import function_tool
from selfinstruct.tools.tool import Tool

Setting = str | Mapping[str, Mapping[str, Any] | None]


@asynccontextmanager
async def open_tools(settings: Sequence[Setting]) -> AsyncIterator[tuple[Tool, ...]]:
    """Open the tools of the settings, in their order, and close them at the end.

    Raises:
        ConfigError: no tool or option of that name (names the closest), or a value that does not fit; a file or server
            that an option names is not there; two tools of one name.
    """
    async with AsyncExitStack() as stack:
        opened: list[Tool] = []
        for name, options in _items(settings):
            for tool in await _open(name, options):
                stack.push_async_callback(tool.aclose)
                opened.append(tool)
        for attribute in ("name", "api"):
            names = [getattr(tool, attribute) for tool in opened]
            if double := next((each for each in names if names.count(each) > 1), None):
                raise ConfigError(f"tools: two tools have the {attribute} {double!r}; leave one out")
        yield tuple(opened)


def check_tools(settings: Sequence[Setting]) -> None:
    """Check names and options without opening anything.

    Raises:
        ConfigError: as `open_tools`, as far as the settings alone tell.
    """
    for name, options in _items(settings):
        _prepared(name, options)


def describe_tools() -> list[dict[str, str]]:
    """Return name, options and first line of every tool that can be named, plugins included."""
    rows = []
    for name in plugins.names("tools"):
        found = plugins.load("tools", name)
        options = ", ".join(_shown(each) for each in _options(found).values()) if _is_opener(found) else ""
        doc = found.description if isinstance(found, Tool) else inspect.getdoc(found) or ""
        rows.append({"tool": name, "options": options or "-", "what": doc.partition("\n")[0]})
    return rows


def _shown(option: inspect.Parameter) -> str:
    return option.name if option.default is option.empty else f"{option.name}={option.default}"


def _items(settings: Sequence[Setting]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if isinstance(settings, str | Mapping):
        raise ConfigError(f"tools: expected a list such as [calculator, solver], found {settings!r}")
    for setting in settings:
        if isinstance(setting, str):
            yield setting, {}
            continue
        if not isinstance(setting, Mapping) or len(setting) != 1:
            raise ConfigError(f"tools: expected a name, or one name with options, found {setting!r}")
        ((name, options),) = setting.items()
        if options is not None and not isinstance(options, Mapping):
            raise ConfigError(f"tools: {name}: expected options such as {{corpus: docs}}, found {options!r}")
        yield str(name), options or {}


async def _open(name: str, options: Mapping[str, Any]) -> tuple[Tool, ...]:
    prepared = _prepared(name, options)
    if isinstance(prepared, Tool):
        return (prepared,)
    if inspect.iscoroutinefunction(prepared):
        found = await prepared()
    else:
        found = await asyncio.to_thread(prepared)  # reading a corpus takes its time
    return (found,) if isinstance(found, Tool) else tuple(found)


def _prepared(name: str, options: Mapping[str, Any]) -> Tool | Callable[[], Any]:
    """Return a tool that needs no opening, or the opener with its checked options."""
    found = plugins.load("tools", name)
    if _is_opener(found):
        return _with(found, _checked(name, found, options))
    if options:
        raise ConfigError(f"tool {name!r} has no options, found {', '.join(map(str, options))}")
    if isinstance(found, Tool):
        return found
    if callable(found):
        return function_tool(found)
    raise PluginError(f"tools: {name!r} must be a typed function or a Tool, found {type(found).__name__}")


def _with(opener: Callable[..., Any], options: Mapping[str, Any]) -> Callable[[], Any]:
    if inspect.iscoroutinefunction(opener):

        async def opened() -> Any:
            return await opener(**options)

        return opened
    return lambda: opener(**options)


def _is_opener(found: Any) -> bool:
    if isinstance(found, Tool) or not callable(found):
        return False
    try:
        returned = typing.get_type_hints(found).get("return")
    except (NameError, TypeError):
        return False
    return returned is Tool or Tool in typing.get_args(returned)


def _options(opener: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(opener).parameters)


def _checked(name: str, opener: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    known, kinds = _options(opener), typing.get_type_hints(opener)
    checked: dict[str, Any] = {}
    for key, value in options.items():
        if key not in known:
            raise ConfigError(f"tool {name!r} has no option {key!r}: {closest(str(key), list(known))}")
        try:
            checked[key] = pydantic.TypeAdapter(kinds.get(key, Any)).validate_python(value)
        except pydantic.ValidationError as error:
            raise ConfigError(f"tool {name!r}: {key}: {error.errors()[0]['msg']}, found {value!r}") from None
    for key, option in known.items():
        if option.default is option.empty and key not in checked:
            raise ConfigError(f"tool {name!r} needs the option {key}, such as {name}: {{{key}: ...}}")
    return checked
