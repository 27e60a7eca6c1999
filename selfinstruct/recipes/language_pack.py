"""Language pack: what a language brings, drafted from another's; `selfinstruct language new` runs it.

Each seed task and topic of the pack it starts from is written anew for people who speak the other language, in their
world: BELLE wrote its seeds in Chinese instead of translating Stanford's. The outputs are answers to the new tasks, not
translations (KoAlpaca). The words of the pack itself (labels, roles, refusals ...) are asked for a group at a time.
`selfinstruct.draft` puts together what comes of the run.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from selfinstruct import seeds
from selfinstruct.errors import ConfigError, InputError
from selfinstruct.filters import Filter, build_filters
from selfinstruct.languages import LanguagePack, canonical, is_script, is_unspaced, load_pack, tokens
from selfinstruct.masking import Fault, Masked, mask, unmask
from selfinstruct.recipes import Brief, Recipe, Rehearsal, truncated
from selfinstruct.recipes.translate import unnamed
from selfinstruct.stages import Draw, Stage
from selfinstruct.values import (
    Candidate,
    Dialogue,
    Instance,
    Message,
    Record,
    Rejection,
    Request,
    Sampling,
    Task,
)

_T = TypeVar("_T")

VARIABLES = {
    "adapt": {
        "task": frozenset({"language", "source", "instruction", "inputs", "classification", "marked"}),
        "answer": frozenset({"language", "instruction", "input", "classification"}),
        "topic": frozenset({"language", "source", "topic", "category"}),
        "words": frozenset({"language", "source", "group", "lines"}),
        "again": frozenset({"language", "faults"}),
    }
}

ADAPTATION = Sampling(max_tokens=192, temperature=0.7, top_p=0.95)
"""A task or topic written anew; to `max_tokens` comes one for each byte of the old one."""

ANSWER = Sampling(max_tokens=768, temperature=0.3, top_p=0.95)
WORDS = Sampling(max_tokens=384, temperature=0.3, top_p=0.95)

GROUPS: Mapping[str, tuple[str, ...]] = {
    "names": ("name", "native_name"),
    "labels": ("labels.instruction", "labels.input", "labels.output", "labels.task"),
    "roles": ("roles.user", "roles.assistant", "roles.doctor", "roles.patient", "roles.system"),
    "forms": ("example", "class_label", "yes", "no", "no_input", "no_output"),
    "blocked": ("blocked.words", "blocked.openings"),
    "refusals": ("refusals",),
    "self_reference": ("self_reference",),
    "needs_context": ("needs_context",),
    "other_language": ("other_language",),
    "first_words": ("first_words",),
}
"""The keys of a pack that are words of the language, in the groups they are asked for in."""

SHOWN = 12
"""Words of a key that the prompt shows."""

LONGEST = 60
"""Characters of the longest word or phrase that is believed to be one."""

LONGEST_TOPIC = 300
"""Characters of the longest topic."""


def words_of(pack: LanguagePack, key: str) -> tuple[str, ...]:
    """Return the words a pack has under a key of `GROUPS`."""
    if key in ("name", "native_name"):
        return (str(getattr(pack, key)),)
    section, _, name = key.partition(".")
    if section == "blocked":
        return pack.blocked_words.phrases if name == "words" else pack.blocked_openings.phrases
    value = getattr(getattr(pack, section), name) if name else getattr(pack, section)
    return tuple(getattr(value, "phrases", value))


def read(input: str) -> Iterator[Record]:
    """Yield what is to be drafted from a language: groups of its words, then its seed tasks and topics in turn.

    `input` is a tag, or "en:20" for the first 20 seed tasks and topics. A group of words is a dialogue, whose first
    message is the group's name and whose second the words.

    Raises:
        InputError: there is no language pack or no seed task of that tag.
    """
    tag, _, most = input.partition(":")
    if most and not most.isdecimal():
        raise InputError(
            f"--input: expected a language tag, or TAG:N for its first N seed tasks and topics, got {input!r}"
        )
    pack = load_pack(tag)
    path = seeds.path_for(pack.tag)
    if not pack.shipped or path is None:
        raise InputError(f"--input: {tag!r} is no language with a pack and seed tasks; see selfinstruct list languages")
    for group, keys in GROUPS.items():
        yield group_record(group, {key: words_of(pack, key) for key in keys})
    topics = seeds.topics_path_for(pack.tag)
    pairs = itertools.zip_longest(seeds.load_tasks(path), seeds.load_topics(topics) if topics else ())
    for pair in itertools.islice(pairs, int(most) if most else None):
        yield from filter(None, pair)


def group_record(group: str, words: Mapping[str, Sequence[str]]) -> Dialogue:
    """Return the record of a group of words: a line for each key, its words between bars."""
    lines = [f"{key}: {' | '.join(values)}" for key, values in words.items()]
    return Dialogue((Message("user", group), Message("assistant", "\n".join(lines))))


def words_in(record: Record) -> dict[str, tuple[str, ...]] | None:
    """Return the words of a group's record by key; None for any other record."""
    if not isinstance(record, Dialogue) or len(record.messages) != 2:
        return None
    lines = (line.partition(": ") for line in record.messages[1].content.split("\n"))
    return {key: tuple(values.split(" | ")) for key, _, values in lines}


def stages(brief: Brief) -> tuple[Stage, ...]:
    """Lay out the one mapping stage, whose items are groups of words, topics and tasks.

    Raises:
        ConfigError: the option `language` is missing or no language tag.
    """
    writer = _writer(brief)

    async def draw(draw: Draw) -> list[Candidate]:
        item = draw.item
        if isinstance(item, Task):
            return [await writer.task(draw, item)]
        assert isinstance(item, Dialogue)
        return [await (writer.words(draw, item) if item.messages else writer.topic(draw, item))]

    return (Stage("pack", draw, items=brief.items or (), novelty=("subject",), whole=False),)


def preview(brief: Brief) -> str:
    """Render the prompt for a seed task."""
    task = next((item for item in brief.items or read(brief.pack.tag) if isinstance(item, Task)), None)
    return _writer(brief).ask_for(_Exercise.of(task)) if task else ""


def _writer(brief: Brief) -> _Writer:
    tag, name = brief.options["language"], brief.options["name"]
    if not tag and brief.items:
        raise ConfigError("options.language: say which language to draft, such as sw; or use selfinstruct language new")
    tag = canonical(tag or "sw")  # a prompt can be shown without
    script = next((part for part in tag.split("-")[1:] if is_script(part)), "")
    own = brief.pack
    pack = LanguagePack(
        tag=tag,
        name=name or unnamed(tag),
        native_name=name or tag,
        scripts=(script,) if script else (),
        confusions=(own.tag.split("-")[0],),
        shipped=False,
    )
    checks = build_filters([("language_script", {}), ("language", {})], pack)
    return _Writer(brief, pack, tuple(check for _, check in checks))


@dataclass(frozen=True, slots=True)
class _Exercise:
    """A seed task with its marks: instruction, then the input of each instance that has one."""

    task: Task
    instruction: Masked
    inputs: tuple[Masked, ...]

    @classmethod
    def of(cls, task: Task) -> _Exercise:
        instruction = mask(task.instruction)
        inputs: list[Masked] = []
        for case in task.instances:
            if case.input:
                inputs.append(mask(case.input, 1 + sum(len(each.spans) for each in (instruction, *inputs))))
        return cls(task, instruction, tuple(inputs))


@dataclass(frozen=True, slots=True)
class _Writer:
    """Asks for what a draw is about, and once more where an answer has a fault."""

    brief: Brief
    pack: LanguagePack
    checks: tuple[Filter, ...]

    async def task(self, draw: Draw, task: Task) -> Candidate:
        """Write a task anew, then answer it."""
        exercise = _Exercise.of(task)
        size = len(task.instruction.encode()) + sum(len(case.input.encode()) for case in task.instances)
        adapted, text = await self._ask(
            draw, ADAPTATION, size, self.ask_for(exercise), lambda reply: self._exercise(exercise, reply)
        )
        if isinstance(adapted, Fault):
            return _rejected(adapted, text)
        instruction, inputs = adapted[0], iter(adapted[1:])
        instances = []
        for case in task.instances:
            given = next(inputs) if case.input else ""
            asked = self.brief.prompts["answer"].render(
                language=self._language,
                instruction=instruction,
                input=given,
                classification=bool(task.is_classification),
            )
            named = bool(task.is_classification) and _named(case.output, task.instruction, case.input)
            answer, said = await self._ask(
                draw,
                ANSWER,
                0,
                asked,
                lambda reply, given=given, named=named: self._answer(  # type: ignore[misc]
                    reply, instruction, given, task, named=named
                ),
            )
            text += f"\n\n{said}"
            if isinstance(answer, Fault):
                return _rejected(answer, text)
            instances.append(Instance(given, answer))
        id = f"{self.pack.tag}-{task.id.removeprefix(self.brief.pack.tag + '-')}"
        return Candidate(replace(task, instruction=instruction, instances=tuple(instances), id=id), text)

    def ask_for(self, exercise: _Exercise) -> str:
        """Return the prompt that has a task written anew."""
        return self.brief.prompts["task"].render(
            language=self._language,
            source=self._source,
            instruction=exercise.instruction.text,
            inputs=[given.text for given in exercise.inputs],
            classification=bool(exercise.task.is_classification),
            marked=bool(exercise.instruction.spans or any(given.spans for given in exercise.inputs)),
        )

    async def topic(self, draw: Draw, topic: Dialogue) -> Candidate:
        """Write a topic anew."""
        prompt = self.brief.prompts["topic"].render(
            language=self._language, source=self._source, topic=topic.topic, category=topic.extra.get("category", "")
        )

        def check(reply: str) -> str | Fault:
            line = _unquoted(reply)
            if "\n" in line:
                return Fault("several_lines")
            if len(line) > LONGEST_TOPIC:
                return Fault("too_long")
            return self._fault(line, topic.topic) or line

        found, text = await self._ask(draw, ADAPTATION, len(topic.topic.encode()), prompt, check)
        if isinstance(found, Fault):
            return _rejected(found, text)
        return Candidate(replace(topic, messages=(Message("user", found),), topic=found), text)

    async def words(self, draw: Draw, group: Dialogue) -> Candidate:
        """Ask for the words of a group; those that can't be words are left out, and are not asked for again."""
        name, known = group.messages[0].content, words_in(group) or {}
        prompt = self.brief.prompts["words"].render(
            language=self._language,
            source=self._source,
            group=name,
            lines=[{"key": key, "values": list(values[:SHOWN])} for key, values in known.items()],
        )
        completion = await draw.complete(Request(self.brief.sampling(WORDS), messages=(Message("user", prompt),)))
        text = _said(completion.text)
        # The line it was cut in is no whole word.
        found = read_words(text.rpartition("\n")[0] if truncated(completion) else text, list(known))
        if not found:
            return _rejected(Fault("empty"), completion.text)
        if all(tuple(map(str.casefold, found.get(key, ()))) == tuple(map(str.casefold, known[key])) for key in known):
            return _rejected(Fault("untranslated"), completion.text)
        return Candidate(group_record(name, found), completion.text)

    async def _ask(
        self, draw: Draw, preset: Sampling, size: int, prompt: str, check: Callable[[str], _T | Fault]
    ) -> tuple[_T | Fault, str]:
        """Ask, and once more with the fault named; return what `check` made of the last reply, and that."""
        sampling = self.brief.sampling(replace(preset, max_tokens=preset.max_tokens + size))
        said: tuple[Message, ...] = (Message("user", prompt),)
        found: _T | Fault = Fault("empty")
        text = ""
        for _ in range(2):
            completion = await draw.complete(Request(sampling, messages=said))
            text = completion.text
            if truncated(completion):
                found, sampling = Fault("truncated"), replace(sampling, max_tokens=2 * sampling.max_tokens)
                continue
            reply = _said(text)
            found = check(reply) if reply else Fault("empty")
            if not isinstance(found, Fault):
                break
            fault = {"reason": found.reason, "about": found.about}
            again = self.brief.prompts["again"].render(language=self._language, faults=[fault])
            said = (said[0], Message("assistant", text), Message("user", again))
        return found, text

    def _exercise(self, exercise: _Exercise, reply: str) -> list[str] | Fault:
        """Read instruction and inputs of an adapted task."""
        instructions = re.findall(r"<instruction>(.*?)</instruction>", reply, re.DOTALL)
        inputs = re.findall(r"<input>(.*?)</input>", reply, re.DOTALL)
        if not instructions and not exercise.inputs and "\n" not in reply and "<" not in reply:
            instructions = [reply]
        if len(instructions) != 1 or len(inputs) != len(exercise.inputs):
            return Fault("unmarked")
        texts = []
        for text, masked in zip((*instructions, *inputs), (exercise.instruction, *exercise.inputs), strict=True):
            restored = unmask(text.strip(), masked)
            if isinstance(restored, Fault):
                return restored
            texts.append(restored)
        texts[0] = " ".join(texts[0].split()) if "\n" not in exercise.task.instruction else texts[0]
        length, longest = self.pack.length(texts[0]), 300 if any(map(is_unspaced, texts[0])) else 150
        if length < self.pack.minimum_length:
            return Fault("too_short")
        if length > longest:
            return Fault("too_long")
        if not all(texts):
            return Fault("empty")
        return self._fault(texts[0], exercise.task.instruction) or texts

    def _answer(self, reply: str, instruction: str, given: str, task: Task, *, named: bool) -> str | Fault:
        if not task.is_classification:
            answered = Task(instruction, (Instance(given, reply),))
            return self._language_fault(answered) or reply
        label = _unquoted(reply).rstrip(".。!！")
        if "\n" in label:
            return Fault("several_lines")
        return Fault("label_missing", label) if named and not _named(label, instruction, given) else label

    def _fault(self, text: str, was: str) -> Fault | None:
        if not text:
            return Fault("empty")
        if tokens(text) == tokens(was):
            return Fault("untranslated")
        return self._language_fault(Task(text))

    def _language_fault(self, task: Task) -> Fault | None:
        found = next(filter(None, (check(Candidate(task)) for check in self.checks)), None)
        return Fault("other_language", str(found.measured.get("likeliest", ""))) if found else None

    @property
    def _language(self) -> dict[str, str]:
        return {"tag": self.pack.tag, "name": self.pack.name}

    @property
    def _source(self) -> dict[str, str]:
        own = self.brief.pack
        return {"tag": own.tag, "name": own.name, "native_name": own.native_name}


def read_words(reply: str, keys: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Read words by key: "key: word | word" a line, or a phrase a line where there is one key.

    What can't be a word or phrase is left out.
    """
    found: dict[str, list[str]] = {key: [] for key in keys}
    for line in reply.split("\n"):
        bare = re.sub(r"^[\s*•·>-]+|^\s*\d+[.)、]\s*|[\s*]+$", "", line)
        if len(keys) == 1:
            found[keys[0]].append(bare)
            continue
        name, colon, values = bare.partition(":") if ":" in bare else bare.partition("：")
        name = name.strip().strip("*`").casefold()
        key = next((key for key in keys if name in (key.casefold(), key.rpartition(".")[2].casefold())), None)
        if colon and key:
            found[key] += values.replace("｜", "|").split("|")
    words = {key: tuple(dict.fromkeys(filter(_is_word, map(_unquoted, values)))) for key, values in found.items()}
    return {key: values[: 1 if key in ("name", "native_name") else 30] for key, values in words.items() if values}


def _is_word(text: str) -> bool:
    return 0 < len(text) <= LONGEST and any(map(str.isalpha, text)) and not re.search(r"[\x00-\x1f|:：{}\[\]#=]", text)


def _said(text: str) -> str:
    return text.rpartition("</think>")[2].strip()


def _unquoted(text: str) -> str:
    """Take the quotes off a text that is quoted as a whole."""
    text = text.strip().strip("*`").strip()
    pairs = {'"': '"', "“": "”", "「": "」", "«": "»", "„": "“", "'": "'", "‘": "’"}
    quoted = len(text) > 1 and text[0] in pairs and text.endswith(pairs[text[0]]) and text[0] not in text[1:-1]
    return text[1:-1].strip() if quoted else text


def _named(label: str, instruction: str, given: str) -> bool:
    return label.casefold() in f"{instruction}\n{given}".casefold()


def _rejected(fault: Fault, text: str) -> Candidate:
    return Candidate(None, text, Rejection("adaptation", fault.reason, {"about": fault.about}))


def rehearse(pack: LanguagePack, style: str, tasks: Sequence[Task]) -> Rehearsal:
    """Draft the pack anew out of the English one, or the Chinese for English; its own words and tasks are said.

    Of the other pack's tasks and topics there are two each; in the place of topics instructions are said.
    """
    source = "zh" if pack.tag == "en" else "en"
    said = itertools.cycle(task for task in tasks if not pack.other_language.find(task.instruction))
    replies: list[str] = []
    expected: list[Record] = []
    for item in read(f"{source}:2"):
        made: Record
        if isinstance(item, Task):
            texts, made = _anew(item, said)
            replies += texts
        elif group := words_in(item):
            assert isinstance(item, Dialogue)
            words = {key: tuple(filter(_is_word, words_of(pack, key)))[:30] for key in group}
            made = group_record(item.messages[0].content, {key: values for key, values in words.items() if values})
            lines = [f"{key}: {' | '.join(values)}" for key, values in words.items()]
            replies.append("\n".join(lines if len(group) > 1 else next(iter(words.values()))))
        else:
            replies.append(" ".join(next(said).instruction.split()))
            made = Dialogue((Message("user", replies[-1]),))
        expected.append(made)
    answers = iter(replies)
    settings = {"language": source, "input": f"{source}:2", "options": {"language": pack.tag, "name": pack.name}}
    return Rehearsal(lambda request: next(answers, ""), tuple(expected), settings=settings)


def _anew(item: Task, said: Iterator[Task]) -> tuple[list[str], Task]:
    """Return what a faultless model replies about a task, in the words of others, and the task that comes of it.

    What it must keep, marks and the labels that the instruction names, stands at the end.
    """
    exercise = _Exercise.of(item)
    masked = (exercise.instruction, *exercise.inputs)
    answers = [case.output if item.is_classification else next(said).instances[0].output for case in item.instances]
    labels = answers if item.is_classification else []
    kept = [re.findall("⟦[0-9]+⟧", each.text) for each in masked]
    kept[0] += labels
    texts = [" ".join([*next(said).instruction.split(), *more]) for more in kept]
    reply = f"<instruction>{texts[0]}</instruction>" + "".join(f"\n<input>{text}</input>" for text in texts[1:])
    instruction, *inputs = map(str, map(unmask, texts, masked))
    given = iter(inputs)
    cases = [
        Instance(next(given) if case.input else "", answer)
        for case, answer in zip(item.instances, answers, strict=True)
    ]
    return [reply, *answers], replace(item, instruction=instruction, instances=tuple(cases))


RECIPE = Recipe(
    name="language-pack",
    summary="draft a language pack from another's: words, seed tasks, topics (run by `selfinstruct language new`)",
    source="ours",
    styles=("adapt",),
    prompts=("language-pack",),
    variables=VARIABLES,
    stages=stages,
    preview=preview,
    export="",
    starts="input",
    accepts=(Task, Dialogue),
    read=read,
    options={"language": "", "name": ""},
    rehearse=rehearse,
)
