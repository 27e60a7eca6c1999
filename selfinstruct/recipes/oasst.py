"""Open-Assistant: conversation trees with several ranked replies to each message (LAION-AI/Open-Assistant, OASST1).

There people wrote, replied and ranked; here the model plays all three. A draw grows one tree: a prompt gets `replies`
replies, a judge ranks them, the prompter answers one of them, and so on for `turns` turns. Its records are those that
the format `oasst` reads from such a tree: a comparison for each ranked turn, and the thread of best replies as a
dialogue. A turn that could not be ranked ends the tree before it and is kept as a rejected candidate.
"""

from __future__ import annotations

import re
import string
import unicodedata
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from selfinstruct import formats
from selfinstruct.errors import ConfigError
from selfinstruct.filters import DEFAULT_FILTERS
from selfinstruct.languages import LanguagePack
from selfinstruct.markers import END, voices
from selfinstruct.recipes import Brief, Recipe, Rehearsal
from selfinstruct.recipes.dialogue import (
    Limits,
    as_topic,
    fitted,
    is_cut,
    limits_of,
    read_topics,
    read_turn,
    render,
    tokens_of,
    trimmed,
    whole_sentences,
)
from selfinstruct.stages import Draw, Stage
from selfinstruct.values import (
    Candidate,
    Comparison,
    Dialogue,
    Message,
    Record,
    Rejection,
    Request,
    Response,
    Sampling,
    Task,
)

_PLAYED = frozenset({"language", "pick"})
VARIABLES = {
    "tree": {
        "": _PLAYED | {"topic"},
        "followup": _PLAYED | {"conversation", "marker"},
        "ranking": frozenset({"language", "conversation", "replies"}),
    }
}

PROMPTING = Sampling(max_tokens=256, temperature=1.0, top_p=0.95)
"""A person's message: warm, or a thousand of them begin alike."""

REPLYING = Sampling(max_tokens=768, temperature=0.9, top_p=0.95)
"""A reply: warm enough that several to the same message differ in more than their wording."""

RANKING = Sampling(max_tokens=384, temperature=0.0)
"""A verdict: a few words on each reply, then the order."""

_IDS = uuid.uuid5(uuid.NAMESPACE_URL, "urn:selfinstruct:oasst")

Tiers = tuple[tuple[int, ...], ...]
"""Positions of replies from best to worst, equally good ones together."""


def stages(brief: Brief) -> tuple[Stage, ...]:
    """Lay out a stage that writes prompts about topics, and one that grows a tree from each.

    Prompts of the person's own need no first stage.

    Raises:
        ConfigError: an option has a value that it can't have, or an item nothing to start from.
    """
    options, most = brief.options, len(string.ascii_uppercase)
    if not 2 <= options["replies"] <= most:
        raise ConfigError(f"options.replies: expected 2 to {most} replies to rank, got {options['replies']}")
    if options["orders"] not in (1, 2):
        raise ConfigError(f"options.orders: replies are shown to the judge in 1 order or in 2, got {options['orders']}")
    if options["follow"] not in ("best", "sampled"):
        raise ConfigError(f"options.follow: expected best or sampled, got {options['follow']!r}")
    items = brief.items or ()
    for item in items:
        _given(item, brief)
    if all(isinstance(item, Dialogue) and not item.messages for item in items):
        return _prompts(brief, items), _trees(brief, None, "prompts")
    return (_trees(brief, items),)


def preview(brief: Brief) -> str:
    """Render the prompts of a tree's first turns."""
    talk = (Message("user", "..."), Message("assistant", "..."))
    texts = [_first_text(brief, "...", 0), _ranking_text(brief, talk[:1], ("...", "...")), _followup(brief, talk, 0)]
    return "\n\n---\n\n".join(texts)


def _given(item: Record, brief: Brief) -> str:
    """Return the topic or the prompt that an item holds."""
    asked = "user" if isinstance(item, Dialogue) and item.messages else ""
    return as_topic(item, brief.options["field"] or asked)


def _language(brief: Brief) -> dict[str, str]:
    return {"tag": brief.pack.tag, "name": brief.pack.name}


# --- prompts


def _prompts(brief: Brief, items: Sequence[Record]) -> Stage:
    sampling, speakers = fitted(brief, PROMPTING, 1 / 4), voices(brief.pack)

    async def draw(draw: Draw) -> list[Candidate]:
        assert draw.item is not None
        text = _first_text(brief, _given(draw.item, brief), draw.rng.randrange(1 << 16))
        completion = await draw.complete(Request(sampling, messages=(Message("user", text),)))
        prompt = read_turn(completion.text, "user", speakers).content
        if not prompt:
            return [Candidate(None, completion.text, Rejection("parse", "no_prompt"))]
        return [Candidate(Task(prompt), completion.text, truncated=is_cut(completion, [prompt], brief.pack))]

    filters = (*DEFAULT_FILTERS["instructions"], "needs_context")
    return Stage(
        "prompts", draw, 0.8, items=items, rounds=brief.rounds, filters=filters, novelty=("subject",), whole=False
    )


def _first_text(brief: Brief, topic: str, pick: int) -> str:
    return brief.prompts[""].render(topic=topic, pick=pick, language=_language(brief))


# --- trees


@dataclass(slots=True)
class Tree:
    """A tree as it grows, in the shape of Open-Assistant's files; `path` is the way to the newest reply.

    A message's id is made of the draw's item and of all that is said up to it, so a tree grown again has the same.
    """

    identity: str
    language: str
    model: str
    path: list[dict[str, Any]] = field(default_factory=list)

    @property
    def messages(self) -> tuple[Message, ...]:
        """What is said up to the newest reply."""
        roles = {"prompter": "user", "assistant": "assistant"}
        return tuple(Message(roles[node["role"]], node["text"]) for node in self.path)  # type: ignore[arg-type]

    def grow(self, asked: str, replies: Sequence[str], tiers: Tiers, follow: int, *, synthetic: bool = True) -> None:
        """Add a turn: a message and its ranked replies, equally good ones with the same rank; go on from one."""
        node = self._node(asked, "prompter", None, synthetic=synthetic)
        self.path.append(node)
        ranks = {position: rank for rank, tier in enumerate(tiers) for position in tier}
        found = {position: self._node(replies[position], "assistant", rank) for position, rank in ranks.items()}
        node["replies"] = list(found.values())
        self.path.append(found[follow])

    def _node(self, text: str, role: str, rank: int | None, *, synthetic: bool = True) -> dict[str, Any]:
        before = self.path[-1]["message_id"] if self.path else None
        node: dict[str, Any] = {
            "message_id": str(uuid.uuid5(_IDS, f"{before or self.identity}\n{role}\n{text}")),
            "parent_id": before,
            "text": text,
            "role": role,
            "lang": self.language,
            "deleted": False,
            "rank": rank,
            "synthetic": synthetic,
            "model_name": self.model if synthetic else None,
            "replies": [],
        }
        if self.path and role == "prompter":
            self.path[-1]["replies"].append(node)
        return node

    def records(self) -> list[Record]:
        """Return a comparison for each ranked turn, and the longest thread of none but best replies."""
        if not self.path:
            return []
        head = {"message_tree_id": self.path[0]["message_id"], "tree_state": "ready_for_export"}
        read = formats.get("oasst").decode(head | {"prompt": self.path[0]})
        best = set(_best_replies(self.path[0]))
        threads = [record for record in read if isinstance(record, Dialogue) and record.id in best]
        comparisons = [record for record in read if isinstance(record, Comparison)]
        return [*comparisons, max(threads, key=lambda thread: len(thread.messages))]


def _best_replies(root: Mapping[str, Any]) -> Iterator[str]:
    """Yield the ids of the replies of rank 0 that are reached through replies of rank 0."""
    below = [root]
    while below:
        for reply in below.pop()["replies"]:
            if reply["rank"] == 0:
                yield reply["message_id"]
                below += reply["replies"]


def _trees(brief: Brief, items: Sequence[Record] | None, source: str = "") -> Stage:
    options = brief.options
    replying, judging = fitted(brief, REPLYING, 1 / (2 * options["replies"] + 2)), fitted(brief, RANKING, 1 / 4)
    prompting, limits = fitted(brief, PROMPTING, 1 / 8), limits_of(brief, replying)

    async def draw(draw: Draw) -> list[Candidate]:
        assert draw.item is not None
        tree = Tree(draw.identity, brief.pack.tag, brief.config.model)
        verdicts: list[str] = []
        lost: list[Candidate] = []
        asked = _given(draw.item, brief)
        while asked:
            history = (*tree.messages, Message("user", asked))
            replies = await _replies(draw, brief, replying, limits, history, lost)
            verdict = await _ranked(draw, brief, judging, limits, history, replies)
            if verdict.rejection is not None:
                lost.append(Candidate(None, verdict.text, verdict.rejection))
                break
            thread = Dialogue((*history, Message("assistant", replies[verdict.tiers[0][0]])))
            spoiled = draw.screen(Candidate(thread))
            if spoiled is not None:
                lost.append(Candidate(thread, verdict.text, spoiled))
                break
            verdicts.append(verdict.text)
            follow = range(len(replies)) if options["follow"] == "sampled" else verdict.tiers[0]
            tree.grow(asked, replies, verdict.tiers, draw.rng.choice(follow), synthetic=bool(source or tree.path))
            done = len(verdicts) == options["turns"]
            asked = "" if done else await _next_message(draw, brief, prompting, limits, tree.messages)
        # A comparison is told by its turn's verdict, the thread by all of them.
        texts = [*verdicts, "\n\n".join(verdicts)]
        return [*(Candidate(record, text) for record, text in zip(tree.records(), texts, strict=False)), *lost]

    filters = DEFAULT_FILTERS["dialogues"]
    return Stage("comparisons", draw, options["turns"] + 1.0, items=items, source=source, filters=filters)


async def _replies(
    draw: Draw,
    brief: Brief,
    sampling: Sampling,
    limits: Limits,
    history: Sequence[Message],
    lost: list[Candidate],
) -> list[str]:
    """Ask for replies and return those that can be ranked; the others go to `lost`."""
    shown, _ = trimmed(history, limits.history_tokens)
    speakers = voices(brief.pack)
    replies: list[str] = []
    for _ in range(brief.options["replies"]):
        completion = await draw.complete(Request(sampling, messages=shown))
        reply = read_turn(completion.text, "assistant", speakers).content
        cut = bool(reply) and is_cut(completion, [reply], brief.pack)
        reply = whole_sentences(reply, brief.pack) if cut else reply
        known = {" ".join(each.split()) for each in replies}
        if reply and " ".join(reply.split()) not in known:
            replies.append(reply)
            continue
        reason = "said_before" if reply else "cut_off" if cut else "empty"
        lost.append(Candidate(None, completion.text, Rejection("reply", reason), truncated=cut))
    return replies


async def _next_message(
    draw: Draw, brief: Brief, sampling: Sampling, limits: Limits, history: Sequence[Message]
) -> str:
    """Ask for what the prompter says next; "" where they have no more to say."""
    shown, _ = trimmed(history, limits.history_tokens)
    text = _followup(brief, shown, draw.rng.randrange(1 << 16))
    completion = await draw.complete(Request(sampling, messages=(Message("user", text),)))
    turn = read_turn(completion.text, "user", voices(brief.pack))
    cut = not turn.ended and not turn.leaked and is_cut(completion, [turn.content], brief.pack)
    return "" if turn.ended else whole_sentences(turn.content, brief.pack) if cut else turn.content


def _followup(brief: Brief, history: Sequence[Message], pick: int) -> str:
    speakers = voices(brief.pack)
    return brief.prompts["followup"].render(
        conversation=render(history, speakers), marker=speakers.marker("user"), pick=pick, language=_language(brief)
    )


# --- ranking


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a judge made of several replies; `rejection` says why they are not ranked."""

    text: str
    tiers: Tiers = ()
    rejection: Rejection | None = None


async def _ranked(
    draw: Draw, brief: Brief, sampling: Sampling, limits: Limits, history: Sequence[Message], replies: Sequence[str]
) -> Verdict:
    """Have replies ranked, shown in an order that tells nothing; with `orders` 2 also in the reverse of it."""
    if len(replies) < 2:
        return Verdict(
            "\n\n".join(replies), rejection=Rejection("ranking", "too_few_replies", {"replies": len(replies)})
        )
    room = limits.history_tokens - tokens_of([Message("assistant", reply) for reply in replies]) - sampling.max_tokens
    shown, _ = trimmed(history, max(1, room))
    order = draw.rng.sample(range(len(replies)), len(replies))
    rankings: list[Tiers] = []
    said: list[str] = []
    for each in (order, order[::-1])[: brief.options["orders"]]:
        text = _ranking_text(brief, shown, [replies[position] for position in each])
        completion = await draw.complete(Request(sampling, messages=(Message("user", text),)))
        said.append(completion.text)
        tiers = read_ranking(completion.text, len(replies))
        if tiers is None:
            return Verdict("\n\n".join(said), rejection=Rejection("parse", "no_ranking"))
        rankings.append(tuple(tuple(sorted(each[letter] for letter in tier)) for tier in tiers))
    tiers = agreed(rankings)
    if len(tiers) > 1:
        return Verdict("\n\n".join(said), tiers)
    reason = "all_tied" if all(len(ranking) == 1 for ranking in rankings) else "orders_disagree"
    return Verdict("\n\n".join(said), rejection=Rejection("ranking", reason, {"replies": len(replies)}))


def _ranking_text(brief: Brief, history: Sequence[Message], replies: Sequence[str]) -> str:
    return brief.prompts["ranking"].render(
        conversation=render(history, voices(brief.pack)),
        replies=[
            {"letter": letter, "text": reply} for letter, reply in zip(string.ascii_uppercase, replies, strict=False)
        ],
        language=_language(brief),
    )


def read_ranking(text: str, count: int) -> Tiers | None:
    """Read a judge's order of `count` replies, "B > A = C", as positions; None unless there is exactly one.

    Every letter must come once. The same order may be said twice; two orders are none.
    """
    letters = string.ascii_uppercase[:count]
    plain = unicodedata.normalize("NFKC", text).translate(str.maketrans("[]()*`_", "       "))
    chains = re.findall(rf"(?<![A-Za-z])[{letters}](?:[ \t]*[>=][ \t]*[{letters}])+(?![A-Za-z]|[ \t]*[>=])", plain)
    orders = {re.sub(r"\s", "", chain) for chain in chains if sorted(re.findall("[A-Z]", chain)) == list(letters)}
    if len(orders) != 1:
        return None
    return tuple(tuple(sorted(map(letters.index, tier.split("=")))) for tier in orders.pop().split(">"))


def agreed(rankings: Sequence[Tiers]) -> Tiers:
    """Return the order that says only what all rankings say: one reply over another in each of them.

    Replies that they order differently are tied, and with them whatever stands between.
    """
    places = [{reply: depth for depth, tier in enumerate(tiers) for reply in tier} for tiers in rankings]

    def over(one: int, other: int) -> bool:
        return all(place[one] < place[other] for place in places)

    tiers: list[list[int]] = []
    left = sorted(places[0])
    while left:
        tier = [left.pop(0)]
        for reply in tier:  # grows while it is gone through
            tier += [other for other in left if not over(reply, other) and not over(other, reply)]
            left = [other for other in left if other not in tier]
        tiers.append(sorted(tier))
    return tuple(tuple(tier) for tier in sorted(tiers, key=lambda tier: sum(over(each[0], tier[0]) for each in tiers)))


def rehearse(pack: LanguagePack, style: str, tasks: Sequence[Task]) -> Rehearsal:
    """Ask the given tasks and reply with their outputs; each tree is one turn, its own output is judged the best."""
    own_language = [task for task in tasks if not pack.other_language.find(task.instruction)]
    longest = sorted(own_language, key=lambda task: -len(task.instances[0].output))
    outputs = [task.instances[0].output for task in longest]
    replies: dict[str, list[str]] = {}
    for task in [task for task in longest if not task.instances[0].input][:3]:
        own = task.instances[0].output
        replies[task.instruction] = [own, *(each for each in outputs if each != own)][:3]
    prompts, said = iter(replies), {instruction: iter(texts) for instruction, texts in replies.items()}

    def reply(request: Request) -> str:
        text = request.messages[-1].content
        if text in said:
            return next(said[text], "")
        if request.sampling.temperature == RANKING.temperature:
            asked = next(instruction for instruction in replies if instruction in text)
            shown = sorted(replies[asked], key=text.index)
            return " > ".join(string.ascii_uppercase[shown.index(each)] for each in replies[asked])
        return END if any(output in text for output in outputs) else next(prompts, END)

    ranked = [
        Comparison(asked, tuple(Response(text, rank=rank) for rank, text in enumerate(texts)))
        for asked, texts in replies.items()
    ]
    threads = [Dialogue((Message("user", asked), Message("assistant", texts[0]))) for asked, texts in replies.items()]
    return Rehearsal(reply, tuple(record for pair in zip(ranked, threads, strict=True) for record in pair))


RECIPE = Recipe(
    name="oasst",
    summary="conversation trees: several replies to each message, ranked by a judge (OpenAssistant)",
    source="LAION-AI/Open-Assistant",
    styles=("tree",),
    prompts=("oasst",),
    variables=VARIABLES,
    stages=stages,
    preview=preview,
    export="oasst",
    starts="topics",
    accepts=(Task, Dialogue, Comparison),
    read=read_topics,
    options={"turns": 2, "replies": 3, "orders": 1, "follow": "best", "history_tokens": 0, "field": ""},
    rehearse=rehearse,
)
