"""Write a run: one thread groups whatever is waiting into one transaction and fsyncs it."""

from __future__ import annotations

import asyncio
import datetime
import itertools
import os
import platform
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import filelock

from selfinstruct.errors import RunLocked, RunNotFound, StoreError
from selfinstruct.store.codec import compact, dumps, plain, record_text
from selfinstruct.store.disk import (
    DATABASE,
    DISK,
    NO_ROOM,
    RESERVE,
    SCHEMA_VERSION,
    born,
    connect,
    error_code,
    explained,
    identity,
    refuse_leftovers,
    remove_database,
    set_aside,
    size_of,
    sync_folder,
    write_atomically,
)
from selfinstruct.store.view import LAST_ACCEPTED, Commit, RunView
from selfinstruct.values import Completion, Request, Task, ToolResult

SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE seeds (
    lane TEXT NOT NULL, position INTEGER NOT NULL, id TEXT NOT NULL, task TEXT NOT NULL,
    PRIMARY KEY (lane, position), UNIQUE (lane, id)) STRICT, WITHOUT ROWID;
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
CREATE TABLE tool_results (
    key TEXT PRIMARY KEY, stage TEXT NOT NULL, draw INTEGER NOT NULL,
    tool TEXT NOT NULL, arguments TEXT NOT NULL, result TEXT NOT NULL, created TEXT NOT NULL) STRICT;
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
_INSERT_RESULT = "INSERT OR IGNORE INTO tool_results VALUES (?, ?, ?, ?, ?, ?, ?)"

_Job = Callable[[sqlite3.Connection], Any]


@dataclass(slots=True)
class _Waiting:
    """A write in the queue: what to do, and whom to tell, on an event loop or in a thread."""

    job: _Job
    future: asyncio.Future[Any] | None = None
    done: threading.Event | None = None
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
        if waiting.done is not None:
            waiting.done.set()
    for loop in {waiting.future.get_loop() for waiting in jobs if waiting.future is not None}:

        def settle(loop: asyncio.AbstractEventLoop = loop) -> None:
            for waiting in jobs:
                if waiting.future is not None and waiting.future.get_loop() is loop:
                    waiting.settle()

        # A loop that is closed by now has nobody left who waits.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(settle)


class RunStore:
    """Write a run. Create it with `create` or `open`; `view` reads what is committed.

    `gather` is how many seconds a write from an event loop waits for company: where many come, eight in one
    transaction cost a fifth of the processor time of eight alone (PostgreSQL's `commit_delay`).
    """

    gather = 0.0

    def __init__(self, folder: Path, lock: filelock.BaseFileLock) -> None:
        self.folder = folder
        self._lock = lock
        self._queue: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._gate = threading.Lock()
        self._ended: BaseException | None = None
        self._full: StoreError | None = None
        self._path = folder / DATABASE
        self._file = identity(self._path)
        self.view = RunView.open(folder)
        try:
            _check_whole(self.view, self._path)
            set_aside(folder / RESERVE)
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
        seeds: Mapping[str, Sequence[Task]],
        notes: Mapping[str, Any],
    ) -> Self:
        """Make a run in an empty or new folder and hold it.

        `seeds` are the seed tasks by lane, `notes` whatever else readers ask `meta` for.

        Raises:
            RunLocked: another process holds it.
            StoreError: the folder can't be written, or holds a run or the rest of one.
        """
        path = folder / DATABASE
        with explained(path):
            folder.mkdir(parents=True, exist_ok=True)
            lock = _acquire(folder)
            try:
                refuse_leftovers(path)
                # The database appears under its name only when whole: a crash here leaves no half-made run.
                temporary = folder / f".{DATABASE}.new"
                try:
                    remove_database(temporary)
                    with closing(connect(temporary)) as connection:
                        connection.execute("BEGIN IMMEDIATE")
                        for statement in SCHEMA.split(";\n"):
                            if statement.strip():
                                connection.execute(statement)
                        _put_meta(
                            connection, {**notes, "config": config, "fingerprint": fingerprint, "created": _now()}
                        )
                        connection.executemany(
                            "INSERT INTO seeds VALUES (?, ?, ?, ?)",
                            [
                                (lane, position, plain(task.id), dumps(task))
                                for lane, tasks in seeds.items()
                                for position, task in enumerate(tasks)
                            ],
                        )
                        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
                        connection.execute("COMMIT")
                        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                    temporary.replace(path)
                except BaseException:
                    remove_database(temporary)
                    raise
                # Last, so that a config.yaml without a run is the person's own; a crash here leaves a run without
                # one, and the next that opens it writes it.
                try:
                    write_atomically(folder / "config.yaml", config_yaml)
                except BaseException:
                    remove_database(path)
                    raise
                sync_folder(folder)
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
        with explained(folder / DATABASE):
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
        said = None if error is None else plain(error)
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
            key, stage, draw, dumps(compact(request)), dumps(completion),
            *tokens, round(seconds, 3), _now(),
        )  # fmt: skip

        def job(connection: sqlite3.Connection) -> None:
            connection.execute(_INSERT_COMPLETION, row)
            connection.execute(
                "UPDATE sends SET state = 'done', tokens = ?, cost = ? WHERE id = ?",
                (min(sum(tokens), _MOST), cost, send),
            )

        await self._put(job)

    async def journal_tool(
        self, key: str, stage: str, draw: int, tool: str, arguments: Mapping[str, Any], result: ToolResult
    ) -> None:
        """Record what a tool gave, durably: after this the call is never made again."""
        row = (key, stage, draw, plain(tool), dumps(dict(arguments)), dumps(result), _now())
        await self._put(lambda connection: connection.execute(_INSERT_RESULT, row))

    async def commit(self, *commits: Commit) -> None:
        """Settle draws: their decisions, lineage and state, all in one transaction."""

        def job(connection: sqlite3.Connection) -> None:
            for commit in commits:
                _commit(connection, commit)

        await self._put(job)

    async def rewind(self, stage: str, number: int) -> None:
        """Forget the draws from `number` on, keeping the journal: they will be judged again from it."""

        def job(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM candidates WHERE stage = ? AND draw >= ?", (stage, number))
            connection.execute("DELETE FROM draws WHERE stage = ? AND number >= ?", (stage, number))

        await self._put(job)

    def replace(self, stages: Sequence[str], commits: Sequence[Commit]) -> None:
        """Put these commits in the place of all that these stages have, in one transaction; the journal stays."""

        def job(connection: sqlite3.Connection) -> None:
            for stage in stages:
                connection.execute("DELETE FROM candidates WHERE stage = ?", (stage,))
                connection.execute("DELETE FROM draws WHERE stage = ?", (stage,))
            for commit in commits:
                _commit(connection, commit)

        self._do(job)

    def copy_journal(self, source: RunView) -> None:
        """Take over every completion and tool result of another run."""
        for table, insert in (("completions", _INSERT_COMPLETION), ("tool_results", _INSERT_RESULT)):
            rows = source.journal_rows(table)
            while batch := list(itertools.islice(rows, 1000)):
                self._do(partial(_insert, statement=insert, rows=batch))

    def set_meta(self, **values: Any) -> None:
        """Store values such as state, config or seconds; returns when they are durable."""
        self._do(lambda connection: _put_meta(connection, values))

    async def put_meta(self, **values: Any) -> None:
        """Like `set_meta`, for use while the loop runs."""
        await self._put(lambda connection: _put_meta(connection, values))

    def start(self) -> None:
        """Mark the run as running in this process."""
        process = {"pid": os.getpid(), "host": platform.node(), "started": _now(), "born": born(os.getpid())}
        self.set_meta(state={"state": "running", "reason": ""}, process=process)

    def save_config(self, config: Mapping[str, Any], config_yaml: str) -> None:
        """Replace the stored settings (a raised target, another budget)."""
        with explained(self.folder / "config.yaml"):
            write_atomically(self.folder / "config.yaml", config_yaml)
        self.set_meta(config=config)

    def close(self) -> None:
        """Finish all writes, fold the WAL into the database and release the run."""
        moved = identity(self._path) != self._file
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
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._enqueue(_Waiting(job, future))
        return await future  # who waits and is cancelled leaves the write on its way

    def _do(self, job: _Job) -> Any:
        waiting = _Waiting(job, done=threading.Event())
        self._enqueue(waiting)
        assert waiting.done is not None
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
            with explained(self._path), closing(connect(self._path)) as connection:
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
            if self.gather and batch[0] is not None and batch[0].future is not None:
                time.sleep(self.gather)
            while len(batch) < 512:
                try:
                    batch.append(self._queue.get_nowait())
                except queue.Empty:
                    break
            closing = None in batch
            jobs = [waiting for waiting in batch if waiting is not None]
            if closing:
                # Whoever sent a request has been told what became of it, or is gone.
                jobs.append(_Waiting(lambda c: c.execute(_LOSE_OPEN)))
            if jobs:
                self._transact(connection, jobs)
        # With a busy reader or a full disk the WAL simply stays, and is read as usual next time.
        with suppress(sqlite3.Error):
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def _transact(self, connection: sqlite3.Connection, jobs: Sequence[_Waiting]) -> None:
        """Write all of `jobs` or tell each why it was not; one that is wrong in itself does not harm the others."""
        error = self._attempt(connection, jobs)
        if isinstance(error, StoreError) and error_code(error) in NO_ROOM and self._full is None:
            self._full = error
            (self.folder / RESERVE).unlink(missing_ok=True)
            error = self._attempt(connection, jobs)
        if error is not None and len(jobs) > 1 and error_code(error) not in DISK:
            for waiting in jobs:
                self._transact(connection, [waiting])
            return
        for waiting in jobs:
            waiting.error = error
        _wake(jobs)

    def _attempt(self, connection: sqlite3.Connection, jobs: Sequence[_Waiting]) -> BaseException | None:
        """Write `jobs` in one transaction; return what went wrong, in which case nothing is written."""
        try:
            with explained(self._path):
                if identity(self._path) != self._file:
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


def _commit(connection: sqlite3.Connection, commit: Commit) -> None:
    (number,) = connection.execute(LAST_ACCEPTED, (commit.stage,)).fetchone()
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
                None if candidate.record is None else record_text(candidate.record),
                plain(candidate.text), candidate.truncated, candidate.logprob,
                rejection.filter if rejection else None,
                plain(rejection.reason) if rejection else None,
                dumps(dict(rejection.measured)) if rejection else None,
                plain(nearest.id) if nearest else None,
                nearest.score if nearest else None,
            ),
        )  # fmt: skip
    connection.execute(
        "INSERT OR REPLACE INTO draws VALUES (?, ?, ?, ?, ?, ?, ?)",
        (
            commit.stage, commit.number, None if commit.item is None else plain(commit.item), commit.state,
            None if commit.error is None else plain(commit.error),
            dumps(commit.demonstrations), dumps(commit.requests),
        ),
    )  # fmt: skip


def _insert(connection: sqlite3.Connection, statement: str, rows: Sequence[Any]) -> None:
    connection.executemany(statement, rows)


def _check_whole(view: RunView, path: Path) -> None:
    """Find out that the end of the file is missing, which SQLite would take for empty pages.

    After a proper close the header says how long the file is. After a crash parts may still be in the
    WAL only, and every page is looked at.
    """
    with path.open("rb") as file:
        header = file.read(32)
    size, pages = int.from_bytes(header[16:18]), int.from_bytes(header[28:32])
    length = pages * (65536 if size == 1 else size)
    whole = view.is_sound() if size_of(path, "-wal") else path.stat().st_size >= length
    if not whole:
        raise StoreError(f"{path}: the database is damaged, a part of it is missing; restore it from a copy")


_MOST = 2**63 - 1
"""The largest number SQLite holds; a server may claim any."""
_LOSE_OPEN = "UPDATE sends SET state = 'lost' WHERE state = 'open'"


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


def _put_meta(connection: sqlite3.Connection, values: Mapping[str, Any]) -> None:
    connection.executemany(
        "INSERT OR REPLACE INTO meta VALUES (?, ?)", [(key, dumps(value)) for key, value in values.items()]
    )


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
