"""Every filter that ships, those on by default, and how wanted ones are built from their names and settings."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterable, Mapping

from selfinstruct.errors import ConfigError
from selfinstruct.filters import completions, dialogues, instructions, languages, leaks, outputs
from selfinstruct.filters.rule import Filter, FilterSpec
from selfinstruct.languages import LanguagePack, closest

FILTERS: Mapping[str, FilterSpec] = {
    name: spec
    for module in (completions, leaks, instructions, outputs, languages, dialogues)
    for name, spec in module.RULES.items()
}
"""Every filter the package brings, by name."""

_OF_LANGUAGE = ("language_script", "script_variant", "language")
_OF_INSTRUCTION = (
    "truncated",
    "no_tokens",
    "instruction_length",
    "leading_punctuation",
    "blocked_words",
    "blocked_opening",
    "control_characters",
    "leak",
    "copied_demonstration",
    "self_reference",
    *_OF_LANGUAGE,
)
_OF_OUTPUT = (
    "empty_output",
    "output_equals_input",
    "output_repeats_instruction",
    "ends_with_colon",
    "refusal",
    "repetition",
)

DEFAULT_FILTERS: Mapping[str, tuple[str, ...]] = {
    "list": (*_OF_INSTRUCTION, *_OF_OUTPUT),
    "stepwise": (*_OF_INSTRUCTION, "needs_context", "low_logprob", *_OF_OUTPUT),
    "answers": ("truncated", "control_characters", *_OF_OUTPUT),
    "dialogues": (
        "truncated",
        "alternation",
        "no_tokens",
        "control_characters",
        "leak",
        "copied_demonstration",
        "self_reference",
        *_OF_LANGUAGE,
        "empty_output",
        "output_repeats_instruction",
        "ends_with_colon",
        "refusal",
        "repetition",
        "repeated_turn",
    ),
    "instructions": _OF_INSTRUCTION,
    "instances": (
        "truncated",
        "control_characters",
        "conflicting_outputs",
        "leak",
        "copied_demonstration",
        "self_reference",
        *_OF_LANGUAGE,
        *_OF_OUTPUT,
    ),
}
"""The filters of each prompt style; those on the instruction come first, so a task without instances meets them all.

"answers" are those for instructions that were given and not made, "dialogues" those of every recipe of dialogues,
"instructions" and "instances" those of the two steps of Self-Instruct.
"""


def build_filters(
    wanted: Iterable[str | tuple[str, Mapping[str, object]]],
    pack: LanguagePack,
    known: Mapping[str, FilterSpec] = FILTERS,
) -> list[tuple[str, Filter]]:
    """Return the named filters in order; an item is a name, or a name with parameters (`mapping.items()` fits).

    Raises:
        ConfigError: no filter or parameter of that name (names the closest), or a value of the wrong type.
    """
    built: list[tuple[str, Filter]] = []
    for item in wanted:
        name, parameters = (item, {}) if isinstance(item, str) else item
        spec = known.get(name)
        if spec is None:
            raise ConfigError(f"no filter named {name!r}: {closest(str(name), sorted(known))}")
        types_of = typing.get_type_hints(spec.factory)
        for key, value in parameters.items():
            if key not in spec.parameters:
                valid = list(spec.parameters)
                hint = closest(str(key), valid) if valid else "it has no parameters"
                raise ConfigError(f"filter {name!r} has no parameter {key!r}: {hint}")
            if not _fits(value, types_of.get(key)):
                expected = _shown(types_of[key])
                raise ConfigError(f"filter {name!r}: {key}: expected {expected}, found {value!r}")
        values = {key: tuple(value) if isinstance(value, list) else value for key, value in parameters.items()}
        built.append((name, spec.factory(pack, **values)))
    return built


def _fits(value: object, wanted: object) -> bool:
    if typing.get_origin(wanted) in (typing.Union, types.UnionType):
        return any(_fits(value, each) for each in typing.get_args(wanted))
    if typing.get_origin(wanted) is tuple:
        return isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)
    if wanted is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if wanted is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return not isinstance(wanted, type) or isinstance(value, wanted)


def _shown(wanted: object) -> str:
    words = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null"}
    if typing.get_origin(wanted) in (typing.Union, types.UnionType):
        return " or ".join(_shown(each) for each in typing.get_args(wanted))
    return words.get(wanted, "a list of texts") if isinstance(wanted, type) else "a list of texts"
