"""Plugins as people bring them: packages installed by pip in an environment of their own, and single files."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import textwrap
import venv
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfinstruct import plugins
from selfinstruct.config import build, parse_override
from selfinstruct.errors import ConfigError, PluginError
from selfinstruct.plan import plan
from tests.program import RPM

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / "tests" / "example_plugin"

Program = Callable[..., subprocess.CompletedProcess[str]]
Programs = Callable[..., list[subprocess.CompletedProcess[str]]]
QUICK = ["--set", "novelty.engine=numpy", "--rpm", RPM]  # which loads and compiles nothing, and feels for no pace


def run(command: list[object], *, cwd: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a command with nothing of the machine's settings but what a process needs."""
    kept = {key: value for key, value in os.environ.items() if key in {"PATH", "HOME", "LANG", "TMPDIR", "SYSTEMROOT"}}
    env = kept | {"SELFINSTRUCT_HOME": str(cwd / "home"), "SELFINSTRUCT_OFFLINE": "1"} | more
    return subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, cwd=cwd, env=env, timeout=240, check=False
    )


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment that sees this one's packages and this checkout, with the example plugin installed."""
    folder = tmp_path_factory.mktemp("plugins") / "venv"
    venv.create(folder, with_pip=True, symlinks=os.name != "nt")
    made = sysconfig.get_paths(vars={"base": str(folder), "platbase": str(folder)})
    # --system-site-packages shows the system's packages, not those of the environment the tests run in.
    mine = dict.fromkeys([str(ROOT), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
    Path(made["purelib"], "tests-environment.pth").write_text("".join(f"{path}\n" for path in mine))
    found = Path(made["scripts"]) / "python"
    install(found, EXAMPLE)
    return found


def install(python: Path, package: Path, *options: object) -> None:
    pip = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-index"]
    done = run([*pip, "--no-deps", "--no-build-isolation", *options, package], cwd=package)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def program(python: Path, tmp_path: Path) -> Program:
    def call(*arguments: object, **more: str) -> subprocess.CompletedProcess[str]:
        done = run([python, "-m", "selfinstruct", *arguments], cwd=tmp_path, **more)
        assert "Traceback" not in done.stderr, done.stderr
        return done

    return call


_SEVERAL = """
import contextlib, io, json, sys
from selfinstruct.cli import main

said = []
for words in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(words)
        except SystemExit as left:
            said.append([left.code, out.getvalue(), err.getvalue()])
print(json.dumps(said))
"""


@pytest.fixture
def programs(python: Path, tmp_path: Path) -> Programs:
    """Run several command lines one after the other in one process: what they import is imported once."""

    def call(lines: Sequence[Sequence[object]], **more: str) -> list[subprocess.CompletedProcess[str]]:
        words = [[*map(str, line)] for line in lines]
        said = rows(run([python, "-c", _SEVERAL, json.dumps(words)], cwd=tmp_path, **more))
        assert len(said) == len(words)
        return [subprocess.CompletedProcess(line, *each) for line, each in zip(words, said, strict=True)]

    return call


def rows(done: subprocess.CompletedProcess[str]) -> Any:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def package(folder: Path, name: str, module: str, text: str, entry_points: str) -> Path:
    """Write a package of one module."""
    folder.mkdir()
    (folder / f"{module}.py").write_text(textwrap.dedent(text))
    (folder / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n'
        f'[project]\nname = "{name}"\nversion = "1"\n{entry_points}'
        f'[tool.hatch.build.targets.wheel]\nonly-include = ["{module}.py"]\n'
    )
    return folder


# An installed package


@pytest.mark.slow
def test_list_names_the_plugins_beside_what_ships(programs: Programs) -> None:
    plugged: dict[tuple[str, str], dict[str, str]] = {
        ("recipes", "sums"): {"styles": "list", "summary": "word problems about sums, with the answers checked"},
        ("backends", "abacus"): {"what": "Word problems from a function: careful is right, hasty not always."},
        ("filters", "right_sum"): {"parameters": "largest=1998", "on by default": "-"},
        ("formats", "question-answer"): {"layout": "jsonl"},
    }
    listed = programs([["list", kind, "--json"] for kind, _ in plugged])
    for ((kind, name), more), done in zip(plugged.items(), listed, strict=True):
        found = {row[kind.removesuffix("s")]: row for row in rows(done)}
        assert found[name].items() >= more.items()
        assert {"recipes": "alpaca", "backends": "openai", "filters": "refusal", "formats": "alpaca"}[kind] in found


@pytest.mark.slow
def test_a_run_with_a_plugin_in_every_place(program: Program, tmp_path: Path) -> None:
    done = program("run", "sums", *QUICK, "-m", "abacus/hasty", "-n", "12", "-o", "r")
    assert done.returncode == 0, done.stderr
    status = rows(program("status", "r", "--json"))
    assert (status["state"], status["accepted"]) == ("done", 12)
    assert status["rejected"]["right_sum"] > 0, "the hasty abacus erred and nobody saw it"
    assert program("export", "r", "-o", "qa.jsonl").returncode == 0
    pairs = [json.loads(line) for line in (tmp_path / "qa.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(pairs) == 12
    for pair in pairs:
        assert set(pair) == {"question", "answer"}
        first, second = map(int, re.findall(r"\d+", pair["question"]))
        assert str(first + second) in pair["answer"]
    done = program("convert", "qa.jsonl", "alpaca.json", "--to", "alpaca")
    assert done.returncode == 0, done.stderr
    alpaca = json.loads((tmp_path / "alpaca.json").read_text(encoding="utf-8"))
    assert [(row["instruction"], row["output"]) for row in alpaca] == [(p["question"], p["answer"]) for p in pairs]


@pytest.mark.slow
def test_a_plugins_run_resumes_replays_and_is_judged_again(program: Program, tmp_path: Path) -> None:
    options = [*QUICK, "-m", "abacus/hasty", "--set", "window=4"]
    for number, target in enumerate((5, 17)):
        verb = ["resume", "r", "-n", target] if number else ["run", "sums", *options, "-n", target, "-o", "r"]
        assert program(*verb, "-q").returncode == 0
    assert program("run", "sums", *options, "-q", "-n", "17", "--concurrency", "1", "-o", "once").returncode == 0
    for folder in ("r", "once"):
        assert program("export", folder, "-o", f"{folder}.jsonl").returncode == 0
    assert (tmp_path / "r.jsonl").read_bytes() == (tmp_path / "once.jsonl").read_bytes()
    again = program("replay", "r", "-o", "again")
    assert again.returncode == 0, again.stderr
    before = rows(program("status", "r", "--json"))
    change = rows(program("refilter", "r", "--set", "filters.right_sum.largest=600", "--json"))
    after = rows(program("status", "r", "--json"))
    assert change["leaving"]
    assert all(each["why"].startswith("right_sum: too large") for each in change["leaving"])
    assert after["accepted"] == 17 - len(change["leaving"]) + len(change["entering"])
    assert (after["requests"], after["completions"]) == (before["requests"], before["completions"])


@pytest.mark.slow
def test_show_renders_the_packages_own_prompt(program: Program) -> None:
    done = program("show", "prompt", "sums")
    assert done.returncode == 0, done.stderr
    assert "the sum of 17 and 25" in done.stdout


@pytest.mark.slow
def test_an_unknown_name_is_answered_with_the_closest_before_a_folder_is_made(
    programs: Programs, tmp_path: Path
) -> None:
    cases = [
        ("summs", "abacus/careful", "seed=1", "recipes: there is no 'summs'; did you mean 'sums'?"),
        ("sums", "abbacus/careful", "seed=1", "did you mean 'abacus'?"),
        ("sums", "abacus", "seed=1", "PROVIDER/MODEL"),
        ("sums", "abacus/careful", "filters.right_summ=true", "did you mean 'right_sum'?"),
        ("sums", "abacus/careful", "filters.refusall=true", "did you mean 'refusal'?"),
        ("sums", "abacus/careful", "filters.right_sum.bigest=1", "largest"),
        ("sums", "abacus/careful", "filters.right_sum.largest=x", "a whole number"),
        ("none.py:none", "abacus/careful", "seed=1", "none.py does not exist"),
    ]
    told = programs(
        [["run", recipe, "-m", model, "--set", override, "-o", "r"] for recipe, model, override, _ in cases]
    )
    for (*_, words), done in zip(cases, told, strict=True):
        assert done.returncode == 2, done.stderr
        assert words in done.stderr
    assert not (tmp_path / "r").exists(), "a run folder was made with a name that does not exist"


@pytest.mark.slow
def test_an_unknown_format_is_answered_with_the_closest(program: Program) -> None:
    assert program("run", "sums", "-q", *QUICK, "-m", "abacus/careful", "-n", "1", "-o", "r").returncode == 0
    done = program("export", "r", "--format", "question-anwser")
    assert done.returncode == 2
    assert "question-answer" in done.stderr


@pytest.mark.slow
def test_a_name_that_two_packages_claim_is_refused_and_both_are_named(
    python: Path, program: Program, tmp_path: Path
) -> None:
    second = package(
        tmp_path / "second",
        "more-sums",
        "more_sums",
        "SUMS = None\n",
        '[project.entry-points."selfinstruct.recipes"]\nsums = "more_sums:SUMS"\n',
    )
    install(python, second, "--target", tmp_path / "lib")
    for command in (["run", "sums", "-m", "abacus/careful", "-o", "r"], ["list", "recipes"]):
        done = program(*command, PYTHONPATH=str(tmp_path / "lib"))
        assert done.returncode == 2, done.stderr
        assert "'sums' is claimed by more than one package: more-sums, selfinstruct-sums" in done.stderr
    assert program("list", "filters", PYTHONPATH=str(tmp_path / "lib")).returncode == 0


@pytest.mark.slow
def test_a_package_that_does_not_load_is_named_with_its_error(python: Path, program: Program, tmp_path: Path) -> None:
    broken = package(
        tmp_path / "broken",
        "broken-plugin",
        "broken_plugin",
        "raise ValueError('the abacus is out of beads')\n",
        '[project.entry-points."selfinstruct.filters"]\nbeads = "broken_plugin:beads"\n',
    )
    install(python, broken, "--target", tmp_path / "lib")
    run = ["run", "sums", *QUICK, "-m", "abacus/careful", "-n", "1", "-o", "r"]
    for command in ([*run, "--set", "filters.beads=true"], ["list", "filters"]):
        done = program(*command, PYTHONPATH=str(tmp_path / "lib"))
        assert done.returncode == 2, done.stderr
        assert "'beads' (broken_plugin:beads) does not load: ValueError: the abacus is out of beads" in done.stderr
    assert program(*run, PYTHONPATH=str(tmp_path / "lib")).returncode == 0, "a plugin nobody asked for is in the way"


@pytest.mark.slow
def test_a_shipped_name_can_not_be_taken(python: Path, program: Program, programs: Programs, tmp_path: Path) -> None:
    thief = package(
        tmp_path / "thief",
        "thief",
        "thief",
        "raise ValueError('loaded')\n",
        "".join(
            f'[project.entry-points."selfinstruct.{kind}"]\n{name} = "thief:THIEF"\n'
            for kind, name in {
                "recipes": "alpaca",
                "backends": "openai",
                "filters": "refusal",
                "formats": "alpaca",
            }.items()
        ),
    )
    install(python, thief, "--target", tmp_path / "lib")
    lists = [["list", kind] for kind in ("recipes", "backends", "filters", "formats")]
    before, after = programs(lists), programs(lists, PYTHONPATH=str(tmp_path / "lib"))
    assert [done.stdout for done in after] == [done.stdout for done in before]
    options = [*QUICK, "-m", "abacus/careful", "-n", "1", "-o", "r", "--set", "filters.refusal=true"]
    assert program("run", "sums", *options, PYTHONPATH=str(tmp_path / "lib")).returncode == 0


# A single file


@pytest.fixture
def parts(tmp_path: Path) -> Iterator[Path]:
    """A file with a counter of how often it was run, a filter, and things that are no plugins."""
    path = tmp_path / "my.parts" / "parts.py"
    path.parent.mkdir()
    path.write_text(
        textwrap.dedent(
            """
            from pathlib import Path

            with Path(__file__).with_suffix(".runs").open("a") as file:
                file.write("x")

            def quiet(pack, *, marks: int = 0):
                '''Reject an instruction that shouts.'''
                return lambda candidate: None

            NUMBER = 5
            """
        )
    )
    known = set(sys.modules)
    yield path
    for name in set(sys.modules) - known:
        if name.startswith("selfinstruct_plugin_"):
            del sys.modules[name]


def test_a_file_is_run_once_for_all_that_it_holds(parts: Path) -> None:
    first = plugins.load("filters", f"{parts}:quiet")
    assert plugins.load("filters", f"{parts}:quiet") is first
    assert plugins.load("backends", f"{parts}:quiet") is first
    assert parts.with_suffix(".runs").read_text() == "x"


def test_the_closest_name_counts_what_ships() -> None:
    with pytest.raises(PluginError, match="did you mean 'refusal'"):
        plugins.load("filters", "refusall", shipped=("refusal", "leak"))
    with pytest.raises(PluginError, match="there are: leak"):
        plugins.load("tools", "qqq", shipped=("leak",))
    with pytest.raises(PluginError, match="there are: none"):
        plugins.load("formats", "qqq")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("{path}:nothing", "does not load: AttributeError"),
        ("{path}:NUMBER", "must be a function, found int"),
        ("{path}x.py:quiet", "does not exist"),
    ],
)
def test_a_file_that_is_no_plugin_says_why(name: str, words: str, parts: Path) -> None:
    with pytest.raises(PluginError, match=words):
        plugins.load("filters", name.format(path=parts))


def test_a_recipe_must_be_one(parts: Path) -> None:
    with pytest.raises(PluginError, match=r"must be a selfinstruct\.recipes\.Recipe, found int"):
        plan([{"recipe": f"{parts}:NUMBER"}])


def test_a_file_that_fails_is_not_remembered_half_run(parts: Path) -> None:
    good = parts.read_text()
    parts.write_text(good + "\nraise RuntimeError('no beads')\n")
    for _ in range(2):
        with pytest.raises(PluginError, match="RuntimeError: no beads") as caught:
            plugins.load("filters", f"{parts}:quiet")
        assert isinstance(caught.value.__cause__, RuntimeError)
    parts.write_text(good + "\n\n")
    assert callable(plugins.load("filters", f"{parts}:quiet"))


_part = st.text(st.characters(exclude_characters="/:", codec="utf-8"), min_size=1)
_path = st.lists(_part, min_size=1, max_size=4).map("/".join)


@given(folder=st.sampled_from(["", "/", "./", "../", "my.parts/", "/a b/"]), path=_path, name=_part, model=_path)
def test_a_file_before_the_model_keeps_its_slashes(folder: str, path: str, name: str, model: str) -> None:
    provider = f"{folder}{path}.py:{name}"
    assert plugins.split_model(f"{provider}/{model}") == (provider, model)


@given(provider=_part, model=_path)
def test_a_provider_ends_at_the_first_slash(provider: str, model: str) -> None:
    assert plugins.split_model(f"{provider}/{model}") == (provider, model)


@pytest.mark.parametrize("text", ["", "openai", "openai/", "/x", "/", "parts.py:quiet", "parts.py:quiet/"])
def test_a_model_without_both_halves_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="PROVIDER/MODEL"):
        plugins.split_model(text)


def test_a_file_filter_can_be_named_on_the_command_line(parts: Path) -> None:
    override = parse_override(f"filters={{{parts}:quiet: {{marks: 3}}}}")
    assert build([{"recipe": "alpaca"}, override]).filters == {f"{parts}:quiet": {"marks": 3}}
