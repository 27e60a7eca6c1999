"""Read a run, also while another process writes it."""

from __future__ import annotations

import os
import platform
import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any, Self

from selfinstruct import quota
from selfinstruct.errors import RunNotFound, StoreError
from selfinstruct.store.codec import completion_from, legible, number, parsed, record_from, result_from, task_from
from selfinstruct.store.disk import DATABASE, born, check_version, connect_reader, explained
from selfinstruct.values import Completion, Decision, Record, Task, ToolResult

# IS NOT NULL lets SQLite take the partial index; without it each commit would read every candidate of the run.
LAST_ACCEPTED = "SELECT coalesce(max(accepted), 0) FROM candidates WHERE stage = ? AND accepted IS NOT NULL"


@dataclass(frozen=True, slots=True)
class Commit:
    """What one transaction settles about a draw.

    `state` is "done", "open" (the target was reached inside it: the candidates after the last
    decision are still to be judged, should the target rise) or "failed" (the endpoint refused it).
    """

    stage: str
    number: int
    state: str
    decisions: tuple[Decision, ...] = ()
    item: str | None = None
    error: str | None = None
    demonstrations: tuple[str, ...] = ()
    requests: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Lane:
    """A share of the dataset and the stages that make it, the last of which holds its records.

    `key` is "" where a run has one lane only, else the language or category that the share is of.
    """

    key: str
    share: Fraction
    stages: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StageSummary:
    """Where a stage stands: every candidate it brought was accepted or is counted under a filter."""

    draws: int
    failed_draws: int
    accepted: int
    rejected: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Summary:
    """Where a run stands. `requests` counts what was handed to the endpoint, `lost` those a crash cut off.

    `accepted` and `candidates` count the dataset's own stages, `rejected` and `draws` all stages; `stages` tells
    them apart.
    """

    state: str
    reason: str
    target: int
    accepted: int
    candidates: int
    rejected: Mapping[str, int]
    draws: int
    failed_draws: int
    requests: int
    lost: int
    completions: int
    prompt_tokens: int
    completion_tokens: int
    spent_tokens: int
    spent_cost: str
    seconds: float
    stages: Mapping[str, StageSummary]


class RunView:
    """Read a run, also while another process writes it."""

    def __init__(self, folder: Path, connection: sqlite3.Connection) -> None:
        self.folder = folder
        self._connection = connection

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open the run in `folder` for reading.

        Raises:
            RunNotFound: there is none.
            StoreError: the database is damaged or from a newer version.
        """
        path = folder / DATABASE
        with explained(path):
            if not path.is_file():
                raise RunNotFound(f"{folder}: there is no run here ({DATABASE} is missing)")
            connection = connect_reader(path)
            try:
                connection.execute("PRAGMA query_only = ON")
                check_version(path, connection)
                view = cls(folder, connection)
                for key in ("config", "fingerprint"):
                    if view.meta(key) is None:
                        raise StoreError(f"{path}: damaged, its {key} is missing; restore it from a copy")
            except BaseException:
                connection.close()
                raise
        return view

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def meta(self, key: str) -> Any:
        """Return a stored value (config, fingerprint, state ...) or None."""
        row = self._one("SELECT value FROM meta WHERE key = ?", (key,))
        return None if row is None else parsed(row[0], lambda value: value)

    def seeds(self, lane: str | None = None) -> tuple[Task, ...]:
        """Return the seed tasks that the run, or a lane of it, started from, in order."""
        query = "SELECT task FROM seeds WHERE lane = coalesce(?, lane) ORDER BY lane, position"
        return tuple(parsed(text, task_from) for (text,) in self._rows(query, (lane,)))

    def lanes(self) -> tuple[Lane, ...]:
        """Return the shares of the dataset and the stages that make each."""
        rows = self.meta("lanes") or []
        with legible():
            return tuple(Lane(row["key"], Fraction(row["share"]), tuple(row["stages"])) for row in rows)

    def dataset(self) -> Iterator[tuple[str, Record]]:
        """Yield (id, record) of the dataset: the records of each lane's last stage, in the order of their shares."""
        lanes = self.lanes()
        if not lanes:
            return
        rest = {which: self.accepted(lane.stages[-1]) for which, lane in enumerate(lanes)}
        for which in quota.order([lane.share for lane in lanes]):
            if which in rest:
                found = next(rest[which], None)
                if found is not None:
                    yield found
                    continue
                del rest[which]
            if not rest:
                return

    def dataset_count(self) -> int:
        """Return how many records the dataset has."""
        return sum(self.accepted_count(lane.stages[-1]) for lane in self.lanes())

    def completion(self, key: str) -> Completion | None:
        """Return the journaled completion of a request, or None."""
        row = self._one("SELECT completion FROM completions WHERE key = ?", (key,))
        return None if row is None else parsed(row[0], completion_from)

    def exchange(self, key: str) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """Return (request, completion) as stored, or None."""
        row = self._one("SELECT request, completion FROM completions WHERE key = ?", (key,))
        return None if row is None else (parsed(row[0], dict), parsed(row[1], dict))

    def tool_result(self, key: str) -> ToolResult | None:
        """Return the journaled result of a tool's call, or None."""
        row = self._one("SELECT result FROM tool_results WHERE key = ?", (key,))
        return None if row is None else parsed(row[0], result_from)

    def tool_use(self, key: str) -> dict[str, Any] | None:
        """Return (tool, arguments, result) of a tool's call as stored, or None."""
        row = self._one("SELECT tool, arguments, result FROM tool_results WHERE key = ?", (key,))
        return row and {"tool": row[0], "arguments": parsed(row[1], dict), "result": parsed(row[2], dict)}

    def journal_rows(self, table: str) -> Iterator[Any]:
        """Yield the rows of `completions` or `tool_results` as they are stored, for another run to take over."""
        return self._rows(
            {"completions": "SELECT * FROM completions", "tool_results": "SELECT * FROM tool_results"}[table]
        )

    def next_draw(self, stage: str) -> tuple[int, int]:
        """Return the first draw not yet settled, and how many of its candidates are already decided."""
        row = self._one("SELECT number, state FROM draws WHERE stage = ? ORDER BY number DESC LIMIT 1", (stage,))
        if row is None:
            return 0, 0
        if row[1] != "open":
            return number(row[0]) + 1, 0
        decided = self._one("SELECT count(*) FROM candidates WHERE stage = ? AND draw = ?", (stage, row[0]))
        return number(row[0]), int(decided[0]) if decided else 0

    def items(self, stage: str) -> Iterator[str]:
        """Yield the identity of each settled draw's item, in draw order."""
        return (str(item) for (item,) in self._rows("SELECT item FROM draws WHERE stage = ? ORDER BY number", (stage,)))

    def first_unanswered(self, stage: str) -> int | None:
        """Return the first draw with a candidate that `refilter` let through to a question never asked, or None."""
        query = "SELECT min(draw) FROM candidates WHERE stage = ? AND accepted IS NULL AND filter = 'unanswered'"
        row = self._one(query, (stage,))
        return None if row is None or row[0] is None else number(row[0])

    def accepted_count(self, stage: str) -> int:
        """Return how many records of a stage were accepted."""
        row = self._one(LAST_ACCEPTED, (stage,))
        return number(row[0]) if row else 0

    def accepted_draws(self, stage: str) -> Iterator[int]:
        """Yield the draw of each accepted record, in order of acceptance."""
        query = "SELECT draw FROM candidates WHERE stage = ? AND accepted IS NOT NULL ORDER BY accepted"
        return (number(draw) for (draw,) in self._rows(query, (stage,)))

    def accepted(self, stage: str, after: int = 0) -> Iterator[tuple[str, Record]]:
        """Yield (id, record) of accepted records in order, from the one after number `after`."""
        query = "SELECT id, record FROM candidates WHERE stage = ? AND accepted > ? ORDER BY accepted"
        return ((str(id), record_from(text)) for id, text in self._rows(query, (stage, after)))

    def accepted_at(self, stage: str, number: int) -> tuple[str, Record]:
        """Return the accepted record with that number, counting from 1."""
        row = self._one("SELECT id, record FROM candidates WHERE stage = ? AND accepted = ?", (stage, number))
        if row is None:
            raise StoreError(f"{self.folder}: accepted record {number} of stage {stage} is missing; the run is damaged")
        return str(row[0]), record_from(row[1])

    def decision(self, id: str) -> dict[str, Any] | None:
        """Return a candidate's row with everything stored about it, as a plain mapping, or None."""
        return next(self._mappings("SELECT * FROM candidates WHERE id = ?", (id,)), None)

    def decisions(self, stage: str, draw: int) -> list[dict[str, Any]]:
        """Return all candidates of one draw in order."""
        query = "SELECT * FROM candidates WHERE stage = ? AND draw = ? ORDER BY position"
        return list(self._mappings(query, (stage, draw)))

    def yields(self, stage: str) -> Iterator[tuple[int, int, int]]:
        """Yield (accepted, tokens, requests answered) of each settled draw."""
        query = """
            SELECT coalesce(a.count, 0), coalesce(t.tokens, 0), coalesce(t.count, 0)
            FROM draws d
            LEFT JOIN (SELECT draw, count(*) AS count FROM candidates
                       WHERE stage = :stage AND accepted IS NOT NULL GROUP BY draw) a ON a.draw = d.number
            LEFT JOIN (SELECT draw, count(*) AS count, sum(prompt_tokens + completion_tokens) AS tokens
                       FROM completions WHERE stage = :stage GROUP BY draw) t ON t.draw = d.number
            WHERE d.stage = :stage AND d.state <> 'open'"""
        return self._rows(query, {"stage": stage})

    def seed_use(self, lane: str, stage: str) -> Iterator[tuple[str, int, int, int, int, int]]:
        """Yield (id, draws, candidates, accepted, duplicates, tokens) for each seed task that was shown.

        Duplicates are candidates rejected for being too near that very seed.
        """
        query = """
            WITH shown AS (
                SELECT s.value AS id, d.number AS draw FROM draws d, json_each(d.demonstrations) s
                WHERE d.stage = :stage),
            brought AS (
                SELECT draw, count(*) AS candidates, count(accepted) AS accepted FROM candidates
                WHERE stage = :stage GROUP BY draw),
            spent AS (
                SELECT draw, sum(prompt_tokens + completion_tokens) AS tokens FROM completions
                WHERE stage = :stage GROUP BY draw),
            copied AS (
                SELECT nearest AS id, count(*) AS duplicates FROM candidates
                WHERE stage = :stage AND filter = 'novelty' GROUP BY nearest)
            SELECT seeds.id, count(shown.draw), coalesce(sum(brought.candidates), 0),
                   coalesce(sum(brought.accepted), 0), coalesce(max(copied.duplicates), 0),
                   coalesce(sum(spent.tokens), 0)
            FROM seeds
            JOIN shown ON shown.id = seeds.id
            LEFT JOIN brought ON brought.draw = shown.draw
            LEFT JOIN spent ON spent.draw = shown.draw
            LEFT JOIN copied ON copied.id = seeds.id
            WHERE seeds.lane = :lane
            GROUP BY seeds.id ORDER BY seeds.position"""
        return self._rows(query, {"lane": lane, "stage": stage})

    def draw(self, stage: str, number: int) -> dict[str, Any] | None:
        """Return a draw's row as a plain mapping, or None."""
        found = next(self._mappings("SELECT * FROM draws WHERE stage = ? AND number = ?", (stage, number)), None)
        if found is None:
            return None
        with legible():
            return found | {key: parsed(found[key], list) for key in ("demonstrations", "requests")}

    def summary(self) -> Summary:
        """Count what the run holds, and say whether its process lives."""
        with explained(self.folder / DATABASE):
            self._connection.execute("BEGIN")  # one snapshot for all counts
            try:
                with legible():
                    return self._summary()
            finally:
                self._connection.execute("COMMIT")

    def _summary(self) -> Summary:
        lanes = self.lanes()
        stages = {name: self._stage_summary(name) for lane in lanes for name in lane.stages}
        own = [stages[lane.stages[-1]] for lane in lanes]
        rejected: Counter[str] = Counter()
        for stage in stages.values():
            rejected.update(stage.rejected)
        accepted = sum(stage.accepted for stage in own)
        sends = self._one("SELECT count(*), coalesce(sum(state = 'lost'), 0), coalesce(sum(tokens), 0) FROM sends")
        sends = sends or (0, 0, 0)
        journal = self._one(
            "SELECT count(*), coalesce(sum(prompt_tokens), 0), coalesce(sum(completion_tokens), 0) FROM completions"
        ) or (0, 0, 0)
        # Money is added up exactly: prices times tokens, as decimals.
        cost = sum((Decimal(text) for (text,) in self._rows("SELECT cost FROM sends WHERE cost > '0'")), Decimal(0))
        state, reason = self._state()
        config = self.meta("config") or {}
        return Summary(
            state=state,
            reason=reason,
            target=int(self.meta("target") or config.get("target") or 0),
            accepted=accepted,
            candidates=accepted + sum(sum(stage.rejected.values()) for stage in own),
            rejected=dict(sorted(rejected.items(), key=lambda pair: (-pair[1], pair[0]))),
            draws=sum(stage.draws for stage in stages.values()),
            failed_draws=sum(stage.failed_draws for stage in stages.values()),
            requests=sends[0],
            lost=sends[1],
            completions=journal[0],
            prompt_tokens=journal[1],
            completion_tokens=journal[2],
            spent_tokens=sends[2],
            spent_cost=str(cost),
            seconds=float(self.meta("seconds") or 0.0),
            stages=stages,
        )

    def _stage_summary(self, stage: str) -> StageSummary:
        rejected = self._rows(
            "SELECT filter, count(*) FROM candidates WHERE stage = ? AND accepted IS NULL GROUP BY filter "
            "ORDER BY 2 DESC, 1",
            (stage,),
        )
        query = "SELECT count(*), coalesce(sum(state = 'failed'), 0) FROM draws WHERE stage = ?"
        draws = self._one(query, (stage,)) or (0, 0)
        return StageSummary(
            draws=draws[0],
            failed_draws=draws[1],
            accepted=self.accepted_count(stage),
            rejected={str(name): int(count) for name, count in rejected},
        )

    def _state(self) -> tuple[str, str]:
        state = self.meta("state") or {"state": "new", "reason": ""}
        process = self.meta("process")
        if state["state"] == "running" and not _alive(process):
            return "interrupted", "the process ended without closing the run"
        return state["state"], state["reason"]

    def is_sound(self) -> bool:
        """Look at every page of the database; takes about a second for half a gigabyte."""
        row = self._one("PRAGMA quick_check(1)")
        return bool(row and row[0] == "ok")

    def _one(self, query: str, parameters: Sequence[Any] = ()) -> Any:
        with explained(self.folder / DATABASE):
            return self._connection.execute(query, parameters).fetchone()

    def _rows(self, query: str, parameters: Sequence[Any] | Mapping[str, Any] = ()) -> Iterator[Any]:
        with explained(self.folder / DATABASE):
            # Not `yield from`: a reader that is left half way would close its cursor, perhaps after its connection.
            for row in self._connection.execute(query, parameters):  # noqa: UP028
                yield row

    def _mappings(self, query: str, parameters: Sequence[Any]) -> Iterator[dict[str, Any]]:
        with explained(self.folder / DATABASE):
            cursor = self._connection.execute(query, parameters)
            names = [column[0] for column in cursor.description]
            for row in cursor:
                yield dict(zip(names, row, strict=True))


def holds_run(folder: Path) -> bool:
    """Tell whether there is a run in the folder, whole or damaged.

    Raises:
        StoreError: the folder can't be looked into.
    """
    with explained(folder / DATABASE):
        return (folder / DATABASE).exists()


def _alive(process: Mapping[str, Any] | None) -> bool:
    if not process or process["host"] != platform.node():
        return process is not None  # on another host: nothing better is known than what it said
    try:
        os.kill(process["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return process.get("born") in (None, born(process["pid"]))
