"""Check the material of a language without a model: pack, seeds, topics, prompts, and a rehearsal of each recipe.

A *fault* is something that would make a run in the language go wrong: a label that can't be read back, a filter that
rejects the pack's own seeds, a prompt that lacks what its English original shows. The rehearsal is a whole run over the
real loop, with replies made of seed tasks in the pack's own labels in place of a model: what was said must come back.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from selfinstruct import plugins, prompts, resources, seeds
from selfinstruct.errors import ConfigError, SelfInstructError
from selfinstruct.filters import DEFAULT_FILTERS, Filter, build_filters
from selfinstruct.languages import LanguagePack, Phrases, closest, is_unspaced, load_pack, read_pack
from selfinstruct.parsing import parse_task_json, parse_tasks, render_tasks
from selfinstruct.plan import Plan, open_run, plan
from selfinstruct.recipes import Recipe, Rehearsal
from selfinstruct.run import Session
from selfinstruct.store import Commit
from selfinstruct.testing import Scripted
from selfinstruct.values import Candidate, Comparison, Dialogue, Instance, Record, Task

LEAST_SEEDS = 8
"""Self-Instruct shows eight tasks in a prompt."""

REHEARSED = 12
"""Seed tasks that a rehearsal says; that each of them survives a prompt is looked at without a run."""

_MODEL = "llama.cpp/rehearsal"
"""Never loaded. A model of one's own may be asked at full speed."""

_SPOKEN = ("refusals", "self_reference", "needs_context", "other_language", "blocked_words")


@dataclass(frozen=True, slots=True)
class Fault:
    """Something wrong with a language's material: the check that found it, where, and what is to be done."""

    check: str
    where: str
    detail: str


@dataclass(frozen=True, slots=True)
class Checked:
    """What was looked at and what was found; `rehearsed` names recipe and style of every run that was rehearsed."""

    tag: str
    name: str
    seeds: int
    topics: int
    prompts: int
    rehearsed: tuple[str, ...]
    faults: tuple[Fault, ...]
    draft: bool = False


def tags() -> list[str]:
    """Return the tags of every language with material, the person's own included."""
    return resources.folders("seeds")


def check(tag: str) -> Checked:
    """Check one language.

    Raises:
        ConfigError: there is no material of that tag.
    """
    path = resources.find("seeds", f"{tag}/pack.yaml")
    if path is None:
        raise ConfigError(f"there is no language pack {tag!r} (seeds/{tag}/pack.yaml): {closest(tag, tags())}")
    try:
        pack = read_pack(path, tag)
    except ConfigError as error:
        return Checked(tag, tag, 0, 0, 0, (), (Fault("pack", str(path), str(error)),))
    faults = [Fault("pack", str(path), detail) for detail in _pack_faults(pack)]
    tasks, more = _seeds(tag)
    topics, worse = _topics(tag)
    faults += [*more, *worse]
    recipes = [recipe for name in plugins.names("recipes") for recipe in [plugins.load("recipes", name)]]
    for name in sorted({recipe.topics for recipe in recipes} - {"topics"}):
        if seeds.topics_path_for(tag, name) is not None:
            faults += _topics(tag, name)[1]
    names = dict.fromkeys(name for style in DEFAULT_FILTERS.values() for name in style)
    rules = build_filters(names, pack)
    faults += [Fault("seeds", task.id, detail) for task in tasks for detail in task_faults(task, pack, rules)]
    wordings = dict.fromkeys(found for recipe in recipes for found in _wordings(recipe, tag))
    faults += [fault for wording in wordings for fault in _prompt_faults(*wording)]
    rehearsed = []
    if len(tasks) >= LEAST_SEEDS:
        for recipe in recipes:
            for style in recipe.styles if recipe.rehearse else ():
                rehearsed.append(f"{recipe.name} ({style})")
                details = _rehearsal_faults(recipe, style, pack, tasks)
                faults += [Fault("rehearsal", rehearsed[-1], detail) for detail in details]
    return Checked(tag, pack.name, len(tasks), len(topics), len(wordings), tuple(rehearsed), tuple(faults), pack.draft)


# The pack


def _pack_faults(pack: LanguagePack) -> Iterator[str]:
    yield from _spelling_faults(pack)
    for key in _SPOKEN:
        phrases: Phrases = getattr(pack, key)
        if not phrases.phrases:
            yield f"{key}: no phrase: the filters that need them would let everything pass"
        unspaced = [phrase for phrase in phrases.phrases if any(map(is_unspaced, phrase))]
        if phrases.match == "word" and unspaced:
            yield f"{key}: match: word never finds {unspaced[0]!r} in a script without spaces; use match: substring"
    alike = _written_alike(pack)
    if alike and not pack.confusions:
        yield f"confusions: empty, but {', '.join(alike)} are written in these letters too, and models slip into them"
    yield from reading_faults(pack)


def _written_alike(pack: LanguagePack) -> list[str]:
    """Return the other languages in the pack's scripts; a faulty pack is told about where it is checked itself."""
    found = []
    for tag in tags():
        with contextlib.suppress(ConfigError):
            if tag != pack.tag and load_pack(tag).scripts == pack.scripts:
                found.append(tag)
    return found


def _spelling_faults(pack: LanguagePack) -> Iterator[str]:
    """Yield the spellings that could be read as two things, and printed ones that are not in the pack's own script."""
    speakers = {f"roles.{each.name}": getattr(pack.roles, each.name) for each in fields(pack.roles)}
    labels = {f"labels.{each.name}": getattr(pack.labels, each.name) for each in fields(pack.labels)}
    forms = {"example": pack.example, "class_label": pack.class_label}
    for group in (labels | forms, speakers, {"yes": pack.yes, "no": pack.no}):
        owners: dict[str, str] = {}
        for key, spellings in group.items():
            for spelling in spellings:
                owner = owners.setdefault(spelling.casefold(), key)
                if owner != key:
                    yield f"{key}: {spelling!r} is a spelling of {owner} too: it can't be told which is meant"
    printed = {key: found[0] for key, found in (labels | speakers | forms).items()}
    printed |= {"no_input": pack.no_input[0], "first_words": " ".join(pack.first_words), "name": pack.native_name}
    for key, text in printed.items():
        share, letters = pack.script_share(text)
        if letters and share < 0.5:
            yield f"{key}: {text[:40]!r} is not in {', '.join(pack.scripts)}; the first spelling is the one printed"


_PROBE = Task("1 + 1 = ?", (Instance("2 + 2", "4"),))


def reading_faults(pack: LanguagePack) -> Iterator[str]:
    """Yield the spellings of the list format that the parser does not read back as what they are."""
    for kind in ("instruction", "input", "output"):
        for spelling in getattr(pack.labels, kind):
            printed = replace(pack, labels=replace(pack.labels, **{kind: (spelling,)}))
            for form in (render_tasks([_PROBE], printed), render_tasks([_PROBE], printed).replace(":", "：")):
                found = parse_tasks(form, pack, truncated=False, continues=False)
                if [candidate.record for candidate in found] != [_PROBE]:
                    yield f"labels.{kind}: {spelling!r} is not read back as a label"
                    break
    alone = replace(_PROBE, instances=(Instance("", "4"),))
    for spelling in pack.no_input:
        text = render_tasks([alone], replace(pack, no_input=(spelling,)))
        rows = json.dumps({"tasks": [{"instruction": "1 + 1 = ?", "input": spelling, "output": "4"}]})
        read = parse_tasks(text, pack, truncated=False, continues=False), parse_task_json(rows, pack, truncated=False)
        if any([candidate.record for candidate in found] != [alone] for found in read):
            yield f"no_input: {spelling!r} is not read back as no input"


# Seeds and topics


def _seeds(tag: str) -> tuple[tuple[Task, ...], list[Fault]]:
    path = seeds.path_for(tag)
    if path is None:
        return (), [Fault("seeds", f"seeds/{tag}/tasks.jsonl", "there are no seed tasks")]
    try:
        tasks = seeds.load_tasks(path)
    except SelfInstructError as error:
        return (), [Fault("seeds", str(path), str(error))]
    if len(tasks) < LEAST_SEEDS:
        return tasks, [Fault("seeds", str(path), f"{len(tasks)} seed tasks; prompts show up to {LEAST_SEEDS}")]
    return tasks, []


def _topics(tag: str, name: str = "topics") -> tuple[tuple[Dialogue, ...], list[Fault]]:
    path = seeds.topics_path_for(tag, name)
    if path is None:
        return (), [Fault("topics", f"seeds/{tag}/{name}.jsonl", "there are no topics; dialogues need them")]
    try:
        topics = seeds.load_topics(path)
    except SelfInstructError as error:
        return (), [Fault("topics", str(path), str(error))]
    counted = Counter(topic.topic.casefold() for topic in topics)
    twice = [text for text, count in counted.items() if count > 1]
    return topics, [Fault("topics", str(path), f"{text!r} is there twice") for text in twice]


def task_faults(task: Task, pack: LanguagePack, rules: Sequence[tuple[str, Filter]]) -> Iterator[str]:
    """Yield the filters that would reject a seed task, and whether it is lost when it is shown in a prompt."""
    for name, rule in rules:
        if rejection := rule(Candidate(task)):
            measured = ", ".join(f"{key} {value}" for key, value in rejection.measured.items())
            yield f"the filter {name} rejects it: {rejection.reason} ({measured})"
    shown = Task(" ".join(task.instruction.split()), task.instances[:1])
    found = parse_tasks(render_tasks([task], pack), pack, truncated=False, continues=False)
    if [candidate.record for candidate in found] != [shown]:
        yield "shown in a prompt, it is not read back as it was: a line of it looks like a label or a separator"


# Prompts


def _wordings(recipe: Recipe, tag: str) -> Iterator[tuple[Path, Path | None, frozenset[str]]]:
    """Yield the prompts of a recipe that are worded in a language: file, its English original, variables."""
    for parts in recipe.variables.values():
        for part, variables in parts.items():
            path = prompts.find(recipe.prompts, tag, part)
            if path is not None:
                yield path, prompts.find(recipe.prompts, "en", part), variables


def _prompt_faults(path: Path, original: Path | None, variables: frozenset[str]) -> Iterator[Fault]:
    """Yield what is wrong with a wording: it must use all that its English original uses."""
    try:
        used = prompts.variables_of(prompts.read(path, "", variables))
    except SelfInstructError as error:
        yield Fault("prompts", str(path), str(error))
        return
    wanted = prompts.variables_of(prompts.read(original, "en", variables)) if original else frozenset()
    # The English original names the language it is to be continued in; any other is written in it.
    for lacking in sorted(wanted - used - {"language"}):
        yield Fault("prompts", str(path), f"does not use {lacking}, which {original} does")


# The rehearsal


def _rehearsal_faults(recipe: Recipe, style: str, pack: LanguagePack, tasks: Sequence[Task]) -> Iterator[str]:
    assert recipe.rehearse is not None
    # What the model says and what it is shown are different tasks, or it would only copy.
    shown, said = tasks[::2], tasks[1::2][:REHEARSED]
    lost: list[str] = []
    try:
        rehearsal = recipe.rehearse(pack, style, said)
        came = asyncio.run(_run(recipe, style, pack, shown, rehearsal, lost.append))
    except SelfInstructError as error:
        yield str(error)
        return
    why = dict.fromkeys([*lost[:2], *lost[-1:]])
    for place, (was, now) in enumerate(zip(rehearsal.expected, came, strict=False), 1):
        if _bare(was) != _bare(now):
            yield "; ".join([f"record {place} came back as {_shown(now)}, was {_shown(was)}", *why])
            return
    if len(came) < len(rehearsal.expected):
        yield "; ".join([f"{len(came)} of {len(rehearsal.expected)} records came back", *why])


async def _run(
    recipe: Recipe,
    style: str,
    pack: LanguagePack,
    shown: Sequence[Task],
    rehearsal: Rehearsal,
    lose: Callable[[str], None],
) -> list[Record]:
    """Run the recipe with the rehearsed replies in a folder of its own, and return what it accepted.

    `lose` is told what went missing, and why the run stopped short.
    """

    def note(commit: Commit) -> None:
        for decision in commit.decisions:
            if decision.rejection is not None:
                said = decision.candidate.text.strip()[:60]
                lose(f"rejected by {decision.rejection.filter} ({decision.rejection.reason}): {said!r}")

    with tempfile.TemporaryDirectory(prefix="selfinstruct-rehearsal-") as folder:
        planned = _plan(recipe, style, pack, shown, rehearsal, Path(folder))
        store = open_run(Path(folder) / "run", planned)
        try:
            session = Session(planned, store, backend=Scripted(rehearsal.reply, capabilities=rehearsal.capabilities))
            try:
                await session.work(note)
            except SelfInstructError as error:
                lose(str(error))
            return [record for _, record in store.view.dataset()]
        finally:
            store.close()


def _plan(
    recipe: Recipe, style: str, pack: LanguagePack, shown: Sequence[Task], rehearsal: Rehearsal, folder: Path
) -> Plan:
    settings = {
        "recipe": recipe.name,
        "language": pack.tag,
        "style": style,
        "model": _MODEL,
        "target": len(rehearsal.expected),
        # One draw at a time, so that replies come in the order they were written in.
        "concurrency": 1,
        "window": 1,
        "stop": {"saturation_draws": 10},
        "novelty": {"engine": "numpy"},  # pools of a few tasks gain nothing from compiled code
        "backend": {"endpoint": "completions" if rehearsal.capabilities.completions else "chat"},
    }
    if rehearsal.input:
        (folder / "input").write_text(rehearsal.input, encoding="utf-8")
        settings["input"] = str(folder / "input")
    if rehearsal.corpus:
        (folder / "corpus.jsonl").write_text(rehearsal.corpus, encoding="utf-8")
        search = {"corpus": str(folder / "corpus.jsonl"), "results": 1, "snippet": len(rehearsal.corpus)}
        settings["tools"] = [*recipe.tools, {"search": search}]
    return plan([settings, rehearsal.settings], fetch=False, stored={"": shown})


def _bare(record: Record) -> Record:
    """Return a record without what a run adds: ids, topics, notes, what the assistant is told, the first capital."""
    if isinstance(record, Comparison):
        responses = tuple(replace(response, id="") for response in record.responses)
        return replace(record, responses=responses, id="", extra={})
    if isinstance(record, Dialogue):
        return replace(record, system="", topic="", id="", extra={})
    said = record.instruction
    return replace(record, instruction=said[:1].upper() + said[1:], id="", name="", extra={})


def _shown(record: Record) -> str:
    text = repr(_bare(record))
    return text if len(text) <= 120 else f"{text[:117]}..."
