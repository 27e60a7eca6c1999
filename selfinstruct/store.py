"""One run in SQLite: the journal, the draws, every decision. The only module that speaks SQL.

One process writes (a lock file sees to it), any number read while it does. All writes go through
one thread that groups whatever is waiting into one transaction and fsyncs it, so an awaited write
is durable and sixty-four of them cost hardly more than one. A few megabytes are set aside while a
run is written: when the disk fills up they take in what has been paid for, and nothing more is asked.

    sends        each request handed to the endpoint, before it leaves: what a budget counts
    completions  the journal: what came back, under the request's content key
    draws        what has been committed, in draw order
    candidates   every candidate with its decision, accepted or not
"""

from __future__ import annotations

import asyncio
import datetime
import errno
import itertools
import json
import os
import platform
import queue
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeVar

import filelock

from selfinstruct.errors import RunLocked, RunNotFound, StoreError
from selfinstruct.values import (
    Candidate,
    Comparison,
    Completion,
    Decision,
    Dialogue,
    Instance,
    Message,
    Neighbour,
    Record,
    Rejection,
    Request,
    Response,
    Sampling,
    Task,
    ToolCall,
    Usage,
)

_T = TypeVar("_T")

SCHEMA_VERSION = 1
DATABASE = "run.sqlite"
RESERVE = "run.reserve"
_RESERVED = 4 << 20
"""Bytes set aside: about 64 answers in flight, each of some ten database pages, and the closing notes."""

_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE seeds (position INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, task TEXT NOT NULL) STRICT;
CREATE TABLE sends (
    id INTEGER PRIMARY KEY, key TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('open', 'done', 'failed', 'lost')),
    tokens INTEGER NOT NULL, cost TEXT, error TEXT) STRICT;
CREATE INDEX sends_open ON sends (id) WHERE state = 'open';
CREATE TABLE completions (
    key TEXT PRIMARY KEY, stage TEXT NOT NULL, draw INTEGER NOT NULL,
    request TEXT NOT NULL, completion TEXT NOT NULL,
    prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL,
    seconds REAL NOT NULL, created TEXT NOT NULL) STRICT;
CREATE TABLE draws (
    stage TEXT NOT NULL, number INTEGER NOT NULL, item TEXT,
    state TEXT NOT NULL CHECK (state IN ('done', 'open', 'failed')),
    error TEXT, demonstrations TEXT NOT NULL, requests TEXT NOT NULL,
    PRIMARY KEY (stage, number)) STRICT, WITHOUT ROWID;
CREATE TABLE candidates (
    id TEXT PRIMARY KEY, stage TEXT NOT NULL, draw INTEGER NOT NULL, position INTEGER NOT NULL,
    accepted INTEGER, record TEXT, text TEXT NOT NULL, truncated INTEGER NOT NULL, logprob REAL,
    filter TEXT, reason TEXT, measured TEXT, nearest TEXT, similarity REAL,
    UNIQUE (stage, draw, position)) STRICT;
CREATE UNIQUE INDEX candidates_accepted ON candidates (stage, accepted) WHERE accepted IS NOT NULL;
CREATE INDEX candidates_rejected ON candidates (stage, filter) WHERE accepted IS NULL;
"""


_INSERT_COMPLETION = "INSERT OR IGNORE INTO completions VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"

# IS NOT NULL lets SQLite take the partial index; without it each commit would read every candidate of the run.
_LAST_ACCEPTED = "SELECT coalesce(max(accepted), 0) FROM candidates WHERE stage = ? AND accepted IS NOT NULL"


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
class Summary:
    """Where a run stands. `requests` counts what was handed to the endpoint, `lost` those a crash cut off."""

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
        with _explained(path):
            if not path.is_file():
                raise RunNotFound(f"{folder}: there is no run here ({DATABASE} is missing)")
            connection = _connect_reader(path)
            try:
                connection.execute("PRAGMA query_only = ON")
                _check_version(path, connection)
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
        return None if row is None else _parsed(row[0], lambda value: value)

    def seeds(self) -> tuple[Task, ...]:
        """Return the seed tasks the run started from, in order."""
        return tuple(_parsed(text, _task) for (text,) in self._rows("SELECT task FROM seeds ORDER BY position"))

    def completion(self, key: str) -> Completion | None:
        """Return the journaled completion of a request, or None."""
        row = self._one("SELECT completion FROM completions WHERE key = ?", (key,))
        return None if row is None else _parsed(row[0], _completion)

    def exchange(self, key: str) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """Return (request, completion) as stored, or None."""
        row = self._one("SELECT request, completion FROM completions WHERE key = ?", (key,))
        return None if row is None else (_parsed(row[0], dict), _parsed(row[1], dict))

    def journal_rows(self) -> Iterator[Any]:
        """Yield the completions as they are stored, for another run to take over."""
        return self._rows("SELECT * FROM completions")

    def next_draw(self, stage: str) -> tuple[int, int]:
        """Return the first draw not yet settled, and how many of its candidates are already decided."""
        row = self._one("SELECT number, state FROM draws WHERE stage = ? ORDER BY number DESC LIMIT 1", (stage,))
        if row is None:
            return 0, 0
        if row[1] != "open":
            return _number(row[0]) + 1, 0
        decided = self._one("SELECT count(*) FROM candidates WHERE stage = ? AND draw = ?", (stage, row[0]))
        return _number(row[0]), int(decided[0]) if decided else 0

    def items(self, stage: str) -> Iterator[str]:
        """Yield the identity of each settled draw's item, in draw order."""
        return (str(item) for (item,) in self._rows("SELECT item FROM draws WHERE stage = ? ORDER BY number", (stage,)))

    def accepted_count(self, stage: str) -> int:
        """Return how many records of a stage were accepted."""
        row = self._one(_LAST_ACCEPTED, (stage,))
        return _number(row[0]) if row else 0

    def accepted_draws(self, stage: str) -> Iterator[int]:
        """Yield the draw of each accepted record, in order of acceptance."""
        query = "SELECT draw FROM candidates WHERE stage = ? AND accepted IS NOT NULL ORDER BY accepted"
        return (_number(draw) for (draw,) in self._rows(query, (stage,)))

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

    def seed_use(self, stage: str) -> Iterator[tuple[str, int, int, int, int, int]]:
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
            GROUP BY seeds.id ORDER BY seeds.position"""
        return self._rows(query, {"stage": stage})

    def draw(self, stage: str, number: int) -> dict[str, Any] | None:
        """Return a draw's row as a plain mapping, or None."""
        found = next(self._mappings("SELECT * FROM draws WHERE stage = ? AND number = ?", (stage, number)), None)
        if found is None:
            return None
        with _legible():
            return found | {key: _parsed(found[key], list) for key in ("demonstrations", "requests")}

    def summary(self, stage: str) -> Summary:
        """Count what the run holds, and say whether its process lives."""
        with _explained(self.folder / DATABASE):
            self._connection.execute("BEGIN")  # one snapshot for all counts
            try:
                with _legible():
                    return self._summary(stage)
            finally:
                self._connection.execute("COMMIT")

    def _summary(self, stage: str) -> Summary:
        rejected = self._rows(
            "SELECT filter, count(*) FROM candidates WHERE stage = ? AND accepted IS NULL GROUP BY filter "
            "ORDER BY 2 DESC, 1",
            (stage,),
        )
        counts = {str(name): int(count) for name, count in rejected}
        accepted = self.accepted_count(stage)
        draws = self._one("SELECT count(*), coalesce(sum(state = 'failed'), 0) FROM draws") or (0, 0)
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
            candidates=accepted + sum(counts.values()),
            rejected=counts,
            draws=draws[0],
            failed_draws=draws[1],
            requests=sends[0],
            lost=sends[1],
            completions=journal[0],
            prompt_tokens=journal[1],
            completion_tokens=journal[2],
            spent_tokens=sends[2],
            spent_cost=str(cost),
            seconds=float(self.meta("seconds") or 0.0),
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
        with _explained(self.folder / DATABASE):
            return self._connection.execute(query, parameters).fetchone()

    def _rows(self, query: str, parameters: Sequence[Any] | Mapping[str, Any] = ()) -> Iterator[Any]:
        with _explained(self.folder / DATABASE):
            # Not `yield from`: a reader that is left half way would close its cursor, perhaps after its connection.
            for row in self._connection.execute(query, parameters):  # noqa: UP028
                yield row

    def _mappings(self, query: str, parameters: Sequence[Any]) -> Iterator[dict[str, Any]]:
        with _explained(self.folder / DATABASE):
            cursor = self._connection.execute(query, parameters)
            names = [column[0] for column in cursor.description]
            for row in cursor:
                yield dict(zip(names, row, strict=True))


_Job = Callable[[sqlite3.Connection], Any]


@dataclass(slots=True)
class _Waiting:
    """A write in the queue: what to do, and whom to tell."""

    job: _Job
    loop: asyncio.AbstractEventLoop | None
    future: asyncio.Future[Any] | None
    done: threading.Event = field(default_factory=threading.Event)
    result: Any = None
    error: BaseException | None = None

    def settle(self) -> None:
        """Wake the waiter, on its own loop; an error is raised where it waits."""
        if self.future is None or self.future.done():
            return
        if self.error is not None:
            self.future.set_exception(self.error)
        else:
            self.future.set_result(self.result)


def _wake(jobs: Sequence[_Waiting]) -> None:
    """Tell all who wait: each event loop is roused once, which costs as much as a small write."""
    for waiting in jobs:
        waiting.done.set()
    for loop in {waiting.loop for waiting in jobs if waiting.loop is not None}:

        def settle(loop: asyncio.AbstractEventLoop = loop) -> None:
            for waiting in jobs:
                if waiting.loop is loop:
                    waiting.settle()

        # A loop that is closed by now has nobody left who waits.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(settle)


def holds_run(folder: Path) -> bool:
    """Tell whether there is a run in the folder, whole or damaged.

    Raises:
        StoreError: the folder can't be looked into.
    """
    with _explained(folder / DATABASE):
        return (folder / DATABASE).exists()


class RunStore:
    """Write a run. Create it with `create` or `open`; `view` reads what is committed."""

    def __init__(self, folder: Path, lock: filelock.BaseFileLock) -> None:
        self.folder = folder
        self._lock = lock
        self._queue: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._gate = threading.Lock()
        self._ended: BaseException | None = None
        self._full: StoreError | None = None
        self._path = folder / DATABASE
        self._file = _identity(self._path)
        self.view = RunView.open(folder)
        try:
            _check_whole(self.view, self._path)
            _set_aside(folder / RESERVE)
        except BaseException:
            self.view.close()
            raise
        self._thread = threading.Thread(target=self._write_all, name="run-store", daemon=True)
        self._thread.start()
        try:
            # Requests in flight when the last process died may have been answered and paid: they stay counted.
            self._do(lambda connection: connection.execute(_LOSE_OPEN))
        except BaseException:
            self.close()
            raise

    @classmethod
    def create(
        cls,
        folder: Path,
        *,
        config: Mapping[str, Any],
        config_yaml: str,
        fingerprint: Mapping[str, Any],
        seeds: Sequence[Task],
    ) -> Self:
        """Make a run in an empty or new folder and hold it.

        Raises:
            RunLocked: another process holds it.
            StoreError: the folder can't be written, or holds a run or the rest of one.
        """
        path = folder / DATABASE
        with _explained(path):
            folder.mkdir(parents=True, exist_ok=True)
            lock = _acquire(folder)
            try:
                _refuse_leftovers(path)
                # The database appears under its name only when whole: a crash here leaves no half-made run.
                temporary = folder / f".{DATABASE}.new"
                try:
                    _remove_database(temporary)
                    with closing(_connect(temporary)) as connection:
                        connection.execute("BEGIN IMMEDIATE")
                        for statement in _SCHEMA.split(";\n"):
                            if statement.strip():
                                connection.execute(statement)
                        _put_meta(connection, {"config": config, "fingerprint": fingerprint, "created": _now()})
                        connection.executemany(
                            "INSERT INTO seeds VALUES (?, ?, ?)",
                            [(position, _plain(task.id), _dumps(asdict(task))) for position, task in enumerate(seeds)],
                        )
                        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
                        connection.execute("COMMIT")
                        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                    temporary.replace(path)
                except BaseException:
                    _remove_database(temporary)
                    raise
                # Last, so that a config.yaml without a run is the person's own; a crash here leaves a run without
                # one, and the next that opens it writes it.
                try:
                    _write_atomically(folder / "config.yaml", config_yaml)
                except BaseException:
                    _remove_database(path)
                    raise
                _sync_folder(folder)
                return cls(folder, lock)
            except BaseException:
                lock.release()
                raise

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Hold an existing run for writing.

        Raises:
            RunNotFound: there is none.
            RunLocked: another process holds it.
            StoreError: the database is damaged, or can't be opened or written.
        """
        with _explained(folder / DATABASE):
            if not (folder / DATABASE).is_file():
                raise RunNotFound(f"{folder}: there is no run here ({DATABASE} is missing)")
            lock = _acquire(folder)
            try:
                return cls(folder, lock)
            except BaseException:
                lock.release()
                raise

    async def send(self, key: str, tokens: int, cost: str | None) -> int:
        """Record, durably and before it leaves, a request with its worst case; return the send's id.

        Raises:
            StoreError: the disk has filled up; there might be no room for the answer.
        """
        if self._full is not None:
            raise StoreError(str(self._full))
        insert = "INSERT INTO sends (key, state, tokens, cost) VALUES (?, 'open', ?, ?)"
        id: int = await self._put(lambda c: c.execute(insert, (key, tokens, cost)).lastrowid)
        return id

    async def settle(self, send: int, *, tokens: int, cost: str | None, error: str | None = None) -> None:
        """Record what a request came to when it brought no completion."""
        update = "UPDATE sends SET state = 'failed', tokens = ?, cost = ?, error = ? WHERE id = ?"
        said = None if error is None else _plain(error)
        await self._put(lambda c: c.execute(update, (tokens, cost, said, send)))

    async def withdraw(self, send: int) -> None:
        """Forget a request that was recorded and then did not leave."""
        await self._put(lambda c: c.execute("DELETE FROM sends WHERE id = ?", (send,)))

    async def journal(
        self,
        send: int,
        key: str,
        stage: str,
        draw: int,
        request: Request,
        completion: Completion,
        *,
        cost: str | None,
        seconds: float,
    ) -> None:
        """Record a completion, durably: after this it is never asked for again."""
        usage = completion.usage
        tokens = [min(count, _MOST) for count in (usage.prompt_tokens, usage.completion_tokens)]
        row = (
            key, stage, draw, _dumps(_compact(request)), _dumps(asdict(completion)),
            *tokens, round(seconds, 3), _now(),
        )  # fmt: skip

        def job(connection: sqlite3.Connection) -> None:
            connection.execute(_INSERT_COMPLETION, row)
            connection.execute(
                "UPDATE sends SET state = 'done', tokens = ?, cost = ? WHERE id = ?",
                (min(sum(tokens), _MOST), cost, send),
            )

        await self._put(job)

    async def commit(self, commit: Commit) -> None:
        """Settle a draw: its decisions, lineage and state, in one transaction."""
        await self._put(lambda connection: _commit(connection, commit))

    async def rewind(self, stage: str, number: int) -> None:
        """Forget the draws from `number` on, keeping the journal: they will be judged again from it."""

        def job(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM candidates WHERE stage = ? AND draw >= ?", (stage, number))
            connection.execute("DELETE FROM draws WHERE stage = ? AND number >= ?", (stage, number))

        await self._put(job)

    def replace(self, stage: str, commits: Sequence[Commit]) -> None:
        """Put these commits in the place of all of a stage's, in one transaction; the journal stays."""

        def job(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM candidates WHERE stage = ?", (stage,))
            connection.execute("DELETE FROM draws WHERE stage = ?", (stage,))
            for commit in commits:
                _commit(connection, commit)

        self._do(job)

    def copy_journal(self, source: RunView) -> None:
        """Take over every completion of another run."""
        rows = source.journal_rows()
        while batch := list(itertools.islice(rows, 1000)):
            self._do(partial(_insert_completions, rows=batch))

    def set_meta(self, **values: Any) -> None:
        """Store values such as state, config or seconds; returns when they are durable."""
        self._do(lambda connection: _put_meta(connection, values))

    async def put_meta(self, **values: Any) -> None:
        """Like `set_meta`, for use while the loop runs."""
        await self._put(lambda connection: _put_meta(connection, values))

    def start(self) -> None:
        """Mark the run as running in this process."""
        process = {"pid": os.getpid(), "host": platform.node(), "started": _now(), "born": _born(os.getpid())}
        self.set_meta(state={"state": "running", "reason": ""}, process=process)

    def save_config(self, config: Mapping[str, Any], config_yaml: str) -> None:
        """Replace the stored settings (a raised target, another budget)."""
        with _explained(self.folder / "config.yaml"):
            _write_atomically(self.folder / "config.yaml", config_yaml)
        self.set_meta(config=config)

    def close(self) -> None:
        """Finish all writes, fold the WAL into the database and release the run."""
        moved = _identity(self._path) != self._file
        if not moved:
            # The last connection to leave folds the WAL away, and only one that may write can.
            self.view.close()
        with self._gate:
            if self._ended is None:
                self._queue.put(None)
        self._thread.join()
        # Of a database that was moved SQLite would delete the WAL under its old name, where another may be by now.
        self.view.close()
        if not moved:
            (self.folder / RESERVE).unlink(missing_ok=True)
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    async def _put(self, job: _Job) -> Any:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        self._enqueue(_Waiting(job, loop, future))
        # A cancelled waiter must not cancel a write that is already on its way.
        return await asyncio.shield(future)

    def _do(self, job: _Job) -> Any:
        waiting = _Waiting(job, None, None)
        self._enqueue(waiting)
        waiting.done.wait()
        if waiting.error is not None:
            raise waiting.error
        return waiting.result

    def _enqueue(self, waiting: _Waiting) -> None:
        with self._gate:
            if self._ended is not None:
                raise self._ended
            self._queue.put(waiting)

    def _write_all(self) -> None:
        ended: BaseException = StoreError(f"{self._path}: the run is closed; open it again with `selfinstruct resume`")
        try:
            with _explained(self._path), closing(_connect(self._path)) as connection:
                self._serve(connection)
        except BaseException as error:  # handed on: whatever happens here, nobody may be left waiting
            ended = error
        with self._gate:
            self._ended = ended
        while not self._queue.empty():
            waiting = self._queue.get()
            if waiting is not None:
                waiting.error = ended
                _wake([waiting])

    def _serve(self, connection: sqlite3.Connection) -> None:
        closing = False
        while not closing:
            batch = [self._queue.get()]
            while len(batch) < 512:
                try:
                    batch.append(self._queue.get_nowait())
                except queue.Empty:
                    break
            closing = None in batch
            jobs = [waiting for waiting in batch if waiting is not None]
            if closing:
                # Whoever sent a request has been told what became of it, or is gone.
                jobs.append(_Waiting(lambda c: c.execute(_LOSE_OPEN), None, None))
            if jobs:
                self._transact(connection, jobs)
        # With a busy reader or a full disk the WAL simply stays, and is read as usual next time.
        with suppress(sqlite3.Error):
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def _transact(self, connection: sqlite3.Connection, jobs: Sequence[_Waiting]) -> None:
        """Write all of `jobs` or tell each why it was not; one that is wrong in itself does not harm the others."""
        error = self._attempt(connection, jobs)
        if isinstance(error, StoreError) and _code(error) in _NO_ROOM and self._full is None:
            self._full = error
            (self.folder / RESERVE).unlink(missing_ok=True)
            error = self._attempt(connection, jobs)
        if error is not None and len(jobs) > 1 and _code(error) not in _DISK:
            for waiting in jobs:
                self._transact(connection, [waiting])
            return
        for waiting in jobs:
            waiting.error = error
        _wake(jobs)

    def _attempt(self, connection: sqlite3.Connection, jobs: Sequence[_Waiting]) -> BaseException | None:
        """Write `jobs` in one transaction; return what went wrong, in which case nothing is written."""
        try:
            with _explained(self._path):
                if _identity(self._path) != self._file:
                    raise StoreError(
                        f"{self._path} was moved, replaced or deleted while the run was writing it; everything "
                        "committed is in the file that was moved: put the folder back and resume"
                    )
                connection.execute("BEGIN IMMEDIATE")
                for waiting in jobs:
                    waiting.result = waiting.job(connection)
                connection.execute("COMMIT")
        except BaseException as error:  # whatever it is, every waiter is told
            if connection.in_transaction:
                with suppress(sqlite3.Error):  # an I/O error has rolled back already
                    connection.execute("ROLLBACK")
            return error
        return None


def record_from(text: str) -> Record:
    """Turn stored JSON back into the record it was.

    Raises:
        StoreError: it is damaged.
    """
    kind, _, body = str(text).partition(" ")  # a damaged row may hold anything, also nothing
    decode = _RECORDS.get(kind)
    if decode is None:
        raise StoreError(f"{DATABASE} is damaged: a record of an unknown kind {kind[:20]!r}; restore it from a copy")
    return _parsed(body, decode)


def decision_from(row: Mapping[str, Any]) -> Decision:
    """Turn a candidate's row into the decision it stores.

    A candidate's own rejection and the judge's are one in the row; its demonstrations are in the draw's.
    """
    with _legible():
        record = None if row["record"] is None else record_from(row["record"])
        rejection = None
        if row["accepted"] is None:
            rejection = Rejection(row["filter"], row["reason"], _parsed(row["measured"], dict))
        nearest = None if row["nearest"] is None else Neighbour(row["nearest"], row["similarity"])
        candidate = Candidate(record, row["text"], rejection, bool(row["truncated"]), row["logprob"])
        return Decision(row["id"], candidate, rejection, nearest)


def _number(value: object) -> int:
    if not isinstance(value, int):
        raise StoreError(f"{DATABASE} is damaged: {value!r} where a number was stored; restore it from a copy")
    return value


def _parsed(text: str, decode: Callable[[Any], _T]) -> _T:
    with _legible():
        return decode(json.loads(text))


@contextmanager
def _legible() -> Iterator[None]:
    """Say of what can't be read back, in whichever way it fails, that the database is damaged."""
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise StoreError(
            f"{DATABASE} is damaged: what was stored can't be read ({type(error).__name__}: {error}); "
            "restore it from a copy"
        ) from error


# By hand, since a string with a lone surrogate passes Python's own JSON and dataclasses, and hardly anything else.


def _task(row: Mapping[str, Any]) -> Task:
    return Task(**{**row, "instances": tuple(Instance(**instance) for instance in row["instances"])})


def _message(row: Mapping[str, Any]) -> Message:
    return Message(**{**row, "tool_calls": tuple(ToolCall(**call) for call in row["tool_calls"])})


def _dialogue(row: Mapping[str, Any]) -> Dialogue:
    return Dialogue(**{**row, "messages": tuple(_message(message) for message in row["messages"])})


def _comparison(row: Mapping[str, Any]) -> Comparison:
    prompt = row["prompt"] if isinstance(row["prompt"], str) else _dialogue(row["prompt"])
    return Comparison(**{**row, "prompt": prompt, "responses": tuple(Response(**r) for r in row["responses"])})


_RECORDS: Mapping[str, Callable[[Any], Record]] = {"task": _task, "dialogue": _dialogue, "comparison": _comparison}


def _completion(row: Mapping[str, Any]) -> Completion:
    calls = tuple(ToolCall(**call) for call in row["tool_calls"])
    return Completion(**{**row, "usage": Usage(**row["usage"]), "tool_calls": calls})


def _commit(connection: sqlite3.Connection, commit: Commit) -> None:
    (number,) = connection.execute(_LAST_ACCEPTED, (commit.stage,)).fetchone()
    (position,) = connection.execute(
        "SELECT count(*) FROM candidates WHERE stage = ? AND draw = ?", (commit.stage, commit.number)
    ).fetchone()
    for offset, decision in enumerate(commit.decisions):
        candidate, rejection, nearest = decision.candidate, decision.rejection, decision.nearest
        number += decision.accepted
        connection.execute(
            "INSERT INTO candidates VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                decision.id, commit.stage, commit.number, position + offset,
                number if decision.accepted else None,
                None if candidate.record is None else _record_text(candidate.record),
                _plain(candidate.text), candidate.truncated, candidate.logprob,
                rejection.filter if rejection else None,
                _plain(rejection.reason) if rejection else None,
                _dumps(dict(rejection.measured)) if rejection else None,
                _plain(nearest.id) if nearest else None,
                nearest.score if nearest else None,
            ),
        )  # fmt: skip
    connection.execute(
        "INSERT OR REPLACE INTO draws VALUES (?, ?, ?, ?, ?, ?, ?)",
        (
            commit.stage, commit.number, None if commit.item is None else _plain(commit.item), commit.state,
            None if commit.error is None else _plain(commit.error),
            _dumps(commit.demonstrations), _dumps(commit.requests),
        ),
    )  # fmt: skip


def _insert_completions(connection: sqlite3.Connection, rows: Sequence[Any]) -> None:
    connection.executemany(_INSERT_COMPLETION, rows)


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, timeout=10)
    try:
        for pragma in (
            "journal_mode = WAL",
            "synchronous = FULL",
            "wal_autocheckpoint = 1000",
            "journal_size_limit = 67108864",
            "foreign_keys = ON",
        ):
            connection.execute(f"PRAGMA {pragma}")
    except BaseException:
        connection.close()
        raise
    return connection


def _connect_reader(path: Path) -> sqlite3.Connection:
    address = f"{path.resolve().as_uri()}?mode=ro"
    connection = sqlite3.connect(address, uri=True, timeout=10)
    try:
        connection.execute("SELECT 1 FROM sqlite_schema").fetchone()
    except sqlite3.Error as error:
        connection.close()
        # Where the folder can't be written SQLite has no place for its index of the WAL; without a WAL it needs none.
        if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_CANTOPEN:
            raise
        if _size(path, "-wal"):
            raise StoreError(
                f"{path}: can't be read where it is: the folder can't be written, and the run was not closed properly. "
                "Copy the whole folder to where you may write, and use the copy"
            ) from error
        connection = sqlite3.connect(f"{address}&immutable=1", uri=True)
    return connection


def _check_whole(view: RunView, path: Path) -> None:
    """Find out that the end of the file is missing, which SQLite would take for empty pages.

    After a proper close the header says how long the file is. After a crash parts may still be in the
    WAL only, and every page is looked at.
    """
    with path.open("rb") as file:
        header = file.read(32)
    size, pages = int.from_bytes(header[16:18]), int.from_bytes(header[28:32])
    length = pages * (65536 if size == 1 else size)
    whole = view.is_sound() if _size(path, "-wal") else path.stat().st_size >= length
    if not whole:
        raise StoreError(f"{path}: the database is damaged, a part of it is missing; restore it from a copy")


def _refuse_leftovers(path: Path) -> None:
    """Refuse to put a new database where one is, or beside another's WAL, which SQLite would play back into it."""
    if path.exists():
        raise StoreError(
            f"{path}: there is a run here already; go on with `selfinstruct resume`, or use another folder"
        )
    if _size(path, "-wal"):
        raise StoreError(
            f"{path} is gone, but what was written last is still beside it ({path.name}-wal): restore {path.name}, "
            f"or remove {path.name}-wal as well, or use another folder"
        )
    own = path.with_name("config.yaml")
    if own.exists():
        raise StoreError(
            f"{own} is there without a run, and a run would write its own over it; move it or use another folder"
        )


def _remove_database(path: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def _size(path: Path, suffix: str) -> int:
    """Return the bytes of a file that belongs to a database, 0 when there is none."""
    try:
        return path.with_name(path.name + suffix).stat().st_size
    except FileNotFoundError:
        return 0


def _identity(path: Path) -> tuple[int, int] | None:
    """Return what tells a file from another that takes its name, None when there is none."""
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_dev, found.st_ino


def _set_aside(path: Path) -> None:
    """Take up room on the disk, so that it can be given back when there is no other left."""
    with path.open("wb") as file:
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, _RESERVED)
            else:
                file.write(bytes(_RESERVED))
                file.flush()
        except OSError:
            path.unlink(missing_ok=True)
            raise


def _sync_folder(folder: Path) -> None:
    """Make a new name in a folder durable, and the folder's own in its parent."""
    if os.name == "nt":
        return  # has no such thing
    for each in (folder, folder.resolve().parent):
        descriptor = os.open(each, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _check_version(path: Path, connection: sqlite3.Connection) -> None:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > SCHEMA_VERSION:
        raise StoreError(
            f"{path}: written by a newer selfinstruct (format {version}, this one reads up to {SCHEMA_VERSION}); "
            "upgrade selfinstruct"
        )
    if version < 1:
        raise StoreError(f"{path}: not a selfinstruct run database; move it away or choose another folder")


class _explained:
    """Turn SQLite's and the system's errors into a StoreError that says what to do."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, sqlite3.Error):
            code = (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF
            advice = _ADVICE.get(code, "the database gave an error; everything committed is safe")
            raise StoreError(f"{self._path}: {advice} ({error})") from error
        if isinstance(error, UnicodeDecodeError):  # of SQLite's own complaint, when it quotes garbage
            raise StoreError(f"{self._path}: {_ADVICE[sqlite3.SQLITE_CORRUPT]}") from error
        if isinstance(error, OSError):
            advice = _OS_ADVICE.get(error.errno or 0, "everything committed is safe; mend this and try again")
            raise StoreError(f"{error.filename or self._path.parent}: {error.strerror or error}: {advice}") from error


_ADVICE = {
    sqlite3.SQLITE_FULL: "the disk is full; everything committed is safe: free some space and resume",
    sqlite3.SQLITE_READONLY: "the run can't be written (read-only file or folder); make it writable and resume",
    sqlite3.SQLITE_CANTOPEN: "can't be opened; check that the folder exists and may be read and written",
    sqlite3.SQLITE_CORRUPT: "the database is damaged; restore it from a copy, or start a new folder",
    sqlite3.SQLITE_NOTADB: "this is not a run database (damaged, or another file); restore it from a copy",
    sqlite3.SQLITE_BUSY: "another program keeps the database locked; close it and try again",
    sqlite3.SQLITE_IOERR: (
        "the disk could not be read or written (broken, gone, or a limit on space or file size is reached); everything "
        "committed is safe: mend that and resume"
    ),
}
_FREE = "free some space and try again; everything committed is safe"
_MAKE_WRITABLE = "make the folder readable and writable, or choose another with --output"
_NO_FOLDER = "choose another folder with --output"
_OS_ADVICE = {
    errno.ENOSPC: _FREE,
    errno.EDQUOT: _FREE,
    errno.EFBIG: "a limit on the size of files (ulimit -f) is reached; raise it and try again",
    errno.EACCES: _MAKE_WRITABLE,
    errno.EPERM: _MAKE_WRITABLE,
    errno.EROFS: _MAKE_WRITABLE,
    errno.EEXIST: _NO_FOLDER,
    errno.ENOTDIR: _NO_FOLDER,
    errno.EISDIR: _NO_FOLDER,
    errno.ENAMETOOLONG: _NO_FOLDER,
    errno.ENOENT: "it is gone; check the path",
}
_NO_ROOM = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR}
"""Codes that a full disk gives; a quota's or a network disk's end looks like an I/O error."""
_DISK = _NO_ROOM | {
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_NOTADB,
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_NOMEM,
}
"""Codes that say nothing of the statement: whatever else is written fails the same way."""
_MOST = 2**63 - 1
"""The largest number SQLite holds; a server may claim any."""
_LOSE_OPEN = "UPDATE sends SET state = 'lost' WHERE state = 'open'"


def _code(error: BaseException) -> int:
    """Return SQLite's primary code behind an error, 0 when it has none."""
    return (getattr(error.__cause__, "sqlite_errorcode", None) or 0) & 0xFF


def _acquire(folder: Path) -> filelock.BaseFileLock:
    lock = filelock.FileLock(folder / "run.lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        holder = ""
        if (folder / DATABASE).is_file():
            with RunView.open(folder) as view:
                process = view.meta("process") or {}
            holder = f" (process {process['pid']} on {process['host']})" if process else ""
        raise RunLocked(f"{folder}: another process is writing this run{holder}; wait for it or stop it") from None
    return lock


def _alive(process: Mapping[str, Any] | None) -> bool:
    if not process or process["host"] != platform.node():
        return process is not None  # on another host: nothing better is known than what it said
    try:
        os.kill(process["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return process.get("born") in (None, _born(process["pid"]))


def _born(pid: int) -> str | None:
    """Return when a process started (Linux clock ticks), so that a reused pid is not taken for the old one."""
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return None


def _record_text(record: Record) -> str:
    return f"{type(record).__name__.lower()} {_dumps(asdict(record))}"


_UNSET = asdict(Request(Sampling(0))) | {"sampling": None}


def _compact(request: Request) -> dict[str, Any]:
    """Leave out what is unset: a request is stored once per completion."""
    full = {key: value for key, value in asdict(request).items() if value != _UNSET[key]}
    full["sampling"] = {key: value for key, value in full["sampling"].items() if value not in (None, ())}
    if "messages" in full:
        full["messages"] = [{key: value for key, value in m.items() if value} for m in full["messages"]]
    return full


def _dumps(value: Any) -> str:
    # Lone surrogates (cut emoji) can't be stored as UTF-8; they are kept as escapes.
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str)
    try:
        text.encode()
    except UnicodeEncodeError:
        text = json.dumps(value, ensure_ascii=True, separators=(",", ":"), default=str)
    return text


def _plain(text: str) -> str:
    """Put U+FFFD in the place of lone surrogates, for columns of plain text; JSON keeps them as escapes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def _put_meta(connection: sqlite3.Connection, values: Mapping[str, Any]) -> None:
    connection.executemany(
        "INSERT OR REPLACE INTO meta VALUES (?, ?)", [(key, _dumps(value)) for key, value in values.items()]
    )


def _write_atomically(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
