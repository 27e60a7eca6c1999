"""The values that flow through the program: frozen, plain, standard library only.

A **record** is what a run makes: a `Task`, a `Dialogue` or a `Comparison`. A **request** asks a
backend, a **completion** is its answer. A **candidate** is a record parsed from completions and
not yet judged; a **decision** is a judged candidate, kept whether it was accepted or not.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Role = Literal["system", "user", "assistant", "tool"]


def members(value: Any) -> dict[str, Any]:
    """Return a value's fields by name, as they are; `asdict` copies them all the way down, at ten times the cost."""
    return {name: getattr(value, name) for name in value.__match_args__}


@dataclass(frozen=True, slots=True)
class Instance:
    """One worked case of a task; `input` is "" when the instruction stands alone."""

    input: str
    output: str


@dataclass(frozen=True, slots=True)
class Task:
    """An instruction with its instances (Self-Instruct's own shape, `data/seed_tasks.jsonl`).

    An Alpaca row is a task with exactly one instance. `extra` holds what a format must keep to write
    itself back (Dolly's category, pCLUE's answer choices).
    """

    instruction: str
    instances: tuple[Instance, ...] = ()
    is_classification: bool | None = None
    id: str = ""
    name: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool by name; `arguments` is JSON text of an object."""

    name: str
    arguments: str
    id: str = ""


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What a tool gave: `text` is what the model is shown, `reason` says why it `failed`.

    `values` are what an answer that rests on it should state ("26", "1/3"), `items` the hits of a search.
    """

    text: str
    failed: bool = False
    reason: str = ""
    values: tuple[str, ...] = ()
    items: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a dialogue, or one message of a chat request.

    `thoughts` and `tool_calls` belong to assistant messages, `name` (of the tool) and
    `tool_call_id` to tool messages.
    """

    role: Role
    content: str
    thoughts: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    name: str = ""
    tool_call_id: str = ""


@dataclass(frozen=True, slots=True)
class Dialogue:
    """A conversation; `extra` holds what a format must keep to write itself back."""

    messages: tuple[Message, ...]
    system: str = ""
    topic: str = ""
    id: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True)
class Response:
    """One candidate answer of a comparison; `rank` 0 is the best, higher `score` is better."""

    content: str
    score: float | None = None
    rank: int | None = None
    id: str = ""


@dataclass(frozen=True, slots=True)
class Comparison:
    """A prompt, or the dialogue so far, with several responses to prefer between."""

    prompt: str | Dialogue
    responses: tuple[Response, ...]
    id: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)


Record = Task | Dialogue | Comparison


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a completion is sampled; None leaves the choice to the server.

    `max_tokens` is always set: it is the worst case that a budget reserves. The second group is
    understood by llama.cpp and vLLM and sent only to backends that declare it.
    """

    max_tokens: int
    temperature: float | None = None
    top_p: float | None = None
    stop: tuple[str, ...] = ()
    presence_penalty: float | None = None
    frequency_penalty: float | None = None

    min_p: float | None = None
    top_k: int | None = None
    repeat_penalty: float | None = None
    repeat_last_n: int | None = None

    logprobs: bool = False


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked of a backend: chat `messages`, or a raw `prompt` to be continued.

    `schema` is a JSON schema as JSON text, "" for free text; `tools` are the tools the model may call, as JSON text of
    OpenAI's list, "" for none. `nonce` keeps two samples of one
    prompt apart (stage, draw and call number), `seed` makes a server that can repeat itself do so.
    """

    sampling: Sampling
    messages: tuple[Message, ...] = ()
    prompt: str | None = None
    schema: str = ""
    tools: str = ""
    nonce: str = ""
    seed: int | None = None

    def key(self, model: str) -> str:
        """Return the journal's content key: equal keys mean the same question to the same model."""
        return "r1-" + hashlib.sha256(_CANONICAL.encode([model, self]).encode()).hexdigest()[:40]


_CANONICAL = json.JSONEncoder(default=members, ensure_ascii=True, sort_keys=True, separators=(",", ":"))


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one completion as the server counted them; `estimated` where it did not say."""

    prompt_tokens: int
    completion_tokens: int
    estimated: bool = False


@dataclass(frozen=True, slots=True)
class Completion:
    """A backend's answer.

    `finish_reason` is the server's own word ("stop", "length", "content_filter", "tool_calls",
    "abort", ...) or "" when it gave none. `logprob` is the mean log-probability (nats) of the
    sampled tokens. `reasoning` is the thinking some servers return beside the answer.
    """

    text: str
    finish_reason: str
    usage: Usage
    model: str = ""
    logprob: float | None = None
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a backend's endpoint understands beyond plain chat."""

    completions: bool = False
    """Raw `/completions`: the prompt is continued as it stands, no chat template."""
    json_schema: bool = False
    """`response_format` of type json_schema is enforced."""
    seed: bool = True
    logprobs: bool = False
    llama_sampling: bool = False
    """min_p, top_k, repeat_penalty and repeat_last_n."""
    tools: bool = False
    """`tools` are offered to the model, and its calls come back as such."""


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why a candidate was not accepted: which filter, a short stable reason, what it measured."""

    filter: str
    reason: str
    measured: Mapping[str, float | str] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A parsed, not yet judged record; `record` is None and `rejection` set when it can't be read.

    `text` is the piece of the completion it came from, `truncated` tells that the piece was cut
    off, `logprob` is that of the completion, `demonstrations` are the tasks the prompt showed.
    """

    record: Record | None
    text: str = ""
    rejection: Rejection | None = None
    truncated: bool = False
    logprob: float | None = None
    demonstrations: tuple[Task, ...] = ()


@dataclass(frozen=True, slots=True)
class Neighbour:
    """The nearest entry of the task pool and its ROUGE-L F."""

    id: str
    score: float


@dataclass(frozen=True, slots=True)
class Decision:
    """A judged candidate: accepted when `rejection` is None."""

    id: str
    candidate: Candidate
    rejection: Rejection | None
    nearest: Neighbour | None = None

    @property
    def accepted(self) -> bool:
        """True when no filter objected."""
        return self.rejection is None
