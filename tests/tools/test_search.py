"""Search in documents: what is read, what is found, in which order, in scripts with and without spaces."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfinstruct.errors import ConfigError, InputError, PluginError, WrongKey
from selfinstruct.formats import builtin, get, write
from selfinstruct.languages import tokens
from selfinstruct.testing import Answer
from selfinstruct.tools import ToolResult, describe_tools, open_tools
from selfinstruct.tools.search import Index, documents, letters, passages, terms
from selfinstruct.tools.web import at
from selfinstruct.values import Request
from tests.backends.endpoint import Endpoint, Reply, Seen, as_json
from tests.recipes.test_moss import run

SEEDS = Path(__file__).resolve().parents[2] / "seeds"
LANGUAGES = ("en", "zh", "ja", "th", "ar")

FACTS = [
    ("", "The tide rises twice a day because of the Moon."),
    ("", "Bread rises because of yeast, which needs warmth."),
    ("山", "富士山の高さは3776メートルです。日本で最も高い山です。"),
    ("", "迪拜市政府用楼是世界上最大的3D打印建筑。"),
    ("", "世界上最小的鸟是蜂鸟。"),
    ("", "ภูเขาที่สูงที่สุดในประเทศไทยคือดอยอินทนนท์"),
    ("", "อาหารไทยมีรสเผ็ด"),
    ("", "नील नदी संसार की सबसे लंबी नदी है।"),
    ("", "Эйфелева башня построена в 1889 году."),
]


def searched(settings: dict[str, Any], *queries: str) -> list[ToolResult]:
    async def main() -> list[ToolResult]:
        async with open_tools([{"search": settings}]) as (tool,):
            assert (tool.title, tool.signature, tool.style) == ("Web search", "Search(query)", "items")
            return list(await asyncio.gather(*(tool.call({"query": query}) for query in queries)))

    return asyncio.run(main())


# Finding


@pytest.mark.parametrize(
    ("query", "first"),
    [
        ("tides moon", 0),
        ("Why does BREAD rise?", 1),
        ("rising", 1),  # of two that have the stem, the shorter one
        ("富士山 高さ", 2),
        ("最高的山 日本", 2),
        ("世界上 最大 3D打印建筑", 3),
        ("３Ｄ打印", 3),
        ("蜂鸟", 4),
        ("鸟", 4),
        ("ภูเขาสูงสุด", 5),
        ("อาหารเผ็ด", 6),
        ("लंबी नदी", 7),
        ("эйфелева БАШНЯ", 8),
        ("1889", 8),
    ],
)
def test_the_passage_that_fits_is_found(query: str, first: int) -> None:
    title, text = FACTS[first]
    assert Index(FACTS).find(query, 1) == [f"{title}: {text}" if title and title not in text else text]


@pytest.mark.parametrize("query", ["", "zzz", "?!", '"', "\x00", "\ud800", "☃"])
def test_what_is_nowhere_is_not_found(query: str) -> None:
    assert Index(FACTS).find(query, 3) == []


@pytest.mark.parametrize(
    "query",
    [
        '" OR 1=1',
        "'; DROP TABLE terms; --",
        "NEAR(tide moon)",
        "title: tide",
        "tide AND NOT moon",
        "tid*",
        "^tide",
        "(((",
    ],
)
def test_a_query_has_no_syntax(query: str) -> None:
    index = Index(FACTS)
    index.find(query, 3)
    assert index.find("tides", 1) == [FACTS[0][1]]


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=60))
def test_whatever_the_query_is_there_is_an_answer(query: str) -> None:
    assert isinstance(_INDEX.find(query, 3), list)


_INDEX = Index(FACTS)


def test_the_ranking_is_that_of_bm25_and_always_the_same() -> None:
    texts = [
        "apple pear plum cherry",
        "apple apple apple pear",
        "plum cherry grape melon",
        "apple pear plum cherry",  # the same as the first: shown once
        "kiwi lemon lime orange",
        "fig date olive quince",
    ]
    for _ in range(3):
        index = Index(("", text) for text in texts)
        assert index.find("apple", 5) == [texts[1], texts[0]]
        assert index.find("cherry plum", 5) == [texts[2], texts[0]] or index.find("cherry plum", 5) == [
            texts[0],
            texts[2],
        ]
        assert index.find("cherry plum", 5) == index.find("plum cherry", 5)
        index.close()
    titled = Index([("olives", "They grow on trees."), ("trees", "Olives grow there.")])
    assert titled.find("olives", 1) == ["olives: They grow on trees."]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.lists(st.sampled_from("ant bee cat dog elk fox".split()), min_size=1, max_size=8), min_size=3, max_size=12
    )
)
def test_every_passage_with_a_rare_word_is_among_the_found(found: list[list[str]]) -> None:
    texts = [" ".join(words) + f" number{place}" for place, words in enumerate(found)]
    index = Index(("", text) for text in texts)
    for place, text in enumerate(texts):
        assert index.find(f"number{place}", 3) == [text]
    matching = {text for text in texts if "fox" in text.split()}
    assert set(index.find("fox", 20)) == matching
    index.close()


def test_terms() -> None:
    assert list(terms("The Tides, 1889")) == ["the", "tides", "1889"]
    assert list(terms("打印建筑 AI")) == ["打印", "印建", "建筑", "ai"]
    assert list(letters("3D打印 山")) == ["打", "印", "山"]
    assert list(terms("山")) == ["山"]


@cache
def shipped(language: str) -> tuple[tuple[str, ...], Index]:
    """Return the topics and instructions that are shipped in a language, and their index."""
    texts = []
    for name, key in (("topics", "topic"), ("tasks", "instruction")):
        lines = (SEEDS / language / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        texts += [json.loads(line)[key] for line in lines]
    texts = list(dict.fromkeys(texts))
    return tuple(texts), Index(("", text) for text in texts)


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_text_comes_first_for_a_phrase_that_it_alone_has(language: str) -> None:
    texts, index = shipped(language)
    space = "" if language in ("zh", "ja", "th") else " "
    spelled = [" ".join(tokens(text)) for text in texts]
    asked = 0
    for text, words in zip(texts, spelled, strict=True):
        phrase = words.split()[1:7]
        if len(phrase) == 6 and sum(" ".join(phrase) in other for other in spelled) == 1:
            asked += 1
            assert index.find(space.join(phrase), 3)[0] == text
    assert asked > 50


@settings(max_examples=100, deadline=None)
@given(language=st.sampled_from(LANGUAGES), data=st.data())
def test_a_text_is_found_by_any_words_of_its_own(language: str, data: st.DataObject) -> None:
    texts, index = shipped(language)
    text = data.draw(st.sampled_from(texts))
    words = tokens(text)
    start = data.draw(st.integers(0, len(words) - 1))
    query = " ".join(words[start : start + data.draw(st.integers(1, 30))])
    assert text in index.find(query, len(texts))


def test_letters_are_found_as_neighbours_only() -> None:
    index = Index(("", text) for text in ("大海的潮水", "每月两次大潮", "潮大", "大潮時は注意", "สูดน้ำขึ้นสุ"))
    assert index.find("大潮", 5) == ["每月两次大潮", "大潮時は注意"] or index.find("大潮", 5) == [
        "大潮時は注意",
        "每月两次大潮",
    ]
    assert set(index.find("海", 5)) == {"大海的潮水"}


def test_word_for_word_comes_before_more_of_the_words() -> None:
    index = Index(
        ("", text) for text in ("mill mill tide tide", "the old tide mill by the wide harbour", "quay", "crane")
    )
    assert index.find("tide mill", 2)[0].startswith("the old tide mill")


@pytest.mark.parametrize(
    "query", ["tide\0mill", "潮" * 10_000, "a" * 10_000, "tide mill " * 1000, "tide\n\n" * 3000, "\u202etide"]
)
def test_a_long_or_odd_query_is_a_query(query: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("the tide mill\n\n" + "潮" * 200, encoding="utf-8")
    (result,) = searched({"corpus": str(tmp_path)}, query)
    assert result.failed == (query[0] == "a")


def test_hits_do_not_depend_on_what_runs_beside_them(tmp_path: Path) -> None:
    texts = [text for language in LANGUAGES for text in shipped(language)[0][:40]]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts), encoding="utf-8")
    together = searched({"corpus": str(tmp_path)}, *texts)
    assert [searched({"corpus": str(tmp_path)}, text)[0] for text in texts[::40]] == together[::40]
    assert all(text[:30] in result.items[0] for text, result in zip(texts, together, strict=True))


def test_without_fts5_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    class Bare(sqlite3.Connection):
        def executescript(self, script: str) -> sqlite3.Cursor:
            raise sqlite3.OperationalError("no such module: fts5")

    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *a, **k: connect(*a, factory=Bare, **k))
    with pytest.raises(PluginError, match=r"needs SQLite with FTS5.*no such module"):
        Index(FACTS)


def test_a_closed_index_is_gone() -> None:
    index = Index(FACTS)
    index.close()
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        index.find("tides", 1)


def test_both_searches_are_listed() -> None:
    rows = {row["tool"]: row["options"] for row in describe_tools()}
    assert rows["search"].startswith("corpus, results=3")
    assert rows["web_search"].startswith("url, items=results")


@pytest.mark.slow
def test_a_run_answers_from_the_corpus_and_cites_it(tmp_path: Path) -> None:
    questions = ["How high does the water rise at spring tide?", "What does a night in the harbour cost?"]

    def model(request: Request) -> Answer:
        text = request.messages[-1].content
        spring = any("spring tide?" in message.content for message in request.messages)
        if not text.startswith("<|Results|>"):
            query = "spring tide water" if spring else "harbour night"
            return f'<|Inner Thoughts|>: The documents may say.<eot>\n<|Commands|>: Search("{query}")'
        assert "<|1|>: '" in text
        if spring:
            return "<|MOSS|>: It rises 6.4 metres<sup><|1|></sup>.<eom>"
        return "<|MOSS|>: It costs 18 euros<sup><|7|></sup>.<eom>"

    corpus = tmp_path / "docs"
    corpus.mkdir()
    (corpus / "tides.md").write_text("# Tides\n\nAt spring tide the water rises 6.4 metres.\n", encoding="utf-8")
    (corpus / "dues.jsonl").write_text('{"body": "A night in the harbour costs 18 euros."}\n', encoding="utf-8")
    found, rejected, _ = run(tmp_path / "r", model, questions, corpus=str(corpus))
    assert rejected == {"reply: no such result": 1}
    write(get("moss"), found, str(tmp_path / "moss.jsonl"))
    (row,) = [json.loads(line) for line in (tmp_path / "moss.jsonl").read_text(encoding="utf-8").splitlines()]
    assert "- Web search: enabled. API: Search(query)" in row["meta_instruction"]
    turn = row["chat"]["turn_1"]
    assert turn["Commands"] == '<|Commands|>: Search("spring tide water")<eoc>\n'
    assert turn["Tool Responses"].startswith(
        "<|Results|>:\nSearch(\"spring tide water\") =>\n<|1|>: 'Tides: At spring tide the water rises 6.4 metres.'"
    )
    assert turn["MOSS"] == "<|MOSS|>: It rises 6.4 metres<sup><|1|></sup>.<eom>\n"


# Passages


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=600), st.integers(40, 200))
def test_passages_hold_the_whole_text_in_pieces_of_the_size(text: str, size: int) -> None:
    pieces = [piece for _, piece in passages("t", text, size)]
    assert all(0 < len(piece) <= size for piece in pieces)
    assert "".join("".join(piece.split()) for piece in pieces) == "".join(text.split())


def test_passages_end_where_sentences_do() -> None:
    text = "One is short. Two is short too.\n\nThree stands alone. 四在这里。五也在这里。"
    assert [piece for _, piece in passages("", text, 45)] == [
        "One is short. Two is short too.",
        "Three stands alone. 四在这里。五也在这里。",
    ]


# Documents


def test_text_files_and_markdown_are_read_by_section(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("# not a heading here\nThe fox is red.", encoding="utf-8")
    (tmp_path / "a.md").write_text(
        "Before.\n# Owls\nThey hear well.\n```\n# a comment\n```\n## Food\nMice.", encoding="utf-8"
    )
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "c.md").write_text("# Empty\n", encoding="utf-8")
    (tmp_path / ".hidden.md").write_text("secret", encoding="utf-8")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    found = [document for document in documents([tmp_path]) if document[1].strip()]
    assert found == [
        ("", "Before."),
        ("Owls", "They hear well.\n```\n# a comment\n```"),
        ("Food", "Mice."),
        ("", "# not a heading here\nThe fox is red."),
    ]
    (result,) = searched({"corpus": str(tmp_path)}, "owls hear")
    assert result.items[0].startswith("Owls: They hear well.")
    assert result.text.startswith("[1] Owls: They hear well.")


def test_plain_rows_have_a_text_and_perhaps_a_title(tmp_path: Path) -> None:
    file = tmp_path / "pages.jsonl"
    file.write_text('{"title": "Tides", "text": "Twice a day."}\n{"text": "No title.", "title": null}\n')
    assert list(documents([file])) == [("Tides", "Twice a day."), ("", "No title.")]
    file.write_text('{"text": "fine"}\n{"text": 3}\n')
    with pytest.raises(InputError, match=r"pages.jsonl:2: expected a string under 'text'"):
        list(documents([file]))
    file.write_text('{"text": "fine"}\n{oops\n')
    with pytest.raises(InputError, match=r"pages.jsonl:2: "):
        list(documents([file]))


@pytest.mark.parametrize("name", sorted(builtin()))
def test_every_format_can_be_searched(name: str, tmp_path: Path) -> None:
    format = builtin()[name]
    if format.directory:
        pytest.skip("written as a folder of two files")
    path = tmp_path / f"corpus.{'parquet' if format.layout == 'parquet' else 'json'}"
    write(format, [format.example], path)
    texts = [text for _, text in documents([path])]
    assert texts
    assert all(text.strip() for text in texts)
    word = max(terms(texts[0]), key=len)
    (result,) = searched({"corpus": str(path)}, word)
    assert result.items


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist"),
        (b"", "x.txt: there is no text"),
        (b"\xff\xfe\x00", "x.txt: byte 0 is not UTF-8"),
    ],
)
def test_what_can_not_be_read_is_named(content: bytes | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "x.txt").write_bytes(content)
    with pytest.raises(InputError, match=message):
        searched({"corpus": str(tmp_path / "x.txt")})


def test_an_empty_folder_and_odd_options_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no documents"):
        searched({"corpus": str(tmp_path)})
    (tmp_path / "a.txt").write_text("word")
    with pytest.raises(ConfigError, match="results must be 1 or more"):
        searched({"corpus": str(tmp_path), "results": 0})
    with pytest.raises(ConfigError, match="needs the option corpus"):
        searched({})
    assert searched({"corpus": [str(tmp_path), str(tmp_path / "a.txt")]}, "word")[0].items == ("word",)


def test_nothing_found_is_a_failed_search(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("word")
    (result,) = searched({"corpus": str(tmp_path)}, "zebra")
    assert (result.failed, result.reason, result.items) == (True, "no hits", ())


@pytest.mark.slow
def test_many_passages_stay_quick(tmp_path: Path) -> None:
    with (tmp_path / "big.jsonl").open("w") as file:
        for number in range(20_000):
            words = " ".join(f"word{(number * step) % 4999}" for step in range(1, 30))
            file.write(json.dumps({"text": f"{words} page{number}"}) + "\n")
    started = time.monotonic()
    results = searched({"corpus": str(tmp_path)}, *(f"page{number}" for number in range(0, 20_000, 500)))
    assert time.monotonic() - started < 60
    assert all(
        f"page{number}" in result.items[0] for number, result in zip(range(0, 20_000, 500), results, strict=True)
    )


# By HTTP


def asked(endpoint: Endpoint, *queries: str, **options: Any) -> list[ToolResult]:
    async def main() -> list[ToolResult]:
        url = f"{endpoint.base_url}/search?format=json&q={{query}}"
        async with open_tools([{"web_search": {"url": url} | options}]) as (tool,):
            return [await tool.call({"query": query}) for query in queries]

    return asyncio.run(main())


def test_a_search_api_is_asked_and_its_hits_become_snippets() -> None:
    """The shape is that of SearXNG, `/search?format=json`."""
    hits = [
        {"title": "Tides", "content": "They <b>rise</b> twice\n a day &amp; fall.", "url": "http://x"},
        {"title": "No text", "content": ""},
        {"title": None, "content": "No title."},
        "odd",
        {"title": "Fourth", "content": "x"},
    ]
    with Endpoint(as_json({"query": "q", "results": hits})) as endpoint:
        (result,) = asked(endpoint, "Ebbe & Flut?", results=3)
    assert result.items == ("Tides: They rise twice a day & fall.", "No text", "No title.")
    assert endpoint.requests[0].path == "/v1/search?format=json&q=Ebbe%20%26%20Flut%3F"


def test_another_api_by_its_keys_and_with_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEARCH_KEY", "k-123456")
    answer = {"query": {"search": [{"name": "A", "snippet": "<span class='m'>b</span>"}]}}
    with Endpoint(as_json(answer)) as endpoint:
        options = {"items": "query.search", "title": "name", "snippet": "snippet", "api_key_env": "SEARCH_KEY"}
        assert asked(endpoint, "x", **options)[0].items == ("A: b",)
        assert asked(endpoint, "x", **options, header="X-Subscription-Token")[0].items == ("A: b",)
    assert endpoint.requests[0].headers["authorization"] == "Bearer k-123456"
    assert endpoint.requests[1].headers["x-subscription-token"] == "k-123456"


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (as_json({"results": []}), "no hits"),
        (as_json({"hits": []}), "unreadable answer"),
        (as_json([1]), "unreadable answer"),
        (as_json({"results": {"a": 1}}), "no hits"),
        (Reply(200, b"<html>"), "unreadable answer"),
        (Reply(500, b"oops"), "HTTP 500"),
        (Reply(429, b"slow down"), "HTTP 429"),
        (Reply(302, b"", {"Location": "/elsewhere"}), "HTTP 302"),
        (Reply(200, b"x" * 100, cut=-1), "unreachable"),
        (Reply(200, b"x" * 100, cut=10), "unreachable"),
        (Reply(200, b"x", delay=5), "out of time"),
        (Reply(200, b" " * (5 << 20)), "answer too long"),
    ],
)
def test_what_a_server_does_wrong_is_a_failed_search(reply: Reply, reason: str) -> None:
    with Endpoint(reply) as endpoint:
        (result,) = asked(endpoint, "x", seconds=1.0 if reason == "out of time" else 60.0)
    assert (result.failed, result.reason) == (True, reason)


def test_a_refused_key_and_a_missing_one_end_the_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEARCH_KEY", "k-123456")
    with Endpoint(Reply(401, b"no")) as endpoint, pytest.raises(WrongKey, match="HTTP 401") as caught:
        asked(endpoint, "secret question", api_key_env="SEARCH_KEY")
    assert "k-123456" not in str(caught.value)
    assert "secret" not in str(caught.value)
    monkeypatch.delenv("SEARCH_KEY")
    with Endpoint(Reply(401, b"no")) as endpoint, pytest.raises(WrongKey, match="SEARCH_KEY"):
        asked(endpoint, "x", api_key_env="SEARCH_KEY")


@pytest.mark.parametrize("url", ["http://127.0.0.1/search", "ftp://x/{query}", "nonsense{query}"])
def test_an_address_without_sense_is_refused(url: str) -> None:
    async def main() -> None:
        async with open_tools([{"web_search": {"url": url}}]):
            pass

    with pytest.raises(ConfigError, match="address"):
        asyncio.run(main())


def test_the_query_can_not_leave_its_place() -> None:
    def script(seen: Seen) -> Reply:
        return as_json({"results": [{"title": seen.path, "content": ""}]})

    with Endpoint(script) as endpoint:
        results = asked(endpoint, "../../admin", "a&format=html#x", "{query}", "\r\nHost: evil")
    for result in results:
        path = result.items[0]
        assert path.startswith("/v1/search?format=json&q=")
        assert not set("&#/\r\n ") & set(path.partition("q=")[2])


def test_a_place_in_json() -> None:
    assert at({"a": [{"b": 1}]}, "a.0.b") == 1
    assert at([3], "") == [3]
    for path in ("b", "a.1", "a.x", "a.0.b.c"):
        with pytest.raises(KeyError):
            at({"a": [{"b": 1}]}, path)
