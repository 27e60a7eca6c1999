"""Open-Assistant's trees: threads, ranked siblings, both files, both label encodings."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfinstruct import formats
from selfinstruct.errors import InputError
from selfinstruct.formats.oasst import FORMATS
from selfinstruct.values import Comparison, Dialogue, Message, Response
from tests.formats.records import prose

TREE, FLAT = FORMATS


@st.composite
def trees(draw: st.DrawFn) -> dict[str, Any]:
    """Draw a tree with at least one answer."""
    count = draw(st.integers(2, 8))
    nodes: list[dict[str, Any]] = []
    depths: list[int] = []
    for index in range(count):
        parent = draw(st.integers(0, index - 1)) if index > 1 else index - 1
        depths.append(depths[parent] + 1 if index else 0)
        answer = depths[index] % 2 == 1
        node: dict[str, Any] = {
            "message_id": f"m{index}",
            "parent_id": f"m{parent}" if index else None,
            "text": f"{draw(prose)} {index}",
            "role": "assistant" if answer else "prompter",
            "rank": draw(st.none() | st.integers(0, 3)) if answer else None,
            "lang": "en",
            "replies": [],
        }
        if index:
            nodes[parent]["replies"].append(node)
        nodes.append(node)
    return {"message_tree_id": "m0", "tree_state": "ready_for_export", "prompt": nodes[0]}


def flattened(tree: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    stack = [tree["prompt"]]
    while stack:
        node = stack.pop()
        found.append({k: v for k, v in node.items() if k != "replies"} | {"message_tree_id": "m0"})
        stack += reversed(node["replies"])
    return found


@settings(max_examples=60, deadline=None)
@given(tree=trees())
def test_a_tree_is_written_again_whole(tree: dict[str, Any]) -> None:
    records = TREE.decode(tree)
    target = io.BytesIO()
    report = formats.write("oasst", records, target)
    assert (report.written, report.rows, report.refused, dict(report.labels)) == (len(records), 1, [], {})
    assert list(formats.read(io.BytesIO(target.getvalue()))) == records
    assert TREE.encode(records) == [tree]
    assert sorted(FLAT.encode(FLAT.decode(flattened(tree))), key=lambda r: r["message_id"]) == sorted(
        flattened(tree), key=lambda r: r["message_id"]
    )


@settings(max_examples=60, deadline=None)
@given(tree=trees())
def test_threads_and_rankings_of_a_tree(tree: dict[str, Any]) -> None:
    records = TREE.decode(tree)
    nodes = {row["message_id"]: row for row in flattened(tree)}
    children: dict[str, list[str]] = {}
    for row in nodes.values():
        children.setdefault(row["parent_id"], []).append(row["message_id"])
    threads = [record for record in records if isinstance(record, Dialogue)]
    ends = {
        i
        for i, row in nodes.items()
        if row["role"] == "assistant" and not any(children.get(child) for child in children.get(i, []))
    }
    assert {thread.id for thread in threads} == ends
    assert all(message.role == ("user", "assistant")[i % 2] for t in threads for i, message in enumerate(t.messages))
    for comparison in records:
        if isinstance(comparison, Comparison):
            ranks = [response.rank for response in comparison.responses]
            assert len(ranks) > 1
            assert None not in ranks
            assert ranks == sorted(ranks, key=lambda rank: rank or 0)


TREE_OF_ITS_OWN = {"oasst": {"tree": {"message_tree_id": "t1"}}}
MADE: list[Dialogue | Comparison] = [
    Comparison("Q", (Response("A", rank=0, id="a1"), Response("B", rank=1, id="a2")), "p1", TREE_OF_ITS_OWN),
    Comparison(
        Dialogue((Message("user", "Q"), Message("assistant", "A"), Message("user", "Q2"))),
        (Response("C", score=2.0, id="b1"), Response("D", score=1.0, id="b2")),
        "p2",
        TREE_OF_ITS_OWN,
    ),
]


def test_comparisons_made_elsewhere_are_one_tree_with_their_ids() -> None:
    target = io.BytesIO()
    report = formats.write("oasst", MADE, target)
    assert (report.written, report.rows, report.refused, dict(report.labels)) == (2, 1, [], {"scores": 1})
    back = list(formats.read(io.BytesIO(target.getvalue())))
    found = {
        record.id: [response.id for response in record.responses] for record in back if isinstance(record, Comparison)
    }
    assert found == {"p1": ["a1", "a2"], "p2": ["b1", "b2"]}
    assert {record.id for record in back if isinstance(record, Dialogue)} == {"a2", "b1", "b2"}


def test_a_comparison_alone_is_a_tree_of_its_own() -> None:
    target = io.BytesIO()
    report = formats.write("oasst-messages", [replace(record, extra={}) for record in MADE], target)
    assert (report.written, report.rows, report.refused) == (2, 8, [])
    rows = [json.loads(line) for line in target.getvalue().splitlines()]
    assert [row["message_id"] for row in rows[:3]] == ["p1", "a1", "a2"]
    assert {row["message_tree_id"] for row in rows[:3]} == {"p1"}


def test_parquet_labels_read_as_the_json_ones() -> None:
    def row(labels: object) -> dict[str, object]:
        return {
            "message_id": "a",
            "parent_id": None,
            "text": "x",
            "role": "prompter",
            "message_tree_id": "a",
            "labels": labels,
        }

    answer = {"message_id": "b", "parent_id": "a", "text": "y", "role": "assistant", "message_tree_id": "a"}
    parallel = {"name": ["quality", "spam"], "value": [0.5, 0.0], "count": [3, 2]}
    as_object = {"quality": {"value": 0.5, "count": 3}, "spam": {"value": 0.0, "count": 2}}
    assert FLAT.decode([row(parallel), answer]) == FLAT.decode([row(as_object), answer])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"parent_id": "zz"}, "zz is not among the adjacent"),
        ({"parent_id": None}, "two root messages"),
        ({"message_id": "m0"}, "there twice"),
        ({"role": "robot"}, "prompter or assistant"),
        ({"rank": "best"}, "whole number"),
    ],
)
def test_a_broken_tree_is_told(change: dict[str, Any], reason: str) -> None:
    rows: list[dict[str, Any]] = [
        {"message_id": "m0", "parent_id": None, "text": "q", "role": "prompter", "message_tree_id": "m0"},
        {"message_id": "m1", "parent_id": "m0", "text": "a", "role": "assistant", "message_tree_id": "m0"},
    ]
    with pytest.raises(InputError, match=reason):
        FLAT.decode([rows[0], rows[1] | change])
    with pytest.raises(InputError, match="no answer"):
        FLAT.decode(rows[:1])
