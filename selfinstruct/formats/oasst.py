"""OpenAssistant: message trees, as one tree a line or one message a line.

A tree is read into its threads (a dialogue for every answer that no answered message follows) and its
ranked siblings (a comparison for every message with two or more ranked replies, rank 0 best, null
ranks skipped). Every record keeps the messages it was read from, so the tree can be written again.
A record made elsewhere is a tree of its own, with the record's and the responses' ids; several of them
are one tree when they are adjacent and name it: extra={"oasst": {"tree": {"message_tree_id": "t1"}}}.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from selfinstruct.errors import InputError
from selfinstruct.formats.format import Format, Row, fields, has, integer, items, kind, strings, text
from selfinstruct.formats.shape import plain_prompt, prompt_dialogue, said, tiers
from selfinstruct.formats.sharegpt import content_id
from selfinstruct.formats.turns import alternating
from selfinstruct.values import Comparison, Dialogue, Message, Record, Response

_ROLES = {"prompter": "user", "assistant": "assistant"}
_NAMES = {"user": "prompter", "assistant": "assistant"}

Node = dict[str, Any]
"""One message as in the file, without its replies."""


def _node(row: Any) -> Node:
    message = fields(row)
    text(message, "message_id")
    text(message, "text")
    role = text(message, "role")
    if role not in _ROLES:
        raise InputError(f'message {message["message_id"]}: role must be prompter or assistant, found "{role}"')
    integer(message, "rank")
    node = {key: value for key, value in message.items() if key != "replies"}
    # The Parquet release has labels and emojis as parallel sequences, the JSON one as objects.
    for key in ("labels", "emojis"):
        if isinstance(node.get(key), dict) and isinstance(node[key].get("name"), list):
            node[key] = _object(node[key])
    return node


def _object(parallel: Mapping[str, Any]) -> dict[str, Any]:
    values, counts = parallel.get("value"), parallel.get("count")
    found: dict[str, Any] = {}
    for index, name in enumerate(parallel["name"]):
        count = counts[index] if isinstance(counts, list) and index < len(counts) else None
        if isinstance(values, list) and index < len(values):
            found[str(name)] = {"value": values[index], "count": count}
        else:
            found[str(name)] = count
    return found


class _Tree:
    """Nodes by id, in file order, and who answers whom."""

    def __init__(self, head: Mapping[str, Any]) -> None:
        self.head = dict(head)
        self.nodes: dict[str, Node] = {}
        self.children: dict[str, list[str]] = {}
        self.root = ""

    def add(self, node: Node, parent: str | None) -> None:
        identity = node["message_id"]
        if identity in self.nodes:
            raise InputError(f"message {identity} is there twice")
        self.nodes[identity] = node
        if parent is None:
            if self.root:
                raise InputError(f"two root messages: {self.root} and {identity}")
            self.root = identity
        else:
            self.children.setdefault(parent, []).append(identity)

    def replies(self, identity: str) -> list[str]:
        return self.children.get(identity, [])

    def paths(self) -> Iterator[list[str]]:
        """Yield the way from the root to each message, depth first."""
        stack = [[self.root]]
        while stack:
            path = stack.pop()
            yield path
            stack += [[*path, child] for child in reversed(self.replies(path[-1]))]


def _from_nested(row: Row) -> _Tree:
    row = fields(row)
    tree = _Tree({key: value for key, value in row.items() if key != "prompt"})
    stack: list[tuple[Any, str | None]] = [(row.get("prompt"), None)]
    while stack:
        message, parent = stack.pop()
        node = _node(message)
        tree.add(node, parent)
        replies = items(message, "replies") if message.get("replies") is not None else []
        stack += [(reply, node["message_id"]) for reply in reversed(replies)]
    return tree


def _from_flat(rows: Sequence[Row]) -> _Tree:
    first = fields(rows[0])
    tree = _Tree({"message_tree_id": text(first, "message_tree_id", "")})
    for row in rows:
        node = _node(row)
        parent = node.get("parent_id")
        if parent is not None and not isinstance(parent, str):
            raise InputError(f'"parent_id" must be a string or null, found {kind(parent)}')
        tree.add(node, parent)
    if not tree.root:
        raise InputError("no root message (parent_id null) among the adjacent messages of this tree")
    strangers = [parent for parent in tree.children if parent not in tree.nodes]
    if strangers:
        raise InputError(
            f"parent {strangers[0]} is not among the adjacent messages of its tree; sort by message_tree_id"
        )
    if sum(1 for _ in tree.paths()) != len(tree.nodes):
        raise InputError("the messages of this tree go round in a circle")
    return tree


def _records(tree: _Tree) -> list[Record]:
    found: list[Record] = []
    kept: set[str] = set()
    for path in tree.paths():
        node = tree.nodes[path[-1]]
        ranked = [reply for reply in tree.replies(path[-1]) if tree.nodes[reply].get("rank") is not None]
        if node["role"] == "prompter" and len(ranked) > 1:
            found.append(_comparison(tree, path, ranked))
            kept |= {*path, *ranked}
        followed = any(tree.replies(reply) for reply in tree.replies(path[-1]))
        if node["role"] == "assistant" and not followed:
            nodes = [tree.nodes[identity] for identity in path]
            found.append(Dialogue(_messages(nodes), id=path[-1], extra={"oasst": {"tree": tree.head, "nodes": nodes}}))
            kept |= set(path)
    if not found:
        raise InputError("the tree holds no answer")
    # Unanswered follow-ups and the like belong to no thread; the first record carries them, and the file order.
    parents = {child: parent for parent, children in tree.children.items() for child in children}
    left = [{"parent": parents[i], "node": node} for i, node in tree.nodes.items() if i not in kept]
    more = {"order": list(tree.nodes)} | ({"left": left} if left else {})
    found[0] = replace(found[0], extra={"oasst": found[0].extra["oasst"] | more})
    return found


def _messages(nodes: Sequence[Node]) -> tuple[Message, ...]:
    return tuple(Message("user" if node["role"] == "prompter" else "assistant", node["text"]) for node in nodes)


def _comparison(tree: _Tree, path: Sequence[str], ranked: Sequence[str]) -> Comparison:
    nodes = [tree.nodes[identity] for identity in path]
    replies = sorted((tree.nodes[identity] for identity in ranked), key=lambda node: int(node["rank"]))
    responses = tuple(Response(node["text"], rank=int(node["rank"]), id=node["message_id"]) for node in replies)
    prompt = plain_prompt(Dialogue(_messages(nodes)))
    extra = {"oasst": {"tree": tree.head, "nodes": nodes, "replies": replies}}
    return Comparison(prompt, responses, id=path[-1], extra=extra)


def _decode_tree(row: Row) -> list[Record]:
    return _records(_from_nested(row))


def _decode_messages(rows: Sequence[Row]) -> list[Record]:
    return _records(_from_flat(rows))


def _kept(record: Record) -> dict[str, Any]:
    """Return what a record keeps of its tree, or nothing when it is not of that shape."""
    kept = record.extra.get("oasst")
    if not isinstance(kept, dict) or not isinstance(kept.get("tree"), dict):
        return {}
    nodes = [*_list(kept, "nodes"), *_list(kept, "replies"), *(entry.get("node") for entry in _list(kept, "left"))]
    return kept if all(isinstance(node, dict) and strings(node, "message_id", "text") for node in nodes) else {}


def _list(kept: Mapping[str, Any], key: str) -> list[Any]:
    found = kept.get(key)
    whole = isinstance(found, list) and all(isinstance(entry, dict) for entry in found)
    return found if isinstance(found, list) and whole else []


def _tree_key(record: Record) -> str:
    tree = _kept(record).get("tree", {}).get("message_tree_id")
    # Records of no tree stand alone: each gets a tree of its own.
    return f"tree {tree}" if tree else f"record {record.id} {id(record)}"


def _rebuild(records: Sequence[Dialogue | Comparison]) -> _Tree:
    kept = _kept(records[0])
    head = dict(kept.get("tree", {}))
    tree = _Tree(head)
    loose: list[tuple[Node, str]] = []
    for record in records:
        path, replies = _nodes(record)
        parent = None
        for node in path:
            parent = _merge(tree, node, parent)
        for node in replies:
            _merge(tree, node, parent)
        left = _list(_kept(record), "left")
        loose += [(entry["node"], entry["parent"]) for entry in left if strings(entry, "parent")]
    for node, parent in loose:
        _merge(tree, node, parent)
    order = kept.get("order")
    if isinstance(order, list) and all(isinstance(i, str) for i in order) and set(order) >= set(tree.nodes):
        place = {identity: position for position, identity in enumerate(order)}
        tree.nodes = dict(sorted(tree.nodes.items(), key=lambda entry: place[entry[0]]))
        tree.children = {key: sorted(ids, key=place.__getitem__) for key, ids in tree.children.items()}
    tree.head.setdefault("message_tree_id", tree.root)
    if not any(_list(_kept(record), "nodes") for record in records):
        # Open-Assistant's loader takes no other trees.
        tree.head.setdefault("tree_state", "ready_for_export")
    return tree


def _merge(tree: _Tree, node: Node, parent: str | None) -> str:
    """Put a node into the tree, or add what it knows to the same message there; return the message's id."""
    identity = node["message_id"] if node["message_id"] in tree.nodes else _twin(tree, node, parent)
    if identity is None:
        tree.add(node | {"parent_id": parent} if "parent_id" in node else node, parent)
        return str(node["message_id"])
    known = tree.nodes[identity]
    if known["text"] != node["text"]:
        raise InputError(f"two records give message {identity} different texts")
    tree.nodes[identity] = known | {key: value for key, value in node.items() if key not in known}
    return str(identity)


def _twin(tree: _Tree, node: Node, parent: str | None) -> str | None:
    """Return the message with the same parent and text when one of the two has only a made id."""
    beside = [tree.root] if parent is None and tree.root else tree.replies(parent or "")
    for identity in beside:
        if tree.nodes[identity]["text"] == node["text"] and _MADE in (identity[:5], node["message_id"][:5]):
            return identity
    return None


def _nodes(record: Dialogue | Comparison) -> tuple[list[Node], list[Node]]:
    """Return the messages on the way and the ranked replies, with the text that the record now has."""
    kept = _kept(record)
    if isinstance(record, Dialogue):
        messages: tuple[Message, ...] = alternating(record)
        responses: tuple[Response, ...] = ()
    else:
        messages = alternating(prompt_dialogue(record.prompt), "user")
        responses = record.responses
    root = text(kept.get("tree", {}), "message_tree_id", "") or record.id
    path = _refreshed(messages, _list(kept, "nodes"), record.id, root)
    if not responses:
        return path, []
    levels = tiers(record) if isinstance(record, Comparison) else []
    if sum(map(len, levels)) != len(responses):
        raise InputError("a response has neither rank nor score")
    by_id = {node["message_id"]: node for node in _list(kept, "replies")}
    replies = []
    for depth, level in enumerate(levels):
        for response in level:
            identity = response.id or _made_id(path[-1]["message_id"], response.content)
            rank = depth if response.rank is None else response.rank
            base = by_id.get(identity, {"message_id": identity, "parent_id": path[-1]["message_id"]})
            replies.append(base | {"text": said(response), "role": "assistant", "rank": rank})
    return path, replies


def _refreshed(messages: Sequence[Message], kept: Sequence[Node], last: str, root: str) -> list[Node]:
    """Return the messages as nodes: those they were read from, or new ones with ids made of tree, place and text."""
    nodes: Sequence[Node | None] = kept if len(kept) == len(messages) else [None] * len(messages)
    found: list[Node] = []
    for position, (message, node) in enumerate(zip(messages, nodes, strict=True), 1):
        if node is None:
            parent = found[-1]["message_id"] if found else None
            made = _made_id(parent or root, message.content)
            node = {"message_id": (last if position == len(messages) else "") or made, "parent_id": parent}
        found.append(dict(node) | {"text": message.content, "role": _NAMES[message.role]})
    return found


_MADE = "made-"


def _made_id(parent: str, text: str) -> str:
    # Equal for a reply that one record ranks and another goes on from.
    return _MADE + content_id([parent, text])


def _encode_tree(records: Sequence[Dialogue | Comparison]) -> list[Row]:
    tree = _rebuild(records)
    nested: dict[str, Node] = {identity: dict(node) for identity, node in tree.nodes.items()}
    for identity, node in nested.items():
        node["replies"] = [nested[reply] for reply in tree.replies(identity)]
    return [tree.head | {"prompt": nested[tree.root]}]


def _encode_messages(records: Sequence[Dialogue | Comparison]) -> list[Row]:
    tree = _rebuild(records)
    parents = {child: parent for parent, children in tree.children.items() for child in children}
    head = {"message_tree_id": tree.head["message_tree_id"]}
    return [dict(node) | {"parent_id": parents.get(identity)} | head for identity, node in tree.nodes.items()]


def _group_messages(row: Row) -> Any:
    return (
        row.get("message_tree_id") if isinstance(row, dict) and isinstance(row.get("message_tree_id"), str) else id(row)
    )


_MESSAGE_KEYS = (
    *("message_id", "parent_id", "user_id", "message_tree_id", "text", "role", "lang", "review_count", "review_result"),
    *(
        "deleted",
        "synthetic",
        "model_name",
        "created_date",
        "rank",
        "emojis",
        "labels",
        "events",
        "detoxify",
        "tree_state",
    ),
)
_EXAMPLE_NODES: list[Node] = [
    {"message_id": "m1", "parent_id": None, "text": "What is a glacier?", "role": "prompter", "lang": "en"},
    {
        "message_id": "m2",
        "parent_id": "m1",
        "text": "A slow river of ice.",
        "role": "assistant",
        "lang": "en",
        "rank": 0,
    },
]
_EXAMPLE = Dialogue(
    _messages(_EXAMPLE_NODES),
    id="m2",
    extra={
        "oasst": {
            "tree": {"message_tree_id": "m1", "tree_state": "ready_for_export"},
            "nodes": _EXAMPLE_NODES,
            "order": ["m1", "m2"],
        }
    },
)
_FLAT = Dialogue(
    _EXAMPLE.messages,
    id="m2",
    extra={
        "oasst": {
            "tree": {"message_tree_id": "m1"},
            "nodes": [{**node, "message_tree_id": "m1"} for node in _EXAMPLE_NODES],
            "order": ["m1", "m2"],
        }
    },
)
_KINDS: frozenset[type[Record]] = frozenset({Dialogue, Comparison})

FORMATS = (
    Format(
        name="oasst",
        summary="OpenAssistant trees: one {message_tree_id, tree_state, prompt with nested replies} a line",
        source="LAION-AI/Open-Assistant data-schemas; card of OpenAssistant/oasst1",
        layout="jsonl",
        kinds=_KINDS,
        keys=("message_tree_id", "tree_state", "prompt", "origin"),
        decode=_decode_tree,
        encode=_encode_tree,
        matches=lambda row: (
            4 * (has(row, "prompt") and isinstance(row["prompt"], dict) and has(row["prompt"], "message_id"))
        ),
        example=_EXAMPLE,
        works="threads by parent, rank 0 best, null ranks skipped, both label encodings",
        unique="message_tree_id",
        group_records=_tree_key,
    ),
    Format(
        name="oasst-messages",
        summary="OpenAssistant messages: one message a line, linked by parent_id; a tree's messages are adjacent",
        source="LAION-AI/Open-Assistant; card of OpenAssistant/oasst1 (also its Parquet form)",
        layout="jsonl",
        kinds=_KINDS,
        keys=_MESSAGE_KEYS,
        decode=_decode_messages,
        encode=_encode_messages,
        matches=lambda row: 4 * (strings(row, "message_id", "text", "role") and "prompt" not in row),
        example=_FLAT,
        works="one root a tree, every parent there, threads by parent, rank 0 best",
        group_rows=_group_messages,
        unique="message_tree_id",
        group_records=_tree_key,
    ),
)
