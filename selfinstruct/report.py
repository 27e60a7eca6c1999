"""Read a run and say what is in it: where a record came from, what became of its siblings."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from selfinstruct.budget import Price
from selfinstruct.errors import InputError
from selfinstruct.filters import Filter
from selfinstruct.forecast import Range, Seen, Yield, forecast
from selfinstruct.plan import Plan, resume_plan
from selfinstruct.store import RunView, decision_from, record_from
from selfinstruct.values import Task


def trace_record(folder: Path, id: str) -> dict[str, Any]:
    """Return everything that led to a record, as plain JSON-able values.

    Keys: candidate (its row, with the record), verdicts (of every filter, not only of the first that objected),
    sources (ids of the records of earlier stages that it was made from, the nearest stage's first), draw,
    demonstrations, exchanges (each request as sent with its completion as received, and each tool's call with its
    result), siblings (id and verdict).

    Raises:
        RunNotFound: no run in `folder`.
        InputError: the run has no candidate of that id.
    """
    plan = resume_plan(folder, [], fetch=False)
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
            elif used := view.tool_use(key):
                exchanges.append({"key": key} | used)
        seeds = {task.id: task for task in view.seeds()}
        shown = tuple(seeds[id] for id in draw["demonstrations"] if id in seeds)
        sources = _sources(plan, view, row["stage"], row["draw"])
        siblings = [
            {"id": other["id"], "verdict": _verdict(other)}
            for other in view.decisions(row["stage"], row["draw"])
            if other["id"] != id
        ]
    candidate = replace(decision_from(row).candidate, demonstrations=shown, rejection=None)
    verdicts = []
    for check in _filters_of(plan, row["stage"]):
        objection = check(candidate) if candidate.record is not None else None
        verdicts.append(
            {
                "filter": getattr(check, "__name__", "plugin"),
                "verdict": objection.reason if objection else "passed",
                "measured": dict(objection.measured) if objection else {},
            }
        )
    return {
        "candidate": _readable(row),
        "verdicts": verdicts,
        "sources": sources,
        "draw": {key: value for key, value in draw.items() if key not in {"demonstrations", "requests"}},
        "demonstrations": draw["demonstrations"],
        "exchanges": exchanges,
        "siblings": siblings,
    }


def _filters_of(plan: Plan, stage: str) -> list[Filter]:
    found = ((lane, each) for lane in plan.lanes for each in plan.stages(lane) if each.name == stage)
    return next((plan.filters(lane, each) for lane, each in found), [])


def _sources(plan: Plan, view: RunView, stage: str, draw: int) -> list[str]:
    """Return the ids of the earlier stages' records that a draw worked on: its n-th draw takes the n-th accepted."""
    before = {each.name: each.source for lane in plan.lanes for each in plan.stages(lane)}
    found = []
    while (stage := before.get(stage, "")) and draw < view.accepted_count(stage):
        found.append(view.accepted_at(stage, draw + 1)[0])
        row = view.decision(found[-1])
        assert row is not None
        draw = row["draw"]
    return found


def seed_table(view: RunView) -> list[dict[str, Any]]:
    """Say how each shown seed task has served, the best first.

    `acceptance` is the share of accepted among the candidates of the draws that showed it,
    `tokens_per_accepted` what those draws spent on each, `duplicates` how often the model wrote a near copy of it.
    """
    rows = [
        {
            "seed": id,
            "draws": draws,
            "candidates": candidates,
            "accepted": accepted,
            "acceptance": round(accepted / candidates, 3) if candidates else 0.0,
            "duplicates": duplicates,
            "tokens_per_accepted": round(tokens / accepted) if accepted else None,
        }
        for lane in view.lanes()
        for id, draws, candidates, accepted, duplicates, tokens in view.seed_use(lane.key, lane.stages[0])
    ]
    return sorted(rows, key=lambda row: (-row["acceptance"], row["duplicates"], row["seed"]))


def outlook(view: RunView, price: Price | None) -> dict[str, Any]:
    """Forecast what the rest of a run takes, as plain values.

    Keys: wanted, and unknown: the stages whose draws are too few to go by, or brought nothing yet. Where there are
    none: draws (the forecast rests on), accepted_per_request, requests, tokens, seconds and, where a price is known,
    cost (US dollars): each of the last four as middle, low and high of a 90 % interval.
    """
    found = view.summary()
    # A run that is done short of its rows was given no more of them.
    wanted = 0 if found.state == "done" else max(0, found.target - found.accepted)
    stages = _seen(view)
    ahead = forecast(stages, wanted)
    if ahead is None:
        unknown = [stage.name for stage in stages if not stage.tells]
        return {"wanted": wanted, "unknown": unknown or [stage.name for stage in stages]}
    spent = found.prompt_tokens + found.completion_tokens
    shown = {"unknown": []} | asdict(ahead)
    shown["seconds"] = _scaled(ahead.requests, found.seconds / max(found.completions, 1))
    if price is not None:
        dollars = float(price.cost(found.prompt_tokens, found.completion_tokens))
        shown["cost"] = _scaled(ahead.tokens, dollars / max(spent, 1))
    return shown


def _seen(view: RunView) -> list[Seen]:
    """Return what is known of each stage; the lanes of a run have the same ones, and are taken together."""
    seen: list[Seen] = []
    for names in zip(*(lane.stages for lane in view.lanes()), strict=True):
        draws = [Yield(*each) for name in names for each in view.yields(name)]
        made = sum(each.accepted for each in seen[-1].draws) if seen else 0
        seen.append(Seen(names[0].partition("@")[0], draws, max(0, made - len(draws))))
    return seen


def outlook_lines(shown: dict[str, Any]) -> list[str]:
    """Put a forecast into words."""
    if "requests" not in shown:
        unknown = ", ".join(shown["unknown"])
        return [f"what {shown['wanted']} more records take can't be told yet: too little has come of {unknown}"]
    lines = [
        f"{shown['wanted']} more records, should the yield stay at {shown['accepted_per_request']:.2f} per request "
        f"(seen over {shown['draws']} draws), take, with 90 % intervals:"
    ]
    for name, form in (("requests", "{:,.0f}"), ("tokens", "{:,.0f}"), ("cost", "${:,.2f}"), ("seconds", "{:,.0f}")):
        if name in shown:
            middle, low, high = (form.format(shown[name][part]) for part in ("middle", "low", "high"))
            lines.append(f"  {name:<9} {middle} ({low} to {high})")
    return lines


def _scaled(span: Range, factor: float) -> dict[str, float]:
    return {part: getattr(span, part) * factor for part in ("middle", "low", "high")}


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
