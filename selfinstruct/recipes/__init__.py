"""What a recipe is. Each recipe is one file here: what to ask and how to read the answer, no I/O."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from selfinstruct.config import RunConfig
from selfinstruct.languages import LanguagePack
from selfinstruct.loop import Stage
from selfinstruct.prompts import Prompt
from selfinstruct.values import Capabilities, Sampling, Task


@dataclass(frozen=True, slots=True)
class Brief:
    """All that a recipe may know when it lays out its stages.

    `style` is settled: "auto" is not left.
    """

    config: RunConfig
    style: str
    pack: LanguagePack
    prompt: Prompt
    seeds: tuple[Task, ...]
    capabilities: Capabilities
    items: tuple[Task, ...] | None = None

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
class Recipe:
    """A named way of making records: stages, prompts, defaults.

    `prompts` are the folders its wording is looked for in, `variables` what a prompt of each style
    may use, `stages` lays the work out, `record` is the stage whose records are the dataset.
    """

    name: str
    summary: str
    source: str
    styles: tuple[str, ...]
    prompts: tuple[str, ...]
    variables: Mapping[str, frozenset[str]]
    stages: Callable[[Brief], tuple[Stage, ...]]
    preview: Callable[[Brief], str]
    export: str
    takes_input: bool = False
    defaults: Mapping[str, Any] = field(default_factory=dict)
