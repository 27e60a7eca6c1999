"""Cleaning that the sources needed: named steps over records, each counted.

A step takes a record and gives back what is left of it: the same record, a changed one, several, or
none. Nothing is done that was not asked for, and `Cleaner.counts` accounts for every record.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import Any

from selfinstruct.errors import ConfigError
from selfinstruct.languages import load_pack
from selfinstruct.values import Dialogue, Message, Record, Task

Apply = Callable[[Record], list[Record]]


@dataclass(frozen=True, slots=True)
class Step:
    """A cleaning step: `make(parameter)` returns the function over records.

    `parameter` says what may follow "=" after the name; "" where nothing may. `default` is used without one.
    """

    name: str
    summary: str
    source: str
    make: Callable[[str], Apply]
    parameter: str = ""
    default: str = ""


@dataclass(slots=True)
class Count:
    """What a step did: `taken` - `dropped` + `added` = given on."""

    taken: int = 0
    changed: int = 0
    dropped: int = 0
    added: int = 0


@dataclass(slots=True)
class Cleaner:
    """Steps in order, and what each did."""

    steps: list[tuple[str, Apply]] = field(default_factory=list)
    counts: dict[str, Count] = field(default_factory=dict)
    on_dropped: Callable[[Record, str], None] | None = None

    def __call__(self, record: Record) -> list[Record]:
        """Return what the steps leave of a record."""
        current = [record]
        for name, apply in self.steps:
            count = self.counts.setdefault(name, Count())
            following: list[Record] = []
            for each in current:
                found = apply(each)
                count.taken += 1
                count.dropped += not found
                count.added += max(len(found) - 1, 0)
                count.changed += bool(found) and found != [each]
                if not found and self.on_dropped is not None:
                    self.on_dropped(each, name)
                following += found
            current = following
        return current


def cleaner(wanted: Iterable[str]) -> Cleaner:
    """Build the steps of "name" or "name=parameter" texts, in that order.

    Raises:
        ConfigError: no such step (names the closest), or a parameter where none belongs.
    """
    steps = []
    for item in wanted:
        name, equals, parameter = item.partition("=")
        step = STEPS.get(name)
        if step is None:
            near = difflib.get_close_matches(name, STEPS, n=3, cutoff=0.4) or list(STEPS)
            raise ConfigError(f'no cleaning step "{name}"; closest: {", ".join(near)}')
        if equals and not step.parameter:
            raise ConfigError(f'cleaning step "{name}" takes no parameter')
        steps.append((item, step.make(parameter if equals else step.default)))
    return Cleaner(steps)


# --- walking over texts


def texts(record: Record) -> Iterator[str]:
    """Yield every text that a model would read or learn."""
    if isinstance(record, Task):
        yield record.instruction
        for instance in record.instances:
            yield instance.input
            yield instance.output
    elif isinstance(record, Dialogue):
        yield record.system
        for message in record.messages:
            yield message.thoughts
            yield message.content
    else:
        yield from texts(record.prompt) if isinstance(record.prompt, Dialogue) else (record.prompt,)
        for response in record.responses:
            yield response.content


def map_texts(record: Record, change: Callable[[str], str]) -> Record:
    """Return the record with every text changed."""
    if isinstance(record, Task):
        instances = tuple(
            replace(each, input=change(each.input), output=change(each.output)) for each in record.instances
        )
        return replace(record, instruction=change(record.instruction), instances=instances)
    if isinstance(record, Dialogue):
        messages = tuple(
            replace(each, content=change(each.content), thoughts=change(each.thoughts)) for each in record.messages
        )
        return replace(record, messages=messages, system=change(record.system))
    prompt = record.prompt
    asked = change(prompt) if isinstance(prompt, str) else map_texts(prompt, change)
    assert isinstance(asked, str | Dialogue)
    responses = tuple(replace(each, content=change(each.content)) for each in record.responses)
    return replace(record, prompt=asked, responses=responses)


def _changing(change: Callable[[str], str]) -> Callable[[str], Apply]:
    return lambda _: lambda record: [map_texts(record, change)]


def _dropping(unfit: Callable[[Record], bool]) -> Callable[[str], Apply]:
    return lambda _: lambda record: [] if unfit(record) else [record]


def _outputs(record: Record) -> list[str]:
    if isinstance(record, Task):
        return [instance.output for instance in record.instances]
    if isinstance(record, Dialogue):
        return [
            message.content for message in record.messages if message.role == "assistant" and not message.tool_calls
        ]
    return [response.content for response in record.responses]


# --- texts

_TAG = re.compile(r"</?(?:p|div|span|pre|code|br|ol|ul|li|table|t[rdh]|h[1-6]|strong|em|a|blockquote)\b[^>]*>", re.I)
_CODE = re.compile(r"<pre\b.*?</pre>", re.DOTALL | re.IGNORECASE)
_BOX = re.compile(r"</?(?:div|span|button)\b[^>]*>", re.IGNORECASE)
_COPY_CODE = re.compile(r"```\n([\w+#.-]*?)Copy code`?\n?")
_PAGE = re.compile(r"^\d+ / \d+$", re.MULTILINE)
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufeff\ufffe\uffff]")


def _html_to_markdown(_: str) -> Apply:
    try:
        markdownify: Any = import_module("markdownify").markdownify
    except ImportError:
        raise ConfigError("html-to-markdown needs: pip install 'selfinstruct[html]'") from None

    def change(text: str) -> str:
        # Texts without a tag are left alone: a "<" in them is a less-than sign.
        if not _TAG.search(text):
            return text
        # Boxes inside a code block would cost it its indentation; a model writes Markdown without escapes.
        text = _CODE.sub(lambda code: _BOX.sub("", code[0]), text)
        escapes = {"escape_asterisks": False, "escape_underscores": False, "escape_misc": False}
        markdown: str = markdownify(text, heading_style="ATX", bullets="-", **escapes)
        markdown = _PAGE.sub("", _COPY_CODE.sub(r"```\1\n", markdown))
        return re.sub(r"\n{3,}", "\n\n", markdown).strip()

    return lambda record: [map_texts(record, change)]


def _literal_newlines(text: str) -> str:
    # A text with real line breaks means its backslash-n: code, or a lesson on escapes.
    return text if "\n" in text else re.sub(r"(?<!\\)\\n", "\n", text)


# --- Alpaca

_MERGED = re.compile(
    r"(?im)^\s*(?:#{2,}\s*)?(?:\d+\s*[.)]\s*)?(?:instruction|input|output|指令|输入|输出)\s*[:：]|^\s*#{3,}\s*$|<noinput>"
)
_NOTHING = {"n/a", "na", "none", "null", "nil", "-", "not applicable", "<nooutput>", "no output"}
_URL = re.compile(r"https?://\S|\bwww\.\w", re.I)


def _merged(record: Record) -> bool:
    return any(_MERGED.search(output) for output in _outputs(record))


def _says_nothing(text: str, more: tuple[str, ...] = ()) -> bool:
    plain = text.strip().strip(".。").casefold()
    return plain in _NOTHING or plain in {spelling.casefold() for spelling in more}


def _no_input(parameter: str) -> Apply:
    spellings = {spelling.casefold() for tag in parameter.split(",") for spelling in load_pack(tag.strip()).no_input}
    spellings |= {
        "<noinput>",
        "noinput",
        "no input",
        "[no input]",
        "(no input)",
        "none",
        "n/a",
        "na",
        "无输入",
        "<无输入>",
    }

    def apply(record: Record) -> list[Record]:
        if not isinstance(record, Task):
            return [record]
        instances = tuple(
            replace(each, input="") if each.input.strip().rstrip(".。").casefold() in spellings else each
            for each in record.instances
        )
        return [replace(record, instances=instances)]

    return apply


def _asks_for_web(record: Record) -> bool:
    if isinstance(record, Task):
        return any(_URL.search(text) for text in (record.instruction, *(each.input for each in record.instances)))
    return False


# --- ShareGPT

_BLOCKED = "openai,chatgpt,gpt-3,chadgpt,gpt3,chat-gpt,open-ai,open ai"
_RATE_LIMITS = (
    "Too many requests in 1 hour. Try again later.",
    "!Too many requests in 1 hour. Try again later.",
    "Sorry, I'm not able to answer that right now. Please try again later.",
)


def _blocked_phrases(parameter: str) -> Apply:
    phrases = [phrase.strip().casefold() for phrase in parameter.split(",") if phrase.strip()]
    if not phrases:
        raise ConfigError("blocked-phrases needs phrases: blocked-phrases=openai,chatgpt")
    return lambda record: [] if any(p in text.casefold() for text in texts(record) for p in phrases) else [record]


def _blocked_replies(record: Record) -> bool:
    return any(output.strip().startswith(_RATE_LIMITS) for output in _outputs(record))


def _trimmed(record: Record) -> list[Record]:
    if not isinstance(record, Dialogue):
        return [record]
    messages = record.messages
    if messages and messages[0].role != "user":
        messages = messages[1:]
    if messages and messages[-1].role == "user":
        messages = messages[:-1]
    return [replace(record, messages=messages)] if len(messages) > 1 else []


def _cut_at_empty(record: Record) -> list[Record]:
    if not isinstance(record, Dialogue):
        return [record]
    kept = 0
    for message in record.messages:
        if not message.content.strip() and not message.tool_calls and message.role != "tool":
            break
        kept += 1
    return _trimmed(replace(record, messages=record.messages[:kept])) if kept < len(record.messages) else [record]


def _too_short(parameter: str) -> Apply:
    least = _whole("too-short", parameter)
    return lambda record: [] if sum(map(len, texts(record))) < least else [record]


def _whole(name: str, parameter: str) -> int:
    if not parameter.isascii() or not parameter.isdigit() or int(parameter) < 1:
        raise ConfigError(f'{name} needs a whole number, found "{parameter}": {name}=2048')
    return int(parameter)


def _restarted_numbering(record: Record) -> bool:
    # A list that starts again at 1 with no 2 in between was cut together (filter_wrong_format).
    return any(re.search(r"\n1\. [^2]*\n1\. ", output) for output in _outputs(record))


def _repeated_digit(record: Record) -> bool:
    return any(re.search(r"(\d)\1{8}", text) for text in texts(record))


def length(message: Message) -> int:
    """Estimate a message's tokens without a tokenizer, plus 6 for its markers (FastChat's allowance).

    A letter of an unspaced script is one token, another word four thirds, a mark one.
    """
    unspaced = len(re.findall(r"[\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff]", message.content))
    words = len(re.findall(r"[^\W\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff]+", message.content))
    marks = len(re.findall(r"[^\w\s]", message.content))
    return unspaced + -(-words * 4 // 3) + marks + 6


def _split_long(parameter: str) -> Apply:
    limit = _whole("split-long", parameter)

    def apply(record: Record) -> list[Record]:
        if not isinstance(record, Dialogue):
            return [record]
        parts: list[tuple[int, list[Message]]] = []
        total = 0
        turn: list[Message] = []
        for position, message in enumerate(record.messages):
            turn.append(message)
            if position + 1 < len(record.messages) and record.messages[position + 1].role != "user":
                continue
            # A turn that overflows begins the next part; FastChat loses it when it is the last one.
            size = sum(map(length, turn))
            if not parts or total + size > limit:
                parts.append((position + 1 - len(turn), []))
                total = 0
            parts[-1][1].extend(turn)
            total += size
            turn = []
        if len(parts) < 2:
            return [record]
        return [
            replace(record, messages=tuple(messages), id=f"{record.id}_{start}" if record.id else "")
            for start, messages in parts
        ]

    return apply


def _duplicates(_: str) -> Apply:
    seen: set[bytes] = set()

    def new(key: str) -> bool:
        digest = hashlib.blake2b(key.encode(errors="surrogatepass"), digest_size=12).digest()
        fresh = digest not in seen
        seen.add(digest)
        return fresh

    def apply(record: Record) -> list[Record]:
        if isinstance(record, Dialogue):
            key = "\x00".join(message.content for message in record.messages[:2])
        else:
            key = "\x00".join(texts(record))
        by_id = new(f"id {type(record).__name__} {record.id}") if record.id else True
        return [record] if new(f"text {key}") and by_id else []

    return apply


# --- languages


def _language(keep: bool) -> Callable[[str], Apply]:
    def make(parameter: str) -> Apply:
        if not parameter:
            raise ConfigError("keep-language and skip-language need a language: keep-language=zh")
        packs = [load_pack(tag.strip()) for tag in parameter.split(",")]

        def apply(record: Record) -> list[Record]:
            text = "\n".join(texts(record))[:20_000]
            within = any(pack.script_share(text)[0] >= 0.5 for pack in packs)
            return [record] if within == keep else []

        return apply

    return make


# --- tools, OASST


def _failed_tools(record: Record) -> bool:
    if not isinstance(record, Dialogue):
        return False
    failed = re.compile(r"No result\.|No calculation results\.")
    return any(message.role == "tool" and failed.search(message.content) for message in record.messages)


def _not_ready(record: Record) -> bool:
    kept = record.extra.get("oasst")
    if not isinstance(kept, dict):
        return False
    nodes = [node for key in ("nodes", "replies") for node in kept.get(key, ()) if isinstance(node, dict)]
    state = kept.get("tree", {}).get("tree_state", "ready_for_export")
    bad = any(node.get("deleted") or node.get("synthetic") or node.get("review_result") is False for node in nodes)
    return bad or state != "ready_for_export"


_FASTCHAT = "lm-sys/FastChat fastchat/data/"
_CLEANED = "gururise/AlpacaDataCleaned README"

STEPS: dict[str, Step] = {
    step.name: step
    for step in (
        Step("strip", "spaces and blank lines at both ends of every text", "AlpacaDataCleaned", _changing(str.strip)),
        Step(
            "html-to-markdown",
            "HTML of raw ShareGPT dumps to Markdown, without page numbers and 'Copy code'; texts without a tag stay",
            _FASTCHAT + "clean_sharegpt.py",
            _html_to_markdown,
        ),
        Step(
            "literal-newlines",
            "a backslash and an n to a line break, in texts that have no real line break",
            "BianQue, Alpaca-CoT, Chinese-Vicuna and BELLE samples",
            _changing(_literal_newlines),
        ),
        Step(
            "control-characters",
            "take out control characters and BOMs",
            _CLEANED,
            _changing(lambda t: _CONTROL.sub("", t)),
        ),
        Step("no-input", "spellings of 'no input' to an empty input", _CLEANED, _no_input, "language tags", "en"),
        Step("merged-instructions", "drop when an output holds another task's labels", _CLEANED, _dropping(_merged)),
        Step(
            "empty-output",
            "drop when an output is empty",
            _CLEANED + "; stanford_alpaca #265",
            _dropping(lambda record: any(not output.strip() for output in _outputs(record))),
        ),
        Step(
            "na-output",
            "drop when an output says N/A, none or the like",
            _CLEANED,
            _dropping(lambda record: any(_says_nothing(output) for output in _outputs(record))),
        ),
        Step(
            "urls", "drop tasks whose instruction or input points at a web address", _CLEANED, _dropping(_asks_for_web)
        ),
        Step(
            "trim-ends",
            "drop one leading turn that is not the person's and one trailing turn that is",
            _FASTCHAT + "clean_sharegpt.py",
            lambda _: _trimmed,
        ),
        Step(
            "cut-at-empty",
            "end a dialogue before its first empty turn",
            _FASTCHAT + "clean_sharegpt.py",
            lambda _: _cut_at_empty,
        ),
        Step(
            "blocked-phrases",
            "drop a record that holds one of the phrases, in any letter case",
            _FASTCHAT + "clean_sharegpt.py; koala_data_pipeline process_chat_data.py",
            _blocked_phrases,
            "phrases between commas",
            _BLOCKED,
        ),
        Step(
            "blocked-replies",
            "drop when an answer is a rate-limit message",
            _FASTCHAT + "clean_sharegpt.py",
            _dropping(_blocked_replies),
        ),
        Step(
            "too-short",
            "drop below so many characters in all",
            _FASTCHAT + "clean_sharegpt.py",
            _too_short,
            "characters",
            "16",
        ),
        Step(
            "duplicates",
            "drop a repeated id, and a dialogue whose first question and answer were there (other records: whole text)",
            _FASTCHAT + "clean_sharegpt.py",
            _duplicates,
        ),
        Step(
            "repeated-digits",
            "drop when a digit stands nine times in a row",
            _FASTCHAT + "optional_clean.py",
            _dropping(_repeated_digit),
        ),
        Step(
            "wrong-numbering",
            "drop when a numbered list in an answer starts again at 1 without a 2",
            _FASTCHAT + "filter_wrong_format.py",
            _dropping(_restarted_numbering),
        ),
        Step(
            "split-long",
            "split a dialogue above so many tokens (estimated) between turns; an overflowing turn begins the next part",
            _FASTCHAT + "split_long_conversation.py",
            _split_long,
            "tokens",
            "2048",
        ),
        Step(
            "keep-language",
            "keep records mostly in the scripts of the languages",
            _FASTCHAT + "optional_clean.py (there with a language detector)",
            _language(True),
            "language tags",
        ),
        Step(
            "skip-language",
            "drop records mostly in the scripts of the languages",
            _FASTCHAT + "optional_clean.py (there with a language detector)",
            _language(False),
            "language tags",
        ),
        Step(
            "failed-tools",
            "drop dialogues in which a tool found nothing: MOSS answers with a number all the same",
            "OpenLMLab/MOSS SFT_data: 16 of 18 failed calculations are answered with a number",
            _dropping(_failed_tools),
        ),
        Step(
            "oasst-ready",
            "keep what Open-Assistant trains on: ready trees, no message deleted, synthetic or with a negative review",
            "LAION-AI/Open-Assistant model_training/custom_datasets/oasst_dataset.py",
            _dropping(_not_ready),
        ),
    )
}
"""Every step by name, in a sensible order of use."""
