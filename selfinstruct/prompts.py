"""Find, check and render the Jinja prompt of a recipe, language and style."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import jinja2.meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from selfinstruct import resources
from selfinstruct.errors import PromptError

# autoescape stays off: a prompt is plain text for a model, not HTML.
_ENVIRONMENT = ImmutableSandboxedEnvironment(
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=False,
    autoescape=False,
)


@dataclass(frozen=True, slots=True)
class Prompt:
    """A checked template; `language` is the tag whose wording it is ("en" where it only names the language)."""

    path: Path
    language: str
    source: str

    @property
    def digest(self) -> str:
        """Hash of the template's text, for the run's fingerprint."""
        return hashlib.sha256(self.source.encode()).hexdigest()[:16]

    def render(self, **variables: Any) -> str:
        """Fill the template in.

        Raises:
            PromptError: the template fails while rendering; names it and the variable.
        """
        try:
            return _compiled(self.source).render(**variables)
        except jinja2.UndefinedError as error:
            raise PromptError(f"{self.path}: {error.message}; it may use: {', '.join(sorted(variables))}") from error
        except jinja2.TemplateError as error:
            raise PromptError(f"{self.path}: {error}") from error
        except Exception as error:  # the template's own code: whatever it raises is reported with its cause
            raise PromptError(f"{self.path}: fails while it is filled in: {type(error).__name__}: {error}") from error


@functools.lru_cache(maxsize=64)
def _compiled(source: str) -> jinja2.Template:
    """Return the template of a source: compiling it costs more than all else in a draw together."""
    return _ENVIRONMENT.from_string(source)


def load(recipes: Sequence[str], language: str, variables: Mapping[str, frozenset[str]]) -> dict[str, Prompt]:
    """Find and check the parts of a prompt.

    Part "" is `prompts/RECIPE/TAG.j2`, part "answer" is `TAG.answer.j2`. Wording in the language itself comes first,
    of any of `recipes` in order (a recipe may borrow another's), then the English frame, which names the language.
    `language` is a pack's tag: what `en-GB` falls back on was settled with the pack, and never is another script.

    Raises:
        PromptError: a part is missing, does not parse, or uses a variable outside its own of `variables`.
    """
    return {part: _load(recipes, language, part, allowed) for part, allowed in variables.items()}


def _load(recipes: Sequence[str], language: str, part: str, variables: frozenset[str]) -> Prompt:
    for tag in dict.fromkeys((language, "en")):
        path = find(recipes, tag, part)
        if path:
            return read(path, tag, variables)
    wanted, frame = (f"{recipes[0]}/{_file(tag, part)}" for tag in (language, "en"))
    raise PromptError(f"there is no prompt {wanted} and no {frame} to fall back on")


def find(recipes: Sequence[str], tag: str, part: str) -> Path | None:
    """Return the file of a part worded in a language, of the first of `recipes` that has one, or None."""
    found = (resources.find("prompts", f"{recipe}/{_file(tag, part)}") for recipe in recipes)
    return next(filter(None, found), None)


def _file(tag: str, part: str) -> str:
    return f"{tag}.{part}.j2" if part else f"{tag}.j2"


def read(path: Path, language: str, variables: frozenset[str]) -> Prompt:
    """Read and check one prompt file, worded in `language`.

    Raises:
        PromptError: it can't be read, does not parse, is empty, or uses a variable outside `variables`.
    """
    return _check(Prompt(path, language, _read(path)), variables)


def variables_of(prompt: Prompt) -> frozenset[str]:
    """Return the variables that a prompt uses."""
    return _variables(prompt.source)


@functools.lru_cache(maxsize=128)
def _variables(source: str) -> frozenset[str]:
    return frozenset(jinja2.meta.find_undeclared_variables(_ENVIRONMENT.parse(source)))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise PromptError(f"{path}: can't be read: {error}") from error


def _check(prompt: Prompt, variables: frozenset[str]) -> Prompt:
    try:
        used = variables_of(prompt)
    except jinja2.TemplateSyntaxError as error:
        raise PromptError(f"{prompt.path}:{error.lineno}: {error.message}") from error
    if not prompt.source.strip():
        raise PromptError(f"{prompt.path}: is empty; remove the file to get the shipped prompt back")
    unknown = sorted(used - variables)
    if unknown:
        raise PromptError(
            f"{prompt.path}: unknown variable {', '.join(unknown)}; a prompt of this kind may use: "
            + ", ".join(sorted(variables))
        )
    return prompt
