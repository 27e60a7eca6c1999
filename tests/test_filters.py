"""The heuristic filters: each both ways, in English and Chinese, and their law over the shipped seeds."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfinstruct import resources
from selfinstruct.errors import ConfigError
from selfinstruct.filters import DEFAULT_FILTERS, FILTERS, Filter, build_filters, spec_of
from selfinstruct.languages import LanguagePack, load_pack
from selfinstruct.values import Candidate, Comparison, Instance, Rejection, Response, Task

EN = load_pack("en")
ZH = load_pack("zh")
SEEDED = [tag for tag in resources.folders("seeds") if resources.find("seeds", f"{tag}/tasks.jsonl")]


def one(name: str, tag: str = "en", **parameters: object) -> Filter:
    ((built, check),) = build_filters([(name, parameters)], load_pack(tag))
    assert built == name
    return check


def task(instruction: str = "Name two moons of Jupiter.", given: str = "", output: str = "Io and Europa.") -> Task:
    return Task(instruction, (Instance(given, output),))


def judge(name: str, record: Task, tag: str = "en", **parameters: object) -> Rejection | None:
    return one(name, tag, **parameters)(Candidate(record))


def rejects(name: str, record: Task, reason: str, tag: str = "en", **parameters: object) -> Rejection:
    rejection = judge(name, record, tag, **parameters)
    assert rejection is not None, f"{name} let pass: {record}"
    assert (rejection.filter, rejection.reason) == (name, reason)
    return rejection


def passes(name: str, record: Task, tag: str = "en", **parameters: object) -> None:
    assert judge(name, record, tag, **parameters) is None


@pytest.mark.parametrize("tag", SEEDED)
def test_no_default_filter_rejects_a_shipped_seed(tag: str) -> None:
    path = resources.shipped("seeds") / tag / "tasks.jsonl"
    pack = load_pack(tag)
    if not pack.shipped:
        pytest.skip(f"seeds/{tag} has no pack.yaml yet")
    wanted = dict.fromkeys(name for names in DEFAULT_FILTERS.values() for name in names)
    filters = build_filters(wanted, pack)
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    assert rows
    rejected = []
    for row in rows:
        seed = Task(row["instruction"], tuple(Instance(**case) for case in row["instances"]), id=row["id"])
        rejected += [(seed.id, found) for _, check in filters if (found := check(Candidate(seed)))]
    assert not rejected


@pytest.mark.parametrize(
    ("name", "record"),
    [
        # Too short for the originals ("more than 3 words"), and too long.
        ("instruction_length", task("Explain gravity please.")),
        ("instruction_length", task("word " * 151)),
        ("blocked_words", task("Describe what you see in the Picture below.")),
        ("blocked_words", task("Say how I should go\nto the market.")),
        ("blocked_opening", task("write a program that sorts numbers.")),
        ("leading_punctuation", task("- Name two moons of Jupiter.")),
        ("leading_punctuation", task(", and then name two moons.")),
        ("leading_punctuation", task("> Name two moons of Jupiter.")),
        ("leading_punctuation", task("• Name two moons of Jupiter.")),
        ("leading_non_ascii", task("Élaborate on the moons of Jupiter.")),
        ("empty_output", task(output="  \n")),
        ("empty_output", task(output="N/A.")),
        ("leak", task(output="Io and Europa.\n###\nName a moon of Mars.")),
        ("leak", task(output="Io.\n5. Instruction: Name a moon of Mars.")),
        ("leak", task(output="Io.\n\nInstruction: Name a moon of Mars.\nInput: none")),
        ("leak", task(output="Io. Task done. 5. Instruction: Name a moon.")),
        ("leak", task(output="Output: Io and Europa.")),
        ("leak", task(output="Io.\n4. Input: <none>\n4. Output: x")),
        ("leak", task(output="Io and Europa.\n5. Input: the next one")),
        ("leak", task(given="See <NoInput> here")),
        ("leak", task("Task 7: Name two moons of Jupiter.")),
        ("leak", task(output="Io and Europa.\n\nTask 8: Name a moon of Mars.")),
        ("leak", task(output="Io and Europa.<|im_end|>")),
        ("output_equals_input", task(given="The cat  sat.", output="The cat sat.\n")),
        ("output_repeats_instruction", task(output="Name two moons of Jupiter")),
        ("output_repeats_instruction", task("Please name me two large moons.", "", "Name me two large moons.")),
        ("ends_with_colon", task(output="The moons are:")),
        ("ends_with_colon", task(given="Moons: ")),
        ("refusal", task(output="I’m sorry, but I can’t answer that.")),
        ("refusal", task(output="\"I cannot assist with this.\"")),
        ("self_reference", task(output="Well, as an AI language model I know two: Io and Europa.")),
        ("self_reference", task(output="As an AI, I have no favourites.")),
        ("repetition", task(output="The moon is round and the moon is bright. " * 6)),
        ("repetition", task(output="Io.\n" + "Europa.\n" * 5)),
        ("repetition", task(output="Io is 1" + "0" * 60 + " km away.")),
        ("needs_context", task("Summarize the given article in two sentences.")),
        ("needs_context", task("What is the main idea of this passage?")),
        ("language_script", task("Назови два спутника Юпитера.")),
        ("language_script", task(output="Ио и Европа - два спутника Юпитера.")),
        ("control_characters", task(output="Io and\x07 Europa.")),
        ("control_characters", task(given="Europ\ufffd")),
        ("no_tokens", task("?!")),
    ],
)  # fmt: skip
def test_rejected_in_english(name: str, record: Task) -> None:
    rejection = judge(name, record)
    assert rejection is not None
    assert rejection.filter == name


PLAN = "Task 1: pack the books.\nTask 2: rent a van.\nTask 3: clean the rooms."
CASES = "def square(n):\n    return n * n\n\nInput: 3\nOutput: 9"
MACHINE = "1. Input: the keyboard sends a code.\n2. Processing: it is looked up.\n3. Output: a letter appears."
SONG = "Row, row, row your boat, gently down the stream. Merrily, merrily, merrily, merrily, life is but a dream."
RECIPE = "Ingredients:\n- two eggs\n\nInstructions:\n1. Beat the eggs."


@pytest.mark.parametrize(
    ("name", "record"),
    [
        ("instruction_length", task("Explain gravity to children.")),
        ("instruction_length", task("word " * 150)),
        ("blocked_words", task("Explain mapping and drawing to me.", "an image of a map", "A picture.")),
        ("blocked_opening", task("Explain how to write a program.")),
        ("leading_punctuation", task('"Still waters run deep." Explain it.')),
        ("leading_punctuation", task("“Still waters run deep.” Explain it.")),
        ("leading_punctuation", task("(a) or (b): which is right?")),
        ("leading_punctuation", task("¿Qué significa esta frase?")),
        ("leading_punctuation", task("$20 buys how many apples?")),
        ("leading_punctuation", task("√16 is which number?")),
        ("leading_punctuation", task("`len` returns what in Python?")),
        ("leading_non_ascii", task("Elaborate on the café.")),
        ("empty_output", Task("Name two moons of Jupiter.")),
        ("empty_output", task(output="7")),
        ("empty_output", task(output="🎉")),
        ("empty_output", task(output="None of them.")),
        ("leak", task(output=CASES)),
        ("leak", task(output=PLAN)),
        ("leak", task(output=MACHINE)),
        ("leak", task(output=RECIPE)),
        ("leak", task(output="### Moons\nIo and Europa.\n\n---\n\nType into the Input: field.")),
        ("leak", task(given="Input: 3\nOutput: 9")),
        ("output_equals_input", task(given="The cat sat.", output="The cat sat down.")),
        ("output_equals_input", task("Put in capitals and full stops.", "the cat sat", "The cat sat.")),
        ("output_equals_input", task(given="", output="")),
        ("output_repeats_instruction", task("What is the product of 9 and 5?", "", "The product of 9 and 5 is 45.")),
        ("output_repeats_instruction", task("Which is larger, a whale or a mouse?", "", "A whale.")),
        ("output_repeats_instruction", task("Sort: pear fig kiwi plum date lime", "", "date fig kiwi lime pear plum")),
        ("ends_with_colon", task(output="The moons: Io and Europa.")),
        ("refusal", task(output="Sorry is what one says after an accident.")),
        ("refusal", task(output="Clerk: I'm sorry, but I can't find your order.")),
        ("self_reference", task("Explain what an AI language model is.", "", "An AI language model predicts text.")),
        ("self_reference", task(output="As an AI researcher she built robots.")),
        ("repetition", task(output="no no no no no")),
        ("repetition", task(output="| Moon | Size |\n|---|---|\n| Io | 3643 |\n| Europa | 3122 |\n" + "-" * 80)),
        ("repetition", task(output=SONG)),
        ("needs_context", task("Summarize the given article in two sentences.", "Bees matter.", "They do.")),
        ("needs_context", task("Sort the following words: pear, fig, kiwi.")),
        ("needs_context", task("Explain the importance of the following term - tide.")),
        ("needs_context", task("Answer the following question. Who wrote Faust?")),
        ("needs_context", task("Explain how a letter is posted.")),
        ("language_script", task("Translate this word into Russian.", "moon", "луна, спутник планеты")),
        ("language_script", task("Explain this word.", "спутник", "спутник, это луна планеты")),
        ("language_script", task(output="7 + 5 = 12 → ✓")),
        ("language_script", task(output="Sí, la luna está en el cielo.")),
        ("control_characters", task(output="Io\tand\nEuropa 👩‍🚀 نیم‌فاصله")),
        ("no_tokens", task("7?")),
    ],
)  # fmt: skip
def test_passes_in_english(name: str, record: Task) -> None:
    passes(name, record)


@pytest.mark.parametrize(
    ("name", "record"),
    [
        ("instruction_length", task("友谊。")),
        ("instruction_length", task("写" * 301)),
        ("blocked_words", task("请描述这张图片的内容。")),
        ("blocked_words", task("打开下面的链接并总结。")),
        ("blocked_opening", task("编写一个程序，计算两数之和。")),
        ("leading_punctuation", task("。写一首关于春天的诗。")),
        ("leading_punctuation", task("、写一首关于春天的诗。")),
        ("leading_punctuation", task("——写一首关于春天的诗。")),
        ("leading_non_ascii", task("写一首关于春天的诗。")),
        ("empty_output", task("写一首关于春天的诗。", "", "无输出。")),
        ("leak", task("写一首关于春天的诗。", "", "春眠不觉晓。\n5. 指令：写一首关于夏天的诗。")),
        ("leak", task("写一首关于春天的诗。", "", "春眠不觉晓。\n###\n")),
        ("leak", task("写一首关于春天的诗。", "", "输出：春眠不觉晓。")),
        ("leak", task("写一首关于春天的诗。", "<无输入>", "春眠不觉晓。")),
        ("leak", task("输入：顾客：你好，我要一份面。", "", "好的，请稍等。")),
        ("output_equals_input", task("改正病句。", "我很高兴。", "我很高兴。")),
        ("output_repeats_instruction", task("请写一首关于春天的诗。", "", "写一首关于春天的诗。")),
        ("ends_with_colon", task("写一首关于春天的诗。", "", "诗如下：")),
        ("refusal", task("找到今天的天气。", "", "很抱歉，我无法查询今天的天气。")),
        ("self_reference", task("写一次难忘的经历。", "", "作为一个人工智能助手，我没有经历。")),
        ("repetition", task("写一首关于春天的诗。", "", "春天来了花开了，" * 8)),
        ("repetition", task("写一首关于春天的诗。", "", "春" * 50)),
        ("needs_context", task("总结以下新闻文章。")),
        ("needs_context", task("这段话的中心思想是什么？")),
        ("language_script", task("Write a poem about spring.")),
        ("language_script", task("列出四张披头士专辑。", "", "Here is a list of four albums by the band.")),
        ("control_characters", task("写一首关于春天的诗。", "", "春眠\u0000不觉晓。")),
        ("no_tokens", task("？！……")),
    ],
)
def test_rejected_in_chinese(name: str, record: Task) -> None:
    rejection = judge(name, record, "zh")
    assert rejection is not None
    assert rejection.filter == name


LAW = (
    "饮酒后驾驶机动车的，处暂扣六个月机动车驾驶证，并处罚款。"
    "醉酒驾驶机动车的，吊销机动车驾驶证，依法追究刑事责任，五年内不得重新取得机动车驾驶证。"
    "醉酒驾驶营运机动车的，吊销机动车驾驶证，依法追究刑事责任，十年内不得重新取得机动车驾驶证。"
)


@pytest.mark.parametrize(
    ("name", "record"),
    [
        # Each of these fell to a rule of the English originals or to BELLE's.
        ("instruction_length", task("解释光合作用。")),
        ("blocked_words", task("写一段对话。", "一张图片", "照片在链接里，见图表。")),
        ("blocked_opening", task("说明怎样编写一个程序。")),
        ("leading_punctuation", task("“亡羊补牢”是什么意思？")),
        ("leading_punctuation", task("《静夜思》的作者是谁？")),
        ("leading_punctuation", task("△ABC的内角和是多少？")),
        ("empty_output", task("判断对错。", "", "无")),
        ("leak", task("写一个求平方的函数。", "", "def f(n):\n    return n * n\n\n输入：3\n输出：9")),
        ("leak", task("解释表格。", "", "左边写“输入：”，右边写“输出：”，标题是指令。")),
        ("output_equals_input", task("加上标点。", "我很高兴你呢", "我很高兴，你呢？")),
        ("output_repeats_instruction", task("20和45的最大公因数是多少？", "", "20和45的最大公因数是5。")),
        ("ends_with_colon", task("写一首关于春天的诗。", "", "春：万物生。")),
        ("refusal", task("写一条道歉短信。", "", "对不起，我昨天没有按时到，让你久等了。")),
        ("self_reference", task("什么是语言模型？", "", "语言模型是预测文字的程序。")),
        ("repetition", task("列出酒驾的处罚。", "", LAW)),
        ("needs_context", task("总结以下新闻文章。", "今天下雨。", "下雨了。")),
        ("needs_context", task("把下面的词排序：山、人、木。")),
        ("language_script", task("把这句话翻译成英文。", "我很高兴。", "I am very happy today.")),
        ("language_script", task("写一段代码，打印十个数。", "", "for i in range(10):\n    print(i)")),
        ("language_script", task("用SQL查出所有学生。", "", "SELECT name FROM student WHERE id > 0;")),
        ("language_script", task("NBA是什么的缩写？", "", "National Basketball Association")),
        ("no_tokens", task("解释光合作用。")),
    ],
)  # fmt: skip
def test_passes_in_chinese(name: str, record: Task) -> None:
    passes(name, record, "zh")


def test_measured_values() -> None:
    assert rejects("instruction_length", task("友谊。"), "too_short", "zh").measured == {
        "length": 2,
        "minimum": 4,
        "maximum": 300,
        "unit": "characters",
    }
    assert rejects("blocked_words", task("Describe the Picture here."), "blocked_word").measured == {
        "phrase": "picture"
    }
    found = rejects("repetition", task(output="a b c d " * 10), "repeated_grams").measured
    assert found["share"] == round(1 - 4 / 38, 4)
    assert rejects("leak", task(given="x\n###"), "leak").measured == {"field": "input", "mark": "###"}
    assert rejects("control_characters", task(output="\x07"), "control_character").measured["character"] == "U+0007"


def test_parameters_change_the_verdict() -> None:
    passes("instruction_length", task("Explain gravity."), minimum=2)
    rejects("instruction_length", task("Explain gravity to small children."), "too_long", maximum=4)
    rejects("blocked_words", task("Say something about football."), "blocked_word", words=["football"])
    passes("blocked_words", task("Describe the picture here."), words=["football"])
    passes("ends_with_colon", task(output="The moons are:"), output=False)
    rejects("needs_context", task("Help with my budget this month."), "needs_context", extra=["my"])
    passes("needs_context", task("Help with my budget this month."))
    rejects("leak", task(output="Come up with a series of different tasks"), "leak", marks=["Come up with a series"])
    passes("repetition", task(output="a b c d " * 10), maximum=0.95)
    rejects("language_script", task("用Go写程序吧"), "other_script", minimum=0.9, minimum_letters=3)


def test_truncated_and_low_logprob_look_at_the_candidate() -> None:
    check = one("truncated")
    assert check(Candidate(task(), truncated=False)) is None
    assert check(Candidate(task(), truncated=True)) == Rejection("truncated", "truncated")
    unsure = one("low_logprob", minimum=-1.75)
    assert unsure(Candidate(task(), logprob=-1.75)) is None
    assert unsure(Candidate(task(), logprob=None)) is None
    found = unsure(Candidate(task(), logprob=-1.76))
    assert found is not None
    assert found.measured == {"logprob": -1.76, "minimum": -1.75}
    assert one("low_logprob")(Candidate(task(), logprob=-99.0)) is None


def test_copied_demonstration() -> None:
    long = "The Ebro, the Tagus, the Douro, the Guadiana and the Guadalquivir."
    shown = (Task("Name the five longest rivers of Spain.", (Instance("", long),), id="seed-7"),)
    check = one("copied_demonstration")

    def found(record: Task) -> Mapping[str, float | str] | None:
        rejection = check(Candidate(record, demonstrations=shown))
        return None if rejection is None else rejection.measured

    assert found(task("name the five longest RIVERS of Spain")) == {"field": "instruction", "demonstration": "seed-7"}
    assert found(task("List rivers in Iberia.", "", long)) == {"field": "output", "demonstration": "seed-7"}
    assert found(task("Name the five longest rivers of France.")) is None
    # Short outputs, such as labels, agree by chance.
    shown = (Task("Is this review good or bad?", (Instance("Nice.", "Good"),)),)
    assert found(task("Is the weather good or bad?", "Sun.", "Good")) is None
    zh = one("copied_demonstration", "zh")
    shown = (Task("写一首关于春天的诗。", (Instance("", "春眠不觉晓，处处闻啼鸟。"),)),)
    assert zh(Candidate(task("写一首关于春天的诗"), demonstrations=shown)) is not None
    assert zh(Candidate(task("写一首关于夏天的诗"), demonstrations=shown)) is None


@pytest.mark.parametrize("name", sorted(FILTERS))
def test_what_can_t_be_judged_gets_no_opinion(name: str) -> None:
    compared = Comparison("", (Response("I'm sorry, but I can't\x07:"), Response("")))
    assert one(name)(Candidate(compared, truncated=True, logprob=-99.0)) is None
    assert one(name)(Candidate(None, rejection=Rejection("parse", "no_output"))) is None


@given(
    st.text(max_size=80),
    st.text(max_size=80),
    st.text(max_size=300),
    st.sampled_from(["en", "zh", "qya"]),
    st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_filters_never_raise_and_judge_alike_twice(
    instruction: str, given_text: str, output: str, tag: str, instances: bool
) -> None:
    cases = (Instance(given_text, output), Instance("", given_text)) if instances else ()
    candidate = Candidate(Task(instruction, cases), demonstrations=(Task(given_text, (Instance("", output),)),))
    for name, check in build_filters(FILTERS, load_pack(tag)):
        rejection = check(candidate)
        assert rejection == check(candidate)
        if rejection is not None:
            assert rejection.filter == name
            assert json.dumps(dict(rejection.measured)) is not None


def test_registry_tells_everything_a_table_needs() -> None:
    for name, spec in FILTERS.items():
        assert spec.name == name
        assert spec.source
        assert spec.summary.endswith(".")
        signature = inspect.signature(spec.factory)
        assert list(spec.parameters) == list(signature.parameters)[1:]
    assert set().union(*DEFAULT_FILTERS.values()) <= set(FILTERS)
    # The originals' ASCII-first rule is offered, and never on by itself.
    assert "leading_non_ascii" in FILTERS
    assert all("leading_non_ascii" not in names for names in DEFAULT_FILTERS.values())
    assert set(DEFAULT_FILTERS["list"]) < set(DEFAULT_FILTERS["stepwise"])


def test_a_task_without_instances_meets_every_filter_on_its_instruction_first() -> None:
    for style in ("list", "stepwise"):
        names = DEFAULT_FILTERS[style]
        first = names.index("empty_output")
        assert {"blocked_words", "leak", "copied_demonstration", "language_script"} <= set(names[:first])
    assert DEFAULT_FILTERS["stepwise"].index("needs_context") < DEFAULT_FILTERS["stepwise"].index("empty_output")


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        (["instruction_lenght"], "no filter named 'instruction_lenght': did you mean 'instruction_length'"),
        (["zzz"], "known: "),
        ([("repetition", {"maximun": 0.5})], "no parameter 'maximun': did you mean 'maximum'"),
        ([("no_tokens", {"maximum": 1})], "no parameter 'maximum': it has no parameters"),
        ([("repetition", {"maximum": "half"})], "maximum: expected a number, found 'half'"),
        ([("instruction_length", {"minimum": 2.5})], "minimum: expected a whole number or null, found 2.5"),
        ([("instruction_length", {"minimum": True})], "minimum: expected a whole number or null, found True"),
        ([("ends_with_colon", {"output": "no"})], "output: expected true or false, found 'no'"),
        ([("blocked_words", {"words": "football"})], "words: expected a list of texts or null, found 'football'"),
        ([("blocked_words", {"words": [1]})], "words: expected a list of texts or null"),
    ],
)
def test_a_wrong_name_or_value_is_refused(wanted: list[str | tuple[str, dict[str, object]]], told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_filters(wanted, EN)
    assert told in str(caught.value)


def test_a_filter_of_ones_own_is_built_like_the_others() -> None:
    def no_questions(pack: LanguagePack, *, marks: int = 1) -> Filter:
        """Reject questions."""

        def check(candidate: Candidate) -> Rejection | None:
            record = candidate.record
            asked = isinstance(record, Task) and record.instruction.endswith(pack.question_ends)
            return Rejection("no_questions", "question", {"marks": marks}) if asked else None

        return check

    known = {**FILTERS, "no_questions": spec_of("no_questions", no_questions, "test")}
    ((name, check),) = build_filters([("no_questions", {"marks": 2})], ZH, known)
    assert name == "no_questions"
    assert known["no_questions"].summary == "Reject questions."
    assert known["no_questions"].parameters == {"marks": 1}
    assert check(Candidate(task("为什么？"))) == Rejection("no_questions", "question", {"marks": 2})
    with pytest.raises(ConfigError, match="marks: expected a whole number"):
        build_filters([("no_questions", {"marks": "two"})], ZH, known)


def test_the_research_data_is_mostly_accepted() -> None:
    path = Path(__file__).parents[2] / "shared" / "data" / "stanford_seed_tasks.jsonl"
    if not path.is_file():
        pytest.skip("the originals' seed tasks are not here")
    filters = build_filters(DEFAULT_FILTERS["list"], EN)
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    kept = 0
    for row in rows:
        seed = Task(row["instruction"], tuple(Instance(**case) for case in row["instances"]))
        kept += all(check(Candidate(seed)) is None for _, check in filters)
    assert kept >= 0.95 * len(rows)


@pytest.mark.parametrize(("tag", "label"), [("en", "Not applicable"), ("zh", "不适用"), ("ja", "該当なし")])
def test_that_there_is_none_is_an_answer_where_the_task_offers_it(tag: str, label: str) -> None:
    rejects("empty_output", task("Name two moons of Jupiter.", "", label), "says_none", tag)
    assert (
        judge("empty_output", task(f"Choose: open, closed, {label}.", "the case was never filed", label), tag) is None
    )
    assert judge("empty_output", task("Choose one of the classes.", f"open / closed / {label}", label), tag) is None
