"""ChatDoctor: rows of knowledge or topics become consultations that ask first and name only what the row holds."""

from __future__ import annotations

import csv
import json
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfinstruct import resources, seeds
from selfinstruct.errors import ConfigError, InputError, Stopped
from selfinstruct.filters.dialogues import advises_first, questions, ungrounded
from selfinstruct.languages import load_pack
from selfinstruct.plan import plan
from selfinstruct.recipes.chatdoctor import facts_of, read_knowledge, read_names
from selfinstruct.store import RunView
from selfinstruct.testing import Scripted
from selfinstruct.values import Candidate, Dialogue, Instance, Message, Task
from tests.backends.endpoint import Endpoint
from tests.program import kill, run_options, selfinstruct
from tests.recipes.runs import Dataset, Speak, grow, judged_again, rebuilt, rejected, scripted, served, written
from tests.recipes.talk import model, work

EN = load_pack("en")


# --- questions and filters


@pytest.mark.parametrize(
    ("tag", "text", "count"),
    [
        ("en", "I see. Since when? And does it hurt at night?", 2),
        ("en", "What?! Really??", 2),
        ("en", "Take one tablet. Rest.", 0),
        ("zh", "明白了。这种情况多久了？晚上会疼吗？", 2),
        ("zh", "有没有发烧呢。最近吃过什么药吗", 2),
        ("zh", "不要自行使用吗啡。羊毛呢大衣也会引起过敏。", 0),
        ("ja", "それはつらいですね。熱はありますか。食欲はどうですか？", 2),
        ("ja", "確かに、なにか飲むとよいでしょう。", 0),
        ("th", "เข้าใจแล้วค่ะ มีไข้ไหมคะ ปวดตอนกลางคืนหรือเปล่าครับ", 2),
        ("th", "พักผ่อนให้เพียงพอนะครับ", 0),
        ("ar", "منذ متى؟ وهل تتناول أدوية؟", 2),
        ("ko", "그러니까 쉬셔야 합니다. 언제부터 아프셨나요?", 1),
        ("sw", "Tangu lini? Je, una homa?", 2),
    ],
)
def test_questions_are_told_by_the_packs_own_marks(tag: str, text: str, count: int) -> None:
    assert questions(text, load_pack(tag)) == count


def consultation(*replies: str) -> Candidate:
    turns = [(Message("user", f"It hurts here, number {at}."), Message("assistant", r)) for at, r in enumerate(replies)]
    return Candidate(Dialogue(tuple(message for turn in turns for message in turn)))


@pytest.mark.parametrize(
    ("replies", "minimum", "asked"),
    [
        (["Since when?", "Rest."], 1, None),
        (["Since when?", "Where?", "Rest."], 2, None),
        (["Take aspirin.", "Since when?", "Rest."], 1, 1),
        (["Since when?", "Rest."], 2, 1),
        (["Take aspirin. Anything else?"], 1, 0),
        (["Rest.", "Does it still hurt?"], 1, 0),
        (["Rest."], 0, None),
        ([], 1, None),
    ],
)
def test_a_doctor_who_advises_first_is_rejected(replies: list[str], minimum: int, asked: int | None) -> None:
    rejection = advises_first(EN, minimum=minimum)(consultation(*replies))
    if asked is None:
        assert rejection is None
    else:
        assert rejection is not None
        assert rejection.measured == {"asking_replies": asked, "minimum": minimum}
    assert advises_first(EN)(Candidate(Task("Name a river.", (Instance("", "The Nile."),)))) is None


@pytest.mark.parametrize(
    ("row", "named", "ungrounded_name"),
    [
        (["Amoxicillin", "Ibuprofen (Advil)"], ["amoxicillin 500 mg", "Advil"], ""),
        (["Amoxicillin"], ["Amoxicillin", "warfarin"], "warfarin"),
        (["Complete blood count (CBC)"], ["a blood count", "CBC"], ""),
        (["Complete blood count (CBC)"], ["chest MRI"], "chest MRI"),
        (["血常规", "阿司匹林"], ["血常规检查", "阿司匹林肠溶片"], ""),
        (["阿司匹林"], ["阿莫西林"], "阿莫西林"),
        (["Amoxicillin"], [], ""),
        ([], ["aspirin"], "aspirin"),
    ],
)
@pytest.mark.parametrize("kind", [Task, Dialogue])
def test_what_the_row_does_not_hold_is_ungrounded(
    kind: type, row: list[str], named: list[str], ungrounded_name: str
) -> None:
    extra: dict[str, Any] = {"knowledge": {"medicines": row}, "named": named}
    record = Task("Answer.", (Instance("a", "b"),), extra=extra) if kind is Task else Dialogue((), extra=extra)
    rejection = ungrounded(EN)(Candidate(record))
    assert (rejection.measured["name"] if rejection else "") == ungrounded_name
    assert ungrounded(EN)(Candidate(Dialogue((), extra={"knowledge": {"medicines": row}}))) is None


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("Ibuprofen\nchest X-ray", ["Ibuprofen", "chest X-ray"]),
        ("Here is the list:\n1. **ibuprofen**\n2) Chest  X-ray.\n- ibuprofen", ["ibuprofen", "Chest X-ray"]),
        ("ibuprofen: against the pain\nblood test", ["ibuprofen"]),
        ("[NONE]", []),
        ("None", []),
        ("", []),
        ("• “ibuprofen” (a painkiller)", ["ibuprofen"]),
    ],
)
def test_only_what_was_said_is_named(text: str, names: list[str]) -> None:
    assert read_names(text, "Take ibuprofen with food; a chest X-ray\nwould tell more.") == names


@pytest.mark.parametrize("tag", [tag for tag in resources.folders("seeds") if seeds.topics_path_for(tag, "medical")])
def test_topics_of_health(tag: str) -> None:
    path = seeds.topics_path_for(tag, "medical")
    assert path is not None
    topics = seeds.load_topics(path)
    assert len({topic.topic for topic in topics}) == len(topics) >= (80 if tag in ("en", "zh") else 40)
    assert len({topic.extra["category"] for topic in topics}) >= 12
    everything = seeds.topics_path_for(tag)
    assert everything is not None
    assert not {topic.topic for topic in topics} & {topic.topic for topic in seeds.load_topics(everything)}
    pack = load_pack(tag)
    assert all(pack.script_share(topic.topic)[0] > 0.9 for topic in topics)


# --- knowledge rows

ROWS: list[dict[str, str]] = [
    {
        "idx": str(number),
        "disease": disease,
        "Symptom": repr([f"{disease} pain", "fever", "tiredness"]),
        "reason": "",
        "TestsAndProcedures": repr([test, "Complete blood count (CBC)"]),
        "commonMedications": repr([medicine, f"{medicine} topical"]),
    }
    for number, (disease, test, medicine) in enumerate(
        [
            ("Sinusitis", "Nasal endoscopy", "Mometasone"),
            ("Gout", "Uric acid test", "Colchicine"),
            ("Cystitis", "Urinalysis", "Nitrofurantoin"),
            ("Migraine", "Eye examination", "Sumatriptan"),
            ("Eczema", "Patch test", "Hydrocortisone"),
            ("Asthma", "Spirometry", "Salbutamol"),
            ("Anaemia", "Ferritin test", "Ferrous sulphate"),
            ("Reflux", "Gastroscopy", "Omeprazole"),
        ]
    )
]
_STRAY = "warfarin"


def table(path: Path, rows: Sequence[dict[str, str]] = ROWS) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(ROWS[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_the_originals_table_is_read(tmp_path: Path) -> None:
    first, *others = read_knowledge(str(table(tmp_path / "format_dataset.csv")))
    assert isinstance(first, Task)
    assert first.instruction == "Sinusitis"
    assert facts_of(first) == {
        "disease": ["Sinusitis"],
        "Symptom": ["Sinusitis pain", "fever", "tiredness"],
        "TestsAndProcedures": ["Nasal endoscopy", "Complete blood count (CBC)"],
        "commonMedications": ["Mometasone", "Mometasone topical"],
    }
    assert len(others) == 7


def test_any_columns_and_any_cells_are_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows: list[dict[str, Any]] = [
        {"id": 3, "病名": "感冒", "症状": ["流涕", "咳嗽"], "药物": '["板蓝根", "布洛芬"]', "检查": None},
        {
            "disease": "Gout",
            "dose": {"colchicine": "low", "days": [1, 2]},
            "age": 40,
            "seen": True,
        },
        {"topic": "A cough since Monday", "category": "lungs"},
        {"name": "Odd", "list": "['unclosed', ", "code": "[__import__('os').getcwd()]", "set": "{'b', 'a'}"},
        {"name": "Deep", "list": "[" * 5000 + "]" * 5000, "escape": r"['a\d']", "text": "[see below]"},
    ]
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    cold, gout, topic, odd, deep = read_knowledge(str(path))
    assert facts_of(cold) == {"病名": ["感冒"], "症状": ["流涕", "咳嗽"], "药物": ["板蓝根", "布洛芬"]}
    assert facts_of(gout) == {
        "disease": ["Gout"],
        "dose": ["colchicine: low", "days: 1; 2"],
        "age": ["40"],
        "seen": ["True"],
    }
    assert topic == Dialogue((), topic="A cough since Monday", extra={"category": "lungs"})
    assert facts_of(odd) == {
        "name": ["Odd"],
        "list": ["['unclosed',"],
        "code": ["[__import__('os').getcwd()]"],
        "set": ["a", "b"],
    }, "what is no literal stays text and is not run"
    assert facts_of(deep)["escape"] == [r"a\d"]
    assert facts_of(deep)["text"] == ["[see below]"]


@given(st.lists(st.text(max_size=40) | st.sampled_from(["[1, 'a']", "('x',)", "{'k': [None]}", "[]"]), min_size=1))
def test_no_cell_breaks_the_reading(cells: list[str]) -> None:
    from selfinstruct.recipes.chatdoctor import _entries

    for cell in cells:
        found = _entries(cell)
        assert all(isinstance(entry, str) and entry == entry.strip() for entry in found)
    assert _entries(float("nan")) == _entries(None) == _entries(" ") == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"disease": "Gout"}\n[1, 2]\n', "rows.jsonl:2: expected an object"),
        ('{"disease": "Gout"}\n{"id": 1, "reason": ""}\n', "rows.jsonl:2: the row holds nothing"),
        ('{"disease": "Gout"}\n{"disease": \n', "rows.jsonl:2"),
    ],
)
def test_a_row_that_holds_nothing_is_named(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=re.escape(words)):
        list(read_knowledge(str(path)))


# --- runs

LINES = {
    "en": (
        "{}; what should I do?",
        "I see: {}. Is there {}, and since when?",
        "Mind {}. Be seen at once if it spreads.",
    ),
    "sw": (
        "{}; nifanye nini, daktari?",
        "Naelewa: {}. Je, kuna {}, na tangu lini?",
        "Angalia {}. Muone daktari haraka.",
    ),
    "zh": ("{}，我该怎么办？", "明白了，{}。有没有{}，多久了？", "注意{}。如果加重，请马上就医。"),
}
WORDS = {
    "en": (
        "left right lower upper inner outer front rear stair pillow coffee cold morning evening work walk sleep knee "
        "elbow wrist ankle belly chest cough fever rash itching burning swelling numbness weakness dizziness thirst"
    ).split(),
    "sw": (
        "kushoto kulia chini juu ndani nje mbele nyuma ngazi mto kahawa baridi asubuhi jioni kazi usingizi goti kiwiko "
        "tumbo kifua kikohozi homa upele kuwasha kuungua uvimbe ganzi udhaifu kizunguzungu kiu maumivu uchovu"
    ).split(),
    "zh": (
        "左边 右边 上腹 下腹 楼梯 枕头 咖啡 受凉 早上 晚上 上班 走路 睡觉 膝盖 手肘 手腕 脚踝 肚子 胸口 咳嗽 发烧 红疹 "
        "发痒 灼热 肿胀 麻木 无力 头晕 口渴 疲劳 出汗 恶心"
    ).split(),
}


TRANSLATED = "Mjibu mgonjwa kama daktari mwangalifu angemjibu, kutokana na anachoeleza."


def speak(tag: str = "en", damaged: float = 0.2) -> Speak:
    """Return a model that writes both sides and lists what the doctor named, now and then badly."""
    asks, digs, advises = LINES[tag]
    patient, doctor = load_pack(tag).roles.patient[0], load_pack(tag).roles.doctor[0]

    def line(pattern: str, rng: random.Random) -> str:
        words = rng.sample(WORDS[tag], 10)
        comma = "、" if tag == "zh" else ", "
        return pattern.format(comma.join(words[:8]), comma.join(words[8:]))

    def answer(messages: tuple[Message, ...], rng: random.Random) -> str | tuple[str, str]:
        text = messages[-1].content
        odd = rng.random() < damaged
        if "Translate this sentence into sw" in text:
            return f"“{TRANSLATED}”\n"
        if '"""' in text:
            known = [_STRAY, *(name for row in ROWS for name in re.findall(r"'([^']+)'", row["commonMedications"]))]
            named = [f"- {name}" for name in known if name.casefold() in text.casefold()]
            return ("Sure, here they are:\n" if odd else "") + ("\n".join(named) or "[NONE]")
        medicines = re.findall(r"^- commonMedications: ([^;\n]+)", text, re.MULTILINE)
        taken = f" {medicines[0] if not odd else _STRAY} may help." if medicines else ""
        first, last = f"[{patient}] {line(asks, rng)}", f"[{doctor}] {line(advises, rng)}{taken}"
        if re.match(r"Write one question|请写一段病人向医生的提问", text):
            kinds = [
                (f"{last}\n{first}", "stop"),
                (first, "stop"),
                ("I can't.", "stop"),
                (f"{first}\n{last[:9]}", "length"),
            ]
            return rng.choice(kinds) if odd and not medicines else f"{first}\n{last}"
        turns = [first]
        for _ in range(rng.randint(1, 3)):
            reply = line(advises if odd else digs, rng)
            turns += [f"[{doctor}] {reply}", f"[{patient}] {line(asks, rng)}"]
        return "\n".join([*turns, last, "[END]"])

    return answer


@pytest.fixture(scope="module")
def grounded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Dataset]:
    """A run over the table that nothing disturbed: folder, table, dataset."""
    folder = tmp_path_factory.mktemp("chatdoctor")
    data = table(folder / "rows.csv")
    found = grow(folder / "run", "chatdoctor", scripted(speak()), target=None, input=str(data), concurrency=1)
    return folder / "run", data, found


def test_each_row_is_one_record_and_stray_medicines_are_rejected(
    grounded: tuple[Path, Path, Dataset], tmp_path: Path
) -> None:
    folder, _, dataset = grounded
    lost = rejected(folder, "tasks")
    assert lost == {"ungrounded": len(ROWS) - len(dataset)}
    assert 0 < len(dataset) < len(ROWS)
    rows = written("chatdoctor", dataset, tmp_path / "chatdoctor.json")
    assert len({row["instruction"] for row in rows}) == 1
    assert all(row["input"].endswith("?") and _STRAY not in row["output"] for row in rows)
    assert len(written("alpaca", dataset, tmp_path / "alpaca.json")) == len(rows)
    assert len(written("llama-factory", dataset, tmp_path / "train.json")) == len(rows)
    for _, record in dataset:
        assert "Not medical advice" in record.extra["note"], "every record says what it is"
        assert record.extra["knowledge"]["disease"] == [record.extra["topic"]]
        assert record.extra["named"]


def test_the_check_can_be_left_out_and_then_costs_nothing(tmp_path: Path) -> None:
    data, backend = table(tmp_path / "rows.csv"), scripted(speak())
    off: dict[str, Any] = {"filters": {"ungrounded": False}}
    dataset = grow(tmp_path / "r", "chatdoctor", backend, target=None, input=str(data), **off)
    assert len(dataset) == len(ROWS) == len(backend.asked)
    assert any(_STRAY in record.instances[0].output for _, record in dataset if isinstance(record, Task))


def test_a_row_more_costs_a_row_more(grounded: tuple[Path, Path, Dataset], tmp_path: Path) -> None:
    data = table(tmp_path / "rows.csv", ROWS[:5])
    backend = scripted(speak())
    grow(tmp_path / "r", "chatdoctor", backend, target=None, input=str(data))
    before = len(backend.asked)
    table(data, ROWS)
    again = grow(tmp_path / "r", "chatdoctor", backend, target=None, input=str(data))
    assert again == grounded[2]
    assert len(backend.asked) - before <= 2 * 3


def test_neither_concurrency_nor_interruption_changes_a_record(
    grounded: tuple[Path, Path, Dataset], tmp_path: Path
) -> None:
    _, data, dataset = grounded
    late = grow(
        tmp_path / "c8", "chatdoctor", scripted(speak(), late=True), target=None, input=str(data), concurrency=8
    )
    assert late == dataset
    for stop_after in (1, 3, None):
        backend = scripted(speak(), late=True)
        found = grow(tmp_path / "cut", "chatdoctor", backend, stop_after, target=None, input=str(data), concurrency=4)
    assert found == dataset


def test_judged_again_and_rebuilt(grounded: tuple[Path, Path, Dataset], tmp_path: Path) -> None:
    folder, data, dataset = grounded
    assert rebuilt(folder, tmp_path / "again")
    grow(tmp_path / "r", "chatdoctor", scripted(speak()), target=None, input=str(data))
    loose = judged_again(tmp_path / "r", filters={"ungrounded": {"minimum_share": 0.0}})
    assert len(loose) == len(ROWS), "a share of nothing lets everything through"
    assert judged_again(tmp_path / "r", filters={"ungrounded": {"minimum_share": 0.5}}) == dataset


@pytest.mark.parametrize("tag", ["en", "zh", "sw"])
def test_consultations_about_topics_ask_before_they_advise(tag: str, tmp_path: Path) -> None:
    backend = scripted(speak(tag, damaged=0.4))
    dataset = grow(tmp_path / "r", "chatdoctor", backend, target=10, style="dialogue", language=tag)
    pack = load_pack(tag)
    assert rejected(tmp_path / "r", "dialogues").keys() >= {"advises_first"}
    for _, record in dataset:
        assert isinstance(record, Dialogue)
        replies = [message.content for message in record.messages if message.role == "assistant"]
        assert len(replies) > 1
        assert questions(replies[0], pack)
        assert record.topic
        assert record.extra["note"]
    prompt = backend.asked[0].messages[0].content
    assert f"[{pack.roles.patient[0]}]" in prompt
    assert tag != "sw" or "in sw" in prompt
    for format in ("messages", "sharegpt", "huatuo", "bianque", "belle-3.5m", "llama-factory-sharegpt"):
        assert written(format, dataset, tmp_path / f"{format}.json")


@pytest.mark.parametrize(
    ("tag", "instruction"),
    [
        ("en", "Answer the patient as a careful doctor would, from what they tell you."),
        ("zh", "请像一位认真负责的医生那样，根据病人的描述作答。"),
        ("sw", TRANSLATED),
    ],
)
def test_single_answers_about_topics(tag: str, instruction: str, tmp_path: Path) -> None:
    backend = scripted(speak(tag))
    dataset = grow(tmp_path / "r", "chatdoctor", backend, target=10, language=tag)
    assert len({record.instances[0].input for _, record in dataset if isinstance(record, Task)}) == 10
    assert rejected(tmp_path / "r", "tasks").keys() >= {"parse"}
    rows = written("chatdoctor", dataset, tmp_path / "chatdoctor.json")
    assert {row["instruction"] for row in rows} == {instruction}
    translations = [request for request in backend.asked if "Translate" in request.messages[0].content]
    assert len(translations) == (tag == "sw"), "an instruction that is not worded in the language is translated once"


@pytest.mark.parametrize("tag", ["en", "zh"])
def test_a_small_model_writes_a_letter_and_then_replies(
    tag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "x")
    settings = {"model": "vllm/test", "language": tag, "style": "stepwise"}
    with Endpoint(model()) as server:
        work("chatdoctor", server, tmp_path / "r", settings, target=4)
        sent = [request.json for request in server.requests]
    with RunView.open(tmp_path / "r") as view:
        cases = [record.instances[0] for _, record in view.dataset() if isinstance(record, Task)]
    assert len(cases) == 4
    letters = [each["prompt"] for each in sent if "prompt" in each]
    assert all(text.endswith(f"[{load_pack(tag).roles.patient[0]}]") for text in letters)
    replies = [each["messages"] for each in sent if "messages" in each]
    assert [[said["role"] for said in each] for each in replies] == [["system", "user"]] * len(replies)
    assert {case.input for case in cases} <= {each[1]["content"] for each in replies}


def test_a_letter_in_another_language_is_rejected_before_a_doctor_is_asked(tmp_path: Path) -> None:
    backend = Scripted(lambda request: "医生您好，我头疼三天了，晚上睡不着，请问应该怎么办？")
    with pytest.raises(Stopped, match="saturated"):
        grow(tmp_path / "r", "chatdoctor", backend, style="stepwise", stop={"saturation_draws": 10})
    assert rejected(tmp_path / "r", "tasks") == {"language_script": 10}
    assert not [request for request in backend.asked if any(said.role == "system" for said in request.messages)]


def test_a_quota_of_kinds_of_complaint(tmp_path: Path) -> None:
    quota: dict[str, Any] = {"skin": 1, "heart": 1}
    dataset = grow(tmp_path / "r", "chatdoctor", scripted(speak(damaged=0)), target=8, quota=quota)
    assert sorted(record.extra["category"] for _, record in dataset) == ["heart"] * 4 + ["skin"] * 4
    with pytest.raises(ConfigError, match="quota"):
        plan([{"recipe": "chatdoctor", "model": "openai/m", "quota": {"travel": 1}}])


@pytest.mark.slow
def test_over_a_socket_and_killed_it_is_the_same(grounded: tuple[Path, Path, Dataset], tmp_path: Path) -> None:
    _, data, dataset = grounded
    with Endpoint(served(speak())) as server:
        flags = run_options(server, tmp_path / "r", concurrency=2)
        del flags[flags.index("-n") : flags.index("-n") + 2]
        flags += ["--input", str(data)]
        kill("run", "chatdoctor", "-q", *flags, server=server, at=5)
        done = selfinstruct("run", "chatdoctor", *flags)
        assert done.returncode == 0, done.stderr
    with RunView.open(tmp_path / "r") as view:
        assert list(view.dataset()) == dataset
    out = tmp_path / "out.json"
    exported = selfinstruct("export", tmp_path / "r", "-o", out)
    assert exported.returncode == 0, exported.stderr
    assert "without note: the format has no place for it" in exported.stderr
    assert len(json.loads(out.read_text(encoding="utf-8"))) == len(dataset)
