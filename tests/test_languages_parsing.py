"""The list format in every language: labels with marks of direction, without spaces, with any digits, are read back."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfinstruct import prompts, resources, seeds
from selfinstruct.instances import parse_instances
from selfinstruct.languages import LanguagePack, load_pack
from selfinstruct.parsing import parse_task_json, parse_tasks, render_tasks
from selfinstruct.plan import plan
from selfinstruct.recipes import alpaca
from selfinstruct.values import Capabilities, Instance, Task

TAGS = [tag for tag in resources.folders("seeds") if resources.find("seeds", f"{tag}/pack.yaml")]
PACKS = {tag: load_pack(tag) for tag in [*TAGS, "qya"]}
MARKS = ["", "\u200e", "\u200f", "\u061c", "\u200b", "\u202b", "\u2067", "\u200d", "\ufeff"]
DIGITS = ["0123456789", "٠١٢٣٤٥٦٧٨٩", "۰۱۲۳۴۵۶۷۸۹", "०१२३४५६७८९", "๐๑๒๓๔๕๖๗๘๙", "０１２３４５６７８９"]


def seed_tasks(tag: str) -> list[Task]:
    path = seeds.path_for(tag if tag != "qya" else "en")
    assert path is not None
    return [Task(" ".join(task.instruction.split()), task.instances[:1]) for task in seeds.load_tasks(path)]


SEEDS = {tag: seed_tasks(tag) for tag in PACKS}


def some_tasks(tag: str) -> st.SearchStrategy[list[Task]]:
    return st.lists(st.sampled_from(SEEDS[tag]), min_size=1, max_size=3)


any_tag = st.sampled_from(list(PACKS))


def read(text: str, pack: LanguagePack) -> list[object]:
    return [candidate.record for candidate in parse_tasks(text, pack, truncated=False, continues=False)]


@given(st.data(), any_tag)
def test_every_spelling_of_every_label_is_read_back(data: st.DataObject, tag: str) -> None:
    pack, tasks = PACKS[tag], data.draw(some_tasks(tag))
    text = render_tasks(tasks, pack)
    for kind in ("instruction", "input", "output"):
        spellings = getattr(pack.labels, kind)
        chosen = data.draw(st.sampled_from(spellings))
        colon = data.draw(st.sampled_from([":", "：", " :", " ："]))
        text = re.sub(rf"(?m)^(\d+\. ){re.escape(spellings[0])}:", rf"\g<1>{chosen}{colon}", text)
    assert read(text, pack) == tasks


@given(st.data(), any_tag)
def test_marks_of_direction_and_missing_spaces_are_no_part_of_a_label(data: st.DataObject, tag: str) -> None:
    """As editors and models of right-to-left scripts put them: before, within and behind what they keep apart."""
    pack, tasks = PACKS[tag], data.draw(some_tasks(tag))
    mark = st.sampled_from(MARKS)
    before, between, behind, after = (data.draw(mark) for _ in range(4))
    space = data.draw(st.sampled_from(["", " ", "\u3000"]))
    labels = "|".join(re.escape(getattr(pack.labels, kind)[0]) for kind in ("instruction", "input", "output"))

    def marked(match: re.Match[str]) -> str:
        return f"{before}{match[1]}.{between}{space}{match[2]}{behind}:{after}"

    assert read(re.sub(rf"(?m)^(\d+)\. ({labels}):", marked, render_tasks(tasks, pack)), pack) == tasks


@given(st.data(), any_tag, st.sampled_from(DIGITS))
def test_the_digits_of_any_script_number_a_list(data: st.DataObject, tag: str, digits: str) -> None:
    pack, tasks = PACKS[tag], data.draw(some_tasks(tag))
    text = render_tasks(tasks, pack, first=data.draw(st.integers(1, 120)))
    written = re.sub(r"(?m)^\d+(?=\. )", lambda m: m[0].translate(str.maketrans("0123456789", digits)), text)
    # A numbered list in an output would be counted in two scripts.
    if not any(line[:1].isdigit() for task in tasks for line in task.instances[0].output.split("\n")):
        assert read(written, pack) == tasks


@given(st.data(), any_tag)
def test_no_input_in_every_spelling_letter_case_and_marks_is_none(data: st.DataObject, tag: str) -> None:
    pack = PACKS[tag]
    spelled = data.draw(st.sampled_from(pack.no_input))
    changes: list[Callable[[str], str]] = [
        str.strip,
        str.upper,
        str.title,
        "({})".format,
        "{}.".format,
        "**{}**".format,
    ]
    change = data.draw(st.sampled_from(changes))
    task = Task("Name a moon of Mars.", (Instance("", "Phobos."),))
    text = render_tasks([task], pack).replace(pack.no_input[0], f"{data.draw(st.sampled_from(MARKS))}{change(spelled)}")
    assert read(text, pack) == [task]


@pytest.mark.parametrize("tag", list(PACKS))
def test_seeds_are_read_back_from_lists_and_from_json(tag: str) -> None:
    pack, tasks = PACKS[tag], SEEDS[tag]
    for at in range(0, len(tasks), 5):
        shown = tasks[at : at + 5]
        assert read(render_tasks(shown, pack), pack) == shown
        assert [found.record for found in parse_task_json(alpaca._as_json(shown), pack, truncated=False)] == shown


@pytest.mark.parametrize("tag", TAGS)
@pytest.mark.parametrize("style", alpaca.RECIPE.styles)
def test_prompts_show_the_packs_own_words(tag: str, style: str) -> None:
    planned = plan([{"recipe": "alpaca", "language": tag, "style": style, "model": "openai/any"}], fetch=False)
    brief = planned.lanes[0].brief
    pack, text = brief.pack, planned.recipe.preview(brief)
    own = brief.prompt.language == tag
    assert own or style == "structured"
    if style == "list":
        assert text.rstrip().endswith(f"4. {pack.labels.instruction[0]}:")
        assert pack.no_input[0] in text
        assert read(text[text.index(f"1. {pack.labels.instruction[0]}:") :], pack)[:3] == [
            Task(" ".join(task.instruction.split()), task.instances[:1]) for task in brief.seeds[:3]
        ]
    elif style == "stepwise":
        assert text.count(f"\n{pack.labels.task[0]}") >= 4
    if own:
        share, letters = pack.script_share(text)
        assert letters > 100
        assert share > 0.75, "the prompt is worded in the language"


def test_a_prompt_that_falls_back_names_the_language() -> None:
    found = prompts.load(("alpaca",), "qya", alpaca.VARIABLES["list"])[""]
    assert found.language == "en"
    planned = plan([{"recipe": "alpaca", "language": "sw", "style": "list", "model": "openai/any"}], fetch=False)
    text = planned.recipe.preview(planned.lanes[0].brief)
    assert "sw" in text
    assert Capabilities() == planned.lanes[0].brief.capabilities


def test_a_hindi_answer_and_the_north_are_no_output() -> None:
    pack = PACKS["hi"]
    towns = "2. निर्देश: दिशाओं के नगर बताइए।\n2. इनपुट:\n1. पूर्व: ?\n2. उत्तर: ?\n2. आउटपुट:\nकोलकाता, श्रीनगर"
    assert read(towns, pack) == [Task("दिशाओं के नगर बताइए।", (Instance("1. पूर्व: ?\n2. उत्तर: ?", "कोलकाता, श्रीनगर"),))]
    sums = "उदाहरण 1\nइनपुट: 12 और 15\nआउटपुट: 12 + 15 = 27\nउत्तर: 27\nउदाहरण 2\nइनपुट: 3 और 4\nआउटपुट: 7"
    assert parse_instances(sums, Task("योग निकालिए।"), pack) == [
        Instance("12 और 15", "12 + 15 = 27\nउत्तर: 27"),
        Instance("3 और 4", "7"),
    ]


def test_a_russian_sum_ends_in_its_answer() -> None:
    pack = PACKS["ru"]
    worked = "12 + 15 = 27\nОтвет: 27"
    sums = f"Пример 1\nВвод: 12 и 15\nВыходные данные: {worked}\nПример 2\nВвод: 3 и 4\nВыходные данные: 7"
    assert parse_instances(sums, Task("Сложи числа."), pack) == [
        Instance("12 и 15", worked),
        Instance("3 и 4", "7"),
    ]
    listed = f"2. Инструкция: Сложи 12 и 15.\n2. Ввод:\n<без входных данных>\n2. Выходные данные:\n{worked}"
    assert read(listed, pack) == [Task("Сложи 12 и 15.", (Instance("", worked),))]
