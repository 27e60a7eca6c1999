"""The run on disk: what was written comes back, what was not says so, and nothing damaged passes for whole."""

from __future__ import annotations

import asyncio
import datetime
import errno
import os
import shutil
import sqlite3
import threading
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from selfinstruct.errors import RunLocked, RunNotFound, StoreError
from selfinstruct.store import Commit, RunStore, RunView, decision_from, record_from, writer
from selfinstruct.testing import ONE_STAGE
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

MORE = int(os.environ.get("SELFINSTRUCT_EXAMPLES", "1"))
"""How many times the examples of CI; see .ci/torture."""
LAW = settings(max_examples=60 * MORE, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

# Everything a string can hold: NUL, lone surrogates, any plane.
anything = st.text(st.characters(), max_size=12)
plain = st.text(max_size=12)
counts = st.integers(0, 2**80)
scores = st.floats(allow_nan=False)
extras = st.dictionaries(anything, st.none() | st.booleans() | st.integers() | scores | anything, max_size=2)
calls = st.builds(ToolCall, anything, anything, anything)
messages = st.builds(
    Message, st.sampled_from(["system", "user", "assistant", "tool"]), anything, thoughts=anything,
    tool_calls=st.tuples() | st.tuples(calls), name=anything, tool_call_id=anything,
)  # fmt: skip
tasks = st.builds(
    Task, anything, st.lists(st.builds(Instance, anything, anything), max_size=2).map(tuple),
    st.none() | st.booleans(), id=anything, name=anything, extra=extras,
)  # fmt: skip
dialogues = st.builds(
    Dialogue, st.lists(messages, max_size=3).map(tuple), system=anything, topic=anything, extra=extras
)
responses = st.builds(Response, anything, st.none() | scores, st.none() | st.integers(0, 9), anything)
comparisons = st.builds(Comparison, anything | dialogues, st.lists(responses, max_size=3).map(tuple), extra=extras)
records: st.SearchStrategy[Record] = st.one_of(tasks, dialogues, comparisons)
samplings = st.builds(
    Sampling, st.integers(0, 10**6), temperature=st.none() | scores, top_p=st.none() | scores,
    stop=st.lists(anything, max_size=2).map(tuple), min_p=st.none() | scores, top_k=st.none() | st.integers(),
    logprobs=st.booleans(),
)  # fmt: skip
requests = st.builds(
    Request, samplings, messages=st.lists(messages, max_size=3).map(tuple), prompt=st.none() | anything,
    schema=anything, nonce=anything, seed=st.none() | st.integers(),
)  # fmt: skip
completions = st.builds(
    Completion, anything, anything, st.builds(Usage, counts, counts, st.booleans()), model=anything,
    logprob=st.none() | scores, reasoning=anything, tool_calls=st.lists(calls, max_size=2).map(tuple),
)  # fmt: skip
measures = st.dictionaries(anything, scores | anything, max_size=2)
rejections = st.builds(Rejection, st.sampled_from(["length", "novelty"]), anything, measures)
candidates = st.builds(Candidate, records, anything, truncated=st.booleans(), logprob=st.none() | scores)
decisions = st.builds(
    Decision, st.just(""), candidates, st.none() | rejections, st.none() | st.builds(Neighbour, anything, scores)
)


def create(folder: Path) -> RunStore:
    return RunStore.create(
        folder,
        config={"target": 9},
        config_yaml="target: 9\n",
        fingerprint={"recipe": "x"},
        seeds={"": [Task("one", id="s")]},
        notes=ONE_STAGE,
    )


def joined(value: Any) -> Any:
    """Join surrogate halves that stand side by side: JSON knows no difference between the two spellings."""
    if isinstance(value, str):
        return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")
    if isinstance(value, tuple | list):
        return type(value)(joined(each) for each in value)
    if isinstance(value, dict):
        return {joined(key): joined(each) for key, each in value.items()}
    if hasattr(value, "__dataclass_fields__"):
        return replace(value, **{name: joined(getattr(value, name)) for name in value.__dataclass_fields__})
    return value


def shown(text: str) -> str:
    """What a column of plain text keeps."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def draw(number: int, accepted: int = 2, rejected: int = 1, text: str = "t" * 500) -> Commit:
    made = [
        Decision(f"tasks-{number}-{place}", Candidate(Task(f"{text} {number} {place}"), text), None)
        for place in range(accepted)
    ]
    made += [
        Decision(f"tasks-{number}-{place}", Candidate(None, text), Rejection("length", "short", {"words": 1.0}))
        for place in range(accepted, accepted + rejected)
    ]
    return Commit("tasks", number, "done", tuple(made), demonstrations=("s",), requests=(f"r1-{number}",))


async def fill(store: RunStore, draws: range, **options: Any) -> None:
    for number in draws:
        key = f"r1-{number}"
        send = await store.send(key, 100, "0.5")
        completion = Completion("x" * 700, "stop", Usage(10, 5))
        await store.journal(send, key, "tasks", number, Request(Sampling(9)), completion, cost="0.25", seconds=0.5)
        await store.commit(draw(number, **options))


def everything(view: RunView) -> list[Any]:
    """Read all there is, through every public door."""
    found: list[Any] = [view.meta(key) for key in ("config", "fingerprint", "created", "state", "process", "nothing")]
    first, decided = view.next_draw("tasks")
    found += [view.seeds(), view.summary(), first, decided, list(view.accepted("tasks"))]
    found += [view.accepted_count("tasks"), list(view.accepted_draws("tasks"))]
    for number in range(first):
        row = view.draw("tasks", number)
        found += [row, [decision_from(each) for each in view.decisions("tasks", number)]]
        for key in row["requests"] if row else ():
            found += [view.completion(key), view.exchange(key)]
    return found


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of forty draws, closed properly."""
    folder = tmp_path_factory.mktemp("filled") / "run"
    with create(folder) as store:
        asyncio.run(fill(store, range(40)))
    return folder


@pytest.fixture(scope="module")
def crashed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same forty draws as a power cut leaves them: half folded into the database, half in the WAL."""
    folder, copy = tmp_path_factory.mktemp("live") / "run", tmp_path_factory.mktemp("crashed") / "run"
    with create(folder) as store:
        asyncio.run(fill(store, range(20)))
    with RunStore.open(folder) as store:
        asyncio.run(fill(store, range(20, 40)))
        shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("*-shm"))
    assert (copy / "run.sqlite-wal").stat().st_size > 20_000
    return copy


def copied(source: Path, parent: Path) -> Path:
    target = parent / "copy"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
    return target


# --- what goes in comes out


@LAW
@given(request=requests, completion=completions)
def test_any_exchange_comes_back_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, request: Request, completion: Completion
) -> None:
    folder = tmp_path_factory.mktemp("exchange") / "run"
    key = request.key("m")

    async def story(store: RunStore) -> None:
        send = await store.send(key, 5, None)
        await store.journal(send, key, "tasks", 0, request, completion, cost=None, seconds=0)

    with create(folder) as store:
        asyncio.run(story(store))
        assert store.view.completion(key) == joined(completion)
    with RunView.open(folder) as view:
        assert view.completion(key) == joined(completion)
        found = view.exchange(key)
        assert found is not None
        assert rebuilt(found[0]) == joined(request)
        assert view.summary().requests == view.summary().completions == 1


def rebuilt(row: dict[str, Any]) -> Request:
    """Read a stored request: what is not there is unset."""
    sampling = Sampling(**{**row["sampling"], "stop": tuple(row["sampling"].get("stop", ()))})
    turns = []
    for message in row.get("messages", []):
        made = tuple(ToolCall(**call) for call in message.get("tool_calls", []))
        turns.append(Message(**{"content": "", **message, "tool_calls": made}))
    return Request(**{**row, "sampling": sampling, "messages": tuple(turns)})


@LAW
@given(made=st.lists(decisions, min_size=1, max_size=4))
def test_any_decision_comes_back_as_it_was(tmp_path_factory: pytest.TempPathFactory, made: list[Decision]) -> None:
    folder = tmp_path_factory.mktemp("decision") / "run"
    made = [replace(each, id=f"tasks-0-{place}") for place, each in enumerate(made)]
    with create(folder) as store:
        asyncio.run(store.commit(Commit("tasks", 0, "done", tuple(made), item="\ud800", error="\udfff\0")))
    with RunView.open(folder) as view:
        found = [decision_from(row) for row in view.decisions("tasks", 0)]
        accepted = list(view.accepted("tasks"))
    for before, after in zip(made, found, strict=True):
        rejection = before.rejection and replace(joined(before.rejection), reason=shown(before.rejection.reason))
        nearest = before.nearest and replace(before.nearest, id=shown(before.nearest.id))
        candidate = replace(joined(before.candidate), text=shown(before.candidate.text), rejection=rejection)
        assert after == Decision(before.id, candidate, rejection, nearest)
    assert accepted == [(each.id, joined(each.candidate.record)) for each in made if each.accepted]


# --- group commit

operations = st.lists(
    st.tuples(st.sampled_from(["send", "settle", "journal", "commit", "meta", "broken"]), st.integers(0, 3)),
    max_size=24,
)


@LAW
@given(steps=operations)
def test_in_one_group_each_write_stands_or_falls_for_itself(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int]]
) -> None:
    folder = tmp_path_factory.mktemp("group") / "run"
    gate = threading.Event()

    async def story(store: RunStore) -> list[Any]:
        first = [await store.send(f"k{n}", 7, "1") for n in range(4)]
        held = asyncio.create_task(store._put(lambda _: gate.wait()))  # so that all that follows is one group
        writes: list[Coroutine[Any, Any, Any]] = []
        for step, n in steps:
            match step:
                case "send":
                    writes.append(store.send(f"more{n}", n, None))
                case "settle":
                    writes.append(store.settle(first[n], tokens=n, cost=None, error="x"))
                case "journal":
                    answer = Completion("a", "stop", Usage(1, 1))
                    request = Request(Sampling(1))
                    writes.append(store.journal(first[n], f"k{n}", "tasks", n, request, answer, cost=None, seconds=0))
                case "commit":
                    writes.append(store.commit(draw(n, rejected=n)))
                case "meta":
                    writes.append(store.put_meta(**{f"meta{n}": n}))
                case _:
                    writes.append(store._put(lambda c: c.execute("INSERT INTO meta VALUES ('lonely', NULL)")))
        waiting = [asyncio.create_task(write) for write in writes]
        await asyncio.sleep(0)  # each task has now run up to its place in the queue
        assert store._queue.qsize() >= len(writes)
        gate.set()
        await held
        return await asyncio.gather(*waiting, return_exceptions=True)

    with create(folder) as store:
        results = asyncio.run(story(store))
    committed: set[int] = set()
    for (step, n), result in zip(steps, results, strict=True):
        wrong = step == "broken" or (step == "commit" and n in committed)
        assert isinstance(result, StoreError) == wrong, (step, n, result)
        if step == "commit":
            committed.add(n)
    with RunView.open(folder) as view:
        for n in range(4):
            assert (view.draw("tasks", n) is not None) == (n in committed)
            assert len(view.decisions("tasks", n)) == (2 + n if n in committed else 0)
            assert (view.completion(f"k{n}") is not None) == (("journal", n) in steps)
            assert view.meta(f"meta{n}") == (n if ("meta", n) in steps else None)
        assert view.accepted_count("tasks") == 2 * len(committed)
        assert view.summary().requests == 4 + sum(step == "send" for step, _ in steps)


def test_a_closed_run_says_so_at_once(tmp_path: Path) -> None:
    store = create(tmp_path / "r")
    store.close()
    store.close()
    with pytest.raises(StoreError, match="closed"):
        store.set_meta(x=1)
    with pytest.raises(StoreError, match="closed"):
        asyncio.run(store.put_meta(x=1))


def test_a_write_that_fails_in_any_way_leaves_nobody_waiting(tmp_path: Path) -> None:
    class Defect(BaseException):
        """Nothing that the writer knows of."""

    def defect(_: sqlite3.Connection) -> None:
        raise Defect

    async def story(store: RunStore) -> list[Any]:
        waiting = [asyncio.create_task(store._put(job)) for job in (defect, lambda c: "written", defect)]
        return await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 20)

    with create(tmp_path / "r") as store:
        results = asyncio.run(story(store))
        assert [str(result) or type(result) for result in results] == [Defect, "written", Defect]
        store.set_meta(x=1)


def test_a_database_that_can_not_be_opened_for_writing_leaves_nobody_waiting(
    filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Path) -> sqlite3.Connection:
        raise sqlite3.OperationalError("unable to open database file")

    folder = copied(filled, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(writer, "connect", fail)
        with pytest.raises(StoreError, match="unable to open"):
            RunStore.open(folder)
    assert not lock_is_held(folder)


def test_what_is_in_flight_at_the_end_is_lost_and_never_open(tmp_path: Path) -> None:
    with create(tmp_path / "r") as store:
        asyncio.run(store.send("k", 100, "2"))
        assert store.view.summary().lost == 0
    with RunView.open(tmp_path / "r") as view:
        summary = view.summary()
    assert (summary.requests, summary.lost, summary.spent_tokens, summary.spent_cost) == (1, 1, 100, "2")


def test_a_closed_run_is_one_file(filled: Path) -> None:
    assert {path.name for path in filled.iterdir()} <= {"run.sqlite", "config.yaml", "run.lock"}


def test_a_reader_left_half_way_says_nothing_when_it_goes(filled: Path) -> None:
    with RunView.open(filled) as view:
        rows = view.accepted("tasks")
        assert next(rows)[0] == "tasks-0-0"
    del rows  # pytest turns what a generator complains of at its end into an error


# --- damage


@settings(LAW, max_examples=150 * MORE)
@given(part=st.floats(0, 1, exclude_max=True), data=st.data())
def test_a_truncated_database_is_never_taken_for_a_whole_one(
    filled: Path, tmp_path: Path, part: float, data: st.DataObject
) -> None:
    folder = copied(filled, tmp_path)
    size = (folder / "run.sqlite").stat().st_size
    os.truncate(folder / "run.sqlite", data.draw(st.sampled_from([int(part * size), size - 1 - int(part * 4096)])))
    with pytest.raises(StoreError, match=r"restore it from a copy|choose another folder"):
        RunStore.open(folder).close()
    assert not lock_is_held(folder)
    read_or_told(folder)


def read_or_told(folder: Path) -> None:
    """Read everything; what is damaged is a StoreError, and never anything else."""
    try:
        with RunView.open(folder) as view:
            everything(view)
    except StoreError as error:
        assert "run.sqlite" in str(error)


@settings(LAW, max_examples=100 * MORE)
@given(part=st.floats(0, 1, exclude_max=True))
def test_a_truncated_database_beside_its_wal_is_noticed_or_made_whole(
    crashed: Path, tmp_path: Path, part: float
) -> None:
    folder = copied(crashed, tmp_path)
    os.truncate(folder / "run.sqlite", int(part * (folder / "run.sqlite").stat().st_size))
    try:
        with RunStore.open(folder) as store:
            found = everything(store.view)
    except StoreError:
        return
    with RunStore.open(copied(crashed, tmp_path / "whole")) as store:
        assert found == everything(store.view)


@settings(LAW, max_examples=100 * MORE)
@given(part=st.floats(0, 1), garbage=st.binary(max_size=64))
def test_a_truncated_wal_leaves_whole_commits_in_order(
    crashed: Path, tmp_path: Path, part: float, garbage: bytes
) -> None:
    folder = copied(crashed, tmp_path)
    wal = folder / "run.sqlite-wal"
    wal.write_bytes(wal.read_bytes()[: int(part * wal.stat().st_size)] + garbage)
    with RunStore.open(folder) as store:
        view = store.view
        whole(view)
        settled, _ = view.next_draw("tasks")
        assert 20 <= settled <= 40
        asyncio.run(fill(store, range(settled, 41)))
    with RunView.open(folder) as view:
        assert view.accepted_count("tasks") == 82


def whole(view: RunView) -> None:
    """Every draw settled is whole, its answers are there, and accepted records are numbered without a gap."""
    settled, _ = view.next_draw("tasks")
    assert [len(view.decisions("tasks", number)) for number in range(settled)] == [3] * settled
    assert [n for n in range(settled) if view.completion(f"r1-{n}") is None] == []
    numbers = [row[0] for row in view._rows("SELECT accepted FROM candidates WHERE accepted > 0 ORDER BY accepted")]
    assert numbers == list(range(1, 2 * settled + 1))


@settings(LAW, max_examples=150 * MORE)
@given(data=st.data(), garbage=st.binary(min_size=1, max_size=400))
def test_garbage_is_reported_and_never_a_traceback(
    filled: Path, tmp_path: Path, data: st.DataObject, garbage: bytes
) -> None:
    folder = copied(filled, tmp_path)
    content = bytearray((folder / "run.sqlite").read_bytes())
    at = data.draw(st.integers(0, len(content) - len(garbage)))
    content[at : at + len(garbage)] = garbage
    (folder / "run.sqlite").write_bytes(content)
    read_or_told(folder)
    try:
        with RunStore.open(folder) as store:
            everything(store.view)
    except StoreError as error:
        assert "run.sqlite" in str(error)
    assert not lock_is_held(folder)


@pytest.mark.parametrize("column", ["record", "accepted", "draw"])
def test_a_value_gone_bad_inside_a_sound_page(filled: Path, tmp_path: Path, column: str) -> None:
    folder = copied(filled, tmp_path)
    connection = sqlite3.connect(folder / "run.sqlite", isolation_level=None)
    connection.execute("PRAGMA writable_schema = ON")
    connection.execute(
        "UPDATE sqlite_schema SET sql = replace(replace(sql, ' STRICT', ''), ' NOT NULL', '') WHERE type = 'table'"
    )
    connection.close()
    connection = sqlite3.connect(folder / "run.sqlite", isolation_level=None)
    value = "NULL" if column == "record" else "x'ff00'"
    connection.execute(f"UPDATE candidates SET {column} = {value} WHERE id = 'tasks-3-0'")
    connection.close()
    with RunView.open(folder) as view, pytest.raises(StoreError, match="restore it from a copy"):
        everything(view)


@pytest.mark.parametrize("content", [b"", b"\n", b"not a database, whatever its name" * 40, b"SQLite format 3\0"])
def test_another_file_under_the_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "run.sqlite").write_bytes(content)
    for door in (RunView.open, RunStore.open):
        with pytest.raises(StoreError, match=r"restore it from a copy|choose another folder"):
            door(tmp_path)
    assert (tmp_path / "run.sqlite").read_bytes() == content
    assert not lock_is_held(tmp_path)


def altered(source: Path, parent: Path, statement: str) -> Path:
    folder = copied(source, parent)
    connection = sqlite3.connect(folder / "run.sqlite", isolation_level=None)
    connection.execute(statement)
    connection.close()
    return folder


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("PRAGMA user_version = 99", "upgrade selfinstruct"),
        ("PRAGMA user_version = 0", "not a selfinstruct run database"),
        ("DELETE FROM meta", "config is missing"),
        ("DELETE FROM meta WHERE key = 'fingerprint'", "fingerprint is missing"),
        ("UPDATE meta SET value = '{' WHERE key = 'config'", "restore it from a copy"),
        ("DROP TABLE meta", "no such table"),
        ("DROP TABLE sends", "no such table"),
    ],
)
def test_a_database_of_another_version_or_without_its_parts(
    filled: Path, tmp_path: Path, statement: str, words: str
) -> None:
    folder = altered(filled, tmp_path, statement)
    with pytest.raises(StoreError, match=words):
        RunStore.open(folder)
    with pytest.raises(StoreError, match=words), RunView.open(folder) as view:
        everything(view)
    assert not lock_is_held(folder)


@pytest.mark.parametrize("text", ["", "task", "poem {}", "task {", "task []", 'task {"instances": 3}', "task null"])
def test_a_damaged_record_is_named(text: str) -> None:
    with pytest.raises(StoreError, match="restore it from a copy"):
        record_from(text)


# --- the folder


@pytest.mark.parametrize(
    "name", ["with space", "中文 папка", "a?b#c%d%41&mode=rwc", "-o", "file:x", "new\nline", "'\"`$"]
)
def test_a_folder_of_any_name(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name / "run"
    with create(folder) as store:
        asyncio.run(fill(store, range(3)))
    with RunStore.open(folder) as store:
        asyncio.run(fill(store, range(3, 5)))
    with RunView.open(folder) as view:
        assert view.accepted_count("tasks") == 10
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_nothing_there(tmp_path: Path) -> None:
    for door in (RunView.open, RunStore.open):
        with pytest.raises(RunNotFound, match=r"run\.sqlite is missing"):
            door(tmp_path / "none")
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="--output"):
        create(tmp_path / "file")
    with pytest.raises(StoreError, match="--output"):
        create(tmp_path / "file" / "below")


def test_a_run_is_never_created_over_another(filled: Path, tmp_path: Path) -> None:
    folder = copied(filled, tmp_path)
    with pytest.raises(StoreError, match="resume"):
        create(folder)
    with RunView.open(folder) as view:
        assert view.accepted_count("tasks") == 80
    assert (folder / "config.yaml").read_text() == "target: 9\n"
    assert not lock_is_held(folder)


def test_a_new_database_is_never_put_beside_another_ones_wal(crashed: Path, tmp_path: Path) -> None:
    folder = copied(crashed, tmp_path)
    (folder / "run.sqlite").rename(tmp_path / "saved.sqlite")
    with pytest.raises(StoreError, match=r"run\.sqlite-wal"):
        create(folder)
    (tmp_path / "saved.sqlite").rename(folder / "run.sqlite")
    with RunStore.open(folder) as store:
        assert store.view.next_draw("tasks") == (40, 0)


def test_what_a_crash_while_creating_leaves_is_swept_up(tmp_path: Path) -> None:
    folder = tmp_path / "r"
    folder.mkdir()
    for suffix in ("", "-wal", "-shm"):
        (folder / f".run.sqlite.new{suffix}").write_bytes(b"half a database" * 400)
    create(folder).close()
    assert not [path for path in folder.iterdir() if path.name.startswith(".run")]


@pytest.mark.parametrize("failing", ["_put_meta", "connect", "set_aside", "sync_folder", "write_atomically"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EACCES])
def test_creating_fails_whole_and_can_be_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str, code: int
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(writer, failing, fail)
        with pytest.raises(StoreError, match=r"free some space|make the folder"):
            create(tmp_path / "r")
    assert not lock_is_held(tmp_path / "r")
    late = failing in ("set_aside", "sync_folder")  # by then the run is whole
    with RunStore.open(tmp_path / "r") if late else create(tmp_path / "r") as store:
        asyncio.run(fill(store, range(2)))
        assert store.view.accepted_count("tasks") == 4


def test_a_folder_moved_away_while_it_is_written(tmp_path: Path) -> None:
    store = create(tmp_path / "r")
    asyncio.run(fill(store, range(3)))
    (tmp_path / "r").rename(tmp_path / "moved")
    other = create(tmp_path / "r")  # a second run takes the place of the first
    asyncio.run(fill(other, range(1)))
    with pytest.raises(StoreError, match="put the folder back and resume"):
        asyncio.run(fill(store, range(3, 4)))
    store.close()
    asyncio.run(fill(other, range(1, 2)))
    other.close()
    with RunStore.open(tmp_path / "moved") as moved, RunView.open(tmp_path / "r") as view:
        assert moved.view.accepted_count("tasks") == 6
        assert view.accepted_count("tasks") == 4


def test_a_folder_deleted_while_it_is_written(tmp_path: Path) -> None:
    store = create(tmp_path / "r")
    asyncio.run(fill(store, range(3)))
    shutil.rmtree(tmp_path / "r")
    with pytest.raises(StoreError, match="deleted"):
        asyncio.run(store.send("k", 1, None))
    store.close()
    assert not (tmp_path / "r").exists()


def test_two_stores_and_a_lock_without_an_owner(tmp_path: Path) -> None:
    folder = tmp_path / "r"
    with create(folder) as store:
        store.start()
        for door in (RunStore.open, create):
            with pytest.raises(RunLocked, match=f"process {os.getpid()} on "):
                door(folder)
        store.set_meta(x=1)
    (folder / "run.lock").write_text("4194304")  # whatever a dead process leaves there
    with RunStore.open(folder) as store:
        assert store.view.meta("x") == 1


def test_the_clock_may_jump(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Jumping(datetime.datetime):
        days = 0

        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Jumping:
            cls.days += 1
            return cls(2000 if cls.days % 2 else 2090, 1, 1, tzinfo=tz)

    monkeypatch.setattr(datetime, "datetime", Jumping)
    with create(tmp_path / "r") as store:
        store.start()
        asyncio.run(fill(store, range(5)))
        assert store.view.summary().state == "running"
    assert Jumping.days > 5
    with RunView.open(tmp_path / "r") as view:
        whole(view)
        assert view.next_draw("tasks") == (5, 0)


def test_a_reader_sees_whole_draws_only_whenever_it_looks(tmp_path: Path) -> None:
    looks: list[int] = []
    faults: list[BaseException] = []
    done = threading.Event()

    def read() -> None:
        try:
            while not done.is_set():
                with RunView.open(tmp_path / "r") as view:
                    view._connection.execute("BEGIN")
                    whole(view)
                    looks.append(view.next_draw("tasks")[0])
                    view._connection.execute("COMMIT")
                    assert view.summary().accepted % 2 == 0
        except BaseException as fault:
            faults.append(fault)

    with create(tmp_path / "r") as store:
        reader = threading.Thread(target=read)
        reader.start()
        try:
            asyncio.run(fill(store, range(150), text="t" * 3000))
        finally:
            done.set()
            reader.join()
    assert not faults, faults
    assert looks == sorted(looks)
    assert len(set(looks)) > 3, "the reader saw nothing of the writing"


# --- where one may only read


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[tuple[Path, Callable[[str], None]]]:
    """A small disk of its own, and a way to mount it again otherwise."""
    from tests.test_torture import mounted

    with mounted(tmp_path / "disk", "size=8m") as (place, remount):
        yield place, remount


def test_a_closed_run_can_be_read_on_a_read_only_disk(filled: Path, disk: tuple[Path, Callable[[str], None]]) -> None:
    place, remount = disk
    shutil.copytree(filled, place / "run")
    remount("ro")
    with RunView.open(place / "run") as view:
        whole(view)
        assert view.summary().accepted == 80
    with pytest.raises(StoreError, match="make the folder readable and writable"):
        RunStore.open(place / "run")
    with pytest.raises(StoreError, match="make the folder readable and writable"):
        create(place / "new")


def test_a_crashed_run_on_a_read_only_disk_says_what_to_do(
    crashed: Path, disk: tuple[Path, Callable[[str], None]]
) -> None:
    place, remount = disk
    shutil.copytree(crashed, place / "run")
    remount("ro")
    with pytest.raises(StoreError, match="Copy the whole folder"):
        RunView.open(place / "run")


def test_a_disk_that_turns_read_only_and_back(disk: tuple[Path, Callable[[str], None]]) -> None:
    place, _ = disk
    store = create(place / "run")
    asyncio.run(fill(store, range(3)))
    # The kernel remounts nothing read-only that is open for writing: this is what SQLite says after it did.
    readonly = sqlite3.OperationalError("attempt to write a readonly database")
    readonly.sqlite_errorcode = sqlite3.SQLITE_READONLY

    def refuse(_: sqlite3.Connection) -> None:
        raise readonly

    with pytest.raises(StoreError, match="make it writable and resume"):
        asyncio.run(store._put(refuse))
    store.close()
    with RunStore.open(place / "run") as store:
        assert store.view.next_draw("tasks") == (3, 0)


def lock_is_held(folder: Path) -> bool:
    try:
        lock = writer._acquire(folder)
    except RunLocked:
        return True
    lock.release()
    return False
