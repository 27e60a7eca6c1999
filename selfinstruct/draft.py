"""A draft of a language pack: put together from what a `language-pack` run brought, checked, and never called more.

The model's words and tasks are taken only where they hold: a label must be read back by the parser, a spelling must
stand for one thing, a list must not reject the draft's own seeds, and a seed must pass the draft's own filters. Where
the model gave nothing usable the pack has the words of the one it started from. All this is listed for its reader.
"""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from selfinstruct.filters import DEFAULT_FILTERS, build_filters
from selfinstruct.language_check import reading_faults, task_faults
from selfinstruct.languages import (
    Labels,
    LanguagePack,
    Match,
    Phrases,
    is_script,
    is_unspaced,
    own_scripts,
    parse_pack,
    script,
)
from selfinstruct.recipes.language_pack import GROUPS, words_in, words_of
from selfinstruct.values import Dialogue, Record, Task

LEAST_SHARE = 0.15
"""Share of the letters from which on a script is one of the language's: Japanese has three, and Latin names are few."""

LEAST_WORDS = {"first_words": 5, "refusals": 3, "self_reference": 3, "needs_context": 3, "other_language": 3}
"""How many phrases a list must have; with fewer it is as good as missing."""

_TOGETHER = (GROUPS["labels"], GROUPS["roles"], ("yes", "no"))
"""Keys among which a spelling stands for one thing only, and which are in one language or the other."""

_PHRASES = ("refusals", "self_reference", "needs_context", "other_language")

Words = dict[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Review:
    """Something a speaker should look at: a key of the pack, or the id of a task, and what about it."""

    where: str
    what: str


@dataclass(frozen=True, slots=True)
class Draft:
    """The files of a drafted pack by name, how many tasks and topics they hold, and what there is to review."""

    files: Mapping[str, str]
    tasks: int
    topics: int
    review: tuple[Review, ...]


def compose(
    tag: str, name: str, source: LanguagePack, records: Iterable[Record], by: str, *, noise: bool = False
) -> Draft:
    """Put a pack together from the accepted records of a run.

    Args:
        tag: the language's tag.
        name: its English name where the person gave it, else "".
        source: the pack it was drafted from.
        records: groups of words, seed tasks and topics (`selfinstruct.recipes.language_pack`).
        by: the model that drafted it, for the head of the file.
        noise: whether that model does not speak the language; the head then says so.
    """
    words: Words = {}
    tasks: list[Task] = []
    topics: list[Dialogue] = []
    for record in records:
        if isinstance(record, Task):
            tasks.append(record)
        elif (group := words_in(record)) is not None:
            words |= group
        elif isinstance(record, Dialogue):
            topics.append(record)
    if name:
        words["name"] = (name,)
    review: list[Review] = []
    letters = _letters([*(text for task in tasks for text in _texts(task)), *(topic.topic for topic in topics)])
    letters = letters or _letters(word for values in words.values() for word in values)
    scripts = _scripts(tag, letters) or source.scripts
    substring = any(is_unspaced(char) for char in letters)
    match: Match = "substring" if substring else "word"
    words = _without_hits(_usable(words, tag, scripts, source, review), match, tasks, review)
    head = (
        f"# {tag}, drafted from {source.tag} by {by}: no speaker has read it yet.\n"
        + ("# That model does not speak the language: this is noise, not for use.\n" if noise else "")
        + "# Once one has read this file and the seed tasks and topics beside it, `draft: true` can go. The keys are\n"
        f"# explained in selfinstruct/languages.py; `selfinstruct language check {tag}` reads this file strictly.\n"
    )
    text = head + _pack_text(words, scripts, letters, match, tasks, source)
    pack = parse_pack(text, Path(f"seeds/{tag}/pack.yaml"), tag)
    kept = list(_fitting(tasks, pack, review))
    said = [topic for topic in topics if _in_script(topic.topic, scripts)]
    if len(said) < len(topics):
        review.append(Review("topics.jsonl", f"{len(topics) - len(said)} topics are left out: in another script"))
    files = {"pack.yaml": text}
    if kept:
        files["tasks.jsonl"] = _lines(map(_row, kept))
    if said:
        files["topics.jsonl"] = _lines({"topic": t.topic, "category": t.extra.get("category", "")} for t in said)
    return Draft(files, len(kept), len(said), tuple(review))


# Letters


def _letters(texts: Iterable[str]) -> str:
    return "".join(char for text in texts for char in text if char.isalpha())


def _scripts(tag: str, letters: str) -> tuple[str, ...]:
    """Return the scripts of a language: what its tag says, else those that its letters are in."""
    named = [part for part in tag.split("-")[1:] if is_script(part)]
    if named:
        return tuple(named)
    counted = Counter(map(script, letters))
    return tuple(sorted(name for name, count in counted.items() if name and count >= LEAST_SHARE * counted.total()))


def _in_script(text: str, scripts: tuple[str, ...]) -> bool:
    share, _ = LanguagePack("", "", "", scripts=scripts).script_share(text)
    return share >= 0.5


def _texts(task: Task) -> Iterator[str]:
    yield task.instruction
    for case in task.instances:
        yield case.input
        yield case.output


# Words


def _usable(words: Words, tag: str, scripts: tuple[str, ...], source: LanguagePack, review: list[Review]) -> Words:
    """Return the words of every key: the model's where they will do, else those of the source."""
    found: Words = {}
    for key in (key for keys in GROUPS.values() for key in keys):
        given = words.get(key, ())
        good = tuple(word for word in given if key == "name" or _in_script(word, scripts))
        # A word in other letters, such as "AI", may stand beside others; the first one is printed.
        good += tuple(word for word in given if good and word not in good and key.startswith("roles"))
        if len(good) < LEAST_WORDS.get(key, 1):
            good = ()
        found[key] = good
    found["native_name"] = found["native_name"] or found["name"] or (tag,)
    found["name"] = found["name"] or (tag,)
    for keys in _TOGETHER:
        _tell_apart(found, keys)
        if not all(found[key] for key in keys):
            found.update(dict.fromkeys(keys, ()))
    _tell_apart(found, (*GROUPS["labels"], "example", "class_label"))
    for key in ("no_input", "no_output"):
        if found[key] and not found[key][0].startswith("<"):
            found[key] = tuple(dict.fromkeys((f"<{found[key][0]}>", *found[key])))
    for key, good in found.items():
        if not good:
            found[key] = words_of(source, key)
            review.append(Review(key, f"the model gave nothing usable; it has the words of {source.name}"))
        elif good == words_of(source, key) and key not in ("name", "native_name"):
            review.append(Review(key, f"the same words as in {source.name}: {', '.join(good[:3])}"))
    _readable(found, source, review)
    return found


def _tell_apart(words: Words, keys: Sequence[str]) -> None:
    """Leave each spelling to the first key that has it."""
    taken: set[str] = set()
    for key in keys:
        words[key] = tuple(word for word in words[key] if word.casefold() not in taken)
        taken.update(map(str.casefold, words[key]))


def _readable(words: Words, source: LanguagePack, review: list[Review]) -> None:
    """Give up labels that the parser does not read back as what they are."""
    labels = Labels(*(words[key] for key in GROUPS["labels"]))
    pack = LanguagePack("", "", "", labels=labels, no_input=words["no_input"])
    faults = list(reading_faults(pack))
    if any(fault.startswith("labels") for fault in faults):
        words.update({key: words_of(source, key) for key in GROUPS["labels"]})
        review.append(Review("labels", f"it has the words of {source.name}, since {faults[0]}"))
    if any(fault.startswith("no_input") for fault in faults):
        words["no_input"] = words_of(source, "no_input")
        review.append(Review("no_input", f"it has the words of {source.name}, since {faults[-1]}"))


def _without_hits(words: Words, match: Match, tasks: Sequence[Task], review: list[Review]) -> Words:
    """Take out of the lists what would reject seed tasks that are well."""
    looks: dict[str, Callable[[Task, Phrases], object]] = {
        "blocked.words": lambda task, phrase: phrase.find(task.instruction),
        "blocked.openings": lambda task, phrase: phrase.opens(task.instruction),
        "refusals": lambda task, phrase: any(phrase.opens(case.output) for case in task.instances),
        "self_reference": lambda task, phrase: any(map(phrase.find, _texts(task))),
    }
    for key, look in looks.items():
        kept = []
        for word in words[key]:
            hit = next((task for task in tasks if look(task, Phrases(match, (word,)))), None)
            if hit is None:
                kept.append(word)
            else:
                review.append(Review(key, f"{word!r} is taken out: it would reject the seed task {hit.id}"))
        words = words | {key: tuple(kept)}
    return words


# Files


def _pack_text(
    words: Words, scripts: tuple[str, ...], letters: str, match: Match, tasks: Sequence[Task], source: LanguagePack
) -> str:
    rightward = sum(unicodedata.bidirectional(char) in ("R", "AL") for char in letters)
    said = "".join(text for task in tasks for text in _texts(task))
    undescribed = LanguagePack("", "", "")

    def several(group: str) -> dict[str, list[str]]:
        return {key.rpartition(".")[2]: list(words[key]) for key in GROUPS[group]}

    def marks(known: tuple[str, ...], own: tuple[str, ...]) -> list[str]:
        return list(dict.fromkeys((*(mark for mark in known if mark in said), *own)))

    data: dict[str, Any] = {
        "draft": True,
        "name": words["name"][0],
        "native_name": words["native_name"][0],
        "scripts": list(scripts),
        "direction": "rtl" if 2 * rightward > len(letters) else "ltr",
        "unit": "characters" if match == "substring" else "words",
        "instruction_length": {"min": 4, "max": 300 if match == "substring" else 150},
        "labels": several("labels"),
        "roles": several("roles"),
        **{key: list(words[key]) for key in GROUPS["forms"]},
        "blocked": {"match": match, **several("blocked")},
        **{key: {"match": match, "phrases": list(words[key])} for key in _PHRASES},
        "confusions": [source.tag.split("-")[0]] if own_scripts(scripts) & own_scripts(source.scripts) else [],
        "sentence_ends": marks(undescribed.sentence_ends, source.sentence_ends),
        "question_ends": marks(undescribed.question_ends, source.question_ends),
        "first_words": list(words["first_words"]),
    }
    return str(yaml.safe_dump(data, allow_unicode=True, sort_keys=False, width=120))


def _fitting(tasks: Sequence[Task], pack: LanguagePack, review: list[Review]) -> Iterator[Task]:
    rules = build_filters([(name, {}) for name in DEFAULT_FILTERS["list"]], pack)
    for task in tasks:
        faults = list(task_faults(task, pack, rules))
        if faults:
            review.append(Review(task.id, f"left out: {faults[0]}"))
        else:
            yield task


def _row(task: Task) -> dict[str, Any]:
    return {
        "id": task.id,
        "name": task.name,
        "instruction": task.instruction,
        "instances": [asdict(case) for case in task.instances],
        "is_classification": bool(task.is_classification),
    }


def _lines(rows: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
