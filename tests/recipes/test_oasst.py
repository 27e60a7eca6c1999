"""Open-Assistant trees: grown, ranked and written as trees, threads and preferences, whatever the judge answers."""

from __future__ import annotations

import itertools
import json
import random
import re
import string
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from selfinstruct import formats
from selfinstruct.cli import cli
from selfinstruct.errors import ConfigError
from selfinstruct.plan import plan
from selfinstruct.recipes.oasst import Tiers, Tree, agreed, read_ranking
from selfinstruct.store import RunView
from selfinstruct.values import Comparison, Dialogue, Message, Record
from tests.backends.endpoint import Endpoint
from tests.program import kill, run_options, selfinstruct
from tests.recipes.runs import Dataset, Speak, grow, judged_again, rebuilt, rejected, scripted, served, written

_THINGS = (
    "harvest bridge contract recipe poem market timetable lighthouse budget orchard violin tram glacier notebook "
    "kettle parliament beehive sonnet warehouse canal lantern dialect compass vaccine loom quarry ferry anthem"
).split()
_SW_THINGS = (
    "mavuno daraja mkataba mapishi shairi soko ratiba mnara bajeti bustani barafu daftari birika bunge mzinga ghala "
    "mfereji taa lahaja dira chanjo machimbo kivuko wimbo"
).split()
_ZH_THINGS = "丰收 桥梁 合同 菜谱 诗歌 集市 灯塔 预算 果园 琵琶 电车 冰川 茶壶 蜂箱 码头 运河 灯笼 方言".split()


# --- a judge's order


@pytest.mark.parametrize(
    ("text", "tiers"),
    [
        ("A is vague, C is wrong.\nB > A > C", ((1,), (0,), (2,))),
        ("**B > A = C**", ((1,), (0, 2))),
        ("Ranking: [C] > [A] > [B].", ((2,), (0,), (1,))),
        ("最后排序：Ｃ＞Ａ＝Ｂ", ((2,), (0, 1))),
        ("B>A>C, as said: B > A > C", ((1,), (0,), (2,))),
        ("A = B = C", ((0, 1, 2),)),
        ("A > B > C\nNo, on reflection C > B > A", None),
        ("B > A", None),
        ("B > A > C > D", None),
        ("B > A > A", None),
        ("B > A > C > B", None),
        ("A < B < C", None),
        ("X > Z = Y", None),
        ("BA > C > A", None),
        ("All three are fine.", None),
        ("", None),
    ],
)
def test_an_order_is_read_or_there_is_none(text: str, tiers: Tiers | None) -> None:
    assert read_ranking(text, 3) == tiers


@st.composite
def orders(draw: st.DrawFn, count: int) -> Tiers:
    replies = draw(st.permutations(range(count)))
    cuts = [0, *sorted(draw(st.sets(st.integers(1, count - 1)))), count]
    return tuple(tuple(sorted(replies[a:b])) for a, b in itertools.pairwise(cuts))


@given(st.integers(2, 6).flatmap(lambda count: orders(count)), st.text("abXYZ .:\n，", max_size=30))
def test_any_order_written_out_is_read_back(tiers: Tiers, around: str) -> None:
    written = " > ".join(" = ".join(string.ascii_uppercase[reply] for reply in tier) for tier in tiers)
    assert read_ranking(f"{around}\n{written}\n", sum(map(len, tiers))) == tiers


@given(st.integers(2, 6).flatmap(lambda count: st.lists(orders(count), min_size=1, max_size=3)))
def test_what_several_rankings_agree_on_is_said_by_each_of_them(rankings: list[Tiers]) -> None:
    found = agreed(rankings)
    assert sorted(itertools.chain(*found)) == sorted(itertools.chain(*rankings[0]))
    places = [{reply: depth for depth, tier in enumerate(tiers) for reply in tier} for tiers in rankings]
    for better, worse in itertools.combinations(found, 2):
        assert all(place[one] < place[other] for place in places for one in better for other in worse)
    assert agreed([*rankings, rankings[0]]) == found
    assert agreed(list(reversed(rankings))) == found
    if len(rankings) == 1:
        assert found == rankings[0]


def test_only_agreement_is_kept() -> None:
    assert agreed([((0,), (1,), (2,)), ((0,), (2,), (1,))]) == ((0,), (1, 2))
    assert agreed([((0,), (1,)), ((1,), (0,))]) == ((0, 1),)
    assert agreed([((0,), (1,), (2,)), ((2,), (1,), (0,))]) == ((0, 1, 2),)
    assert agreed([((0,), (1, 2)), ((0, 1), (2,))]) == ((0, 1, 2),), "1 is under 0 once only, and over 2 once only"


# --- a tree


def test_a_tree_holds_a_comparison_for_each_turn_and_the_thread_of_best_replies() -> None:
    def grown(follow: int) -> list[Record]:
        tree = Tree("item", "en", "m")
        tree.grow("Why is the sky blue?", ["Air.", "Scattering."], ((1,), (0,)), follow)
        tree.grow("And at dusk?", ["Red.", "Longer ways.", "Night."], ((0, 1), (2,)), 1)
        return tree.records()

    first, second, thread = grown(1)
    assert isinstance(first, Comparison)
    assert isinstance(second, Comparison)
    assert isinstance(thread, Dialogue)
    assert first.prompt == "Why is the sky blue?"
    assert [(r.content, r.rank) for r in first.responses] == [("Scattering.", 0), ("Air.", 1)]
    assert [(r.content, r.rank) for r in second.responses] == [("Red.", 0), ("Longer ways.", 0), ("Night.", 1)]
    assert [m.content for m in thread.messages] == ["Why is the sky blue?", "Scattering.", "And at dusk?", "Red."]
    assert grown(1) == [first, second, thread], "the ids of a tree grown again are the same"
    *_, short = grown(0)
    assert isinstance(short, Dialogue)
    assert [m.content for m in short.messages] == ["Why is the sky blue?", "Scattering."], "best replies only"
    assert Tree("other", "en", "m").records() == []


# --- runs

_SAID = {
    "en": ("As to the {}, begin with the {} and only then, at number {}, turn to the {}.", _THINGS, ", "),
    "sw": ("Kuhusu {}, anza na {} kwanza, halafu kwa namba {} uangalie pia {}.", _SW_THINGS, ", "),
    "zh": ("关于{}，不妨先看{}，到第{}条再说{}。", _ZH_THINGS, "、"),
}
_ASKED = {"en": "Why {} before all of {}?", "sw": "Kwa nini {} huja kabla ya {}?", "zh": "{}和{}，哪个更要紧？"}


def speak(tag: str = "en", damaged: float = 0.25) -> Speak:
    """Return a model that plays prompter, assistant and judge, now and then as none of them should."""
    pattern, things, comma = _SAID[tag]

    def say(rng: random.Random) -> str:
        one, two, three = rng.sample(things, 3)
        return pattern.format(one, two, rng.randint(1, 99), three)

    def answer(messages: tuple[Message, ...], rng: random.Random) -> str | tuple[str, str]:
        text = messages[-1].content
        odd = rng.random() < damaged
        if letters := re.findall(r"^<(?:reply|回复) ([A-Z])>$", text, re.MULTILINE):
            rng.shuffle(letters)
            line = "".join(letter + rng.choice([" > ", " > ", " = "]) for letter in letters)[:-3]
            if odd:
                line = rng.choice([line.replace(letters[0], "Q"), "They are all good.", "", f"{line}\n{line[::-1]}"])
            return f"{letters[0]} is sound, {letters[-1]} is not.\n**{line}**"
        if "opens a conversation" in text or "第一条消息" in text:
            one, *others = rng.sample(things, 7)
            asked = _ASKED[tag].format(one, comma.join(others))
            return rng.choice(["", "[END]"]) if odd and rng.random() < 0.3 else f'"{asked}"'
        if "You play the person." in text or "你来扮演这位用户" in text:
            return "[END]" if odd else f"{'[用户]' if tag == 'zh' else '[User]'} {say(rng)}"
        if odd:
            leaked, refused = f"{say(rng)}\n[User] And then?\n[Assistant] Nothing.", "I'm sorry, but I can't help."
            return rng.choice(
                [
                    (f"{say(rng)} Then the", "length"),
                    ("Then the", "length"),
                    ("", "stop"),
                    (leaked, "stop"),
                    (refused, "stop"),
                ]
            )
        return say(rng)

    return answer


def below(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for reply in node["replies"]:
        yield from below(reply)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Dataset]:
    """A run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("oasst") / "run"
    return folder, grow(folder, "oasst", scripted(speak()), target=24, concurrency=1)


def test_trees_are_written_for_every_trainer(run: tuple[Path, Dataset], tmp_path: Path) -> None:
    _, dataset = run
    found = [record for _, record in dataset]
    comparisons = [record for record in found if isinstance(record, Comparison)]
    threads = [record for record in found if isinstance(record, Dialogue)]
    assert len(found) == 24
    assert len(comparisons) > len(threads) > 5

    trees = written("oasst", dataset, tmp_path / "trees.jsonl")
    again = list(formats.read(tmp_path / "trees.jsonl"))
    assert {record.id for record in found} <= {record.id for record in again}, "a record is not in the trees"
    assert all(tree["tree_state"] == "ready_for_export" and tree["prompt"]["role"] == "prompter" for tree in trees)
    assert len({tree["message_tree_id"] for tree in trees}) == len(trees)
    nodes = [node for tree in trees for node in below(tree["prompt"])]
    assert len({node["message_id"] for node in nodes}) == len(nodes)
    assert all(node["lang"] == "en" and node["synthetic"] and node["model_name"] == "openai/test" for node in nodes)
    for node in nodes:
        ranks = [reply["rank"] for reply in node["replies"] if reply["role"] == "assistant"]
        assert not ranks or (len(ranks) > 1 and min(ranks) == 0 < max(ranks))
    rows = written("oasst-messages", dataset, tmp_path / "messages.jsonl")
    assert {row["message_id"] for row in rows} == {node["message_id"] for node in nodes}

    rank = {(c.id, r.content): r.rank for c in comparisons for r in c.responses}
    assert all(rank[c.id, c.responses[0].content] == 0 for c in comparisons)
    pairs = written("preference", dataset, tmp_path / "preference.jsonl")
    ranking = written("llama-factory-ranking", dataset, tmp_path / "ranking.json")
    assert len(pairs) == len(ranking) >= len(comparisons)
    kto = written("kto", dataset, tmp_path / "kto.jsonl")
    assert len(kto) == sum(len(record.responses) for record in comparisons)
    chats = written("messages", dataset, tmp_path / "chats.jsonl")
    best = {response.content for c in comparisons for response in c.responses if response.rank == 0}
    assert len(chats) == len(threads)
    assert all(message["content"] in best for row in chats for message in row["messages"][1::2])


def test_each_damage_is_told_by_its_name(run: tuple[Path, Dataset]) -> None:
    folder, _ = run
    with RunView.open(folder) as view:
        reasons = Counter(
            (row["filter"], row["reason"])
            for row in view._mappings("SELECT filter, reason FROM candidates WHERE accepted IS NULL", ())
        )
    told = {"no_prompt", "no_ranking", "all_tied", "cut_off", "empty", "refusal"}
    assert told <= {reason for _, reason in reasons}, reasons


def test_an_order_of_the_judges_own_is_no_order(tmp_path: Path) -> None:
    def first_is_best(messages: tuple[Message, ...], rng: random.Random) -> str | tuple[str, str]:
        return "A > B > C" if "<reply A>" in messages[-1].content else speak(damaged=0)(messages, rng)

    settings: dict[str, Any] = {"target": 6, "stop": {"saturation_draws": 12}}
    grow(tmp_path / "one", "oasst", scripted(first_is_best), **settings)
    options = {"orders": 2}
    found = grow(tmp_path / "two", "oasst", scripted(first_is_best), stop_after=30, options=options, **settings)
    assert found == [], "what the judge prefers depends on the place alone"
    assert rejected(tmp_path / "two", "comparisons")["ranking"] > 5


def test_two_orders_more_replies_more_turns_and_paths_by_chance(tmp_path: Path) -> None:
    def sure(messages: tuple[Message, ...], rng: random.Random) -> str | tuple[str, str]:
        replies = re.findall(r"^<reply ([A-Z])>\n(.*)\n</", messages[-1].content, re.MULTILINE)
        order = sorted(replies, key=lambda reply: reply[1][::-1])
        return " > ".join(letter for letter, _ in order) if order else speak(damaged=0.05)(messages, rng)

    options = {"orders": 2, "replies": 4, "turns": 3, "follow": "sampled"}
    dataset = grow(tmp_path / "r", "oasst", scripted(sure), target=30, options=options)
    trees = written("oasst", dataset, tmp_path / "trees.jsonl")
    asked = [node for tree in trees for node in below(tree["prompt"]) if node["role"] == "prompter"]
    assert any(node["parent_id"] for node in asked)
    assert {len(node["replies"]) for node in asked} >= {4}
    ranks = {node["message_id"]: node["rank"] for tree in trees for node in below(tree["prompt"])}
    assert {ranks[node["parent_id"]] for node in asked if node["parent_id"]} == {0, 1, 2, 3}
    threads = [record for _, record in dataset if isinstance(record, Dialogue)]
    kept = {node["message_id"]: node for tree in trees for node in below(tree["prompt"])}
    for thread in threads:
        at = kept[thread.id]
        while at["parent_id"]:
            assert at["rank"] in (0, None)
            at = kept[at["parent_id"]]


def test_neither_concurrency_nor_arrival_nor_interruption_changes_a_tree(
    run: tuple[Path, Dataset], tmp_path: Path
) -> None:
    assert grow(tmp_path / "c8", "oasst", scripted(speak(), late=True), target=24, concurrency=8) == run[1]
    asked = []
    for stop_after in (3, 11, 24, None):
        backend = scripted(speak(), late=True)
        found = grow(tmp_path / "cut", "oasst", backend, stop_after, target=24, concurrency=4)
        asked += backend.asked
    assert found == run[1]
    assert len(asked) == len({request.nonce for request in asked}), "a completion was asked for twice"


def test_judged_again_and_rebuilt_from_the_journal(run: tuple[Path, Dataset], tmp_path: Path) -> None:
    folder, _ = run
    assert rebuilt(folder, tmp_path / "again")
    before = grow(tmp_path / "r", "oasst", scripted(speak()), target=24)
    assert judged_again(tmp_path / "r") == before
    strict: dict[str, Any] = {"filters": {"blocked_words": {"words": ["harvest", "bridge", "poem"]}}}
    left = judged_again(tmp_path / "r", **strict)
    assert 0 < len(left) < len(before)
    assert not any("harvest" in str(record.prompt) for _, record in left if isinstance(record, Comparison))
    fresh = grow(tmp_path / "fresh", "oasst", scripted(speak()), target=24, **strict)
    assert [record for _, record in fresh][: len(left)] == [record for _, record in left]


@pytest.mark.parametrize("tag", ["zh", "sw"])
def test_other_languages(tag: str, tmp_path: Path) -> None:
    backend = scripted(speak(tag, damaged=0))
    dataset = grow(tmp_path / "r", "oasst", backend, target=9, language=tag)
    asked = [request.messages[-1].content for request in backend.asked]
    assert any(("第一条消息" if tag == "zh" else f"in {tag}") in text for text in asked)
    trees = written("oasst", dataset, tmp_path / "trees.jsonl")
    assert {node["lang"] for tree in trees for node in below(tree["prompt"])} == {tag}


@pytest.mark.parametrize("kind", ["tasks", "topics"])
def test_prompts_or_topics_of_ones_own_start_the_trees(kind: str, tmp_path: Path) -> None:
    asked = [f"Say why a {thing} matters." for thing in _THINGS[:6]]
    data = tmp_path / ("in.jsonl" if kind == "tasks" else "in.txt")
    rows = [
        json.dumps({"instruction": each, "input": "", "output": "x"}) if kind == "tasks" else each for each in asked
    ]
    data.write_text("\n".join(rows), encoding="utf-8")
    dataset = grow(tmp_path / "r", "oasst", scripted(speak(damaged=0)), target=8, input=str(data))
    trees = written("oasst", dataset, tmp_path / "trees.jsonl")
    given = kind == "tasks"
    assert given == ({tree["prompt"]["text"] for tree in trees} <= set(asked))
    assert {tree["prompt"]["synthetic"] for tree in trees} == {not given}, "a person's own prompt is no model's"


def test_trees_of_a_quota_are_written_whole(tmp_path: Path) -> None:
    quota: dict[str, Any] = {"travel": 1, "food": 1}
    dataset = grow(tmp_path / "r", "oasst", scripted(speak(damaged=0)), target=12, quota=quota)
    assert len({id.partition("-")[0] for id, _ in dataset[:2]}) == 2, "the shares take turns"
    path = tmp_path / "trees.jsonl"
    done = CliRunner().invoke(cli, ["export", str(tmp_path / "r"), "--format", "oasst", "-o", str(path)])
    assert done.exit_code == 0, done.output
    trees = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len({tree["message_tree_id"] for tree in trees}) == len(trees)
    assert sum(len(list(below(tree["prompt"]))) for tree in trees) >= 4 * 8


@pytest.mark.parametrize(
    ("option", "value"), [("replies", 1), ("replies", 27), ("orders", 3), ("follow", "worst"), ("turns", 0)]
)
def test_an_option_that_makes_no_sense_is_refused(option: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"options\.{option}"):
        plan([{"recipe": "oasst", "model": "openai/m", "options": {option: value}}])


@pytest.mark.slow
def test_over_a_socket_and_killed_it_is_the_same(run: tuple[Path, Dataset], tmp_path: Path) -> None:
    with Endpoint(served(speak())) as server:
        flags = run_options(server, tmp_path / "r", 24, concurrency=4)
        kill("run", "oasst", "-q", *flags, server=server, at=31)
        done = selfinstruct("run", "oasst", *flags)
        assert done.returncode == 0, done.stderr
    with RunView.open(tmp_path / "r") as view:
        assert list(view.dataset()) == run[1]
    for format, kind in (("oasst", "trees"), ("messages", "a comparison can't become a dialogue")):
        told = selfinstruct("export", tmp_path / "r", "--format", format, "-o", tmp_path / f"{format}.jsonl")
        assert told.returncode == 0, told.stderr
        assert (kind in told.stderr) == (format == "messages"), "what is left out is told, with a count"
        assert (tmp_path / f"{format}.jsonl").stat().st_size > 1000
