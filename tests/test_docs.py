"""What the README and the documents say is true of the program: commands, options, names, links, examples."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from selfinstruct import formats, plugins
from selfinstruct.cli import COMMANDS, cli
from selfinstruct.config import build, parse_override
from selfinstruct.errors import SelfInstructError

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted(DOCS.rglob("*.md"))]
EXAMPLE = tomllib.loads((ROOT / "tests" / "example_plugin" / "pyproject.toml").read_text(encoding="utf-8"))

NAMES = {
    "recipe": "recipes",
    "model": "backends",
    "name": "formats",
    "source_format": "formats",
    "target_format": "formats",
}
"""Parameters that take a name, and of what."""

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def blocks(page: Path) -> list[tuple[str, str]]:
    """Return (language, text) of each fenced block."""
    return [(found[1], found[2]) for found in _FENCE.finditer(page.read_text(encoding="utf-8"))]


def prose(page: Path) -> str:
    """Return a page without its fenced blocks."""
    return _FENCE.sub("", page.read_text(encoding="utf-8"))


def spans(page: Path) -> list[str]:
    """Return the pieces of inline code."""
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose(page))]


def commands(line: str) -> Iterator[list[str]]:
    """Yield the words after `selfinstruct` of each of its calls in a shell line."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words: list[str] = []
    for word in [*lexer, ";"]:
        if set(word) <= set("();<>|&"):
            if words[:1] == ["selfinstruct"]:
                yield words[1:]
            words = []
        else:
            words.append(word)


def check(words: list[str], *, mention: bool = False) -> None:
    """Parse a command as the program would, and look up every name in it; a mention may leave arguments out."""
    command: click.Command = cli
    context = cli.make_context("selfinstruct", [], resilient_parsing=True)
    rest = list(words)
    while isinstance(command, click.Group):
        name = rest.pop(0)
        found = command.get_command(context, name)
        assert found is not None, f"there is no command {name!r}"
        if isinstance(found, click.Group):
            context = found.make_context(name, [], parent=context, resilient_parsing=True)
        command = found
    try:
        with command.make_context(command.name, list(rest), parent=context) as made:
            parameters = made.params
    except click.MissingParameter:
        assert mention and not rest, f"selfinstruct {' '.join(words)}: something is missing"
        return
    if "overrides" in parameters:
        build([{"recipe": "alpaca"}, *map(parse_override, parameters["overrides"])], source=" ".join(words))
    for key, kind in NAMES.items():
        value = parameters.get(key)
        if isinstance(value, str) and command.name != "pull":  # its name is a model's
            known(kind, value)


def known(kind: str, value: str) -> None:
    """Check a name: one that ships, one of the example plugin, a file's, or a placeholder in capitals."""
    name = plugins.split_model(value)[0] if kind == "backends" else value
    shipped = formats.names() if kind == "formats" else plugins.names(kind)  # type: ignore[arg-type]
    example = EXAMPLE["project"]["entry-points"][f"selfinstruct.{kind}"]
    placeholder = name.isupper() or name == "auto"
    assert placeholder or ".py:" in name or name in {*shipped, *example}, f"{kind}: there is no {name!r}"


def shell_lines() -> list[tuple[str, list[str]]]:
    found = []
    for page in PAGES:
        for language, text in blocks(page):
            if language == "sh":
                found += [(page.name, words) for line in text.splitlines() for words in commands(line)]
    return found


SHELL = shell_lines()
MENTIONED = [(page.name, shlex.split(s)[1:]) for page in PAGES for s in spans(page) if s.startswith("selfinstruct ")]
OPTIONS = [(page.name, span) for page in PAGES for span in spans(page) if re.match(r"--?[a-z]", span)]


def test_there_is_something_to_check() -> None:
    assert len(SHELL) > 8
    assert len(MENTIONED) > 12
    assert len(OPTIONS) > 10


@pytest.mark.parametrize(("page", "words"), SHELL)
def test_a_command_in_a_block_exists_with_its_options(page: str, words: list[str]) -> None:
    check(words)


@pytest.mark.parametrize(("page", "words"), MENTIONED)
def test_a_command_in_the_text_exists_with_its_options(page: str, words: list[str]) -> None:
    check(words, mention=True)


def every_command(command: click.Command, context: click.Context) -> Iterator[click.Command]:
    yield command
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            yield from every_command(found, context)


@pytest.fixture(scope="module")
def all_commands() -> list[click.Command]:
    return list(every_command(cli, cli.make_context("selfinstruct", [], resilient_parsing=True)))


@pytest.mark.parametrize(("page", "span"), OPTIONS)
def test_an_option_in_the_text_exists(page: str, span: str, all_commands: list[click.Command]) -> None:
    option, *rest = span.split()
    ours = any(option in parameter.opts for command in all_commands for parameter in command.params)
    scripts = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "benchmarks").glob("*.py"))
    assert ours or f'"{option}"' in scripts, span
    if option == "--set" and rest and not rest[0].startswith("key.path="):
        build([{"recipe": "alpaca"}, parse_override(rest[0])], source=span)
    if option == "-m" and rest:
        known("backends", rest[0])


@pytest.mark.parametrize("words", [["rum"], ["run", "alpaca", "--targets", "3"], ["run"], ["list", "recepies"]])
def test_a_wrong_command_would_be_found(words: list[str]) -> None:
    with pytest.raises((AssertionError, click.UsageError)):
        check(words)


@pytest.mark.parametrize("option", ["novelty.treshold=0.6", "stile=list"])
def test_a_wrong_setting_would_be_found(option: str) -> None:
    with pytest.raises(SelfInstructError):
        check(["run", "alpaca", "--set", option])
    with pytest.raises(AssertionError):
        check(["run", "alpacca"])


def test_every_command_shows_an_example_that_works(all_commands: list[click.Command]) -> None:
    for command in all_commands:
        example = (command.epilog or "").removeprefix("Example: ")
        assert example.startswith("selfinstruct "), f"{command.name}: no example"
        for words in commands(example):
            check(words)


# Tables and lists in the README


def codes() -> set[int]:
    found, kinds = {0}, [SelfInstructError]
    while kinds:
        kind = kinds.pop()
        found.add(kind.exit_code)
        kinds += kind.__subclasses__()
    return found


@pytest.mark.parametrize("page", [ROOT / "README.md", DOCS / "cli.md"])
def test_the_exit_codes_are_those_of_the_errors(page: Path) -> None:
    line = re.search(r"Exit codes: ([^.]*)\.", page.read_text(encoding="utf-8"))
    assert line is not None
    assert {int(code) for code in re.findall(r"(?:^|,\s)(\d+)\s", line[1])} == codes()


def test_the_readme_lists_what_list_lists(all_commands: list[click.Command]) -> None:
    kind = next(p for command in all_commands if command.name == "list" for p in command.params if p.name == "kind")
    assert isinstance(kind.type, click.Choice)
    named = re.search(r"`selfinstruct list (\w+)` \(or ([^)]*)\)", prose(ROOT / "README.md"))
    assert named is not None
    assert set(re.findall(r"\w+", " ".join(named.groups()))) == set(kind.type.choices)


def test_the_commands_have_the_summaries_of_the_first_screen() -> None:
    context = cli.make_context("selfinstruct", [], resilient_parsing=True)
    for name, (place, line) in COMMANDS.items():
        command = cli.get_command(context, name)
        assert command is not None, place
        assert line.endswith("."), name


# Pages


def run(*command: object, cwd: Path = ROOT, **more: str) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if key in {"PATH", "HOME", "LANG", "TMPDIR", "SYSTEMROOT"}}
    env = kept | {"PYTHONPATH": str(ROOT), "SELFINSTRUCT_OFFLINE": "1"} | more
    return subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, cwd=cwd, env=env, timeout=240, check=False
    )


def test_the_command_page_is_up_to_date() -> None:
    done = run(sys.executable, DOCS / "generate_cli.py", "--check")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("words", [[], ["run"], ["model", "pull"]])
def test_the_command_page_shows_help_as_it_is_printed(words: list[str]) -> None:
    done = run(sys.executable, "-m", "selfinstruct", *words, "--help", COLUMNS="100")
    assert done.returncode == 0, done.stderr
    printed = "".join(f"{line.rstrip()}\n" for line in done.stdout.splitlines())
    assert f"## {' '.join(['selfinstruct', *words])}\n\n```text\n{printed}```\n" in (DOCS / "cli.md").read_text()


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(page: Path) -> Iterator[tuple[Path, str]]:
    """Yield (file, anchor) of every link that stays in the repository."""
    for target in _LINK.findall(prose(page)):
        if not re.match(r"[a-z]+:", target):
            path, _, anchor = target.partition("#")
            yield (page.parent / path).resolve() if path else page, anchor


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_links_lead_somewhere(page: Path) -> None:
    for path, anchor in links(page):
        assert path.exists(), f"{page.name}: {path} does not exist"
        assert path.is_relative_to(ROOT), f"{page.name}: {path} is outside the repository"
        if anchor:
            assert anchor in anchors(path), f"{page.name}: {path.name} has no heading #{anchor}"


def test_every_page_can_be_reached_from_the_readme() -> None:
    seen: set[Path] = set()
    waiting = [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        page = page / "README.md" if page.is_dir() else page
        if page.suffix == ".md" and page not in seen and page.exists():
            seen.add(page)
            waiting += [path for path, _ in links(page)]
    assert set(DOCS.rglob("*.md")) <= seen, set(DOCS.rglob("*.md")) - seen


def test_the_program_names_only_pages_that_exist() -> None:
    named = {
        (source.name, name)
        for source in (ROOT / "selfinstruct").rglob("*.py")
        for name in re.findall(r"docs/(?:adr/)?[\w-]+\.md", source.read_text(encoding="utf-8"))
        if name != "docs/gguf.md"  # ggml's own page, named as a source
    }
    assert named
    for source, name in named:
        assert (ROOT / name).is_file(), f"{source} names {name}, which does not exist"


def test_the_decisions_are_numbered_and_listed() -> None:
    pages = sorted(path.name for path in (DOCS / "adr").glob("[0-9]*.md"))
    assert [int(name[:4]) for name in pages] == list(range(1, len(pages) + 1))
    listed = re.findall(r"\[([^\]]*)\]\(([^)]*)\)", (DOCS / "adr" / "README.md").read_text(encoding="utf-8"))
    assert [name for _, name in listed] == pages
    for title, name in listed:
        heading = (DOCS / "adr" / name).read_text(encoding="utf-8").partition("\n")[0]
        assert heading == f"# {int(name[:4])}. {title}"


# docs/plugins.md runs


def test_the_package_in_the_text_is_the_example() -> None:
    (text,) = [text for language, text in blocks(DOCS / "plugins.md") if language == "toml"]
    assert tomllib.loads(text)["project"]["entry-points"] == EXAMPLE["project"]["entry-points"]


@pytest.mark.slow
def test_the_examples_of_the_plugin_page_run_as_they_stand(tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, module in {"selfinstruct": "selfinstruct", "pytest": "pytest"}.items():
        tool = tools / name
        tool.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m {module} "$@"\n')
        tool.chmod(0o755)
    here = tmp_path / "here"
    shell, files = [], []
    for language, text in blocks(DOCS / "plugins.md"):
        if language == "sh":
            shell.append(text)
        elif language != "toml":
            said = re.match(r"(?:# |\{# )([\w/.]+)", text)
            assert said is not None, f"a block of {language} does not say its file: {text[:60]}"
            (here / said[1]).parent.mkdir(parents=True, exist_ok=True)
            (here / said[1]).write_text(text, encoding="utf-8")
            files.append(said[1])
    printed = ""
    for lines in shell:
        done = run("sh", "-eu", "-c", lines, cwd=here, PATH=f"{tools}{os.pathsep}{os.environ['PATH']}")
        assert done.returncode == 0, (lines, done.stdout, done.stderr)
        printed += done.stdout
    status = json.loads(run(tools / "selfinstruct", "status", "runs/try", "--json", cwd=here).stdout)
    assert (status["state"], status["accepted"]) == ("done", 5)
    assert status["rejected"]["no_shouting"] > 0
    rows: list[dict[str, Any]] = json.loads((here / "try.json").read_text(encoding="utf-8"))
    assert [set(row) for row in rows] == [{"instruction", "input", "output"}] * 5
    assert re.search(r"in which the number \d+ matters", printed)
    assert "2 passed" in printed
    assert {"shouting.py", "parrot.py", "lines.py", "questions.py", "prompts/en.j2", "test_parts.py"} == set(files)
