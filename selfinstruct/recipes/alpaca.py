"""Alpaca: show a few tasks, ask for many more in one list (tatsu-lab/stanford_alpaca, `generate_instruction.py`).

Three styles of the same recipe: `list` (numbered blocks, as the original), `structured` (JSON by
schema, where the endpoint enforces it) and `stepwise` (one instruction, then its answer, for models
too small to write a list).
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from dataclasses import replace

from selfinstruct.filters import DEFAULT_FILTERS
from selfinstruct.languages import LanguagePack
from selfinstruct.parsing import parse_task_json, parse_tasks, render_tasks
from selfinstruct.recipes import Brief, Recipe, Rehearsal, truncated
from selfinstruct.stages import Draw, Stage
from selfinstruct.values import Candidate, Capabilities, Completion, Instance, Message, Record, Request, Sampling, Task

_FRAME = frozenset({"demonstrations", "language", "labels", "no_input", "first", "last", "count"})
VARIABLES = {
    "list": {"": _FRAME},
    "structured": {"structured": _FRAME},
    "stepwise": {"stepwise": frozenset({"demonstrations", "language", "first", "first_word", "chat"})},
}

LIST = Sampling(max_tokens=3072, temperature=1.0, top_p=1.0)
"""Alpaca's decoding: T 1, top_p 1, 3072 tokens; not its stop strings, since "20." cuts texts that hold a year."""

STEP = Sampling(max_tokens=48, temperature=0.8, top_p=0.95, min_p=0.05, top_k=0, stop=("\n",), logprobs=True)
"""One instruction: warm enough to vary, with the improbable tail cut off (measured on 135M and 0.5B models)."""

ANSWER = Sampling(
    max_tokens=256, temperature=0.2, top_p=0.95, min_p=0.05, top_k=0, repeat_penalty=1.1, repeat_last_n=128
)
"""Its answer: cool, with a penalty on repetition, without which one small-model answer in five loops."""

STEP_SHOTS = 4
"""Demonstrations of the stepwise prefix, the same all through a run. On the CPU the prompt is half the cost, and
3 short ones brought as many sensible instructions as 8."""

SCHEMA = {
    "type": "object",
    "properties": {
        "tasks": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {key: {"type": "string"} for key in ("instruction", "input", "output")},
                "required": ["instruction", "input", "output"],
                "additionalProperties": False,
            },
        }
    },
    "required": ["tasks"],
    "additionalProperties": False,
}


def stages(brief: Brief) -> tuple[Stage, ...]:
    """Lay out the one growing stage of the recipe in the brief's style."""
    if brief.items is not None:
        return (_answers(brief, brief.items),)
    if brief.style == "stepwise":
        return (_stepwise(brief),)
    return (_listed(brief),)


def preview(brief: Brief) -> str:
    """Render the prompt that a first draw could send."""
    shots = brief.seeds[: brief.config.demonstrations.seed]
    if brief.style == "stepwise":
        return _prefix(brief, _shots(brief), brief.pack.first_words[0] if brief.pack.first_words else "")
    return _frame(brief, shots)


def _frame(brief: Brief, shown: Sequence[Task]) -> str:
    wanted = brief.config.tasks_per_request or 1
    pack = brief.pack
    texts = render_tasks(shown, pack) if brief.style == "list" else _as_json(shown)
    return brief.prompt.render(
        demonstrations=texts,
        language={"tag": pack.tag, "name": pack.name},
        labels={key: getattr(pack.labels, key)[0] for key in ("instruction", "input", "output")},
        no_input=pack.no_input[0],
        first=len(shown) + 1,
        last=len(shown) + wanted,
        count=wanted,
    )


def _listed(brief: Brief) -> Stage:
    config, sampling = brief.config, brief.sampling(LIST)
    structured = brief.style == "structured"
    raw = config.backend.endpoint == "completions"

    async def draw(draw: Draw) -> list[Candidate]:
        shown = draw.demonstrations(seed=config.demonstrations.seed, machine=config.demonstrations.machine)
        text = _frame(brief, shown)
        request = Request(sampling, prompt=text) if raw else Request(sampling, messages=(Message("user", text),))
        if structured and brief.capabilities.json_schema:
            request = replace(request, schema=json.dumps(SCHEMA))
        completion = await draw.complete(request)
        if structured:
            return parse_task_json(completion.text, brief.pack, truncated=bool(truncated(completion)))
        return parse_tasks(completion.text, brief.pack, truncated=truncated(completion))

    expected = 0.6 * (config.tasks_per_request or 1)
    return Stage("tasks", draw, expected, seeds=brief.seeds, filters=DEFAULT_FILTERS["list"], novelty=("subject",))


def _stepwise(brief: Brief) -> Stage:
    pack, words = brief.pack, brief.pack.first_words or ("",)
    asking, answering = brief.sampling(STEP), brief.sampling(ANSWER)
    if brief.config.sampling.max_tokens is None:
        asking, answering = (
            replace(asking, max_tokens=STEP.max_tokens),
            replace(answering, max_tokens=ANSWER.max_tokens),
        )
    shots = _shots(brief)

    async def draw(draw: Draw) -> list[Candidate]:
        draw.show(shots)
        word = words[draw.number % len(words)]
        prefix = _prefix(brief, shots, word)
        if brief.capabilities.completions:
            completion = await draw.complete(Request(asking, prompt=prefix))
        else:
            completion = await draw.complete(Request(replace(asking, stop=()), messages=(Message("user", prefix),)))
        candidate = _instruction(completion, word, pack, raw=brief.capabilities.completions)
        rejection = draw.screen(candidate)
        if rejection is not None:
            return [replace(candidate, rejection=rejection)]
        instruction = candidate.record.instruction if isinstance(candidate.record, Task) else ""
        answer = await draw.complete(Request(answering, messages=(Message("user", instruction),)))
        return [_answered(candidate, instruction, answer, pack)]

    return Stage("tasks", draw, 0.5, seeds=brief.seeds, filters=DEFAULT_FILTERS["stepwise"], novelty=("subject",))


def _answers(brief: Brief, items: Sequence[Record]) -> Stage:
    """Answer given instructions anew, as KoAlpaca did with translated ones; their old outputs are dropped."""
    sampling = brief.sampling(ANSWER)

    async def draw(draw: Draw) -> list[Candidate]:
        task = draw.item
        assert isinstance(task, Task)
        given = task.instances[0].input if task.instances else ""
        asked = f"{task.instruction}\n\n{given}" if given else task.instruction
        answer = await draw.complete(Request(sampling, messages=(Message("user", asked),)))
        record = replace(task, instances=(Instance(given, answer.text.strip()),))
        return [Candidate(record, text=answer.text, truncated=truncated(answer) is True, logprob=answer.logprob)]

    return Stage("tasks", draw, items=items, filters=DEFAULT_FILTERS["answers"])


def _shots(brief: Brief) -> tuple[Task, ...]:
    """Choose the fixed demonstrations: short tasks without input.

    What a small model does worst is to refer to a text that is not there, and it learns that from inputs.
    """
    alone = [task for task in brief.seeds if not any(instance.input for instance in task.instances)] or list(
        brief.seeds
    )
    short = sorted(alone, key=lambda task: brief.pack.length(task.instruction))[: max(STEP_SHOTS, len(alone) // 2)]
    return tuple(random.Random(brief.config.seed).sample(short, min(STEP_SHOTS, len(short))))


def _prefix(brief: Brief, shots: Sequence[Task], word: str) -> str:
    return brief.prompt.render(
        demonstrations=[{"instruction": " ".join(task.instruction.split())} for task in shots],
        language={"tag": brief.pack.tag, "name": brief.pack.name},
        first=len(shots) + 1,
        first_word=word,
        chat=not brief.capabilities.completions,
    ).strip()


def _instruction(completion: Completion, word: str, pack: LanguagePack, *, raw: bool) -> Candidate:
    """Read one instruction; a raw completion goes on where the forced first word ended."""
    lines = [line for line in completion.text.split("\n") if line.strip()] or [""]
    text = f"{word}{lines[0]}" if raw else unlabelled(lines[0], pack)
    text = " ".join(text.split())
    # The log-probability of a chat reply is that of its phrases too: it was never calibrated, so it says nothing.
    return Candidate(
        Task(text), text=text, truncated=truncated(completion) is True, logprob=completion.logprob if raw else None
    )


def unlabelled(line: str, pack: LanguagePack) -> str:
    """Take the number, label and quotes off a line such as `**Task 7:** "Explain ..."`."""
    labels = "|".join(map(re.escape, (*pack.labels.task, *pack.labels.instruction, "Task")))
    number = r"\d+\s*[.．。:：)）、](?!\d)"
    mark = rf"[\s*#>-]*(?:(?:(?:{labels})\s*)?{number}|(?:{labels})?\s*[:：])?[\s*]*(.*?)[\s*]*"
    found = re.fullmatch(mark, line, re.IGNORECASE)
    text = found[1] if found else line
    pairs = {'"': '"', "“": "”", "「": "」", "«": "»", "„": "“"}
    return text[1:-1].strip() if text[:1] in pairs and text.endswith(pairs[text[0]]) else text


def _answered(candidate: Candidate, instruction: str, answer: Completion, pack: LanguagePack) -> Candidate:
    """Join instruction and answer; an answer that was cut keeps its whole sentences."""
    text = answer.text.strip()
    cut = truncated(answer) is True
    if cut:
        end = max((text.rfind(mark) + len(mark) for mark in pack.sentence_ends if mark in text), default=0)
        text, cut = text[:end].rstrip(), end == 0
    task = Task(instruction, (Instance("", text),))
    return replace(candidate, record=task, text=f"{instruction}\n\n{answer.text}", truncated=cut)


def _as_json(tasks: Sequence[Task]) -> str:
    rows = [
        {"instruction": task.instruction, "input": task.instances[0].input, "output": task.instances[0].output}
        for task in tasks
    ]
    return json.dumps({"tasks": rows}, ensure_ascii=False, indent=1)


def rehearse(pack: LanguagePack, style: str, tasks: Sequence[Task]) -> Rehearsal:
    """Reply with the given tasks: several to a list, or step by step an instruction and then its output."""
    shown = [Task(" ".join(task.instruction.split()), task.instances[:1]) for task in tasks]
    if style == "stepwise":
        shown = [task for task in shown if not task.instances[0].input]
        outputs = {task.instruction: task.instances[0].output for task in shown}
        steps = iter(shown)

        def step(request: Request) -> str:
            asked = request.messages[-1].content
            if asked in outputs:
                return outputs[asked]
            task = next(steps, None)
            return f"{pack.labels.task[0]} {STEP_SHOTS + 1}: {task.instruction}" if task else ""

        return Rehearsal(step, tuple(shown))
    batches = iter([shown[at : at + 5] for at in range(0, len(shown), 5)])

    def batch(request: Request) -> str:
        wanted = next(batches, [])
        if style == "structured":
            return _as_json(wanted)
        return render_tasks(wanted, pack, first=4).removeprefix(f"4. {pack.labels.instruction[0]}:")

    return Rehearsal(batch, tuple(shown), capabilities=Capabilities(json_schema=True))


RECIPE = Recipe(
    name="alpaca",
    summary="grow a task pool from seed tasks, many new tasks per request (Stanford Alpaca)",
    source="tatsu-lab/stanford_alpaca",
    styles=("list", "structured", "stepwise"),
    prompts=("alpaca",),
    variables=VARIABLES,
    stages=stages,
    preview=preview,
    export="alpaca",
    accepts=(Task,),
    defaults={"tasks_per_request": 17, "demonstrations": {"seed": 3, "machine": 0}},
    rehearse=rehearse,
)
