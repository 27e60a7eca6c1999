"""What a recipe is. Each recipe is one file here: what to ask and how to read the answer, no I/O."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from selfinstruct.config import RunConfig
from selfinstruct.languages import LanguagePack
from selfinstruct.prompts import Prompt
from selfinstruct.stages import Stage
from selfinstruct.store import RunView
from selfinstruct.tools import Tool
from selfinstruct.values import Capabilities, Completion, Record, Request, Sampling, Task


@dataclass(frozen=True, slots=True)
class Brief:
    """All that a recipe may know when it lays out its stages.

    `style` is settled: "auto" is not left. `prompts` are those of the style by part. `items` are the records of the
    person's input, or topics where the recipe starts from them, to be gone through `rounds` times. `tools` are open
    while the run works, and none while it is only planned.
    """

    config: RunConfig
    style: str
    pack: LanguagePack
    prompts: Mapping[str, Prompt]
    seeds: tuple[Task, ...] = ()
    items: tuple[Record, ...] | None = None
    rounds: int = 1
    options: Mapping[str, Any] = field(default_factory=dict)
    capabilities: Capabilities = field(default_factory=Capabilities)
    tools: tuple[Tool, ...] = ()

    @property
    def prompt(self) -> Prompt:
        """The first, and often the only, prompt of the style."""
        return next(iter(self.prompts.values()))

    def sampling(self, preset: Sampling) -> Sampling:
        """Return a preset with the person's overrides."""
        chosen = self.config.sampling
        overrides = {
            name: value
            for name in ("temperature", "top_p", "max_tokens", "presence_penalty", "frequency_penalty")
            if (value := getattr(chosen, name)) is not None
        }
        return replace(preset, **overrides)


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """A run without a model: what a faultless one would reply, and the records that must come of it.

    `reply` answers each request of a run with one request at a time; it writes what it is to say in the language's
    own labels. `expected` are the records of the last stage, in order, without ids. `input` is the content of the
    input file, for a recipe that works through one, and `corpus` that of a file of documents (JSON lines) for one that
    calls tools: a search then gives the best of them, whole. `settings` are those of the run that are not as usual.
    """

    reply: Callable[[Request], str | Completion]
    expected: tuple[Record, ...]
    input: str = ""
    capabilities: Capabilities = field(default_factory=Capabilities)
    corpus: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Recipe:
    """A named way of making records: stages, prompts, defaults.

    `prompts` are the folders its wording is looked for in. `variables` names the parts of each style's prompt and
    what each may use: part "" is the file `TAG.j2`, part "answer" is `TAG.answer.j2`. `stages` lays the work out; the
    last one's records are the dataset. `starts` says what it begins with: the language's seed tasks, its topics (of
    the file that `topics` names), or an input that the person must give. `accepts` are the kinds of record it works
    through when it is given an input, and `read` reads one. `export` is the format that suits its records, "" where
    that is the input's. `options` are settings of its own with their default values. `tools` are those its model may
    call by default; a recipe without any uses none. `rehearse` makes, from seed tasks that no prompt shows, the
    rehearsal of a style by which `selfinstruct language check` finds out whether the recipe works in a language.

    `styles` begins with the one that any endpoint takes; one called "completion" sends raw prompts, and is taken by
    itself where the endpoint is known to continue them. `files` are the formats that are a folder for this recipe's
    runs, since they hold what its earlier stages made: each gives the name, format and records of every file.
    """

    name: str
    summary: str
    source: str
    styles: tuple[str, ...]
    prompts: tuple[str, ...]
    variables: Mapping[str, Mapping[str, frozenset[str]]]
    stages: Callable[[Brief], tuple[Stage, ...]]
    preview: Callable[[Brief], str]
    export: str
    starts: Literal["seeds", "topics", "input"] = "seeds"
    topics: str = "topics"
    accepts: tuple[type, ...] = ()
    read: Callable[[str], Iterable[Record]] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    tools: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    rehearse: Callable[[LanguagePack, str, Sequence[Task]], Rehearsal] | None = None
    files: Mapping[str, Callable[[RunView], Iterable[tuple[str, str, Iterable[Record]]]]] = field(default_factory=dict)


def truncated(completion: Completion) -> bool | None:
    """Tell whether a completion was cut off; None when the server did not say."""
    if not completion.finish_reason:
        return None
    return completion.finish_reason in {"length", "max_tokens", "content_filter"}
