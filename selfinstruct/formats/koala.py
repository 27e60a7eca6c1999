"""Koala's training rows and the two preference sets it was made from.

A Koala row names its own texts and says in `fields` how they are joined: a comma between segments, "+"
inside one, square brackets around what is not learned. Good and bad answers are separate examples with
separate markers (hindsight, young-geng/koala_data_pipeline 24585ff, create_hf_data_v2.py).
"""

from __future__ import annotations

import re
from typing import Any

from selfinstruct.errors import InputError
from selfinstruct.formats.format import Format, Row, fields, integer, items, number, rest, strings, text
from selfinstruct.formats.shape import plain_prompt, prompt_dialogue, tiers
from selfinstruct.formats.turns import alternating
from selfinstruct.values import Comparison, Dialogue, Message, Record, Response

USER, GOOD, BAD = "USER:", "GPT:", "An Unhelpful Answer:"
_PERSON = re.compile(r"human_\d+")
_ANSWER = re.compile(r"gpt_(?:bad_)?\d+")
_SPECIAL = re.compile(r"<\|\w+\|>")


def segments(row: Row) -> list[tuple[str, bool]]:
    """Return the segments that `fields` spells out: text, and whether it is learned.

    Joined they are the text that Koala was trained on (special tokens such as the eos marker as they are).

    Raises:
        InputError: `fields` names a key that is not there.
    """
    row = fields(row)
    found = []
    for name in text(row, "fields").split(","):
        masked = name.startswith("[") and name.endswith("]")
        bare = name[1:-1] if masked else name
        if _SPECIAL.fullmatch(bare):
            found.append((bare, not masked))
        else:
            found.append((" ".join(text(row, part) for part in bare.split("+") if part), not masked))
    return found


def _decode(row: Row) -> list[Record]:
    row = fields(row)
    messages: list[Message] = []
    bad = False
    for name in text(row, "fields").split(","):
        parts = [part for part in name.strip("[]").split("+") if part and not _SPECIAL.fullmatch(part)]
        bad = bad or "marker_gpt_bad" in parts
        said = [part for part in parts if not part.startswith("marker_")]
        if not said:
            continue
        content = " ".join(text(row, part) for part in said)
        if any(_PERSON.fullmatch(part) for part in said):
            messages.append(Message("user", content))
        elif all(_ANSWER.fullmatch(part) for part in said):
            messages.append(Message("assistant", content))
        else:
            raise InputError(f'"fields" names "{name}", which is neither human_N nor gpt_N')
    if not messages:
        raise InputError('"fields" names no turn')
    if not bad:
        return [Dialogue(tuple(messages))]
    if messages[-1].role != "assistant":
        raise InputError("a negative example must end with the answer")
    prompt = plain_prompt(Dialogue(tuple(messages[:-1])))
    return [Comparison(prompt, (Response(messages[-1].content, score=-1.0),))]


def _row(messages: tuple[Message, ...], good: bool) -> Row:
    marker = "marker_gpt" if good else "marker_gpt_bad"
    answer = "gpt" if good else "gpt_bad"
    row: dict[str, Any] = {"marker_user": USER, "marker_gpt": GOOD}
    if not good:
        row["marker_gpt_bad"] = BAD
    names: list[str] = []
    for index, message in enumerate(messages):
        if message.role == "user":
            row[f"human_{index}"] = message.content
            names.append(f"[marker_user+human_{index}+{marker}]")
        else:
            row[f"{answer}_{index}"] = message.content
            names += [f"{answer}_{index}", "<|eos|>"]
    return row | {"fields": ",".join(names)}


def _encode(record: Dialogue | Comparison) -> list[Row]:
    if isinstance(record, Dialogue):
        return [_row(alternating(record), good=True)]
    asked = prompt_dialogue(record.prompt).messages
    levels = tiers(record)
    single = len(record.responses) == 1 and record.responses[0].score is not None
    if len(levels) < 2 and not single:
        raise InputError("a tie: nobody knows whether both are good or both bad")
    rows = []
    for depth, level in enumerate(levels):
        for response in level:
            good = (response.score or 0.0) > 0 if single else depth == 0
            dialogue = Dialogue((*asked, Message("assistant", response.content)))
            rows.append(_row(alternating(dialogue), good))
    return rows


def _decode_webgpt(row: Row) -> list[Record]:
    row = fields(row)
    question = fields(row.get("question"))
    responses = tuple(Response(text(row, f"answer_{side}"), score=number(row, f"score_{side}")) for side in (0, 1))
    extra = rest(row, "quotes_0", "quotes_1", "tokens_0", "tokens_1") | rest(question, "dataset")
    return [Comparison(text(question, "full_text"), responses, text(question, "id", ""), extra)]


def _encode_webgpt(comparison: Comparison) -> list[Row]:
    asked, responses = _plain_pair(comparison)
    if all(response.score is not None for response in responses):
        scores = [response.score for response in responses]
    else:
        # Their scores are in [-1, 1] and sum to 0.
        levels = tiers(comparison)
        scores = [0.0, 0.0] if len(levels) == 1 else [1.0 if response in levels[0] else -1.0 for response in responses]
    row: dict[str, Any] = {
        "question": rest(comparison.extra, "dataset") | {"id": comparison.id, "full_text": asked},
    }
    for side in (0, 1):
        row |= rest(comparison.extra, f"quotes_{side}")
        row |= {f"answer_{side}": responses[side].content}
        row |= rest(comparison.extra, f"tokens_{side}")
        row |= {f"score_{side}": scores[side]}
    return [row]


def _plain_pair(comparison: Comparison) -> tuple[str, tuple[Response, ...]]:
    if not isinstance(comparison.prompt, str):
        raise InputError("the set holds plain questions, not dialogues")
    if len(comparison.responses) != 2:
        raise InputError(f"the set holds exactly two responses, this comparison has {len(comparison.responses)}")
    return comparison.prompt, comparison.responses


def _decode_summaries(row: Row) -> list[Record]:
    row = fields(row)
    info = fields(row.get("info"))
    # News rows have an article and no post.
    key = "post" if info.get("post") is not None else "article"
    summaries = [fields(summary) for summary in items(row, "summaries")]
    choice = integer(row, "choice")
    if len(summaries) != 2 or choice not in (0, 1):
        raise InputError('expected two "summaries" and "choice" 0 or 1, the index of the better')
    responses = tuple(
        Response(text(summary, "text"), rank=int(side != choice)) for side, summary in enumerate(summaries)
    )
    extra: dict[str, Any] = {"info": {name: value for name, value in info.items() if name not in (key, "id")}}
    extra["info"]["from"] = key
    kept = [{name: value for name, value in summary.items() if name != "text"} for summary in summaries]
    extra |= ({"summaries": kept} if any(kept) else {}) | rest(row, "worker", "batch", "split", "extra")
    return [Comparison(text(info, key), responses, text(info, "id", ""), extra)]


def _encode_summaries(comparison: Comparison) -> list[Row]:
    asked, responses = _plain_pair(comparison)
    levels = tiers(comparison)
    if len(levels) != 2:
        raise InputError("a tie: the set needs one better summary")
    info = dict(comparison.extra.get("info") or {})
    info = {"id": comparison.id, info.pop("from", "post"): asked} | info
    kept = comparison.extra.get("summaries")
    kept = kept if isinstance(kept, list) and len(kept) == 2 else [{}, {}]
    summaries = [{"text": response.content} | dict(more) for response, more in zip(responses, kept, strict=True)]
    choice = responses.index(levels[0][0])
    return [
        {"info": info, "summaries": summaries, "choice": choice}
        | rest(comparison.extra, "worker", "batch", "split", "extra")
    ]


_ANSWERS = (Response("By rain and melting snow.", score=1.0), Response("Nobody knows.", score=-1.0))

FORMATS = (
    Format(
        name="koala",
        summary="Koala: JSONL of named texts and a fields line that joins them; good and bad answers apart",
        source="young-geng/koala_data_pipeline process_chat_data.py, create_hf_data_v2.py; young-geng/EasyLM",
        layout="jsonl",
        kinds=frozenset({Dialogue, Comparison}),
        keys=("fields", "marker_user", "marker_gpt", "marker_gpt_bad", "human_N", "gpt_N", "gpt_bad_N"),
        decode=_decode,
        encode=_encode,
        matches=lambda row: 4 * (strings(row, "fields") and ("human_" in row["fields"] or "gpt_" in row["fields"])),
        example=Dialogue((Message("user", "How is a river fed?"), Message("assistant", "By rain and melting snow."))),
        works="user first, assistant last, in turn; joining fields rebuilds the text; brackets are masked; no ties",
    ),
    Format(
        name="webgpt",
        summary="webgpt_comparisons: question {dataset, id, full_text}, answer_0/1, score_0/1, quotes",
        source="card of openai/webgpt_comparisons",
        layout="jsonl",
        kinds=frozenset({Comparison}),
        keys=(
            "question",
            "question.dataset",
            "question.id",
            "question.full_text",
            "quotes_0",
            "answer_0",
            "tokens_0",
            "score_0",
            "quotes_1",
            "answer_1",
            "tokens_1",
            "score_1",
            "dataset",
        ),
        decode=_decode_webgpt,
        encode=_encode_webgpt,
        matches=lambda row: 4 * (strings(row, "answer_0", "answer_1") and isinstance(row.get("question"), dict)),
        example=Comparison("How is a river fed?", _ANSWERS, "q1", {"dataset": "eli5"}),
        works="two answers; scores kept, or 1 and -1 made of ranks; 0 and 0 is a tie",
    ),
    Format(
        name="summarize-feedback",
        summary="summarize_from_feedback comparisons: info, two summaries, choice (index of the better)",
        source="card of openai/summarize_from_feedback",
        layout="jsonl",
        kinds=frozenset({Comparison}),
        keys=("info", "summaries", "choice", "worker", "batch", "split", "extra"),
        decode=_decode_summaries,
        encode=_encode_summaries,
        matches=lambda row: (
            4
            * (
                isinstance(row, dict)
                and isinstance(row.get("info"), dict)
                and isinstance(row.get("summaries"), list)
                and "choice" in row
            )
        ),
        example=Comparison(
            "My neighbour plays the drums at night.",
            (Response("Loud.", rank=1), Response("A neighbour drums at night.", rank=0)),
            "t3_1",
            {"info": {"subreddit": "advice", "from": "post"}, "split": "train"},
        ),
        works="two summaries, one strictly better",
    ),
)
