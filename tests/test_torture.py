"""Real processes on real disks: what is committed stays, nothing is paid twice, the message says what to do."""

from __future__ import annotations

import itertools
import json
import os
import pty
import random
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import yaml

from selfinstruct.errors import RunNotFound
from selfinstruct.store import RunView
from selfinstruct.values import Task
from tests.backends.endpoint import Endpoint, Reply, Seen, error
from tests.model import model
from tests.program import environment, forked, line, run_options, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

TARGET = 80
Dataset = list[tuple[str, str]]


@contextmanager
def mounted(place: Path, options: str) -> Iterator[tuple[Path, Callable[[str], None]]]:
    """Mount a small disk and yield it with a way to remount it; skipped where this user may not."""

    def remount(how: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{how}", place], check=True)

    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
    try:
        made = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount command here")
    if made.returncode:
        pytest.skip(f"may not mount a disk here: {made.stderr.strip()}")
    try:
        yield place, remount
    finally:
        subprocess.run(["umount", place], check=True)


def start(*arguments: object, cwd: Path | None = None) -> subprocess.Popen[str]:
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(line(*arguments), text=True, env=environment(), cwd=cwd, **streams)  # type: ignore[call-overload,no-any-return]


def options(endpoint: Endpoint, folder: Path, target: int = TARGET, **more: object) -> list[str]:
    return run_options(endpoint, folder, target, **more)


def dataset(folder: Path) -> Dataset:
    with RunView.open(folder) as view:
        return [(id, record.instruction) for id, record in view.accepted("tasks") if isinstance(record, Task)]


def slowly(least: float = 0.05) -> Callable[[Seen], Reply]:
    return model(delay=lambda rng: least + rng.random() * least)


def completions(folder: Path) -> int:
    with RunView.open(folder) as view:
        return view.summary().completions


def fill_up(place: Path) -> Path:
    """Take the last byte of a disk."""
    filler = place / "filler"
    with filler.open("ab", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            with suppress(OSError):
                while True:
                    file.write(b"x" * size)
    return filler


def balanced(folder: Path) -> tuple[int, int, int]:
    """Check the books of a run nobody writes; return (requests, completions, lost)."""
    with RunView.open(folder) as view:
        states = dict(view._rows("SELECT state, count(*) FROM sends GROUP BY state"))
        found = view.summary()
    assert "open" not in states
    assert found.requests == found.completions + found.lost + states.get("failed", 0)
    return found.requests, found.completions, found.lost


def unique(endpoint: Endpoint) -> bool:
    bodies = [request.body for request in endpoint.requests]
    return len(bodies) == len(set(bodies))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """What the records look like when nothing happens."""
    folder = tmp_path_factory.mktemp("undisturbed") / "r"
    with Endpoint(model()) as server:
        done = forked("run", "alpaca", *options(server, folder))
    assert done.returncode == 0, done.stderr
    return dataset(folder)


# --- disks


@pytest.mark.parametrize("after", [0, 3, 9])
def test_a_disk_that_fills_up_in_the_middle(undisturbed: Dataset, tmp_path: Path, after: int) -> None:
    with mounted(tmp_path / "disk", "size=24m") as (disk, _), Endpoint(slowly(0.1)) as server:
        folder = disk / "r"
        process = start("run", "alpaca", *options(server, folder, concurrency=8))
        wait_for(lambda: (folder / "run.sqlite").exists() and len(server.requests) > after)
        # At one moment, or the filling would go on into what the run has set aside for its answers.
        process.send_signal(signal.SIGSTOP)
        filler = fill_up(disk)
        process.send_signal(signal.SIGCONT)
        _, talk = process.communicate(timeout=60)
        assert process.returncode == 3, talk
        assert "the disk is full" in talk
        assert "free some space and resume" in talk
        assert "Traceback" not in talk
        answered = len(server.requests)
        assert answered < 8 * TARGET
        assert unique(server)
        # What had left was answered, and had a place to go to. Nothing was promised that is not there.
        assert completions(folder) == answered
        fill_up(disk)  # what was set aside is free again: somebody else takes it
        again = forked("resume", folder)
        assert again.returncode == 3, "a disk that is still full"
        assert "free some space" in again.stderr
        assert len(server.requests) == answered, "asked for what there is no room to keep"
        filler.unlink()
        resumed = forked("resume", folder, "--concurrency", 32)
        assert resumed.returncode == 0, resumed.stderr
        assert unique(server), "a request was paid twice"
        assert dataset(folder) == undisturbed
        assert balanced(folder)[0] == len(server.requests)


def test_a_disk_that_is_full_from_the_start(undisturbed: Dataset, tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "size=16m") as (disk, _), Endpoint(model()) as server:
        filler = fill_up(disk)
        for room in (0, 4096, 100_000, 2_000_000):
            os.truncate(filler, filler.stat().st_size - room)
            done = forked("run", "alpaca", *options(server, disk / "r"))
            assert done.returncode == 3, done.stderr
            assert "free some space" in done.stderr
            assert "Traceback" not in done.stderr
        assert not server.requests
        filler.unlink()
        assert forked("run", "alpaca", *options(server, disk / "r")).returncode == 0
        assert dataset(disk / "r") == undisturbed


def test_a_disk_without_room_for_another_name(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "size=16m,nr_inodes=4") as (disk, _), Endpoint(model()) as server:
        for name in ("a", "b"):
            (disk / name).touch()
        done = forked("run", "alpaca", *options(server, disk / "r"))
        assert done.returncode == 3, done.stderr
        assert "free some space" in done.stderr


def test_a_limit_on_the_size_of_files(undisturbed: Dataset, tmp_path: Path) -> None:
    with Endpoint(model()) as server:
        # The model that tells languages apart is larger, unpacked, than the limits here: the cache has it by now.
        nowhere = str(tmp_path / "empty")
        said = forked(
            "run",
            "alpaca",
            *options(server, tmp_path / "r"),
            limit=1 << 20,
            env=environment(SELFINSTRUCT_CACHE=nowhere),
        )
        assert (said.returncode, "can't unpack its model" in said.stderr) == (2, True), said.stderr
        done = forked("run", "alpaca", *options(server, tmp_path / "r"), limit=1 << 20)
        assert done.returncode == 3, done.stderr
        assert "ulimit" in done.stderr
        assert not server.requests

        # Just above what is set aside: the WAL reaches it while the run works.
        limited = forked("run", "alpaca", *options(server, tmp_path / "r", 10 * TARGET), limit=(4 << 20) + 4096)
        assert limited.returncode == 3, limited.stderr
        assert "resume" in limited.stderr
        assert "Traceback" not in limited.stderr
        asked, kept = len(server.requests), completions(tmp_path / "r")
        assert 0 <= asked - kept <= 16, "more was lost than can be in flight"
        held = len(dataset(tmp_path / "r"))
        assert held > TARGET, "the limit was reached before there was anything to keep"
        resumed = forked("resume", tmp_path / "r", "-n", held + 2)
        assert resumed.returncode == 0, resumed.stderr
        requests, _, lost = balanced(tmp_path / "r")
        # Whoever stood in line behind the sixteen could not be struck off the record any more.
        assert len(server.requests) <= requests <= len(server.requests) + 4
        assert lost <= 20
    assert dataset(tmp_path / "r")[: len(undisturbed)] == undisturbed


def test_a_read_only_disk(undisturbed: Dataset, tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "size=16m") as (disk, remount), Endpoint(model()) as server:
        assert forked("run", "alpaca", *options(server, disk / "r", 20)).returncode == 0
        asked = len(server.requests)
        remount("ro")
        for arguments in (["resume", disk / "r", "-n", TARGET], ["run", "alpaca", *options(server, disk / "new")]):
            done = forked(*arguments)
            assert done.returncode == 3, done.stderr
            assert "make the folder readable and writable" in done.stderr
        assert json.loads(forked("status", disk / "r", "--json").stdout)["accepted"] == 20
        exported = forked("export", disk / "r", "--format", "alpaca", "-o", tmp_path / "out.json")
        assert exported.returncode == 0, exported.stderr
        assert len(server.requests) == asked
        remount("rw")
        assert forked("resume", disk / "r", "-n", TARGET).returncode == 0
        assert dataset(disk / "r") == undisturbed


def test_a_folder_deleted_while_the_run_works(tmp_path: Path) -> None:
    with Endpoint(slowly()) as server:
        process = start("run", "alpaca", *options(server, tmp_path / "r", 4000, concurrency=4))
        wait_for(lambda: len(server.requests) > 10)
        shutil.rmtree(tmp_path / "r")
        asked = len(server.requests)
        _, talk = process.communicate(timeout=60)
        assert process.returncode == 3, talk
        assert "deleted while the run was writing" in talk
        assert len(server.requests) <= asked + 8, "went on paying for a run that is not there"
    assert "Traceback" not in talk


def test_a_folder_moved_while_the_run_works_can_be_resumed_there(undisturbed: Dataset, tmp_path: Path) -> None:
    with Endpoint(slowly()) as server:
        process = start("run", "alpaca", *options(server, tmp_path / "r", concurrency=4))
        wait_for(lambda: len(server.requests) > 10)
        (tmp_path / "r").rename(tmp_path / "moved")
        _, talk = process.communicate(timeout=60)
        assert process.returncode == 3, talk
        asked = len(server.requests)
        resumed = forked("resume", tmp_path / "moved", "--concurrency", 32)
        assert resumed.returncode == 0, resumed.stderr
        requests, answered, lost = balanced(tmp_path / "moved")
        assert lost <= 5  # in flight, and one on record that could not be struck off where the folder was no more
        assert requests >= answered >= len({request.body for request in server.requests[:asked]}) - 4
    assert dataset(tmp_path / "moved") == undisturbed


# --- signals and terminals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_lets_what_is_under_way_arrive(undisturbed: Dataset, tmp_path: Path, number: signal.Signals) -> None:
    with Endpoint(slowly(0.2)) as server:
        process = start("run", "alpaca", *options(server, tmp_path / "r", concurrency=4))
        wait_for(lambda: len(server.requests) >= 6)
        process.send_signal(number)
        _, talk = process.communicate(timeout=60)
        assert process.returncode == 130, talk
        assert f"selfinstruct resume {tmp_path / 'r'}" in talk
        assert balanced(tmp_path / "r") == (len(server.requests), len(server.requests), 0)
        assert forked("resume", tmp_path / "r", "--concurrency", 32).returncode == 0
        assert unique(server)
    assert dataset(tmp_path / "r") == undisturbed


def test_a_second_signal_while_draining_counts_what_it_cuts_off(undisturbed: Dataset, tmp_path: Path) -> None:
    with Endpoint(slowly(1.0)) as server:
        process = start("run", "alpaca", *options(server, tmp_path / "r", concurrency=4))
        wait_for(lambda: len(server.requests) >= 3)
        process.send_signal(signal.SIGINT)
        time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        _, talk = process.communicate(timeout=60)
        assert process.returncode == 130, talk
        assert "Traceback" not in talk
        requests, answered, lost = balanced(tmp_path / "r")
        assert requests == len(server.requests)
        assert lost > 0, "nothing was cut off: the second signal was not felt"
        assert answered + lost == requests
        assert forked("resume", tmp_path / "r", "--concurrency", 64).returncode == 0
    assert dataset(tmp_path / "r") == undisturbed


_LOADING = """
import asyncio, pathlib

async def load(model, config):
    pathlib.Path("loading").touch()
    await asyncio.sleep(3600)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_the_model_loads(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "slow.py").write_text(_LOADING)
    process = start("run", "alpaca", "-m", "slow.py:load/any", "-o", "r", cwd=tmp_path)
    wait_for((tmp_path / "loading").exists)
    process.send_signal(number)
    _, talk = process.communicate(timeout=60)
    assert process.returncode == 130, talk
    assert "selfinstruct resume r" in talk
    assert "Traceback" not in talk
    with RunView.open(tmp_path / "r") as view:
        assert view.summary().state == "interrupted"


def test_a_reader_of_the_talk_that_leaves_does_not_end_the_run(undisturbed: Dataset, tmp_path: Path) -> None:
    def poisoned(seen: Seen) -> Reply:
        # A refused draw is talked about: that is where a broken pipe would be noticed.
        return error(400, "this one is not to be had") if seen.number == 5 else answer(seen)

    answer = slowly(0.02)
    with Endpoint(poisoned) as server:
        process = start("run", "alpaca", *options(server, tmp_path / "r", concurrency=1))
        assert process.stderr is not None
        assert process.stdout is not None
        process.stderr.readline()
        process.stderr.close()
        process.stdout.close()
        assert process.wait(timeout=100) == 0
    assert len(dataset(tmp_path / "r")) == len(undisturbed)
    with RunView.open(tmp_path / "r") as view:
        assert (view.summary().state, view.summary().failed_draws) == ("done", 1)


def test_a_broken_pipe_does_not_hide_an_interruption(tmp_path: Path) -> None:
    with Endpoint(slowly(0.2)) as server:
        process = start("run", "alpaca", *options(server, tmp_path / "r", 4000, concurrency=4))
        assert process.stderr is not None
        assert process.stdout is not None
        process.stderr.close()
        process.stdout.close()
        wait_for(lambda: len(server.requests) >= 6)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
        assert balanced(tmp_path / "r") == (len(server.requests), len(server.requests), 0)


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_without_standard_streams(undisturbed: Dataset, tmp_path: Path, closed: str) -> None:
    with Endpoint(model()) as server:
        command = shlex.join(line("run", "alpaca", *options(server, tmp_path / "r")))
        done = subprocess.run(["sh", "-c", f"{command} {closed}"], env=environment(), timeout=100, check=False)
        assert done.returncode == 0
    assert dataset(tmp_path / "r") == undisturbed


def test_a_terminal_that_is_closed(undisturbed: Dataset, tmp_path: Path) -> None:
    with Endpoint(slowly(0.2)) as server:
        arguments = line("run", "alpaca", *options(server, tmp_path / "r", concurrency=4))
        ours, theirs = pty.openpty()
        script = (
            "import fcntl, os, sys, termios; fcntl.ioctl(2, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", script, *arguments], stdin=theirs, stdout=theirs, stderr=theirs,
            start_new_session=True, env=environment() | {"TERM": "xterm"},
        )  # fmt: skip
        os.close(theirs)
        shown = b""

        def listen() -> bool:
            nonlocal shown
            os.set_blocking(ours, False)
            with suppress(BlockingIOError):
                shown += os.read(ours, 65536)
            return len(server.requests) >= 6 and b"accepted" in shown

        wait_for(listen)
        os.close(ours)
        assert process.wait(timeout=60) == 130, shown
        assert balanced(tmp_path / "r") == (len(server.requests), len(server.requests), 0)
        assert forked("resume", tmp_path / "r", "--concurrency", 32).returncode == 0
        assert unique(server)
    assert dataset(tmp_path / "r") == undisturbed


# --- kills


@pytest.mark.timeout(3600)
def test_kills_that_all_hit_a_run_at_work(undisturbed: Dataset, tmp_path: Path) -> None:
    """Each process is killed between its first instruction and a few answers: starting, loading, writing, draining.

    The endpoint answers only as many requests at once as brings the run to its end with the last kill.
    """
    kills, needed = int(os.environ.get("SELFINSTRUCT_KILLS", "20")), 24
    rng, hits, quick = random.Random(7), 0, 0

    def pace(_: random.Random) -> float:
        nonlocal quick
        if hits < kills and quick >= needed * (hits + 1) / kills:
            return 30.0
        quick += 1
        return 0.03

    idle = 0
    with Endpoint(model(delay=pace)) as server:
        arguments = options(server, tmp_path / "r", concurrency=4)
        while hits < kills:
            seen = len(server.requests)
            process = start("run", "alpaca", "-q", *arguments)
            time.sleep(rng.random() * 2.5)
            if rng.random() < 0.2:
                process.send_signal(signal.SIGINT)
                time.sleep(rng.random() * 0.1)
            ended = process.poll()
            process.kill()
            _, said = process.communicate()
            # Before the program's first line an interrupt is the interpreter's own, which dies of it in two ways.
            own = ended in (None, 130, -signal.SIGINT) or said.startswith("Fatal Python error: init_import_site")
            assert own, f"finished before its time with {ended}: {said}"
            hits += 1
            idle += len(server.requests) == seen
        done = forked("run", "alpaca", *arguments)
        assert done.returncode == 0, done.stderr
        arrived = len(server.requests)
    assert 0 < idle < kills, "kills must hit processes that start and processes that work"
    assert dataset(tmp_path / "r") == undisturbed
    requests, answered, lost = balanced(tmp_path / "r")
    assert arrived <= requests, "a request was sent that nobody wrote down"
    assert lost <= 5 * kills  # in flight, and one on record that was about to leave
    # What arrived here was asked again only if a kill had cut it off.
    assert len({request.body for request in server.requests}) >= answered >= arrived - lost


# --- many at once


def test_four_processes_start_the_same_run_at_once(undisturbed: Dataset, tmp_path: Path) -> None:
    with Endpoint(slowly(0.5)) as server:
        arguments = options(server, tmp_path / "r")
        processes = [start("run", "alpaca", *arguments) for _ in range(4)]
        talks = [process.communicate(timeout=120)[1] for process in processes]
        codes = sorted(process.returncode for process in processes)
        assert codes == [0, 3, 3, 3], talks
        assert sum("another process is writing this run" in talk or "a run here already" in talk for talk in talks) == 3
        assert unique(server)
    assert dataset(tmp_path / "r") == undisturbed


def test_a_reader_scans_all_the_while_and_a_killer_kills(undisturbed: Dataset, tmp_path: Path) -> None:
    looks: list[int] = []
    faults: list[BaseException] = []
    done = threading.Event()

    def scan() -> None:
        try:
            while not done.is_set():
                with suppress(RunNotFound):
                    looks.append(scanned(tmp_path / "r"))
        except BaseException as fault:
            faults.append(fault)

    reader = threading.Thread(target=scan)
    reader.start()
    try:
        with Endpoint(slowly(0.15)) as server:
            arguments = options(server, tmp_path / "r", concurrency=4)
            for pause in (0.1, 0.4, 0.7, 0.2):
                process, seen = start("run", "alpaca", "-q", *arguments), len(server.requests)
                wait_for(lambda seen=seen: len(server.requests) > seen)  # type: ignore[misc]
                time.sleep(pause)
                assert process.poll() is None, "it was over before it was killed"
                process.kill()
                process.communicate()
            assert forked("run", "alpaca", *arguments).returncode == 0
            arrived = len(server.requests)
    finally:
        done.set()
        reader.join()
    assert not faults, faults
    assert looks == sorted(looks)
    assert len(set(looks)) > 5
    assert dataset(tmp_path / "r") == undisturbed
    requests, _, lost = balanced(tmp_path / "r")
    assert arrived <= requests, "a request was sent that nobody wrote down"
    assert lost <= 5 * 4  # in flight, and one on record that was about to leave


def scanned(folder: Path) -> int:
    """Check one snapshot of a run that is being written; return how many records it has."""
    with RunView.open(folder) as view:
        rows = view._connection
        rows.execute("BEGIN")
        numbers = [n for (n,) in rows.execute("SELECT accepted FROM candidates WHERE accepted > 0 ORDER BY 1")]
        assert numbers == list(range(1, len(numbers) + 1))
        settled = [n for (n,) in rows.execute("SELECT number FROM draws ORDER BY number")]
        assert settled == list(range(len(settled)))
        orphans = "SELECT count(*) FROM candidates WHERE draw NOT IN (SELECT number FROM draws)"
        assert rows.execute(orphans).fetchone() == (0,)
        places = "SELECT count(*), max(position) + 1 FROM candidates GROUP BY draw"
        assert all(count == last for count, last in rows.execute(places))
        for (asked,) in rows.execute("SELECT requests FROM draws WHERE state = 'done'"):
            for key in json.loads(asked):
                assert view.completion(key) is not None, "a draw was committed before its answer"
        states = dict(rows.execute("SELECT state, count(*) FROM sends GROUP BY state"))
        assert rows.execute("SELECT count(*) FROM completions").fetchone() == (states.get("done", 0),)
        rows.execute("COMMIT")
        return len(numbers)


# --- what people do to folders


@pytest.mark.parametrize("name", ["with space", "中文", "a?b#c%41", "it's"])
def test_the_command_to_go_on_works_as_printed(tmp_path: Path, name: str) -> None:
    with Endpoint(model()) as server:
        done = forked("run", "alpaca", *options(server, tmp_path / name, 30, max_requests=3))
        assert done.returncode == 5, done.stderr
        printed = next(text for text in done.stderr.splitlines() if text.startswith("go on:"))
        words = shlex.split(printed.removeprefix("go on:"))
        assert words[:2] == ["selfinstruct", "resume"]
        assert forked(*words[1:], "--max-requests", 1000).returncode == 0
    assert len(dataset(tmp_path / name)) == 30


def test_config_yaml_edited_deleted_and_broken(undisturbed: Dataset, tmp_path: Path) -> None:
    folder = tmp_path / "r"
    path = folder / "config.yaml"
    with Endpoint(model()) as server:
        assert forked("run", "alpaca", *options(server, folder, 20)).returncode == 0
        asked = len(server.requests)

        path.write_text(path.read_text().replace("temperature: null", "temperature: 0.1"))
        done = forked("resume", folder, "-n", 40)
        assert done.returncode == 3, done.stderr
        assert "sampling.temperature: None -> 0.1" in done.stderr

        for broken in ("target: [", "just words", "\0", "target: many\nrecipe: alpaca"):
            path.write_text(broken)
            done = forked("resume", folder)
            assert done.returncode == 2, done.stderr
            assert "config.yaml" in done.stderr
            assert "Traceback" not in done.stderr
        assert len(server.requests) == asked

        path.unlink()
        done = forked("resume", folder, "-n", 40)
        assert done.returncode == 0, done.stderr
        assert yaml.safe_load(path.read_text())["target"] == 40

        path.write_text(path.read_text().replace("target: 40", f"target: {TARGET}"))
        assert forked("resume", folder).returncode == 0
    assert dataset(folder) == undisturbed


def test_a_database_that_is_none_says_what_to_do(tmp_path: Path) -> None:
    folder = tmp_path / "r"
    with Endpoint(model()) as server:
        assert forked("run", "alpaca", *options(server, folder, 20)).returncode == 0
        whole = (folder / "run.sqlite").read_bytes()
        newer = bytearray(whole)
        newer[60:64] = (99).to_bytes(4)  # user_version
        cases = {
            "upgrade selfinstruct": bytes(newer),
            "restore it from a copy": whole[:-5000],
            "restore it from a copy, or": bytes(200) + whole[200:8192],
            "another folder": b"",
        }
        for (words, content), command in itertools.product(cases.items(), ("resume", "run")):
            (folder / "run.sqlite").write_bytes(content)
            arguments = [folder] if command == "resume" else ["alpaca", *options(server, folder, 20)]
            done = forked(command, *arguments)
            assert done.returncode == 3, (words, done.stderr)
            assert words.partition(",")[0] in done.stderr, (words, done.stderr)
            assert "Traceback" not in done.stderr
            assert (folder / "run.sqlite").read_bytes() == content, "what may be mended was written over"
        (folder / "run.sqlite").write_bytes(whole)
        assert forked("resume", folder).returncode == 0


def test_the_reserve_is_there_while_it_is_needed_and_only_then(tmp_path: Path) -> None:
    with Endpoint(slowly()) as server:
        process = start("run", "alpaca", *options(server, tmp_path / "r", 4000))
        wait_for(lambda: len(server.requests) > 3)
        held = (tmp_path / "r" / "run.reserve").stat()
        process.kill()
        process.communicate()
        assert held.st_size == held.st_blocks * 512 == 4 << 20
        database = sqlite3.connect(tmp_path / "r" / "run.sqlite")
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        database.close()
        assert forked("resume", tmp_path / "r", "-n", 30).returncode == 0
    assert sorted(path.name for path in (tmp_path / "r").iterdir()) == ["config.yaml", "run.lock", "run.sqlite"]
