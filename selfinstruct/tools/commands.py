"""MOSS's commands, read by a strict grammar: `Name("arg")`, several joined by a comma and a space, or `None`.

    commands = "None" | call { ", " call }
    call     = name "(" [ argument { ", " argument } ] ")"
    argument = literal | name "=" literal

Nothing is run: arguments are Python literals, read by `ast`. The forms in which models spoil commands (those of
OpenLMLab/MOSS, SFT_data, among them) are told apart, so that they can be counted.
"""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from selfinstruct.tools.tool import Tool, check_arguments
from selfinstruct.values import Rejection

NONE = "None"
MAX_LENGTH = 8000
"""Characters of the commands of one turn."""
MAX_CALLS = 8
"""Calls of one turn; MOSS's samples have up to 6."""

_STRING = re.compile(r"""(?P<quote>["'])(?:(?!(?P=quote))[^\\\n]|\\.)*(?P=quote)""")
_ESCAPE = re.compile(r"\\(?:[\\\"'nrt]|x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8})|\\")
_ESCAPES = {code: f"\\x{code:02x}" for code in range(32)} | {ord('"'): '\\"', ord("\\"): r"\\", ord("\n"): r"\n"}
_NAME = re.compile(r"[A-Za-z_]\w*", re.ASCII)


@dataclass(frozen=True, slots=True)
class Call:
    """A call of a tool, with its arguments by name."""

    tool: Tool
    arguments: Mapping[str, Any]

    @property
    def text(self) -> str:
        """The command in one way of writing: `Search("tides")`."""
        return render_command(self.tool.api, self.arguments)


class _Bad(Exception):
    """The commands are not clean: a stable reason, and the piece at fault."""

    def __init__(self, reason: str, piece: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.piece = piece


def parse_commands(text: str, tools: Sequence[Tool]) -> tuple[Call, ...] | Rejection:
    """Read the commands of a turn; `None` alone is no call.

    A rejection's reason is one of: empty, too long, numbered list, comment, trailing comma, not None, call with None,
    string concatenation, format, f-string, not a literal, bad escape, separator, unknown API, unknown argument, wrong
    arity, wrong type, too many calls, syntax.
    """
    text = text.strip()
    if text == NONE:
        return ()
    try:
        return _parse(text, {tool.api: tool for tool in tools})
    except _Bad as bad:
        return Rejection("commands", bad.reason, {"text": bad.piece[:80]} if bad.piece else {})


def render_command(api: str, arguments: Mapping[str, Any]) -> str:
    """Write a call as `parse_commands` reads it: `Search("tides")`, with several arguments after the first by name."""
    shown = [
        _literal(value) if place == 0 else f"{name}={_literal(value)}"
        for place, (name, value) in enumerate(arguments.items())
    ]
    return f"{api}({', '.join(shown)})"


def _literal(value: Any) -> str:
    # Double quotes, as MOSS has them, where repr would choose.
    return f'"{value.translate(_ESCAPES)}"' if isinstance(value, str) else repr(value)


def _parse(text: str, tools: Mapping[str, Tool]) -> tuple[Call, ...]:
    _check_surface(text)
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        # Python has no line of several statements here: two calls without a comma are the usual cause.
        raise _Bad("separator" if re.search(r"\)\s*[;\n ]\s*[A-Za-z_]\w*\(", text) else "syntax", text) from None
    source = _Source(text)
    nodes = tree.body.elts if isinstance(tree.body, ast.Tuple) and tree.body.elts else [tree.body]
    if source.end(nodes[-1]) != len(text):
        rest = text[source.end(nodes[-1]) :].strip()
        reason = "comment" if rest.startswith("#") else "trailing comma" if rest == "," else "syntax"
        raise _Bad(reason, rest)
    if len(nodes) > 1 and any(isinstance(node, ast.Constant) and node.value is None for node in nodes):
        raise _Bad("call with None", text)
    if len(nodes) > MAX_CALLS:
        raise _Bad("too many calls", str(len(nodes)))
    for one, other in itertools.pairwise(nodes):
        if text[source.end(one) : source.start(other)] != ", ":
            raise _Bad("separator", text[source.end(one) : source.start(other)])
    return tuple(_call(node, source, tools) for node in nodes)


def _check_surface(text: str) -> None:
    """Refuse what Python's own parser would pass over, or not name."""
    if not text:
        raise _Bad("empty")
    if len(text) > MAX_LENGTH:
        raise _Bad("too long", str(len(text)))
    if re.match(r"(?:\d+[.)]|[-*•])\s", text) or re.search(r"\n\s*\d+[.)]\s", text):
        raise _Bad("numbered list", text)
    if text.rstrip(".。").casefold() in ("none", "non", "null", "n/a", "no", "nothing", "无"):
        raise _Bad("not None", text)
    outside = _STRING.sub(lambda found: " " * len(found[0]), text)
    if "#" in outside:
        raise _Bad("comment", text[outside.index("#") :])
    for string in _STRING.finditer(text):
        escape = next((found for found in _ESCAPE.finditer(string[0]) if found[0] == "\\"), None)
        if escape is not None:
            raise _Bad("bad escape", string[0][escape.start() : escape.start() + 10])


class _Source:
    """Places of nodes in the text: `ast` counts bytes of UTF-8, by lines."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.lines = text.encode("utf-8", "replace").splitlines(keepends=True)

    def _place(self, line: int, column: int) -> int:
        return len(b"".join([*self.lines[: line - 1], self.lines[line - 1][:column]]).decode("utf-8", "replace"))

    def start(self, node: ast.expr) -> int:
        return self._place(node.lineno, node.col_offset)

    def end(self, node: ast.expr) -> int:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        return self._place(node.end_lineno, node.end_col_offset)

    def of(self, node: ast.expr) -> str:
        return self.text[self.start(node) : self.end(node)]


def _call(node: ast.expr, source: _Source, tools: Mapping[str, Tool]) -> Call:
    text = source.of(node)
    if not isinstance(node, ast.Call):
        raise _Bad("not None" if isinstance(node, ast.Constant | ast.Name) else "syntax", text)
    if isinstance(node.func, ast.Attribute):
        raise _Bad("format" if node.func.attr == "format" else "unknown API", text)
    # Python takes ſearch for search; here a name is what it looks like.
    name = source.of(node.func)
    if not isinstance(node.func, ast.Name) or not _NAME.fullmatch(name) or name not in tools:
        raise _Bad("unknown API", name)
    tool = tools[name]
    arguments = _arguments(node, source, tool)
    fault = check_arguments(tool.parameters, arguments)
    if fault:
        raise _Bad("wrong arity" if fault.endswith("is missing") else "wrong type", f"{name}: {fault}")
    return Call(tool, arguments)


def _arguments(node: ast.Call, source: _Source, tool: Tool) -> dict[str, Any]:
    names = list(tool.parameters.get("properties", {}))
    if len(node.args) > len(names):
        raise _Bad("wrong arity", source.of(node))
    arguments = {name: _value(given, source) for name, given in zip(names, node.args, strict=False)}
    for keyword in node.keywords:
        if keyword.arg not in names:
            raise _Bad("unknown argument", keyword.arg or source.of(node))
        if keyword.arg in arguments:
            raise _Bad("wrong arity", source.of(node))
        arguments[keyword.arg] = _value(keyword.value, source)
    return arguments


def _value(node: ast.expr, source: _Source) -> Any:
    text = source.of(node)
    for inner in ast.walk(node):
        if isinstance(inner, ast.JoinedStr):
            raise _Bad("f-string", text)
        if isinstance(inner, ast.BinOp) and any(
            isinstance(side, ast.Constant | ast.Call) and isinstance(getattr(side, "value", ""), str)
            for side in (inner.left, inner.right)
        ):
            raise _Bad("string concatenation", text)
        if isinstance(inner, ast.Call):
            attribute = inner.func.attr if isinstance(inner.func, ast.Attribute) else ""
            raise _Bad("format" if attribute == "format" else "not a literal", text)
        if isinstance(inner, ast.Constant) and isinstance(inner.value, str):
            written = source.of(inner)
            if not _STRING.fullmatch(written):  # "a" "b", r"a", three quotes
                raise _Bad("string concatenation" if _STRING.match(written) else "not a literal", text)
        elif isinstance(inner, ast.Constant) and isinstance(inner.value, bytes | complex | type(...)):
            raise _Bad("not a literal", text)
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, RecursionError, MemoryError):
        raise _Bad("not a literal", text) from None
