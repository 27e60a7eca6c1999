"""Golden files, the variants met in the wild, and the real samples where they are."""

from __future__ import annotations

import gzip
import io
import json
import re
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from selfinstruct import formats
from selfinstruct.errors import ConfigError, InputError
from selfinstruct.formats import koala, registry, self_instruct, stackllama
from selfinstruct.values import Comparison, Dialogue, Instance, Message, Record, Response, Task, ToolCall

GOLDEN = Path(__file__).parent / "golden"
SAMPLES = Path(__file__).resolve().parents[3] / "shared" / "data"
FOLDERS = {name for name in formats.builtin() if formats.get(name).directory}
BINARY = {"parquet"}


def golden(name: str) -> Path:
    (path,) = GOLDEN.glob(f"{name}.*")
    return path


@pytest.mark.parametrize("name", [n for n in formats.builtin() if n not in FOLDERS | BINARY])
def test_golden_files_are_written_again_byte_for_byte(name: str) -> None:
    path = golden(name)
    records = list(formats.read(path, name))
    assert records
    target = io.BytesIO()
    report = formats.write(name, records, target)
    assert (report.refused, dict(report.labels)) == ([], {})
    assert target.getvalue() == path.read_bytes()


def test_golden_parquet_file_is_read_and_its_columns_written_again(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    records = list(formats.read(golden("parquet"), "parquet"))
    assert records == list(formats.read(golden("messages"), "messages"))
    # Not byte for byte: the file names the version of pyarrow.
    formats.write("parquet", records, tmp_path / "x.parquet")
    assert parquet.read_table(tmp_path / "x.parquet").equals(parquet.read_table(golden("parquet")))


def without_null(value: Any) -> Any:
    """Take out what is null: Parquet can't tell it from what is absent."""
    if isinstance(value, dict):
        return {key: without_null(each) for key, each in value.items() if each is not None}
    return [without_null(each) for each in value] if isinstance(value, list | tuple) else value


@pytest.mark.parametrize("name", [n for n in formats.builtin() if n not in FOLDERS and not formats.get(n).list_rows])
def test_golden_files_become_parquet_and_come_back(name: str, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    records = list(formats.read(golden(name), name))
    report = formats.write(name, records, tmp_path / "x.parquet")
    assert (report.written, report.refused) == (len(records), [])
    back = list(formats.read(tmp_path / "x.parquet", name))
    assert [without_null(asdict(record)) for record in back] == [without_null(asdict(record)) for record in records]


def test_objects_that_never_have_a_key_are_null_in_parquet(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    records = [Task("a", extra={"metadata": {}}), Task("b", extra={"metadata": {}, "most_similar": {"x": 1}})]
    report = formats.write("self-instruct-instructions", records, tmp_path / "x.parquet")
    assert (report.written, report.refused) == (2, [])
    back = list(formats.read(tmp_path / "x.parquet", "self-instruct-instructions"))
    assert [record.extra for record in back] == [{}, {"most_similar": {"x": 1}}]


def test_golden_folder_of_deepspeed_chat(tmp_path: Path) -> None:
    records = [r for part in ("eval", "train") for r in formats.read(GOLDEN / "deepspeed-chat" / f"{part}.json")]
    formats.write("deepspeed-chat", records, tmp_path / "out")
    for part in ("train.json", "eval.json"):
        assert (tmp_path / "out" / part).read_bytes() == (GOLDEN / "deepspeed-chat" / part).read_bytes()


def test_llama_factory_lists_every_column_and_tag(tmp_path: Path) -> None:
    for name in ("llama-factory", "llama-factory-sharegpt", "llama-factory-ranking", "llama-factory-kto"):
        formats.write(name, list(formats.read(golden(name), name)), tmp_path / f"{name}.json")
    info = json.loads((tmp_path / "dataset_info.json").read_text(encoding="utf-8"))
    assert len(info) == 4
    for entry in info.values():
        rows = json.loads((tmp_path / entry["file_name"]).read_text(encoding="utf-8"))
        assert all(set(row) == set(entry["columns"].values()) for row in rows)
        if entry.get("formatting") == "sharegpt":
            assert set(entry["tags"]) == {
                *(
                    "role_tag",
                    "content_tag",
                    "user_tag",
                    "assistant_tag",
                    "observation_tag",
                    "function_tag",
                    "system_tag",
                )
            }


def test_an_unreadable_dataset_info_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "dataset_info.json").write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match=r"dataset_info\.json"):
        formats.write("llama-factory", [formats.get("llama-factory").example], tmp_path / "x.json")
    assert (tmp_path / "dataset_info.json").read_text(encoding="utf-8") == "{"


def test_the_list_of_data_sets_is_no_data_set(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="keeps its list of data sets there"):
        formats.write("llama-factory", [formats.get("llama-factory").example], tmp_path / "dataset_info.json")
    assert list(tmp_path.iterdir()) == []


# --- variants in the wild


def one(name: str, row: Any) -> Record:
    (record,) = formats.get(name).decode(row)
    return record


def chat(*contents: str, **more: Any) -> Dialogue:
    roles = ("user", "assistant")
    return Dialogue(tuple(Message(roles[i % 2], c) for i, c in enumerate(contents)), **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "row", "expected"),
    [
        ("alpaca", {"instruction": "a", "output": "b"}, Task("a", (Instance("", "b"),))),
        ("alpaca", {"instruction": "a", "input": None, "output": "b"}, Task("a", (Instance("", "b"),))),
        ("alpaca", {"instruction": "a", "input": "", "output": "b", "text": "t"}, Task("a", (Instance("", "b"),))),
        ("belle", {"input": "a\nb", "target": "c"}, Task("a\nb", (Instance("", "c"),))),
        ("belle-0.5m", {"input": "a", "output": "c"}, Task("a", (Instance("", "c"),))),
        (
            "belle-multiturn",
            {"instruction": "Human:你好\nAssistant:你好！\nHuman:再见\nAssistant:\n", "input": "", "output": "再见！"},
            chat("你好", "你好！", "再见", "再见！"),
        ),
        (
            "belle-3.5m",
            {"id": "1", "conversations": [{"from": "human", "value": "a"}, {"from": "assistant", "value": "b"}]},
            chat("a", "b", id="1"),
        ),
        (
            "guanaco",
            {"instruction": "User: a\nAssistant: b", "input": "System: s\nUser: c", "output": "d"},
            chat("a", "b", "c", "d", system="s"),
        ),
        ("guanaco", {"instruction": "", "input": "User: c", "output": "d"}, chat("c", "d")),
        ("guanaco", {"instruction": "a", "input": "b", "output": "c"}, Task("a", (Instance("b", "c"),))),
        (
            "huatuo",
            {"output": "d", "id": "7", "input": "", "instruction": " <user>: a <bot>: b <user>: c"},
            chat("a", "b", "c", "d", id="7"),
        ),
        (
            "bianque",
            {"input": "病人：咳嗽\\n医生：多久了\\n病人：一周\\n医生：", "target": "就医", "answer_choice": "[]"},
            chat("咳嗽", "多久了", "一周", "就医", extra={"answer_choice": "[]"}),
        ),
        (
            "baize",
            {"topic": "t", "input": "Hello there.\n[|Human|] a\n[|AI|] b"},
            chat("a", "b", topic="t", extra={"opening": "Hello there.\n", "closed": True}),
        ),
        (
            "sharegpt",
            {"id": "x", "conversations": [{"from": "system", "value": "s"}, {"from": "chatgpt", "value": "a"}]},
            Dialogue((Message("assistant", "a"),), "s", id="x"),
        ),
        (
            "dolly",
            {"instruction": "a", "context": None, "response": "b", "category": "open_qa"},
            Task("a", (Instance("", "b"),), extra={"category": "open_qa"}),
        ),
        (
            "pclue",
            {"input": "a", "target": ["b", "c"], "type": "mrc"},
            Task("a", (Instance("", "b"), Instance("", "c")), False, extra={"type": "mrc"}),
        ),
        (
            "pclue",
            {"input": "a", "target": "b", "type": "nli", "answer_choices": ""},
            Task("a", (Instance("", "b"),), True, extra={"type": "nli", "answer_choices": ""}),
        ),
        (
            "webgpt",
            {
                "question": {"dataset": "d", "id": "q", "full_text": "Q"},
                "answer_0": "a",
                "answer_1": "b",
                "score_0": -1,
                "score_1": 1,
            },
            Comparison("Q", (Response("a", -1.0), Response("b", 1.0)), "q", {"dataset": "d"}),
        ),
        (
            "summarize-feedback",
            {
                "info": {"id": "i", "post": None, "article": "A"},
                "summaries": [{"text": "a"}, {"text": "b"}],
                "choice": 1,
            },
            Comparison(
                "A", (Response("a", rank=1), Response("b", rank=0)), "i", {"info": {"post": None, "from": "article"}}
            ),
        ),
        (
            "preference",
            {
                "chosen": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
                "rejected": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "b"}],
            },
            Comparison("q", (Response("a", rank=0), Response("b", rank=1))),
        ),
        ("kto", {"prompt": "q", "completion": "a", "label": False}, Comparison("q", (Response("a", -1.0),))),
        (
            "deepspeed-chat",
            {"prompt": "Human: How are you? Assistant:", "chosen": "Fine.", "rejected": "Go away."},
            Comparison("How are you?", (Response("Fine.", rank=0), Response("Go away.", rank=1))),
        ),
        (
            "messages",
            {
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": "a"}]},
                    {"role": "assistant", "content": "b"},
                ]
            },
            chat("a", "b"),
        ),
    ],
)
def test_variants_in_the_wild(name: str, row: Any, expected: Record) -> None:
    assert one(name, row) == expected


@pytest.mark.parametrize(
    ("name", "row", "expected"),
    [
        (
            "llama-factory-ranking",
            {"instruction": "a", "input": "b", "chosen": "c", "rejected": "d"},
            Comparison("a\nb", (Response("c", rank=0), Response("d", rank=1))),
        ),
        (
            "llama-factory-ranking",
            {"instruction": "a", "chosen": "c", "rejected": "d", "system": "s", "history": [["x", "y"]]},
            Comparison(
                Dialogue((Message("user", "x"), Message("assistant", "y"), Message("user", "a")), "s"),
                (Response("c", rank=0), Response("d", rank=1)),
            ),
        ),
        (
            "llama-factory-kto",
            {"instruction": "a", "input": "", "output": "c", "kto_tag": False},
            Comparison("a", (Response("c", score=-1.0),)),
        ),
        ("llama-factory", {"instruction": "a", "output": "c", "system": "s"}, chat("a", "c", system="s")),
        (
            "sharegpt",
            {"system": "s", "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
            chat("a", "b", system="s"),
        ),
        (
            "messages",
            {"system": "s", "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
            chat("a", "b", system="s"),
        ),
        (
            "preference",
            {"system": "s", "prompt": "q", "chosen": "a", "rejected": "b"},
            Comparison(Dialogue((Message("user", "q"),), "s"), (Response("a", rank=0), Response("b", rank=1))),
        ),
        (
            "kto",
            {"system": "s", "prompt": "q", "completion": "a", "label": True},
            Comparison(Dialogue((Message("user", "q"),), "s"), (Response("a", score=1.0),)),
        ),
        (
            "axolotl-dpo",
            {"system": "s", "messages": [{"role": "user", "content": "q"}], "chosen": "a", "rejected": "b"},
            Comparison(Dialogue((Message("user", "q"),), "s"), (Response("a", rank=0), Response("b", rank=1))),
        ),
        ("prompt-completion", {"system": "s", "prompt": "q", "completion": "a"}, chat("q", "a", system="s")),
        (
            "colossalai",
            {"messages": [{"from": "human", "content": "a"}, {"from": "assistant", "content": "b"}]},
            chat("a", "b"),
        ),
        (
            "belle-reward",
            {"chosen": "a", "rejected": "b"},
            Comparison("", (Response("a", rank=0), Response("b", rank=1))),
        ),
    ],
)
def test_what_a_model_learns_from_is_told_apart_and_read(name: str, row: Any, expected: Record) -> None:
    # Taken for another format, the row's label, prompt or system prompt would be a key that means nothing.
    with formats.open_records(io.BytesIO(json.dumps(row).encode())) as reading:
        assert list(reading) == [expected]
        assert (reading.format.name, dict(reading.ignored)) == (name, {})


def test_a_preference_whose_question_is_under_an_unknown_key_is_not_taken_for_one_without() -> None:
    row = {"system": "s", "question": "q", "chosen": "a", "rejected": "b"}
    with pytest.raises(InputError, match="no known format has such rows"):
        list(formats.read(io.BytesIO(json.dumps(row).encode())))


def test_the_five_files_of_self_instruct() -> None:
    yes = {"instruction": "a", "is_classification": " Yes"}
    maybe = {"instruction": "a", "is_classification": "Yes."}
    assert one("self-instruct-classification", yes) == Task("a", is_classification=True)
    assert one("self-instruct-classification", maybe) == Task(
        "a", is_classification=False, extra={"is_classification": "Yes."}
    )
    raw = "Example 1\nInput: 3, 1\nOutput: 1, 3\n\nExample 2\nOutput: nothing\nExample 3\nno marker"
    assert self_instruct.parse_instances(raw) == (Instance("3, 1", "1, 3"), Instance("", "nothing"))
    labels = "Class label: good\nI love it.\nClass label: bad\nI hate it."
    assert self_instruct.parse_instances(labels) == (Instance("I love it.", "good"), Instance("I hate it.", "bad"))
    row = {"instruction": "a", "raw_instances": raw, "instance_metadata": {"x": 1}}
    (back,) = formats.get("self-instruct-raw-instances").encode(one("self-instruct-raw-instances", row))
    assert back == row
    prompt = {"prompt": "Input: x\nOutput:", "completion": " y<|endoftext|>"}
    assert formats.get("self-instruct-gpt3").encode(one("self-instruct-gpt3", prompt)) == [prompt]


@pytest.mark.parametrize(
    ("upvotes", "accepted", "expected"),
    [(0, False, 0), (1, False, 1), (3, False, 2), (7, True, 4), (-1, False, -1), (-2, True, -1)],
)
def test_stack_exchange_scores(upvotes: int, accepted: bool, expected: int) -> None:
    assert stackllama.score(upvotes, accepted) == expected


def test_stack_exchange_pairs_are_strict_and_at_most_ten() -> None:
    responses = tuple(Response(f"answer {n}", score=float(n // 2)) for n in range(8))
    rows = formats.get("stackllama").encode(Comparison("Q", responses, "1"))
    assert len(rows) == 10
    score = {response.content: response.score for response in responses}
    assert all((score[row["response_j"]] or 0) > (score[row["response_k"]] or 0) for row in rows)
    assert {row[key] for row in rows for key in ("response_j", "response_k")} == set(score)
    with pytest.raises(InputError, match="no response is better"):
        formats.get("stackllama").encode(Comparison("Q", (Response("a", 1.0), Response("b", 1.0))))


def test_koala_joins_fields_and_masks_brackets() -> None:
    (row,) = formats.get("koala").encode(chat("a", "b", "c", "d"))
    assert koala.segments(row) == [
        ("USER: a GPT:", False),
        ("b", True),
        ("<|eos|>", True),
        ("USER: c GPT:", False),
        ("d", True),
        ("<|eos|>", True),
    ]
    good, bad = formats.get("koala").encode(Comparison("q", (Response("a", 0.0), Response("b", 1.0))))
    assert koala.segments(good)[0][0] == "USER: q GPT:"
    assert koala.segments(bad)[0][0] == "USER: q An Unhelpful Answer:"
    with pytest.raises(InputError, match="tie"):
        formats.get("koala").encode(Comparison("q", (Response("a", 0.0), Response("b", 0.0))))


def test_baize_is_byte_exact_with_its_trailing_marker() -> None:
    opening = "The conversation between human and AI assistant.\n"
    text = opening + "[|Human|] a?\n[|AI|] b\n\nc \n[|Human|] d\n[|AI|] e\n[|Human|] "
    source = json.dumps([{"topic": "Ä?", "input": text}] * 2).encode()
    target = io.BytesIO()
    formats.write("baize", formats.read(io.BytesIO(source)), target)
    assert target.getvalue() == source


@pytest.mark.parametrize(
    ("name", "record", "reason"),
    [
        ("sharegpt", chat("a", "b", "c"), "end with the assistant"),
        ("sharegpt", Dialogue((Message("assistant", "a"), Message("user", "b"))), "message 1 must be the user's"),
        ("sharegpt", chat("a", " "), r"message 2 \(assistant\) is empty"),
        (
            "messages",
            Dialogue((Message("user", "a"), Message("tool", "b"))),
            "message 2 must be the assistant's, found a tool's",
        ),
        ("messages", chat("a", "b", "c"), "end with the assistant"),
        ("alpaca", Task("a"), "no instance"),
        ("alpaca", Task("a", (Instance("", " "),)), "output is empty"),
        ("chatdoctor", Task("a", (Instance("", "b"),)), "patient"),
        ("guanaco", chat("a\nAssistant: no", "b", "c", "d"), "reads? back differently"),
        ("baize", chat("a", "b\n[|Human|] c"), "reads? back differently"),
        ("preference", Comparison("q", (Response("a", 1.0), Response("b", 1.0))), "no response is better"),
        ("kto", Comparison("q", (Response("a"),)), "good response from a bad"),
        ("colossalai", chat("a", "b", "c"), "end with the assistant"),
        (
            "llama-factory-ranking",
            Comparison(chat("a", "b"), (Response("a", rank=0), Response("b", rank=1))),
            "end with the user",
        ),
    ],
)
def test_targets_keep_their_own_rules(name: str, record: Record, reason: str) -> None:
    report = formats.write(name, [record], io.BytesIO())
    assert report.written == 0
    ((_, found),) = report.refused
    assert re.search(reason, found), found


def test_one_key_family_per_file() -> None:
    report = formats.write("prompt-completion", [Task("a", (Instance("", "b"),)), chat("c", "d")], io.BytesIO())
    assert report.written == 1
    assert "one key family" in report.refused[0][1]


def test_ids_are_unique_and_made_when_missing() -> None:
    target = io.BytesIO()
    report = formats.write(
        "sharegpt", [chat("a", "b"), chat("a", "b"), chat("c", "d", id="x"), chat("e", "f", id="x")], target
    )
    rows = json.loads(target.getvalue())
    assert [row["id"] for row in rows[2:]] == ["x", "x-4"]
    assert len({row["id"] for row in rows}) == 4
    assert (report.refused, report.renumbered) == ([], 1)


def test_a_tie_asks_and_an_unknown_shape_is_told() -> None:
    (koala_row,), (moss_row,) = (formats.get(n).encode(formats.get(n).example) for n in ("koala", "moss"))
    with pytest.raises(InputError, match=r"may be koala or moss or moss-object; say which with --from"):
        registry.choose([koala_row | moss_row])
    with pytest.raises(InputError, match=r"no known format .*\(colour\)"):
        list(formats.read(io.BytesIO(b'{"colour": 1}\n')))


def test_names_are_told_when_wrong() -> None:
    with pytest.raises(ConfigError, match="closest: alpaca"):
        formats.get("alpacca")


def test_numbered_keys_are_known_and_others_are_counted() -> None:
    (row,) = formats.get("koala").encode(chat("a", "b"))
    with formats.open_records(io.BytesIO(json.dumps(row | {"note": "x"}).encode())) as reading:
        assert list(reading) == [chat("a", "b")]
        assert dict(reading.ignored) == {"note": 1}


@pytest.mark.parametrize(
    ("name", "row", "unknown"),
    [
        ("messages", {"messages": [{"role": "user", "weight": 0}], "source": "x"}, {"messages.weight", "source"}),
        ("sharegpt", {"id": 7, "conversations": [{"from": "human", "lang": None}]}, {"conversations.lang"}),
        ("stackexchange", {"question": "q", "answers": [{"text": "a", "pm_score": 1, "site": "x"}]}, {"answers.site"}),
        ("moss", {"chat": {"turn_1": {"Human": "a", "Mood": "b"}}}, {"chat.turn_N.Mood"}),
        ("colossalai-lora", [{"role": "user", "content": "a", "id": 1}], {"id"}),
        ("alpaca", ["not", {"an": "object"}], {"an"}),
    ],
)  # fmt: skip
def test_keys_that_mean_nothing_are_counted_also_inside(name: str, row: Any, unknown: set[str]) -> None:
    assert set(formats.get(name).unknown(row)) == unknown


TOOL_TURNS = Dialogue(
    (
        Message("user", "2*3, and who wrote Faust?"),
        Message(
            "assistant",
            "",
            "A sum and a search.",
            (
                ToolCall("Calculate", '{"expression": "2*3"}', "call_1"),
                ToolCall("Search", '{"query": "who wrote \\"Faust\\""}', "call_2"),
            ),
        ),
        Message("tool", "6", name="Calculate", tool_call_id="call_1"),
        Message("tool", "<|1|>: 'Goethe'\n<|2|>: 'Marlowe'", name="Search", tool_call_id="call_2"),
        Message("assistant", "6; Goethe<sup><|1|></sup>."),
        Message("user", "Thanks."),
        Message("assistant", "You are welcome.", "No tool is needed."),
    ),
    "You are a helper.\n- Inner thoughts: enabled.\n- Calculator: enabled. API: Calculate(expression)\n",
    id="tools-1",
)
"""What a recipe with tools makes: no extra, several calls in a turn, a turn without one."""


@pytest.mark.parametrize(
    "name", ["messages", "axolotl", "prompt-completion", "llama-factory-sharegpt", "moss", "moss-object"]
)
def test_a_recipes_tool_turns_go_into_every_format_of_tools(name: str) -> None:
    report = formats.write(name, [TOOL_TURNS], io.BytesIO())
    assert (report.written, report.refused, report.reduced) == (1, [], [])
    assert set(report.labels) <= {"id", "tool call ids"}


def test_moss_from_a_recipes_dialogue() -> None:
    (row,) = formats.get("moss").encode(TOOL_TURNS)
    assert (row["conversation_id"], row["meta_instruction"], row["num_turns"]) == ("tools-1", TOOL_TURNS.system, 2)
    assert row["chat"]["turn_1"] == {
        "Human": "<|Human|>: 2*3, and who wrote Faust?<eoh>\n",
        "Inner Thoughts": "<|Inner Thoughts|>: A sum and a search.<eot>\n",
        "Commands": '<|Commands|>: Calculate("2*3"), Search("who wrote \\"Faust\\"")<eoc>\n',
        "Tool Responses": "<|Results|>:\nCalculate(\"2*3\") => '6'\n"
        "Search(\"who wrote \\\"Faust\\\"\") =>\n<|1|>: 'Goethe'\n<|2|>: 'Marlowe'\n<eor>\n",
        "MOSS": "<|MOSS|>: 6; Goethe<sup><|1|></sup>.<eom>\n",
    }
    assert row["chat"]["turn_2"]["Commands"] == "<|Commands|>: None<eoc>\n"
    assert row["chat"]["turn_2"]["Tool Responses"] == "<|Results|>:\nNone\n<eor>\n"


@pytest.mark.parametrize(
    "name", [n for n in formats.builtin() if Dialogue in formats.get(n).kinds and n not in FOLDERS]
)
def test_a_recipes_plain_dialogue_goes_into_every_format_of_dialogues(name: str, tmp_path: Path) -> None:
    ending = {"csv": ".csv", "parquet": ".parquet"}.get(formats.get(name).layout, ".json")
    report = formats.write(
        name, [chat("Hi", "Hello.", "Bye", "Bye!", topic="greetings", id="d1")], tmp_path / f"x{ending}"
    )
    assert (report.written, report.refused, report.reduced) == (1, [], [])
    assert set(report.labels) <= {"id", "topic"}


# --- the real thing


def samples() -> Iterator[Path]:
    yield from sorted((SAMPLES / "moss").glob("*/*.json"))


@pytest.mark.skipif(not SAMPLES.is_dir(), reason="the real samples are not beside this checkout")
def test_moss_samples_are_written_again_byte_for_byte() -> None:
    paths = list(samples())
    assert len(paths) > 200
    for path in paths:
        with formats.open_records(path) as reading:
            records = list(reading)
            assert reading.format.name == "moss"
        target = io.BytesIO()
        assert formats.write("moss-object", records, target).refused == []
        assert target.getvalue() == path.read_bytes(), path


@pytest.mark.skipif(not SAMPLES.is_dir(), reason="the real samples are not beside this checkout")
@pytest.mark.parametrize(
    ("file", "name", "count"),
    [
        ("alpaca_en_demo.json", "alpaca", 999),
        ("alpaca_zh_demo.json", "alpaca", 1000),
        ("belle_zh_seed_tasks.json", "self-instruct", 175),
        ("stanford_seed_tasks.jsonl", "self-instruct", 175),
        ("glaive_toolcall_en_demo.json", "llama-factory-sharegpt", 300),
        ("dpo_zh_demo.json", "llama-factory-ranking", 300),
    ],
)
def test_samples_are_recognised_and_read_whole(file: str, name: str, count: int, tmp_path: Path) -> None:
    misnamed = tmp_path / "data.csv.gz"
    misnamed.write_bytes((SAMPLES / file).read_bytes())
    with formats.open_records(misnamed) as reading:
        records = list(reading)
        assert (reading.format.name, len(records), reading.bad) == (name, count, 0)
    report = formats.write(name, records, tmp_path / "out.json")
    assert (report.written, report.refused, dict(report.labels)) == (count, [], {})
    if formats.get(name).beside is not None:
        with pytest.raises(InputError, match=r"loads files named \.json"):
            formats.write(name, records, tmp_path / "out.json.gz")
        return
    packed = tmp_path / "out.json.gz"
    formats.write(name, records, packed)
    assert gzip.decompress(packed.read_bytes()) == (tmp_path / "out.json").read_bytes()
    assert list(formats.read(packed)) == records
