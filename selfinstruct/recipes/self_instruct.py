"""Self-Instruct: grow instructions, ask of each whether it is a classification, then make up its instances.

The paper's pipeline (yizhongw/self-instruct, `bootstrap_instructions.py`, `identify_clf_or_not.py`,
`generate_instances.py`, `prepare_for_finetuning.py`) as three stages. Two styles of the same prompts: `completion`
continues them raw, as the paper did with a model that had never seen a chat; `chat` says in words what is wanted.
All that the prompts show as examples are seed tasks of the language.
"""

from __future__ import annotations

import random
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from selfinstruct.errors import ConfigError
from selfinstruct.filters import DEFAULT_FILTERS
from selfinstruct.instances import LIMIT, parse_instances, render_instances
from selfinstruct.labels import BLANK
from selfinstruct.languages import LanguagePack
from selfinstruct.parsing import cleaned
from selfinstruct.recipes import Brief, Recipe, Rehearsal, truncated
from selfinstruct.recipes.alpaca import unlabelled
from selfinstruct.recipes.self_instruct_files import working_files
from selfinstruct.stages import Draw, Stage
from selfinstruct.values import Candidate, Capabilities, Message, Rejection, Request, Sampling, Task

PARTS = {
    "instructions": frozenset({"demonstrations", "language", "first", "last", "chat"}),
    "classification": frozenset({"demonstrations", "instruction", "language", "labels", "yes", "no", "chat"}),
    "input-first": frozenset({"demonstrations", "task", "language", "labels", "limit", "chat"}),
    "output-first": frozenset({"demonstrations", "task", "language", "labels", "limit", "chat"}),
}

INSTRUCTIONS = Sampling(max_tokens=1024, temperature=0.7, top_p=0.5, presence_penalty=2.0)
"""The paper's decoding, but for its stop strings "16." and "16 .", which cut texts that hold the number."""

VERDICT = Sampling(max_tokens=3, temperature=0.0)
"""Greedy as in the paper; its top_p 0 means the same there and is refused by vLLM."""

INPUT_FIRST = Sampling(max_tokens=350, temperature=0.0, presence_penalty=1.5)
OUTPUT_FIRST = replace(INPUT_FIRST, max_tokens=300)

VERDICT_SHOTS = {True: 6, False: 8}
"""Tasks shown with their verdicts, by verdict."""

INSTANCE_SHOTS = 5
"""Tasks shown with their instances; with five short ones the prompt fits a context of 1024 tokens."""

_COLONS = (":", "：")
_BULLET = re.compile(r"[-*•●–][ \t]")


@dataclass(frozen=True, slots=True)
class _Shots:
    """The seed tasks of the fixed prompts, the same all through a run."""

    verdicts: tuple[Task, ...]
    input_first: tuple[Task, ...]
    output_first: tuple[Task, ...]


def stages(brief: Brief) -> tuple[Stage, ...]:
    """Lay out the three stages.

    Raises:
        ConfigError: the seed tasks hold no classification task, or nothing else.
    """
    shots = _shots(brief)
    return (
        Stage(
            "instructions",
            lambda draw: _instructions(brief, draw),
            expected=0.6 * _wanted(brief),
            seeds=brief.seeds,
            filters=DEFAULT_FILTERS["instructions"],
            novelty=("subject",),
            whole=False,
        ),
        Stage("classification", lambda draw: _classification(brief, shots, draw), source="instructions", whole=False),
        Stage(
            "tasks",
            lambda draw: _tasks(brief, shots, draw),
            source="classification",
            filters=DEFAULT_FILTERS["instances"],
        ),
    )


def preview(brief: Brief) -> str:
    """Render the prompts that the first draws could send."""
    shots, first = _shots(brief), brief.seeds[0]
    count = brief.config.demonstrations
    shown = {
        "instructions": _instructions_prompt(brief, brief.seeds[: count.seed + count.machine]),
        "classification": _classification_prompt(brief, shots, first),
        "input-first": _instances_prompt(brief, shots, replace(first, is_classification=False)),
        "output-first": _instances_prompt(brief, shots, replace(first, is_classification=True)),
    }
    return "\n\n".join(f"──── {part}\n{text}" for part, text in shown.items())


async def _instructions(brief: Brief, draw: Draw) -> list[Candidate]:
    count = brief.config.demonstrations
    shown = draw.demonstrations(seed=count.seed, machine=count.machine)
    # A chat reply may part its lines by blank ones.
    stop = (f"\n{len(shown) + _wanted(brief) + 1}.", *(("\n\n",) if _raw(brief) else ()))
    text = _instructions_prompt(brief, shown)
    completion = await draw.complete(_request(brief, text, replace(brief.sampling(INSTRUCTIONS), stop=stop)))
    return read_list(
        completion.text,
        brief.pack,
        first=len(shown) + 1 if _raw(brief) else None,
        truncated=truncated(completion) is True,
    )


async def _classification(brief: Brief, shots: _Shots, draw: Draw) -> list[Candidate]:
    task, pack = draw.item, brief.pack
    assert isinstance(task, Task)
    draw.show(shots.verdicts)
    # A script that its tokenizer never learned takes a token for each byte.
    least = max(len(word.encode()) for word in (pack.yes[0], pack.no[0]))
    room = brief.config.sampling.max_tokens or max(VERDICT.max_tokens, least)
    sampling = replace(VERDICT, max_tokens=room, stop=("\n",)) if _raw(brief) else replace(VERDICT, max_tokens=room + 8)
    completion = await draw.complete(_request(brief, _classification_prompt(brief, shots, task), sampling))
    verdict = read_verdict(completion.text, pack)
    if verdict is None:
        return [Candidate(None, completion.text, Rejection("parse", "no_verdict"))]
    return [Candidate(replace(task, is_classification=verdict), completion.text)]


async def _tasks(brief: Brief, shots: _Shots, draw: Draw) -> list[Candidate]:
    task, pack = draw.item, brief.pack
    assert isinstance(task, Task)
    labelled = bool(task.is_classification)
    draw.show(shots.output_first if labelled else shots.input_first)
    sampling = brief.sampling(OUTPUT_FIRST if labelled else INPUT_FIRST)
    if _raw(brief):
        sampling = replace(sampling, stop=(f"\n{pack.example[0]} {LIMIT + 1}", f"\n{pack.labels.task[0]}:"))
    completion = await draw.complete(_request(brief, _instances_prompt(brief, shots, task), sampling))
    text = f"{_opening(pack, labelled)}{completion.text}" if _raw(brief) else completion.text
    cut = truncated(completion) is True
    found = parse_instances(text, task, pack, truncated=cut)
    if not found:
        whole = parse_instances(text, task, pack) if cut else []
        record = replace(task, instances=tuple(whole)) if whole else None
        return [Candidate(record, text, None if whole else Rejection("parse", "no_instance"), truncated=cut)]
    # An instance that a filter rejects goes alone; when all do, the whole task is rejected for what the first did.
    alone = (Candidate(replace(task, instances=(case,)), text) for case in found)
    sound = [case for case, each in zip(found, alone, strict=True) if draw.screen(each) is None]
    return [Candidate(replace(task, instances=tuple(sound or found)), text)]


def read_list(text: str, pack: LanguagePack, *, first: int | None, truncated: bool) -> list[Candidate]:
    """Return the instructions of a numbered list, each a task without instances or a rejection.

    `first` is the number that the prompt ended with: the text begins with that instruction. None: what stands before
    the first number is talk. Numbers need not go on from there, for lists start again. Where no line has a number,
    bullets tell the instructions apart, and where there are none, the lines. Else a line without number goes on with
    the instruction above when that ends in a colon, or in no mark and the line starts in lower case; it is rejected as
    "no_number" when not. Bullets, or a list that starts from 1, below an instruction that ends in a colon are its
    material.
    """
    lines = [line.strip(BLANK) for line in cleaned(text).split("\n") if any(map(str.isalnum, line))]
    numbers = [int(mark[1]) if (mark := _numbered(pack).match(line)) else None for line in lines]
    bullets = [bool(_BULLET.match(line)) for line in lines]
    numbered = any(number is not None for number in numbers)
    plain = not numbered and not any(bullets)
    ends = (*pack.sentence_ends, *pack.question_ends)
    pieces: list[str] = []
    loose: list[str] = []
    last, inner = first or 0, 0
    for at, (line, number, bullet) in enumerate(zip(lines, numbers, bullets, strict=True)):
        above = pieces[-1] if pieces else ""
        if (inner or above.endswith(_COLONS)) and (bullet or number == inner + 1 != last + 1):
            pieces[-1] += f" {line}"
            inner += 1
        elif number is not None or (bullet and not numbered) or plain or (first is not None and at == 0):
            pieces.append(line)
            last, inner = last if number is None else number, 0
        elif above.endswith(_COLONS) or (line[0].islower() and above and not above.endswith(ends)):
            pieces[-1] += f" {line}"
        elif above:
            loose.append(line)
    if plain and first is None and pieces and pieces[0].endswith(_COLONS):
        del pieces[0]
    cut = len(pieces) if truncated and not text.endswith("\n") else 0
    found = [
        Candidate(Task(instruction), piece, truncated=at == cut)
        for at, piece in enumerate(pieces, 1)
        # Twice: "9. Instruction: ..." has a number and a label.
        if (instruction := _one_line(unlabelled(unlabelled(piece, pack), pack)))
    ]
    return [*found, *(Candidate(None, line, Rejection("parse", "no_number")) for line in loose)]


@lru_cache(maxsize=64)
def _numbered(pack: LanguagePack) -> re.Pattern[str]:
    words = "|".join(map(re.escape, dict.fromkeys((*pack.labels.task, "Task"))))
    return re.compile(
        rf"(?:\#{{1,6}}[ \t]*)?[*_]{{0,3}}(?:(?:{words})[ \t]*\#?)?(\d{{1,4}})[ \t]*[*_]{{0,3}}[.．。、:：)）](?!\d)",
        re.IGNORECASE,
    )


def read_verdict(text: str, pack: LanguagePack) -> bool | None:
    """Return the answer to a yes-or-no question, or None where it is neither.

    It must begin with one of the language's words, or an English one, and that word stand alone: behind it comes the
    end or a mark. `identify_clf_or_not.py` took "Yes." and all else but three spellings of yes for a no.
    """
    line = cleaned(text).strip().partition("\n")[0]
    for answer in (line, re.sub(r"^[^:：]{1,40}[:：]", "", line)):  # "Classification: Yes" repeats the prompt
        plain = _folded(answer).lstrip(BLANK + "*_\"'“‘「『«（([")
        for word, verdict in _verdicts(pack):
            behind = plain.removeprefix(word).lstrip(BLANK)[:1]
            if plain.startswith(word) and behind != "/" and unicodedata.category(behind or ".")[0] not in "LMN":
                return verdict
    return None


@lru_cache(maxsize=64)
def _verdicts(pack: LanguagePack) -> tuple[tuple[str, bool], ...]:
    spellings = {_folded(word): word in pack.yes for word in (*pack.yes, *pack.no)} | {"yes": True, "no": False}
    return tuple(spellings.items())


def _folded(text: str) -> str:
    return unicodedata.normalize("NFC", text).casefold()


def _raw(brief: Brief) -> bool:
    return brief.style == "completion"


def _wanted(brief: Brief) -> int:
    return brief.config.tasks_per_request or 1


def _request(brief: Brief, text: str, sampling: Sampling) -> Request:
    return Request(sampling, prompt=text) if _raw(brief) else Request(sampling, messages=(Message("user", text),))


def _instructions_prompt(brief: Brief, shown: Sequence[Task]) -> str:
    lines = [f"{number}. {_one_line(task.instruction)}" for number, task in enumerate(shown, 1)]
    return _render(
        brief,
        "instructions",
        demonstrations="\n".join(lines),
        first=len(shown) + 1,
        last=len(shown) + _wanted(brief),
    )


def _classification_prompt(brief: Brief, shots: _Shots, task: Task) -> str:
    pack = brief.pack
    shown = [
        {"instruction": _one_line(each.instruction), "verdict": (pack.yes if each.is_classification else pack.no)[0]}
        for each in shots.verdicts
    ]
    return _render(
        brief,
        "classification",
        demonstrations=shown,
        instruction=_one_line(task.instruction),
        labels=_labels(pack),
        yes=pack.yes[0],
        no=pack.no[0],
    )


def _instances_prompt(brief: Brief, shots: _Shots, task: Task) -> str:
    pack, labelled = brief.pack, bool(task.is_classification)
    heads = [
        f"{pack.labels.task[0]}: {_one_line(each.instruction)}\n{render_instances(each, pack)}"
        for each in (shots.output_first if labelled else shots.input_first)
    ]
    asked = f"{pack.labels.task[0]}: {_one_line(task.instruction)}"
    return _render(
        brief,
        "output-first" if labelled else "input-first",
        demonstrations="\n\n".join(heads),
        task=f"{asked}\n{_opening(pack, labelled)}" if _raw(brief) else asked,
        labels=_labels(pack),
        limit=LIMIT,
    )


def _opening(pack: LanguagePack, is_classification: bool) -> str:
    """Return the label a raw prompt ends with, which is then the completion's first."""
    return f"{pack.class_label[0]}:" if is_classification else f"{pack.example[0]} 1"


def _render(brief: Brief, part: str, **variables: object) -> str:
    pack = brief.pack
    language = {"tag": pack.tag, "name": pack.name}
    return brief.prompts[part].render(language=language, chat=not _raw(brief), **variables).strip()


def _labels(pack: LanguagePack) -> dict[str, str]:
    own = pack.labels
    return {
        "task": own.task[0],
        "example": pack.example[0],
        "input": own.input[0],
        "output": own.output[0],
        "class_label": pack.class_label[0],
    }


def _one_line(instruction: str) -> str:
    """Clean an instruction for a prompt as `bootstrap_instructions.py` does: one line, no colon at its end."""
    return " ".join(instruction.split()).rstrip(":：" + BLANK)


def _shots(brief: Brief) -> _Shots:
    """Choose the fixed examples: those with several instances first, then short ones, by the run's seed."""
    kinds = {kind: [task for task in brief.seeds if task.is_classification is kind] for kind in (True, False)}
    if not all(kinds.values()):
        raise ConfigError(
            'seeds: self-instruct shows the model tasks of both kinds; mark seed tasks with "is_classification": true '
            f"and false, at least one each (found {len(kinds[True])} and {len(kinds[False])})"
        )
    rng = random.Random(brief.config.seed)
    verdicts = [
        task
        for kind, tasks in kinds.items()
        for task in rng.sample(_short(tasks, len(tasks) // 2 + 1), min(VERDICT_SHOTS[kind], len(tasks) // 2 + 1))
    ]
    alone = [task for task in kinds[False] if not any(case.input for case in task.instances)]
    given = [task for task in kinds[False] if task not in alone]
    ranked = _ranked(alone, brief.pack)
    some = [ranked[0], ranked[len(ranked) // 2]] if len(ranked) > 1 else ranked
    input_first = [*_ranked(given, brief.pack)[: INSTANCE_SHOTS - len(some)], *some]
    output_first = _ranked(kinds[True], brief.pack)[:INSTANCE_SHOTS]
    for shown in (verdicts, input_first, output_first):
        rng.shuffle(shown)
    return _Shots(tuple(verdicts), tuple(input_first), tuple(output_first))


def _short(tasks: Sequence[Task], count: int) -> list[Task]:
    return sorted(tasks, key=lambda task: len(task.instruction))[:count]


def _ranked(tasks: Sequence[Task], pack: LanguagePack) -> list[Task]:
    return sorted(tasks, key=lambda task: (len(task.instances) == 1, len(render_instances(task, pack))))


def rehearse(pack: LanguagePack, style: str, tasks: Sequence[Task]) -> Rehearsal:
    """Reply with the given tasks: their instructions in lists, then of each the verdict, then the instances."""
    raw = style == "completion"
    said = [replace(task, instruction=_one_line(task.instruction)) for task in tasks]
    known = {task.instruction[:1].upper() + task.instruction[1:]: task for task in said}
    lists = iter([said[at : at + 5] for at in range(0, len(said), 5)])
    told: set[str] = set()

    def reply(request: Request) -> str:
        text = request.messages[-1].content if request.prompt is None else request.prompt
        asked = text.rpartition(f"\n{pack.labels.task[0]}: ")[2].partition("\n")[0]
        task = known.get(asked)
        if task is None:
            lines = [f"{number}. {each.instruction}" for number, each in enumerate(next(lists, []), 9)]
            return "\n".join(lines).removeprefix("9." if raw else "")
        if asked not in told:
            told.add(asked)
            return (pack.yes if task.is_classification else pack.no)[0]
        written = render_instances(task, pack)
        return written.removeprefix(_opening(pack, bool(task.is_classification))) if raw else written

    return Rehearsal(reply, tuple(said), capabilities=Capabilities(completions=raw))


RECIPE = Recipe(
    name="self-instruct",
    summary="grow instructions, tell classification tasks from others, make up instances of each (Self-Instruct)",
    source="yizhongw/self-instruct",
    styles=("chat", "completion"),
    prompts=("self-instruct",),
    variables={"chat": PARTS, "completion": PARTS},
    stages=stages,
    preview=preview,
    export="alpaca",
    defaults={"tasks_per_request": 7, "demonstrations": {"seed": 6, "machine": 2}},
    files={"self-instruct": working_files},
    rehearse=rehearse,
)
