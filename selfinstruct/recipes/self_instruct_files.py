"""The five files that the original's scripts leave behind, out of a run's stages (yizhongw/self-instruct 0b26cca).

What a run keeps beyond its dataset is in its earlier stages, so nothing is carried along in the records. Accepted
records only are written; the rejected ones are in the run, with their reasons.

The files are in the original's markers, whatever the language: a completion that its own next step would read
otherwise than this program, or that was cut off, is written anew from the record. Of what the original stores with an
instruction, a run knows the nearest entry of the task pool, not the ten nearest and not the mean over all: most
comparisons are ruled out before a score is computed. Prompts and whole responses, which the original repeats in each
record, are in the journal.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from selfinstruct.formats import self_instruct as formats
from selfinstruct.languages import LanguagePack, load_pack
from selfinstruct.plugins import split_model
from selfinstruct.store import RunView, record_from
from selfinstruct.values import Instance, Record, Task


def working_files(view: RunView) -> Iterator[tuple[str, str, Iterator[Record]]]:
    """Yield the name, the format and the records of each file, in the order of the scripts that write them."""
    config = view.meta("config")
    engine = re.sub(r"[^\w.-]+", "_", split_model(config["model"])[1])
    yield "machine_generated_instructions.jsonl", "self-instruct-instructions", _instructions(view)
    yield f"is_clf_or_not_{engine}_{config['style']}.jsonl", "self-instruct-classification", _verdicts(view)
    yield "machine_generated_instances.jsonl", "self-instruct-raw-instances", _raw_instances(view)
    yield "all_generated_instances.jsonl", "self-instruct-instances", (record for _, record in view.dataset())
    yield "gpt3_finetuning_data.jsonl", "self-instruct-gpt3", _prompts(view, config)


def _instructions(view: RunView) -> Iterator[Task]:
    for lane in view.lanes():
        for id, record in view.accepted(lane.stages[0]):
            assert isinstance(record, Task)
            row = view.decision(id) or {}
            yield replace(record, extra=_nearest(view, row) | {"request_idx": row["draw"]})


def _verdicts(view: RunView) -> Iterator[Task]:
    for lane in view.lanes():
        for id, record in view.accepted(lane.stages[1]):
            assert isinstance(record, Task)
            said = (view.decision(id) or {})["text"]
            # " Yes" and " No" are the format's own; of others those are kept that the original would read alike.
            kept = said not in (" Yes", " No") and formats.verdict(said) == record.is_classification
            yield replace(record, extra={"is_classification": said} if kept else {})


def _raw_instances(view: RunView) -> Iterator[Task]:
    for lane in view.lanes():
        instructions, verdicts, tasks = lane.stages
        for id, record in view.accepted(tasks):
            assert isinstance(record, Task)
            row = view.decision(id) or {}
            # Draw k of a stage works on record k, counting from 0, of the one before.
            verdict = view.decision(view.accepted_at(verdicts, row["draw"] + 1)[0]) or {}
            grown = view.decision(view.accepted_at(instructions, verdict["draw"] + 1)[0]) or {}
            reason = _finish_reason(view, row)
            extra = _nearest(view, grown)
            if reason != "length" and _reads_alike(row["text"], record):
                extra["raw_instances"] = row["text"]
            else:
                reason = "stop"  # what is written in its place is whole
            extra["instance_metadata"] = {"response": {"choices": [{"finish_reason": reason}]}}
            yield replace(record, extra=extra)


def _nearest(view: RunView, row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the nearest entry of the task pool as `most_similar`: its text and its ROUGE-L F."""
    if row["nearest"] is None:
        return {}
    other = view.decision(row["nearest"])
    if other is None:
        near: Record | None = next((task for task in view.seeds() if task.id == row["nearest"]), None)
    else:
        near = record_from(other["record"])
    return {"most_similar": {near.instruction: row["similarity"]}} if isinstance(near, Task) else {}


def _reads_alike(text: str, task: Task) -> bool:
    """Tell whether the original reads a completion as this task's instances; it takes the form from the verdict."""
    return ("Class label:" in text) is task.is_classification and formats.parse_instances(text) == task.instances


def _finish_reason(view: RunView, row: Mapping[str, Any]) -> str:
    """Return why the completion ended: all that `prepare_for_finetuning.py` looks at of the whole response."""
    draw = view.draw(row["stage"], row["draw"]) or {"requests": []}
    found = [completion for key in draw["requests"] if (completion := view.completion(key))]
    return found[-1].finish_reason if found else ""


def _prompts(view: RunView, config: Mapping[str, Any]) -> Iterator[Task]:
    for lane in view.lanes():
        pack = load_pack(lane.key or config["language"])
        for id, record in view.accepted(lane.stages[-1]):
            assert isinstance(record, Task)
            for position, case in enumerate(record.instances):
                rng = random.Random(f"{config['seed']}/{id}/{position}")
                prompt = rng.choice(_layouts(record.instruction, case.input, pack))
                yield Task(prompt, (Instance("", case.output),))


def _layouts(instruction: str, given: str, pack: LanguagePack) -> list[str]:
    """Return ways to lay a task out: one is taken at random, so that the model trained on them learns no single one."""
    labels = pack.labels
    asked, output = f"{labels.task[0]}: {instruction}", f"{labels.output[0]}:"
    if not given:
        return [f"{asked}\n{output}", f"{asked}\n\n{output}", f"{labels.task[0]}:\n{instruction}\n\n{output}"]
    named = f"{labels.input[0]}: {given}"
    return [
        f"{asked}\n\n{named}\n\n{output}",
        f"{named}\n\n{asked}\n\n{output}",
        f"{given}\n\n{instruction}\n\n{output}",
        f"{labels.task[0]}:\n{instruction}\n\n{labels.input[0]}:\n{given}\n\n{output}",
    ]
