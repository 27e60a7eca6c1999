"""`selfinstruct language check`: the shipped languages pass, and whatever is taken from one is missed."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from selfinstruct import language_check, parsing, plugins, prompts, resources
from selfinstruct.errors import ConfigError
from selfinstruct.identification import version
from selfinstruct.language_check import Checked
from selfinstruct.languages import LanguagePack, _Loader, load_pack
from selfinstruct.recipes import Rehearsal, alpaca
from selfinstruct.tools import failure
from selfinstruct.values import Candidate, Task
from tests.language_id.evaluate import evaluate

TAGS = [tag for tag in resources.folders("seeds") if resources.find("seeds", f"{tag}/pack.yaml")]
SHIPPED = resources.shipped("seeds")


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty folder of the person's own material."""
    monkeypatch.setenv("SELFINSTRUCT_HOME", str(tmp_path))
    return tmp_path


def copy(own: Path, tag: str, *, as_tag: str = "", tasks: int = 16) -> Path:
    """Copy a language's material into the person's own folder; with few tasks nothing is rehearsed, which is quick."""
    folder = own / "seeds" / (as_tag or tag)
    shutil.copytree(SHIPPED / tag, folder)
    path = folder / "tasks.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join(lines[:tasks]), encoding="utf-8")
    return folder


def pack_of(tag: str) -> dict[str, Any]:
    with (SHIPPED / tag / "pack.yaml").open(encoding="utf-8") as file:
        found: dict[str, Any] = yaml.load(file, Loader=_Loader)
        return found


def write(folder: Path, pack: dict[str, Any]) -> None:
    text = yaml.safe_dump(pack, allow_unicode=True, sort_keys=False)
    (folder / "pack.yaml").write_text(text, encoding="utf-8")


def markers(pack: dict[str, Any], prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the path of everything in a pack that could be missing."""
    for key, value in pack.items():
        if isinstance(value, dict) and key != "region_scripts":
            yield from markers(value, (*prefix, key))
        else:
            yield (*prefix, key)


def without(pack: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    key, *rest = path
    if rest:
        return {**pack, key: without(pack[key], tuple(rest))}
    return {name: value for name, value in pack.items() if name != key}


def run(*words: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "selfinstruct", "language", "check", *words],
        capture_output=True,
        text=True,
        env={**os.environ, "SELFINSTRUCT_OFFLINE": "1", **more},
        timeout=240,
        check=False,
    )


@functools.cache
def shipped(tag: str) -> Checked:
    return language_check.check(tag)


@pytest.mark.parametrize("tag", TAGS)
def test_the_shipped_material_has_no_fault(tag: str) -> None:
    result = shipped(tag)
    assert not result.faults
    assert result.seeds >= 60
    assert result.topics >= 60
    assert result.prompts >= 2
    assert set(result.rehearsed) == {
        f"{name} ({style})" for name in plugins.BUILT_IN["recipes"] for style in plugins.load("recipes", name).styles
    }, "every recipe that ships says how each of its styles is rehearsed"


# What a run in no other language would need, so no reader asks for it.
OPTIONAL = {("region_scripts",)}


@pytest.mark.parametrize("tag", ["en", "zh", "ar"])
def test_whatever_is_taken_out_of_a_pack_is_missed(own: Path, tag: str) -> None:
    pack, folder = pack_of(tag), copy(own, tag, tasks=1)
    paths = [path for path in markers(pack) if path not in OPTIONAL]
    assert len(paths) >= 35
    unmissed = []
    for path in paths:
        write(folder, without(pack, path))
        if not [fault for fault in language_check.check(tag).faults if fault.check == "pack"]:
            unmissed.append(path)
    # Arabic and Chinese are told by their letters: no other pack is written in them.
    assert unmissed == ([] if tag in ("en", "zh") else [("confusions",)])


@pytest.mark.parametrize(
    ("tag", "path", "value", "told"),
    [
        ("ja", ("labels", "output"), ["出力", "入力"], r"labels.output: '入力' is a spelling of labels.input too"),
        ("ja", ("labels", "input"), ["Input", "入力"], r"labels.input: 'Input' is not in Jpan"),
        ("ja", ("labels", "input"), ["入力:"], r"labels.input: '入力:' is not read back"),
        ("de", ("roles", "doctor"), ["Arzt", "Patient"], r"roles.patient: 'Patient' is a spelling of roles.doctor"),
        ("de", ("no",), ["ja"], r"no: 'ja' is a spelling of yes too"),
        ("de", ("class_label",), ["Eingabe"], r"class_label: 'Eingabe' is a spelling of labels.input"),
        ("th", ("no_input",), ["<ไม่มี>", "-"], r"no_input: '-' is not read back as no input"),
        ("th", ("refusals", "match"), "word", r"refusals: match: word never finds .*use match: substring"),
        ("ru", ("first_words",), ["Explain", "List"], r"first_words: 'Explain List' is not in Cyrl"),
        ("ru", ("self_reference", "phrases"), [], r"self_reference: no phrase"),
        ("ru", ("blocked", "words"), ["предложения"], r"ru-\d+: the filter blocked_words rejects it: blocked_word"),
        ("ru", ("scripts",), ["Latn"], r"the filter language_script rejects it"),
        ("zh", ("scripts",), ["Hant"], r"the filter script_variant rejects it: other_variant"),
        ("es", ("instruction_length", "max"), 12, r"the filter instruction_length rejects it: too_long"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_a_pack_is_named(own: Path, tag: str, path: tuple[str, ...], value: Any, told: str) -> None:
    pack = pack_of(tag)
    inner = pack
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    write(copy(own, tag, tasks=7), pack)
    faults = [f"{fault.where}: {fault.detail}" for fault in language_check.check(tag).faults]
    assert [line for line in faults if re.search(told, line)], faults[:5]


@pytest.mark.parametrize(
    ("name", "change", "check", "told"),
    [
        ("tasks.jsonl", lambda text: "", "seeds", "holds no task"),
        ("tasks.jsonl", lambda text: "\n".join(text.split("\n")[:5]), "seeds", "5 seed tasks; prompts show up to 8"),
        ("tasks.jsonl", lambda text: text.replace('"output": "', '"output": "5. Salida: ', 1), "seeds", "rejects it"),
        ("tasks.jsonl", lambda text: text.replace('"instances"', '"instance"', 1), "seeds", "tasks.jsonl:1"),
        ("tasks.jsonl", None, "seeds", "there are no seed tasks"),
        ("topics.jsonl", lambda text: text + text, "topics", "is there twice"),
        ("topics.jsonl", lambda text: text.replace('"topic"', '"topics"', 1), "topics", "'topic' must be"),
        ("topics.jsonl", None, "topics", "there are no topics"),
        ("medical.jsonl", lambda text: text + text, "topics", "is there twice"),
    ],
)
def test_faulty_seeds_and_topics_are_named(
    own: Path, monkeypatch: pytest.MonkeyPatch, name: str, change: Any, check: str, told: str
) -> None:
    path = copy(own, "es", tasks=7) / name
    if change is None:
        path.unlink()
        found = resources.find
        monkeypatch.setattr(
            resources,
            "find",
            lambda kind, name: f if ((f := found(kind, name)) and own in f.parents) or kind == "prompts" else None,
        )
    else:
        path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")
    faults = [fault for fault in language_check.check("es").faults if fault.check == check]
    assert any(told in fault.detail for fault in faults), faults


@pytest.mark.parametrize("style", alpaca.RECIPE.styles)
def test_a_variable_missing_from_a_prompt_is_named(own: Path, style: str) -> None:
    ((part, variables),) = alpaca.VARIABLES[style].items()
    name = f"zh.{part}.j2" if part else "zh.j2"
    source = (resources.shipped("prompts") / "alpaca" / name).read_text(encoding="utf-8")
    used = prompts.variables_of(prompts.Prompt(Path(name), "zh", source)) - {"language"}
    copy(own, "zh", tasks=1)
    path = own / "prompts" / "alpaca" / name
    path.parent.mkdir(parents=True)
    assert len(used) >= 2
    for variable in used:
        path.write_text(source.replace(variable, '"..."'), encoding="utf-8")
        faults = [fault for fault in language_check.check("zh").faults if fault.check == "prompts"]
        assert any(f"does not use {variable}" in fault.detail or str(path) in fault.where for fault in faults), variable
    path.write_text(source + "{{ labels.", encoding="utf-8")
    assert any(fault.check == "prompts" for fault in language_check.check("zh").faults)
    assert variables >= used


def rehearse_only(monkeypatch: pytest.MonkeyPatch, *recipes: str, **more: str) -> None:
    """Leave these recipes and no others, which is quick."""
    built_in = {name: plugins.BUILT_IN["recipes"][name] for name in recipes} | more
    monkeypatch.setattr(plugins, "BUILT_IN", {**plugins.BUILT_IN, "recipes": built_in})


def test_a_recipe_that_loses_records_fails_its_rehearsal(monkeypatch: pytest.MonkeyPatch) -> None:
    rehearse_only(monkeypatch, "alpaca", "belle", "self-instruct")

    def parse(*arguments: Any, **more: Any) -> list[Candidate]:
        return real(*arguments, **more)[:-1]

    real = parsing.parse_tasks
    monkeypatch.setattr(alpaca, "parse_tasks", parse)
    faults = language_check.check("th").faults
    assert {fault.where for fault in faults} == {"alpaca (list)", "belle (list)"}
    assert all(fault.check == "rehearsal" for fault in faults)
    assert all(re.search(r"record \d came back as|\d of 8 records came back", fault.detail) for fault in faults), faults


def test_a_recipe_that_stops_fails_its_rehearsal_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    rehearse_only(monkeypatch, "alpaca", "belle", "self-instruct")
    monkeypatch.setattr(alpaca, "parse_task_json", lambda *arguments, **more: [])
    faults = language_check.check("id").faults
    assert {fault.where for fault in faults} == {"alpaca (structured)", "belle (structured)"}
    assert all("saturated" in fault.detail for fault in faults)


def test_a_tool_that_does_not_answer_fails_the_rehearsal_of_the_recipe_that_calls_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rehearse_only(monkeypatch, "moss", "vicuna")
    monkeypatch.setattr("selfinstruct.tools.search.found", lambda snippets: failure("no hits"))
    faults = language_check.check("ru").faults
    assert {fault.where for fault in faults} == {"moss (text)", "moss (native)"}
    assert all("rejected by tool_failed (no hits)" in fault.detail for fault in faults), faults


def rehearse_answers(pack: LanguagePack, style: str, tasks: Sequence[Task]) -> Rehearsal:
    """Alpaca working through an input: each instruction is answered with its own output."""
    outputs = {"\n\n".join(filter(None, (t.instruction, t.instances[0].input))): t.instances[0].output for t in tasks}
    rows = [{"instruction": t.instruction, **asdict(t.instances[0]), "output": "?"} for t in tasks]
    lines = "".join(f"{json.dumps(row)}\n" for row in rows)
    expected = tuple(Task(task.instruction, task.instances[:1]) for task in tasks)
    return Rehearsal(lambda request: outputs[request.messages[-1].content], expected, input=lines)


ANSWERS = replace(alpaca.RECIPE, name="answers", styles=("list",), rehearse=rehearse_answers)


def test_a_recipe_rehearses_over_an_input_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    rehearse_only(monkeypatch, answers=f"{__name__}:ANSWERS")
    result = language_check.check("ko")
    assert result.rehearsed == ("answers (list)",)
    assert not result.faults


def test_material_of_ones_own_is_found_and_checked(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rehearse_only(monkeypatch, "alpaca")
    folder = copy(own, "es", as_tag="gl")
    assert "gl" in language_check.tags()
    assert not language_check.check("gl").faults
    (folder / "pack.yaml").write_text("name: galego\n", encoding="utf-8")
    (fault,) = language_check.check("gl").faults
    assert fault.check == "pack"
    assert "this key is missing" in fault.detail
    # A faulty neighbour does not disturb the check of a sound pack.
    assert not language_check.check("id").faults


def test_an_unknown_tag_is_refused_with_the_closest() -> None:
    with pytest.raises(ConfigError, match=r"no language pack 'zh-Hnat' .*did you mean 'zh-Hant'"):
        language_check.check("zh-Hnat")


@pytest.mark.slow
def test_the_command_says_it_in_its_exit_code(own: Path) -> None:
    good = run("th", "--json")
    assert good.returncode == 0, good.stderr
    (result,) = json.loads(good.stdout)
    assert (result["tag"], result["faults"], result["seeds"]) == ("th", [], 60)
    pack = pack_of("th")
    del pack["no_input"]
    write(copy(own, "th"), pack)
    bad = run("th")
    assert bad.returncode == 1
    assert "no_input: this key is missing" in bad.stdout
    unknown = run("xx")
    assert unknown.returncode == 2
    assert "there is no language pack 'xx'" in unknown.stderr
    for words in ([], ["th", "--all"]):
        assert run(*words).returncode == 2


@pytest.mark.slow
@pytest.mark.skipif(version(load_pack("es")) == "none", reason="needs the extra lang")
def test_the_page_of_languages_is_up_to_date() -> None:
    path = Path(__file__).parents[1] / "docs" / "generate_languages.py"
    specification = importlib.util.spec_from_file_location("generate_languages", path)
    assert specification is not None
    assert specification.loader is not None
    generator = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(generator)
    scores = {tag: evaluate(tag) for tag in TAGS}
    by_script = {tag: evaluate(tag, names=generator.SCRIPT_ONLY) for tag in TAGS}
    text = generator.page({tag: shipped(tag) for tag in TAGS}, scores, by_script)
    assert generator.PAGE.read_text(encoding="utf-8") == text, "run python docs/generate_languages.py"
