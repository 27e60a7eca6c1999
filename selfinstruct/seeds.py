"""Read seed tasks and topics, naming file and line in every complaint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from selfinstruct import resources
from selfinstruct.errors import SeedError
from selfinstruct.values import Dialogue, Instance, Task

_SHAPE = '{"instruction": "...", "instances": [{"input": "", "output": "..."}], "is_classification": false}'
_TOPIC = '{"topic": "...", "category": "..."}'


def path_for(tag: str) -> Path | None:
    """Return the seed file of a language pack, the person's own before the shipped one, or None."""
    return resources.find("seeds", f"{tag}/tasks.jsonl")


def topics_path_for(tag: str, name: str = "topics") -> Path | None:
    """Return the topics of a language pack, the person's own before the shipped ones, or None.

    `name` is the file's: "topics" of everything, "medical" of health.
    """
    return resources.find("seeds", f"{tag}/{name}.jsonl")


def load_tasks(path: Path) -> tuple[Task, ...]:
    """Read seed tasks in Self-Instruct's shape (`data/seed_tasks.jsonl`); Stanford's and BELLE's load as they are.

    JSON lines, or one JSON array, whatever the file is called. A task without an id gets
    "seed-N", N counting from 1. Keys that are not a task's are ignored.

    Raises:
        SeedError: missing file, bad JSON or a row that is not a task, with file:line.
    """
    tasks: list[Task] = []
    seen: dict[str, str] = {}
    for where, row in _rows(path):
        task = _task(where, row)
        task = task if task.id else replace(task, id=f"seed-{len(tasks) + 1}")
        if task.id in seen:
            raise SeedError(f"{where}: the id {task.id!r} is taken by {seen[task.id]}; ids must be unique")
        seen[task.id] = where
        tasks.append(task)
    if not tasks:
        raise SeedError(f"{path}: holds no task; expected one JSON object a line: {_SHAPE}")
    return tuple(tasks)


def load_topics(path: Path) -> tuple[Dialogue, ...]:
    """Read topics, one `{"topic": "...", "category": "..."}` a line: each a dialogue that has not begun.

    Raises:
        SeedError: missing file, bad JSON or a row that is not a topic, with file:line.
    """
    topics = []
    for where, row in _rows(path, _TOPIC):
        topic = row.get("topic") if isinstance(row, dict) else None
        if not isinstance(topic, str) or not topic.strip():
            raise SeedError(f"{where}: 'topic' must be a non-empty text; expected {_TOPIC}")
        topics.append(Dialogue((), topic=topic.strip(), extra={"category": _text(where, row, "category")}))
    if not topics:
        raise SeedError(f"{path}: holds no topic; expected one JSON object a line: {_TOPIC}")
    return tuple(topics)


def digest(tasks: Sequence[Task]) -> str:
    """Return a hash of the tasks' content, for the run's fingerprint."""
    text = json.dumps([asdict(task) for task in tasks], ensure_ascii=True, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _rows(path: Path, shape: str = _SHAPE) -> Iterator[tuple[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise SeedError(f"{path}: can't be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SeedError(f"{path}: not UTF-8 (byte {error.start}); save it as UTF-8") from error
    if text.lstrip().startswith("["):
        try:
            rows = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise SeedError(f"{path}: not valid JSON: {error}") from error
        for number, row in enumerate(rows, 1):
            yield f"{path}: task {number}", row
        return
    # Only a line feed ends a line of JSONL: str.splitlines would also cut at U+2028 inside a text.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield f"{path}:{number}", json.loads(line)
            except (ValueError, RecursionError) as error:
                raise SeedError(f"{path}:{number}: not valid JSON ({error}); expected {shape}") from error


def _task(where: str, row: Any) -> Task:
    if not isinstance(row, dict):
        raise SeedError(f"{where}: expected an object like {_SHAPE}, found {type(row).__name__}")
    instruction = row.get("instruction")
    if not isinstance(instruction, str) or not instruction.strip():
        raise SeedError(f"{where}: 'instruction' must be a non-empty text; expected {_SHAPE}")
    instances = row.get("instances")
    if not isinstance(instances, list) or not instances:
        raise SeedError(f"{where}: 'instances' must be a non-empty list; expected {_SHAPE}")
    is_classification = row.get("is_classification")
    if is_classification is not None and not isinstance(is_classification, bool):
        raise SeedError(f"{where}: 'is_classification' must be true or false, found {is_classification!r}")
    return Task(
        instruction=instruction,
        instances=tuple(_instance(where, number, value) for number, value in enumerate(instances)),
        is_classification=is_classification,
        id=_text(where, row, "id"),
        name=_text(where, row, "name"),
    )


def _instance(where: str, number: int, value: Any) -> Instance:
    if not isinstance(value, dict) or not isinstance(value.get("output"), str) or not value["output"].strip():
        raise SeedError(f"{where}: instances[{number}] needs a non-empty text 'output' and a text 'input'")
    input = value.get("input", "")
    if not isinstance(input, str):
        raise SeedError(f"{where}: instances[{number}].input must be a text ('' when there is none), found {input!r}")
    return Instance(input=input, output=value["output"])


def _text(where: str, row: dict[str, Any], key: str) -> str:
    value = row.get(key, "")
    if not isinstance(value, str | int):
        raise SeedError(f"{where}: {key!r} must be a text, found {value!r}")
    return str(value)
