"""One run in SQLite: the journal, the draws, every decision. The only module that speaks SQL.

One process writes (a lock file sees to it), any number read while it does. All writes go through
one thread that groups whatever is waiting into one transaction and fsyncs it, so an awaited write
is durable and sixty-four of them cost hardly more than one.

    sends        each request handed to the endpoint, before it leaves: what a budget counts
    completions  the journal: what came back, under the request's content key
    draws        what has been committed, in draw order
    candidates   every candidate with its decision, accepted or not
"""

from __future__ import annotations

import asyncio
import datetime
import json
import os
import platform
import queue
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any, Self

import filelock
import pydantic

from selfinstruct.errors import RunLocked, RunNotFound, StoreError
from selfinstruct.values import (
    Candidate,
    Comparison,
    Completion,
    Decision,
    Dialogue,
    Neighbour,
    Record,
    Rejection,
    Request,
    Task,
)

SCHEMA_VERSION = 1
DATABASE = "run.sqlite"

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
        if not path.is_file():
            raise RunNotFound(f"{folder}: there is no run here ({DATABASE} is missing)")
        with _explained(path):
            connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=10)
            connection.execute("PRAGMA query_only = ON")
            _check_version(path, connection)
        return cls(folder, connection)

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
        return None if row is None else json.loads(row[0])

    def seeds(self) -> tuple[Task, ...]:
        """Return the seed tasks the run started from, in order."""
        return tuple(_task_from(text) for (text,) in self._rows("SELECT task FROM seeds ORDER BY position"))

    def completion(self, key: str) -> Completion | None:
        """Return the journaled completion of a request, or None."""
        row = self._one("SELECT completion FROM completions WHERE key = ?", (key,))
        return None if row is None else _adapter(Completion).validate_json(row[0])

    def exchange(self, key: str) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """Return (request, completion) as stored, or None."""
        row = self._one("SELECT request, completion FROM completions WHERE key = ?", (key,))
        return None if row is None else (json.loads(row[0]), json.loads(row[1]))

    def next_draw(self, stage: str) -> tuple[int, int]:
        """Return the first draw not yet settled, and how many of its candidates are already decided."""
        row = self._one("SELECT number, state FROM draws WHERE stage = ? ORDER BY number DESC LIMIT 1", (stage,))
        if row is None:
            return 0, 0
        if row[1] != "open":
            return int(row[0]) + 1, 0
        decided = self._one("SELECT count(*) FROM candidates WHERE stage = ? AND draw = ?", (stage, row[0]))
        return int(row[0]), int(decided[0]) if decided else 0

    def accepted_count(self, stage: str) -> int:
        """Return how many records of a stage were accepted."""
        row = self._one("SELECT coalesce(max(accepted), 0) FROM candidates WHERE stage = ?", (stage,))
        return int(row[0]) if row else 0

    def accepted_draws(self, stage: str) -> Iterator[int]:
        """Yield the draw of each accepted record, in order of acceptance."""
        query = "SELECT draw FROM candidates WHERE stage = ? AND accepted IS NOT NULL ORDER BY accepted"
        return (int(draw) for (draw,) in self._rows(query, (stage,)))

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
        cursor = self._connection.execute("SELECT * FROM candidates WHERE id = ?", (id,))
        row = cursor.fetchone()
        return None if row is None else dict(zip([column[0] for column in cursor.description], row, strict=True))

    def decisions(self, stage: str, draw: int) -> list[dict[str, Any]]:
        """Return all candidates of one draw in order."""
        ids = self._rows("SELECT id FROM candidates WHERE stage = ? AND draw = ? ORDER BY position", (stage, draw))
        return [found for (id,) in list(ids) if (found := self.decision(id)) is not None]

    def draw(self, stage: str, number: int) -> dict[str, Any] | None:
        """Return a draw's row as a plain mapping, or None."""
        cursor = self._connection.execute("SELECT * FROM draws WHERE stage = ? AND number = ?", (stage, number))
        row = cursor.fetchone()
        if row is None:
            return None
        found = dict(zip([column[0] for column in cursor.description], row, strict=True))
        return found | {key: json.loads(found[key]) for key in ("demonstrations", "requests")}

    def summary(self, stage: str) -> Summary:
        """Count what the run holds, and say whether its process lives."""
        with _explained(self.folder / DATABASE):
            self._connection.execute("BEGIN")  # one snapshot for all counts
            try:
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
            target=int(config.get("target", 0)),
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

    def _one(self, query: str, parameters: Sequence[Any] = ()) -> Any:
        with _explained(self.folder / DATABASE):
            return self._connection.execute(query, parameters).fetchone()

    def _rows(self, query: str, parameters: Sequence[Any] = ()) -> Iterator[Any]:
        with _explained(self.folder / DATABASE):
            yield from self._connection.execute(query, parameters)


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

    def resolve(self) -> None:
        """Wake the waiter; an error is raised where it waits."""
        self.done.set()
        if self.loop and self.future and not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self._settle, self.future)

    def _settle(self, future: asyncio.Future[Any]) -> None:
        if future.done():
            return
        if self.error is not None:
            future.set_exception(self.error)
        else:
            future.set_result(self.result)


class RunStore:
    """Write a run. Create it with `create` or `open`; `view` reads what is committed."""

    def __init__(self, folder: Path, lock: filelock.BaseFileLock) -> None:
        self.folder = folder
        self._lock = lock
        self._queue: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._path = folder / DATABASE
        self.view = RunView.open(folder)
        self._thread = threading.Thread(target=self._write_all, name="run-store", daemon=True)
        self._thread.start()

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
            StoreError: the folder can't be written.
        """
        path = folder / DATABASE
        with _explained(path):
            folder.mkdir(parents=True, exist_ok=True)
            lock = _acquire(folder)
            try:
                _write_atomically(folder / "config.yaml", config_yaml)
                # The database appears under its name only when whole: a crash here leaves no half-made run.
                temporary = folder / f".{DATABASE}.{os.getpid()}"
                temporary.unlink(missing_ok=True)
                connection = _connect(temporary)
                connection.execute("BEGIN IMMEDIATE")
                for statement in _SCHEMA.split(";\n"):
                    if statement.strip():
                        connection.execute(statement)
                _put_meta(connection, {"config": config, "fingerprint": fingerprint, "created": _now()})
                connection.executemany(
                    "INSERT INTO seeds VALUES (?, ?, ?)",
                    [(position, task.id, _dumps(asdict(task))) for position, task in enumerate(seeds)],
                )
                connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
                connection.execute("COMMIT")
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                connection.close()
                temporary.replace(path)
            except BaseException:
                lock.release()
                raise
            return cls(folder, lock)

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Hold an existing run for writing.

        Raises:
            RunNotFound: there is none.
            RunLocked: another process holds it.
            StoreError: the database can't be opened or written.
        """
        if not (folder / DATABASE).is_file():
            raise RunNotFound(f"{folder}: there is no run here ({DATABASE} is missing)")
        with _explained(folder / DATABASE):
            lock = _acquire(folder)
            try:
                store = cls(folder, lock)
            except BaseException:
                lock.release()
                raise
        # Requests in flight when the last process died may have been answered and paid: they stay counted.
        store._do(lambda c: c.execute("UPDATE sends SET state = 'lost' WHERE state = 'open'"))
        return store

    async def send(self, key: str, tokens: int, cost: str | None) -> int:
        """Record, durably and before it leaves, a request with its worst case; return the send's id."""
        insert = "INSERT INTO sends (key, state, tokens, cost) VALUES (?, 'open', ?, ?)"
        id: int = await self._put(lambda c: c.execute(insert, (key, tokens, cost)).lastrowid)
        return id

    async def settle(self, send: int, *, tokens: int, cost: str | None, error: str | None = None) -> None:
        """Record what a request came to when it brought no completion."""
        update = "UPDATE sends SET state = 'failed', tokens = ?, cost = ?, error = ? WHERE id = ?"
        await self._put(lambda c: c.execute(update, (tokens, cost, error, send)))

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
        row = (
            key, stage, draw, _dumps(_compact(request)), _dumps(asdict(completion)),
            usage.prompt_tokens, usage.completion_tokens, round(seconds, 3), _now(),
        )  # fmt: skip

        def job(connection: sqlite3.Connection) -> None:
            connection.execute("INSERT OR IGNORE INTO completions VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
            connection.execute(
                "UPDATE sends SET state = 'done', tokens = ?, cost = ? WHERE id = ?",
                (usage.prompt_tokens + usage.completion_tokens, cost, send),
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
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join()
        self.view.close()
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    async def _put(self, job: _Job) -> Any:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        self._queue.put(_Waiting(job, loop, future))
        if not self._thread.is_alive():
            raise StoreError(f"{self._path}: the run is closed")
        # A cancelled waiter must not cancel a write that is already on its way.
        return await asyncio.shield(future)

    def _do(self, job: _Job) -> Any:
        waiting = _Waiting(job, None, None)
        self._queue.put(waiting)
        waiting.done.wait()
        if waiting.error is not None:
            raise waiting.error
        return waiting.result

    def _write_all(self) -> None:
        try:
            with _explained(self._path):
                connection = _connect(self._path)
        except StoreError as error:
            self._refuse_all(error)
            return
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
            if jobs:
                self._transact(connection, jobs)
        # With a busy reader or a full disk the WAL simply stays, and is read as usual next time.
        with suppress(sqlite3.Error):
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.close()

    def _transact(self, connection: sqlite3.Connection, jobs: Sequence[_Waiting]) -> None:
        try:
            with _explained(self._path):
                connection.execute("BEGIN IMMEDIATE")
                for waiting in jobs:
                    waiting.result = waiting.job(connection)
                connection.execute("COMMIT")
        except Exception as error:  # handed on to every waiter, none is told that its write is safe
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            for waiting in jobs:
                waiting.error = error
        for waiting in jobs:
            waiting.resolve()

    def _refuse_all(self, error: StoreError) -> None:
        while (waiting := self._queue.get()) is not None:
            waiting.error = error
            waiting.resolve()


def record_from(text: str) -> Record:
    """Turn stored JSON back into the record it was."""
    kind, _, body = text.partition(" ")
    record: Record = _adapter({"task": Task, "dialogue": Dialogue, "comparison": Comparison}[kind]).validate_json(body)
    return record


def decision_from(row: Mapping[str, Any]) -> Decision:
    """Turn a candidate's row into the decision it stores."""
    record = None if row["record"] is None else record_from(row["record"])
    rejection = None
    if row["accepted"] is None:
        rejection = Rejection(row["filter"], row["reason"], json.loads(row["measured"]))
    nearest = None if row["nearest"] is None else Neighbour(row["nearest"], row["similarity"])
    candidate = Candidate(record, row["text"], rejection, bool(row["truncated"]), row["logprob"])
    return Decision(row["id"], candidate, rejection, nearest)


def _commit(connection: sqlite3.Connection, commit: Commit) -> None:
    (number,) = connection.execute(
        "SELECT coalesce(max(accepted), 0) FROM candidates WHERE stage = ?", (commit.stage,)
    ).fetchone()
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
                candidate.text, candidate.truncated, candidate.logprob,
                rejection.filter if rejection else None,
                rejection.reason if rejection else None,
                _dumps(dict(rejection.measured)) if rejection else None,
                nearest.id if nearest else None,
                nearest.score if nearest else None,
            ),
        )  # fmt: skip
    connection.execute(
        "INSERT OR REPLACE INTO draws VALUES (?, ?, ?, ?, ?, ?, ?)",
        (
            commit.stage, commit.number, commit.item, commit.state, commit.error,
            _dumps(commit.demonstrations), _dumps(commit.requests),
        ),
    )  # fmt: skip


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, timeout=10)
    for pragma in (
        "journal_mode = WAL",
        "synchronous = FULL",
        "wal_autocheckpoint = 1000",
        "journal_size_limit = 67108864",
        "foreign_keys = ON",
    ):
        connection.execute(f"PRAGMA {pragma}")
    return connection


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
            raise StoreError(f"{self._path}: {_advice(error)}") from error
        if isinstance(error, OSError):
            raise StoreError(f"{self._path.parent}: {error.strerror or error}") from error


def _advice(error: sqlite3.Error) -> str:
    code = getattr(error, "sqlite_errorcode", None) or 0
    advice = {
        sqlite3.SQLITE_FULL: "the disk is full; everything committed is safe: free some space and resume",
        sqlite3.SQLITE_READONLY: "the run can't be written (read-only file or folder); make it writable and resume",
        sqlite3.SQLITE_CANTOPEN: "can't be opened; check that the folder exists and may be read and written",
        sqlite3.SQLITE_CORRUPT: "the database is damaged; restore it from a copy, or start a new folder",
        sqlite3.SQLITE_NOTADB: "this is not a run database (damaged, or another file); restore it from a copy",
        sqlite3.SQLITE_BUSY: "another program keeps the database locked; close it and try again",
        sqlite3.SQLITE_IOERR: "the disk could not be read or written; everything committed is safe",
    }
    return f"{advice.get(code & 0xFF, 'the database gave an error')} ({error})"


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


@cache
def _adapter(kind: Any) -> pydantic.TypeAdapter[Any]:
    return pydantic.TypeAdapter(kind)


def _task_from(text: str) -> Task:
    task: Task = _adapter(Task).validate_json(text)
    return task


def _record_text(record: Record) -> str:
    return f"{type(record).__name__.lower()} {_dumps(asdict(record))}"


def _compact(request: Request) -> dict[str, Any]:
    """Leave out what is unset: a request is stored once per completion."""
    full = asdict(request)
    full["sampling"] = {key: value for key, value in full["sampling"].items() if value not in (None, ())}
    full["messages"] = [{key: value for key, value in m.items() if value} for m in full["messages"]]
    return {key: value for key, value in full.items() if value not in (None, "", [])}


def _dumps(value: Any) -> str:
    # Lone surrogates (cut emoji) can't be stored as UTF-8; they are kept as escapes.
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str)
    try:
        text.encode()
    except UnicodeEncodeError:
        text = json.dumps(value, ensure_ascii=True, separators=(",", ":"), default=str)
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
