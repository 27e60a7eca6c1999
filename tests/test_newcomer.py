"""What a new user, and one who means harm, gets to read: a class of error, its words, and nothing lost."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfinstruct import config, prompts
from selfinstruct.backends.openai import OpenAIBackend
from selfinstruct.errors import ConfigError, InputError, PromptError, RunNotFound, StoreError, WrongKey
from selfinstruct.formats.outputs import created
from selfinstruct.models.cache import intact
from selfinstruct.plan import plan
from selfinstruct.store import RunStore, RunView, holds_run
from selfinstruct.testing import ONE_STAGE
from selfinstruct.values import Capabilities


def selfinstruct(*arguments: object, **streams: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "selfinstruct", *map(str, arguments)]
    kept = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams
    return subprocess.run(command, text=True, env=kept, timeout=120, check=False, **pipes)


def create(folder: Path) -> RunStore:
    return RunStore.create(
        folder, config={"recipe": "alpaca"}, config_yaml="a: 1\n", fingerprint={}, seeds={}, notes=ONE_STAGE
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("targget: 3", "targget: there is no such setting; did you mean target?"),
        ("target: 2026-13-45", "not valid YAML"),
        ("seed: " + "1" * 5000, "not valid YAML"),
        ("novelty: 3", "novelty: expected a section with some of: threshold"),
        ("language: no", "in quotes"),
        ('seeds: "a\\0b"', "seeds: expected a text in Unicode"),
        ('model: "openai/\\ud800"', "model: expected a text in Unicode"),
        ("sampling: {extra_body: {day: 2026-01-31}}", "sampling.extra_body.day"),
        ("filters: {refusal: 3}", "filters.refusal: expected true, false or"),
        ("backend: {timeout: 1.2.3s}", "90s, 45m or 2h30m"),
        ("seeds: ''", "seeds: expected a text, found an empty one"),
    ],
)
def test_a_fault_of_the_config_file_is_laid_at_its_door(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        config.read(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert words in str(caught.value)


@given(st.text(max_size=30))
def test_whatever_is_set_is_taken_or_refused_with_its_key(value: str) -> None:
    for key in ("seed", "backend.timeout", "budget.max_cost", "backend.base_url", "sampling.extra_body.x"):
        try:
            built = config.build([{"recipe": "alpaca"}, config.parse_override(f"{key}={value}")])
        except ConfigError as error:
            assert key in str(error)
        else:
            # What is taken can be written down, and is read back as the same.
            assert config.RunConfig.model_validate_json(built.model_dump_json()) == built


@pytest.mark.parametrize("amount", ["abc", "-1", "0", "nan", "inf"])
def test_a_budget_is_an_amount(amount: str) -> None:
    with pytest.raises(ConfigError, match=r"budget\.max_cost: expected US dollars"):
        config.build([{"recipe": "alpaca", "budget": {"max_cost": amount}}])


@pytest.mark.parametrize("address", ["", "127.0.0.1:8000/v1", "ftp://x", "http://127.0.0.1:99999/v1", "http://["])
def test_an_address_is_checked_before_there_is_a_run(address: str) -> None:
    with pytest.raises(ConfigError, match=r"backend\.base_url: expected an address"):
        config.build([{"recipe": "alpaca", "backend": {"base_url": address}}])


def test_a_password_in_the_address_is_refused_and_not_repeated() -> None:
    with pytest.raises(ConfigError, match="OPENAI_BASE_URL") as caught:
        config.build([{"recipe": "alpaca", "backend": {"base_url": "http://me:s3cr3t@127.0.0.1/v1"}}])
    assert "s3cr3t" not in str(caught.value)


def test_a_port_beyond_the_last_is_refused_wherever_it_comes_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:99999/v1")
    with pytest.raises(ConfigError, match="99999"):
        OpenAIBackend("m", name="openai/m", base_url=None, api_key="none", capabilities=Capabilities())


async def _connect(settings: config.RunConfig) -> None:
    from selfinstruct.backends.providers import openai

    await (await openai("m", settings)).aclose()


def test_a_key_variable_that_was_named_must_hold_one(monkeypatch: pytest.MonkeyPatch) -> None:
    import asyncio

    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    backend = {"base_url": "http://127.0.0.1:1/v1", "api_key_env": "NO_SUCH_KEY"}
    with pytest.raises(WrongKey, match="NO_SUCH_KEY"):
        asyncio.run(_connect(config.build([{"recipe": "alpaca", "backend": backend}])))


def test_novelty_is_not_switched_off_as_a_filter() -> None:
    with pytest.raises(ConfigError, match=r"novelty\.threshold"):
        plan([{"recipe": "alpaca", "model": "openai/m", "filters": {"novelty": False}}])


@pytest.mark.parametrize(
    ("template", "words"), [(" \n", "is empty"), ("{{ 1 / 0 }}", "ZeroDivisionError"), ("{% include 'x' %}", "loader")]
)
def test_a_prompt_of_ones_own_that_fails_is_named(
    template: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "prompts" / "alpaca" / "en.j2"
    path.parent.mkdir(parents=True)
    path.write_text(template)
    monkeypatch.setenv("SELFINSTRUCT_HOME", str(tmp_path))
    with pytest.raises(PromptError, match=words) as caught:
        prompts.load(["alpaca"], "en", {"": frozenset()})[""].render()
    assert str(path) in str(caught.value)


def test_a_config_yaml_of_ones_own_is_not_written_over(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("target: 3  # mine\n")
    with pytest.raises(StoreError, match=r"config\.yaml"):
        create(tmp_path)
    assert path.read_text() == "target: 3  # mine\n"
    assert not holds_run(tmp_path)


def test_a_name_too_long_for_the_system_is_an_unusable_folder(tmp_path: Path) -> None:
    folder = tmp_path / ("a" * 300)
    for use in (holds_run, RunView.open, RunStore.open, create):
        with pytest.raises(StoreError, match="too long"):
            use(folder)
    with pytest.raises(RunNotFound):
        RunView.open(tmp_path / "none")


def test_a_device_or_pipe_is_never_replaced_by_a_file(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(InputError, match="stdout"), created(pipe) as stream:
        stream.write(b"x")
    assert pipe.is_fifo()


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with created(tmp_path / "link") as stream:
        stream.write(b"x")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"x"
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(InputError), created(tmp_path / "loop") as stream:
        stream.write(b"x")


def test_the_file_that_stdout_goes_to_is_not_swapped_under_it(tmp_path: Path) -> None:
    create(tmp_path / "run").close()
    log = tmp_path / "log"
    with log.open("w") as stream:
        done = selfinstruct("export", tmp_path / "run", "--format", "alpaca", "-o", log, stdout=stream)
    assert done.returncode == 2, done.stderr
    assert "stdout" in done.stderr


def test_a_reader_that_leaves_early_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        done = selfinstruct("list", "formats", stdout=write)
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="no /dev/full here")
def test_a_full_disk_under_stdout_is_said_in_one_line() -> None:
    with Path("/dev/full").open("w") as full:
        done = selfinstruct("list", "formats", stdout=full)
    assert done.returncode == 1
    assert "No space left" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_cache_folder_that_is_a_file_holds_no_model(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert not intact(tmp_path / "file" / "models" / "x.gguf", "0" * 64)


def test_show_knows_a_wrong_provider() -> None:
    done = selfinstruct("show", "prompt", "alpaca", "-m", "opnai/x")
    assert done.returncode == 2
    assert "'openai'" in done.stderr


def test_an_interrupt_while_a_class_is_made_still_exits_with_130(tmp_path: Path) -> None:
    """Python makes dataclasses by exec() of a text; an interrupt there used to end the process by SIGINT."""
    script = tmp_path / "script.py"
    script.write_text(
        "from selfinstruct import cli\n"
        "def interrupted(**_: object) -> None:\n"
        "    exec('raise KeyboardInterrupt')\n"
        "cli.cli.main = interrupted\n"
        "cli.main([])\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")
