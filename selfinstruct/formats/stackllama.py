"""StackExchange answers as preferences: posts with scored answers, and the pairs StackLLaMA trained on."""

from __future__ import annotations

import math
from typing import Any

from selfinstruct.errors import InputError
from selfinstruct.formats.format import Format, Row, fields, identity, items, number, rest, strings, text
from selfinstruct.formats.shape import pairs, two
from selfinstruct.values import Comparison, Record, Response

_POST_EXTRA = ("date", "metadata")
_ANSWER_EXTRA = ("author", "author_id", "author_profile", "selected")
_ANSWER_KEYS = ("answer_id", *_ANSWER_EXTRA, "pm_score", "text")


def score(upvotes: int, accepted: bool) -> int:
    """Return an answer's score: round(log2(1 + upvotes)), one more if accepted, -1 below zero upvotes.

    The card (lvwerra/stack-exchange-paired, after Askell et al. 2021) does not say what an accepted answer
    with negative votes gets; here the negative score stands, the acceptance adds nothing.
    """
    if upvotes < 0:
        return -1
    return round(math.log2(1 + upvotes)) + accepted


def _identity_value(identity: str) -> int | str:
    plain = identity.isascii() and identity.isdigit() and len(identity) < 19
    return int(identity) if plain and (identity == "0" or identity[0] != "0") else identity


def _decode_posts(row: Row) -> list[Record]:
    row = fields(row)
    responses, kept = [], []
    for answer in map(fields, items(row, "answers")):
        responses.append(
            Response(text(answer, "text"), score=number(answer, "pm_score"), id=identity(answer, "answer_id"))
        )
        kept.append(rest(answer, *_ANSWER_EXTRA))
    if not responses:
        raise InputError("the question has no answer")
    extra = rest(row, *_POST_EXTRA) | ({"answers": kept} if any(kept) else {})
    return [Comparison(text(row, "question"), tuple(responses), identity(row, "qid"), extra)]


def _encode_posts(comparison: Comparison) -> list[Row]:
    kept = comparison.extra.get("answers")
    if not isinstance(kept, list) or len(kept) != len(comparison.responses):
        kept = [{}] * len(comparison.responses)
    answers = []
    for position, (response, extra) in enumerate(zip(comparison.responses, kept, strict=True)):
        # Ranks become scores: the best has the highest.
        points = response.score if response.score is not None else -response.rank if response.rank is not None else None
        if points is None:
            raise InputError(f"response {position + 1} has neither score nor rank")
        answer: dict[str, Any] = {"answer_id": _identity_value(response.id)} if response.id else {}
        answers.append(answer | dict(extra) | {"pm_score": _whole(points), "text": response.content})
    row: dict[str, Any] = {"qid": _identity_value(comparison.id)} if comparison.id else {}
    return [row | {"question": _question(comparison), "answers": answers} | rest(comparison.extra, *_POST_EXTRA)]


def _whole(points: float) -> float | int:
    return int(points) if float(points).is_integer() else points


def _question(comparison: Comparison) -> str:
    if not isinstance(comparison.prompt, str):
        raise InputError("a StackExchange question is plain text, not a dialogue")
    if not comparison.prompt.strip():
        raise InputError("the question is empty")
    return comparison.prompt


def _decode_pair(row: Row) -> list[Record]:
    row = fields(row)
    responses = two(text(row, "response_j"), text(row, "response_k"))
    return [Comparison(text(row, "question"), responses, identity(row, "qid"), rest(row, *_POST_EXTRA))]


def _encode_pair(comparison: Comparison) -> list[Row]:
    row: dict[str, Any] = {"qid": _identity_value(comparison.id)} if comparison.id else {}
    row |= {"question": _question(comparison)} | rest(comparison.extra, *_POST_EXTRA)
    return [row | {"response_j": better.content, "response_k": worse.content} for better, worse in pairs(comparison)]


def _matches_posts(row: Row) -> int:
    if not strings(row, "question") or not isinstance(row.get("answers"), list):
        return 0
    return 3 * all(isinstance(answer, dict) and "text" in answer and "pm_score" in answer for answer in row["answers"])


FORMATS = (
    Format(
        name="stackllama",
        summary="StackLLaMA pairs: question, response_j (better), response_k (worse)",
        source="card of lvwerra/stack-exchange-paired",
        layout="jsonl",
        kinds=frozenset({Comparison}),
        keys=("qid", "question", "response_j", "response_k", "date", "metadata"),
        decode=_decode_pair,
        encode=_encode_pair,
        matches=lambda row: 4 * strings(row, "question", "response_j", "response_k"),
        example=Comparison("How do I sort a list?", two("Call sorted(x).", "No idea."), "17"),
        works="j strictly better than k, ties left out, at most ten pairs a question",
    ),
    Format(
        name="stackexchange",
        summary="StackExchange preferences: question and answers with pm_score",
        source="card of HuggingFaceH4/stack-exchange-preferences",
        layout="jsonl",
        kinds=frozenset({Comparison}),
        keys=("qid", "question", "answers", *(f"answers.{key}" for key in _ANSWER_KEYS), "date", "metadata"),
        decode=_decode_posts,
        encode=_encode_posts,
        matches=_matches_posts,
        example=Comparison(
            "How do I sort a list?",
            (Response("Call sorted(x).", score=3.0, id="42"), Response("No idea.", score=-1.0, id="43")),
            "17",
            {"date": "2020/01/01"},
        ),
        works="every answer has a score",
    ),
)
