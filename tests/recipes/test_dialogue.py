"""The shared core of the dialogue recipes: text to turns and back, limits, and two models talking."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from selfinstruct import resources
from selfinstruct.config import RunConfig
from selfinstruct.errors import ConfigError, InputError
from selfinstruct.filters import DEFAULT_FILTERS, build_filters, repeats
from selfinstruct.judge import Judge
from selfinstruct.languages import LanguagePack, load_pack
from selfinstruct.markers import END, Speaker, Voices, end_mark, markers_in, voices
from selfinstruct.parsing import cleaned
from selfinstruct.plan import plan
from selfinstruct.recipes import Brief
from selfinstruct.recipes.dialogue import (
    Limits,
    as_topic,
    capped,
    chat_candidate,
    complete_pairs,
    exchanges,
    fitted,
    limits_of,
    read_topics,
    read_transcript,
    read_turn,
    render,
    self_chat,
    tokens_of,
    transcript_candidate,
    trimmed,
    whole_sentences,
)
from selfinstruct.values import (
    Candidate,
    Comparison,
    Completion,
    Dialogue,
    Instance,
    Message,
    Rejection,
    Request,
    Response,
    Sampling,
    Task,
    ToolCall,
    Usage,
)

EN, ZH = load_pack("en"), load_pack("zh")
PACKS = [tag for tag in resources.folders("seeds") if load_pack(tag).shipped]


def talk(*contents: str) -> tuple[Message, ...]:
    return tuple(Message("assistant" if number % 2 else "user", content) for number, content in enumerate(contents))


def says(text: str, pack: LanguagePack = EN, **more: Any) -> list[tuple[str, str]]:
    return [(message.role[0], message.content) for message in read_transcript(text, voices(pack), **more).messages]


PIECES = st.sampled_from(
    "[ ] | User AI Assistant [User] [|Human|] Human: **AI:** 用户： 【助手】 : ``` ```py - 1. # ** [END] 你好。 a 。 , "
    "<think> </think> \u200f Hi.".split()
)
SPACES = st.sampled_from(["", " ", "\n", "\r\n", ". "])
TEXTS = st.lists(st.one_of(PIECES, SPACES, st.text(max_size=6)), max_size=14).map("".join)


@pytest.mark.parametrize("tag", [*PACKS, "sw"])
def test_what_is_rendered_is_read_back(tag: str) -> None:
    who = voices(load_pack(tag))

    def normal(text: str) -> bool:
        plain = bool(text) and cleaned(text).strip() == text
        return plain and not markers_in(text, who) and end_mark(text) is None

    @settings(max_examples=30, deadline=None)
    @given(st.lists(TEXTS.map(str.strip).filter(normal), min_size=1, max_size=6))
    @example(["What does this do?\n```ini\n[user]\nname = x\n```", "It names the user:\n```", "Dear [User], thanks!"])
    def check(contents: list[str]) -> None:
        contents = [content for content in contents if normal(content)]
        messages = talk(*contents)
        assert read_transcript(render(messages, who), who).messages == messages

    check()


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.one_of(PIECES, SPACES, st.text(max_size=4)), max_size=40).map("".join),
    st.sampled_from(["en", "zh", "ar"]),
)
def test_any_text_reads_as_a_conversation_and_never_raises(text: str, tag: str) -> None:
    who = voices(load_pack(tag))
    openings: tuple[Speaker | None, ...] = (None, "user", "assistant")
    for opened in openings:
        read = read_transcript(text, who, opened=opened)
        assert [message.role for message in read.messages] == [m.role for m in talk(*["x"] * len(read.messages))]
        assert all(message.content.strip() for message in read.messages)
        assert read.stop in ("", "end_marker", "empty_turn")
    speakers: tuple[Speaker, ...] = ("user", "assistant")
    for speaker in speakers:
        turn = read_turn(text, speaker, who)
        assert turn.content == turn.content.strip()


@pytest.mark.parametrize(
    "text",
    [
        "[User] Why is bread sour?\n[Assistant] Acids.\n[User] Which?\n[Assistant] Lactic.",
        "[Human] Why is bread sour?\n[AI] Acids.\n[Human] Which?\n[AI] Lactic.",
        "[|Human|] Why is bread sour? [|AI|] Acids. [|Human|] Which? [|AI|] Lactic.",
        "[Human]: Why is bread sour?\n\n[AI]: Acids.\n\n[Human]: Which?\n\n[AI]: Lactic.",
        "[ Human ]Why is bread sour?\n[ | AI | ]Acids.\n[human]Which?\n[ai]Lactic.",
        "**[User]** Why is bread sour?\n**[Assistant]:** Acids.\n**[User]** Which?\n**[Assistant]** Lactic.",
        "Human: Why is bread sour?\nAI: Acids.\nHuman: Which?\nAI: Lactic.",
        "**User:** Why is bread sour?\n\n**Assistant:** Acids.\n\n**User**: Which?\n\n**Assistant**: Lactic.",
        "### User\nWhy is bread sour?\n\n### Assistant\nAcids.\n\n### User\nWhich?\n\n### Assistant\nLactic.",
        "**User**\nWhy is bread sour?\n**Assistant**\nAcids.\n**User**\nWhich?\n**Assistant**\nLactic.",
        "USER：Why is bread sour?\nASSISTANT：Acids.\nUSER：Which?\nASSISTANT：Lactic.",
        "1. User: Why is bread sour?\n2. Assistant: Acids.\n3. User: Which?\n4. Assistant: Lactic.",
        "[User 1] Why is bread sour?\n[Assistant 1] Acids.\n[User 2] Which?\n[Assistant 2] Lactic.",
        "[User] Why is bread sour? [Assistant] Acids. [User] Which? [Assistant] Lactic.",
        # Talk around it, a greeting before the person speaks, thoughts.
        "Sure! Here is the conversation:\n\n[User] Why is bread sour?\n[Assistant] Acids.\n[User] Which?\n[Assistant] "
        "Lactic.\n[END]",
        "[Assistant] Hello! How can I help?\n[User] Why is bread sour?\n[Assistant] Acids.\n[User] Which?\n"
        "[Assistant] Lactic.",
        "<think>[User] plan</think>\n[User] Why is bread sour?\n[Assistant] Acids.\n[User] Which?\n[Assistant] Lactic.",
        # One marker of another kind, or doubled, among good ones.
        "[User] Why is bread sour?\nAssistant: Acids.\n[User] Which?\n[Assistant] Lactic.",
        "User: Why is bread sour?\n[Assistant] Acids.\n[User] Which?\n[Assistant] Lactic.",
        "[User] Why is bread sour?\n[Assistant] Acids.\nUser: Which?\nAssistant: Lactic.",
        "[User]\n[User] Why is bread sour?\n[Assistant]\nAssistant: Acids.\n[User] Which?\n[Assistant] Lactic.",
        "[User] Why is bread sour? [Assistant] Acids.\n[User] Which?\n[Assistant] Lactic.\n[|Human|] ",
    ],
)
def test_markers_in_any_dress(text: str) -> None:
    text = text.replace("[Assistant]\nAssistant:", "[Assistant]\n[Assistant]")
    assert says(text) == [("u", "Why is bread sour?"), ("a", "Acids."), ("u", "Which?"), ("a", "Lactic.")]


@pytest.mark.parametrize(
    "text",
    [
        "[用户] 面包为什么会酸？\n[助手] 因为有乳酸。",
        "【用户】面包为什么会酸？【助手】因为有乳酸。",
        "用户：面包为什么会酸？\n助手：因为有乳酸。",
        "**用户：** 面包为什么会酸？\n**助手：** 因为有乳酸。",
        "[|用户|]面包为什么会酸？\n[｜助手｜]因为有乳酸。",
        "［人类］面包为什么会酸？\n［AI］因为有乳酸。",
        "[Human] 面包为什么会酸？\n[AI] 因为有乳酸。",
        "人类:面包为什么会酸？\nAI:因为有乳酸。[END]",
    ],
)
def test_chinese_markers(text: str) -> None:
    assert says(text, ZH) == [("u", "面包为什么会酸？"), ("a", "因为有乳酸。")]


@pytest.mark.parametrize(
    "content",
    [
        "Dear [User], welcome. Yours, [AI].",
        "Use a section:\n```ini\n[user]\nname = Ada\n```\nand save it.",
        "A login file looks like this:\nUser: root\nPassword: none",
        "Set it so.\nUser: root\nand nothing else.",
        "See [AI](https://example.org) and AI in general: it is wide.",
    ],
)
def test_what_looks_like_a_marker_and_is_text(content: str) -> None:
    text = f"[User] How?\n[Assistant] {content}\n[User] Thanks, and then?\n[Assistant] {content}"
    assert says(text) == [("u", "How?"), ("a", content), ("u", "Thanks, and then?"), ("a", content)]


def test_one_side_twice_is_one_turn_and_talk_alone_is_none() -> None:
    assert says("[User] One.\n[User] Two.\n[Assistant] Three.") == [("u", "One.\n\nTwo."), ("a", "Three.")]
    assert says("I can't write that.") == []
    assert says("Why?\n[Assistant] So.", opened="user") == [("u", "Why?"), ("a", "So.")]
    assert says("[User] Why?\n[Assistant] So.", opened="user") == [("u", "Why?"), ("a", "So.")]


def test_an_empty_turn_ends_the_reading() -> None:
    who = voices(EN)
    read = read_transcript("[User] One?\n[Assistant]\n[User] Two?\n[Assistant] Three.", who)
    assert (read.messages, read.stop) == (talk("One?"), "empty_turn")
    read = read_transcript("[User] One?\n[Assistant] Two.\n[User] ", who)
    assert (read.messages, read.stop) == (talk("One?", "Two."), "end_marker")
    read = read_transcript("[User] One?\n[Assistant] Two.\n[END]\n[User] Three?\n[Assistant] Four.", who)
    assert (read.messages, read.stop) == (talk("One?", "Two."), "end_marker")


@pytest.mark.parametrize(
    "mark", ["[END]", "[end]", "<END>", "[|END|]", "【END】", "**[End of conversation]**", "[The End]"]
)
def test_end_marks(mark: str) -> None:
    assert read_turn(f"Thanks, bye.\n{mark}", "user", voices(EN)).ended
    assert read_turn(mark, "user", voices(EN)).content == ""


@pytest.mark.parametrize(
    ("text", "speaker", "content", "leaked"),
    [
        ("Acids.", "assistant", "Acids.", False),
        ("[Assistant] Acids.", "assistant", "Acids.", False),
        ("**AI:** Acids.", "assistant", "Acids.", False),
        ("Acids.\n[User] Which ones?\n[Assistant] Lactic.", "assistant", "Acids.", True),
        ("Acids. [|Human|] Which ones?", "assistant", "Acids.", True),
        ("Acids.\n\nUser: Which ones?\nAssistant: Lactic.", "assistant", "Acids.", True),
        ("[User] Which ones?", "assistant", "", True),
        ("Which ones?\n[Assistant] Lactic.", "user", "Which ones?", True),
        ('"Which ones?"', "user", "Which ones?", False),
        ('"Which" or "what"', "user", '"Which" or "what"', False),
        ("[Assistant] Lactic.", "user", "", True),
        ("Here is one:\nUser: Hi\nAssistant: Ho", "assistant", "Here is one:\nUser: Hi\nAssistant: Ho", False),
        ("<think>They ask.</think>\n\nAcids.", "assistant", "Acids.", False),
    ],
)
def test_a_turn_ends_where_the_other_side_speaks(text: str, speaker: Speaker, content: str, leaked: bool) -> None:
    turn = read_turn(text, speaker, voices(EN))
    assert (turn.content, turn.leaked) == (content, leaked)


def test_voices_of_other_roles() -> None:
    who = voices(ZH, "patient", "doctor")
    assert (who.marker("user"), who.marker("assistant")) == ("[病人]", "[医生]")
    assert [marker.speaker for marker in markers_in("患者：咳嗽。\n大夫：几天了？\n用户：三天。\n助手：好。", who)] == [
        "user", "assistant", "user", "assistant"
    ]  # fmt: skip


# --- limits


def test_a_complete_last_pair_is_kept_and_an_unanswered_tail_is_not() -> None:
    assert complete_pairs(talk("a", "b")) == talk("a", "b")
    assert complete_pairs(talk("a", "b", "c")) == talk("a", "b")
    assert complete_pairs(talk("a")) == ()
    assert exchanges(talk("a", "b", "c")) == 1
    call = (Message("user", "a"), Message("assistant", "", tool_calls=(ToolCall("f", "{}"),)), Message("tool", "1"))
    assert exchanges((*call, Message("assistant", "b"))) == 1


@settings(max_examples=100)
@given(st.lists(st.text(min_size=1, max_size=60), max_size=9), st.integers(0, 120))
def test_history_is_trimmed_in_pairs_from_the_oldest(contents: list[str], tokens: int) -> None:
    messages = talk(*contents)
    kept, left_out = trimmed(messages, tokens)
    assert kept == messages[left_out:]
    assert left_out % 2 == 0
    assert not messages or kept
    assert not tokens or tokens_of(kept) <= tokens or len(kept) <= 2
    if left_out:
        assert tokens_of(messages[left_out - 2 :]) > tokens, "more was left out than needed"


def test_a_conversation_ends_at_its_limits() -> None:
    said = talk("one two three", "a b c", "four five six", "d e f", "seven eight", "g h i")
    assert capped(said, Limits(9)) == (said, "")
    assert capped(said, Limits(2)) == (said[:4], "max_turns")
    assert capped(said, Limits(1), given=2) == (said[:4], "max_turns")
    assert capped(said, Limits(9, dialogue_tokens=tokens_of(said) - 1)) == (said[:5], "token_budget")
    assert capped((*said[:4], said[0], said[1]), Limits(9)) == (said[:4], "repeated_turn")
    assert capped((*said[:4], said[0]), Limits(9), given=5) == ((*said[:4], said[0]), "")


def test_repetition_is_of_words_and_nearly_so_of_long_turns() -> None:
    assert repeats("Thank you so much!", "thank you, so much")
    assert not repeats("Yes.", "Yes!")
    assert not repeats("What is 7 times 8?", "What is 7 times 9?")
    long = "The harbour wall was raised in the year of the great flood and has held the sea back ever since then"
    assert repeats(long, long + " indeed")
    assert not repeats(long, long.replace("harbour wall", "old tower").replace("great flood", "long war"))
    assert repeats("非常感谢你的帮助！", "非常感谢你的帮助")


def test_a_cut_turn_keeps_its_whole_sentences() -> None:
    assert whole_sentences("It rises. It falls. And th", EN) == "It rises. It falls."
    assert whole_sentences("Yes. And then the long story of the harbour beg", EN) == ""
    assert whole_sentences("先发面。再揉面。然后", ZH) == "先发面。再揉面。"
    assert whole_sentences("Run this. Then.\n```\nx = 1.", EN) == ""


def brief(model: str = "openai/any", pack: LanguagePack = EN, **more: Any) -> Brief:
    options = {"turns": 4, "min_turns": 1, "history_tokens": 0, "dialogue_tokens": 0} | more
    return Brief(RunConfig(recipe="baize", model=model), "v1", pack, {}, options=options)


def test_limits_of_a_run() -> None:
    reply = Sampling(max_tokens=256)
    assert limits_of(brief(), reply).history_tokens == 6000
    assert limits_of(brief(history_tokens=99), reply).history_tokens == 99
    small = limits_of(brief("llama.cpp/smollm2-135m"), reply, "x" * 300)
    assert 500 < small.history_tokens + 256 + 100 < 1024
    assert fitted(brief("llama.cpp/smollm2-135m"), Sampling(2048), 0.25).max_tokens == 256
    assert fitted(brief(), Sampling(2048), 0.25).max_tokens == 2048
    with pytest.raises(ConfigError, match=r"options\.turns"):
        limits_of(brief(turns=0), reply)
    with pytest.raises(ConfigError, match=r"options\.min_turns: 5 is above"):
        limits_of(brief(min_turns=5), reply)


# --- candidates


def completion(text: str, finish_reason: str = "stop") -> Completion:
    return Completion(text, finish_reason, Usage(1, 1))


def read(text: str, finish_reason: str = "stop", limits: Limits = Limits(4), **more: Any) -> Candidate:  # noqa: B008
    return transcript_candidate(
        Dialogue((), topic="bread"), completion(text, finish_reason), limits, voices(EN), EN, **more
    )


TWO = "[User] Why is bread sour?\n[Assistant] It holds acids.\n[User] Which?\n[Assistant] Lactic acid and others."


@pytest.mark.parametrize(
    ("text", "finish_reason", "limits", "stop", "turns"),
    [
        (TWO, "stop", Limits(4), "natural_close", 2),
        (TWO + "\n[END]", "stop", Limits(4), "end_marker", 2),
        (TWO + "\n[User] ", "stop", Limits(4), "end_marker", 2),
        (TWO, "stop", Limits(1), "max_turns", 1),
        (TWO, "length", Limits(4), "token_budget", 1),
        (TWO + "\n[User] And th", "length", Limits(4), "token_budget", 2),
        (TWO, "stop", Limits(4, dialogue_tokens=30), "token_budget", 1),
        (TWO + "\n[User] why is bread sour\n[Assistant] Acids.", "stop", Limits(4), "repeated_turn", 2),
        (TWO + "\n[User] And now?\n[Assistant]\n[User] Hm?\n[Assistant] Yes.", "stop", Limits(4), "empty_turn", 2),
        # Without the server's word, a last turn that breaks off where the others end counts as cut.
        (TWO + "\n[User] Is it good?\n[Assistant] It is as good as the baker who made the", "", Limits(4),
         "token_budget", 2),
    ],
)  # fmt: skip
def test_every_reason_to_stop_in_one_completion(
    text: str, finish_reason: str, limits: Limits, stop: str, turns: int
) -> None:
    found = read(text, finish_reason, limits)
    assert isinstance(found.record, Dialogue)
    assert found.rejection is None
    assert (found.record.extra["stop"], found.record.extra["turns"]) == (stop, turns)
    assert exchanges(found.record.messages) == turns
    assert found.record.messages[-1].role == "assistant"


def test_what_has_no_pair_is_rejected_with_its_reason() -> None:
    assert read("No.").rejection == Rejection("parse", "no_turns")
    assert read("[User] Why is bread sour?").rejection == Rejection("parse", "no_reply")
    assert read("[User] Why is bread sour?\n[Assistant] It", "length").rejection == Rejection("parse", "truncated")
    few = read(TWO, limits=Limits(4, min_turns=3)).rejection
    assert few is not None
    assert (few.filter, few.reason) == ("min_turns", "too_few_turns")
    one = read("[User] Why is bread sour?\n[Assistant] It holds acids.", persona="a baker")
    assert isinstance(one.record, Dialogue)
    assert one.rejection is None, "a dialogue of one pair is one"
    assert one.record.extra == {"stop": "natural_close", "turns": 1, "persona": "a baker"}


# --- two models talking


class Talk:
    """A draw whose completions are given beforehand."""

    def __init__(self, *answers: str | Completion, screened: Rejection | None = None) -> None:
        self.answers = [each if isinstance(each, Completion) else completion(each) for each in answers]
        self.screened = screened
        self.asked: list[tuple[str, tuple[Message, ...]]] = []

    async def complete(self, request: Request) -> Completion:
        return self.answers.pop(0)

    def screen(self, found: Candidate) -> Rejection | None:
        return self.screened

    def ask(self, speaker: Speaker, history: Sequence[Message], turns: int) -> Request:
        assert turns == len([each for each, _ in self.asked if each == "assistant"])
        self.asked.append((speaker, tuple(history)))
        return Request(Sampling(64), messages=tuple(history) or (Message("user", "?"),))

    def run(self, limits: Limits = Limits(3), opening: Sequence[Message] = (), who: Voices = voices(EN)) -> Any:  # noqa: B008
        return asyncio.run(self_chat(self, self.ask, limits, who, EN, opening))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("answers", "limits", "stop", "kept"),
    [
        (["Why so?", "Acids.", "Which ones?", "Lactic."], Limits(2), "max_turns", 4),
        (["Why so?", "Acids.", "[END]"], Limits(3), "end_marker", 2),
        (["Why so?", "Acids.\n[END]"], Limits(3), "end_marker", 2),
        (["Why so?", "Acids.", "Thank you, that is all.\n[END]"], Limits(3), "natural_close", 2),
        (["Why so?", "Acids.", ""], Limits(3), "empty_turn", 2),
        (["Why so?", "Acids.", "[Assistant] And more."], Limits(3), "empty_turn", 2),
        (["Why is it so?", "Acids.", "Why is it so?"], Limits(3), "repeated_turn", 2),
        (["Why so?", "It is acids.", "Which ones?", "It is acids."], Limits(3), "repeated_turn", 3),
        (["Why so?", completion("It was a long way to the har", "length")], Limits(3), "token_budget", 1),
        (["Why so?", "Acids.", "Which ones?", "Lactic."], Limits(3, dialogue_tokens=25), "token_budget", 3),
    ],
)
def test_every_reason_to_stop_between_two(
    answers: list[str | Completion], limits: Limits, stop: str, kept: int
) -> None:
    talk = Talk(*answers)
    chat = talk.run(limits)
    assert (chat.stop, len(chat.messages)) == (stop, kept)
    assert talk.answers == [], "it stopped before all was said"


def test_a_leaking_side_is_cut_and_the_chat_goes_on() -> None:
    talk_ = Talk("Why so?\n[Assistant] Acids.", "Acids.\n[User] Which?\n[Assistant] Lactic.", "Which ones?", "Lactic.")
    chat = talk_.run(Limits(2))
    assert chat.messages == talk("Why so?", "Acids.", "Which ones?", "Lactic.")
    assert chat.stop == "max_turns"
    assert "[User] Which?" in chat.text, "what was cut off is kept to look at"


def test_a_cut_reply_goes_on_from_its_whole_sentences_and_says_so() -> None:
    cut = completion("Acids do it. They come from the leaven. Its many", "length")
    chat = Talk("Why so?", cut, "Which ones?", "Lactic.").run(Limits(2))
    assert chat.messages[1].content == "Acids do it. They come from the leaven."
    assert (chat.shortened, chat.stop) == (1, "max_turns")


def test_history_that_does_not_fit_is_left_out_and_counted() -> None:
    talk_ = Talk("one one one", "a a a", "two two two", "b b b", "three three", "c c c")
    chat = talk_.run(Limits(3, history_tokens=20))
    assert chat.trimmed == 4
    assert [len(history) for _, history in talk_.asked] == [0, 1, 2, 1, 2, 1]
    assert all(not history or history[0].role == "user" for _, history in talk_.asked)
    found = chat_candidate(Dialogue((), topic="numbers"), chat, Limits(3))
    assert found.record is not None
    assert found.record.extra["history_trimmed"] == 4


def test_first_words_that_are_lost_cost_nothing_more() -> None:
    lost = Rejection("novelty", "too near")
    talk_ = Talk("Why so?", "Acids.", screened=lost)
    assert talk_.run().rejection == lost
    assert len(talk_.answers) == 1


# --- topics


def test_a_topic_out_of_any_record() -> None:
    task = Task("Sum up.", (Instance("The text.", "Short."),), name="sum", extra={"category": "summarization"})
    assert as_topic(task) == "Sum up.\nThe text."
    assert [as_topic(task, name) for name in ("instruction", "input", "output", "name", "category")] == [
        "Sum up.", "The text.", "Short.", "sum", "summarization"
    ]  # fmt: skip
    dialogue = Dialogue(talk("Hello?", "Yes.", "More?"), system="Be kind.", topic="greetings")
    assert as_topic(dialogue) == "greetings"
    assert as_topic(Dialogue(talk("Hello?"))) == "Hello?"
    assert [as_topic(dialogue, name) for name in ("user", "assistant", "system")] == ["Hello?", "Yes.", "Be kind."]
    assert as_topic(Comparison("Which?", (Response("a"), Response("b")))) == "Which?"
    assert as_topic(Comparison(dialogue, (Response("a"),)), "prompt") == "greetings"
    with pytest.raises(ConfigError, match=r"options\.field: the task has no text under 'system'; it has .*instruction"):
        as_topic(task, "system")


def test_topics_from_a_file(tmp_path: Path) -> None:
    plain = tmp_path / "topics.txt"
    plain.write_text("How do tides work?\n\nWhy is bread sour?\n", encoding="utf-8")
    assert [as_topic(each) for each in read_topics(str(plain))] == ["How do tides work?", "Why is bread sour?"]
    lines = tmp_path / "topics.jsonl"
    lines.write_text('{"topic": "tides", "category": "nature"}\n{"topic": "bread"}\n', encoding="utf-8")
    assert [as_topic(each) for each in read_topics(str(lines))] == ["tides", "bread"]
    rows = tmp_path / "alpaca.json"
    rows.write_text('[{"instruction": "Explain tides.", "input": "", "output": "The moon."}]', encoding="utf-8")
    assert [as_topic(each) for each in read_topics(str(rows))] == ["Explain tides."]
    with pytest.raises(InputError, match=re.escape("nowhere.txt")):
        read_topics(str(tmp_path / "nowhere.txt"))
    with pytest.raises(InputError, match="nowhere"):
        list(read_topics(str(tmp_path / "nowhere.jsonl")))


# --- filters of dialogues


def verdict(dialogue: Dialogue, tag: str = "en", **more: Any) -> Rejection | None:
    pack = load_pack(tag)
    checks = build_filters(DEFAULT_FILTERS["dialogues"], pack)
    return next((found for _, check in checks if (found := check(Candidate(dialogue, **more)))), None)


GOOD = talk("Why does bread rise?", "Yeast makes gas in the dough.", "And without yeast?", "Then it stays flat.")


@pytest.mark.parametrize(
    ("dialogue", "filter", "reason"),
    [
        (talk("Hi there, why?", ""), "alternation", "empty_turn"),
        ((Message("assistant", "Hello!"),), "alternation", "out_of_turn"),
        ((*GOOD, Message("assistant", "And more.")), "alternation", "out_of_turn"),
        (talk("?!", "Yes."), "no_tokens", "no_tokens"),
        (talk("Why does bread\x07 rise?", "Yeast."), "control_characters", "control_character"),
        (talk("Why?", "Yeast.<|im_end|>"), "leak", "leak"),
        (talk("Why?", "Yeast. [|Human|] And then?"), "leak", "leak"),
        (talk("Why?", "Yeast.\n[User] And then?"), "leak", "leak"),
        (talk("Why?", "Yeast does.\nUser: And then?\nAssistant: Then it rises."), "leak", "leak"),
        (talk("Why?", "Yeast does.\nPatient: And then?\nDoctor: Then it rises."), "leak", "leak"),
        (talk("Why?", "As an AI language model, I think it is yeast."), "self_reference", "self_reference"),
        (talk("Why does bread rise?", "Хлеб поднимается из-за дрожжей в тесте."), "language_script", "other_script"),
        (talk("Why does bread rise?", "N/A"), "empty_output", "says_none"),
        (talk("Why does bread rise?", "Why does bread rise?"), "output_repeats_instruction",
         "output_repeats_instruction"),
        (talk("Why does bread rise?", "The reasons are:"), "ends_with_colon", "ends_with_colon"),
        (talk("Why does bread rise?", "I'm sorry, but I can't help with that."), "refusal", "refusal"),
        (talk("Why does bread rise?", "The yeast and the yeast and the yeast. " * 9), "repetition", "repeated_grams"),
        ((*GOOD, *GOOD[:2]), "repeated_turn", "repeated_turn"),
    ],
)  # fmt: skip
def test_filters_reject(dialogue: tuple[Message, ...], filter: str, reason: str) -> None:
    found = verdict(Dialogue(dialogue))
    assert found is not None
    assert (found.filter, found.reason) == (filter, reason)


def test_filters_pass() -> None:
    assert verdict(Dialogue(GOOD)) is None
    assert verdict(Dialogue(GOOD[:1])) is None, "first words are screened before there is a reply"
    call = Message("assistant", "", tool_calls=(ToolCall("clock", "{}"),))
    assert verdict(Dialogue((GOOD[0], call, Message("tool", "12"), GOOD[1]))) is None
    asked = talk("Write a short dialogue, please.", "Here it is:\nUser: Hi, is it open?\nAssistant: It is, come in.")
    assert verdict(Dialogue(asked)) is None
    assert verdict(Dialogue(talk("面包为什么会发起来？", "酵母在面团里放出气体。")), "zh") is None
    assert verdict(Dialogue(GOOD), truncated=True) == Rejection("truncated", "truncated")
    shown = (Task("Why does bread rise?", (Instance("", "x"),), id="seed-1"),)
    found = verdict(Dialogue(GOOD), demonstrations=shown)
    assert found is not None
    assert found.filter == "copied_demonstration"


def test_the_end_mark_that_prompts_name_is_one() -> None:
    assert end_mark(END) == (0, len(END))


def test_a_dialogue_that_waits_for_a_reply_is_no_record_yet() -> None:
    for whole, reason in ((True, "no reply"), (False, None)):
        judge = Judge([], {}, whole=whole)
        assert judge.screen(Candidate(Dialogue(GOOD[:1])), as_of=0) is None
        rejection = judge.decide("dialogues-0-0", judge.sifted(Candidate(Dialogue(GOOD[:3])))).rejection
        assert (rejection and rejection.reason) == reason
        assert judge.decide("dialogues-1-0", judge.sifted(Candidate(Dialogue(GOOD)))).accepted


@pytest.mark.parametrize("recipe", ["baize", "vicuna", "guanaco", "chatdoctor", "bianque"])
def test_embedded_models_are_asked_stepwise_in_a_language_that_they_speak(recipe: str) -> None:
    asked = {"recipe": recipe, "model": "llama.cpp/smollm2-135m"}
    assert plan([asked, {"language": "en"}], fetch=False).config.style == "stepwise"
    with pytest.raises(ConfigError, match=r"speaks only en, not Chinese .* or a language that it speaks: -l en"):
        plan([asked, {"language": "zh"}], fetch=False)
