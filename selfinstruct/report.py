"""Read a run and say what is in it: where a record came from, what became of its siblings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from selfinstruct.errors import InputError
from selfinstruct.store import RunView, record_from
from selfinstruct.values import Task


def trace_record(folder: Path, id: str) -> dict[str, Any]:
    """Return everything that led to a record, as plain JSON-able values.

    Keys: candidate (its row, with the record and what each filter measured), draw, demonstrations,
    exchanges (each request as sent and completion as received), siblings (id and verdict).

    Raises:
        RunNotFound: no run in `folder`.
        InputError: the run has no candidate of that id.
    """
    with RunView.open(folder) as view:
        row = view.decision(id)
        if row is None:
            seed = next((task for task in view.seeds() if task.id == id), None)
            hint = "it is one of the run's seed tasks" if seed else "ids look like tasks-17-3 (stage, draw, position)"
            raise InputError(f"{folder}: there is no candidate {id!r}; {hint}")
        draw = view.draw(row["stage"], row["draw"]) or {"demonstrations": [], "requests": []}
        exchanges = []
        for key in draw["requests"]:
            found = view.exchange(key)
            if found:
                exchanges.append({"key": key, "request": found[0], "completion": found[1]})
        siblings = [
            {"id": other["id"], "verdict": _verdict(other)}
            for other in view.decisions(row["stage"], row["draw"])
            if other["id"] != id
        ]
    return {
        "candidate": _readable(row),
        "draw": {key: value for key, value in draw.items() if key not in {"demonstrations", "requests"}},
        "demonstrations": draw["demonstrations"],
        "exchanges": exchanges,
        "siblings": siblings,
    }


def _readable(row: dict[str, Any]) -> dict[str, Any]:
    record = record_from(row["record"]) if row["record"] else None
    plain: Any = None
    if isinstance(record, Task):
        plain = {
            "instruction": record.instruction,
            "instances": [{"input": i.input, "output": i.output} for i in record.instances],
        }
    elif row["record"]:
        plain = json.loads(row["record"].partition(" ")[2])
    measured = json.loads(row["measured"]) if row["measured"] else {}
    return row | {"record": plain, "measured": measured, "accepted": row["accepted"]}


def _verdict(row: dict[str, Any]) -> str:
    return "accepted" if row["accepted"] is not None else f"rejected by {row['filter']}"
