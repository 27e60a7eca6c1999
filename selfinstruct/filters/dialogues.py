"""Rules for the turns of a dialogue, and of a consultation."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import pairwise

from rapidfuzz.distance import LCSseq

from selfinstruct.filters.rule import Filter, Rules, Verdict, answers_of, of_dialogue, of_record
from selfinstruct.languages import LanguagePack, is_unspaced, tokens
from selfinstruct.values import Candidate, Dialogue, Task

RULES = Rules()


@RULES.add("ShareGPT clean_sharegpt and FastChat's training: roles strictly in turn, the person first")
def alternation(pack: LanguagePack) -> Filter:
    """Reject a dialogue in which the person does not begin, or one side speaks twice in a row.

    An assistant's call of a tool and what the tool gave are part of the reply that follows. A turn that is empty but
    for white space is none either.
    """

    def judge(dialogue: Dialogue) -> Verdict:
        wanted = "user"
        for number, message in enumerate(dialogue.messages, 1):
            if message.tool_calls or message.role == "tool":
                continue
            if message.role != wanted:
                return "out_of_turn", {"message": number, "role": message.role, "expected": wanted}
            if not message.content.strip():
                return "empty_turn", {"message": number, "role": message.role}
            wanted = "assistant" if wanted == "user" else "user"
        return None

    return of_dialogue("alternation", judge)


@RULES.add("ours: two models left alone fall into saying the same again, or into thanking each other for ever")
def repeated_turn(pack: LanguagePack) -> Filter:
    """Reject a dialogue in which a side says again what it has said, word for word or nearly so."""

    def judge(dialogue: Dialogue) -> Verdict:
        said: dict[str, list[str]] = {}
        for number, message in enumerate(dialogue.messages, 1):
            earlier = said.setdefault(message.role, [])
            if message.role in ("user", "assistant") and any(repeats(message.content, each) for each in earlier):
                return "repeated_turn", {"message": number, "role": message.role}
            earlier.append(message.content)
        return None

    return of_dialogue("repeated_turn", judge)


def repeats(turn: str, earlier: str) -> bool:
    """Tell whether a turn says what an earlier one said.

    The same words (three or more: "Yes." may come twice), or of twenty and more all but one in twenty in their order.
    """
    words, before = tokens(turn), tokens(earlier)
    if words == before:
        return len(words) > 2
    least = 20
    return min(len(words), len(before)) >= least and LCSseq.normalized_similarity(words, before) >= 0.95


@RULES.add("ours: BianQue's chain of questioning; single replies taught ChatDoctor to prescribe at the first complaint")
def advises_first(pack: LanguagePack, *, minimum: int = 1) -> Filter:
    """Reject a consultation in which the doctor advises before having asked.

    The first reply must ask, and `minimum` replies in all before the last one: what that one asks is never answered. A
    question is what ends with one of the pack's `question_ends`.
    """

    def judge(dialogue: Dialogue) -> Verdict:
        asking = [questions(reply, pack) > 0 for reply in answers_of(dialogue)]
        asked = sum(asking[:-1])
        # Nobody has replied where only the opening is screened.
        if not asking or not minimum or (asking[0] and asked >= minimum):
            return None
        return "advises_first", {"asking_replies": asked, "minimum": minimum}

    return of_dialogue("advises_first", judge)


@RULES.add("ours: ChatDoctor kept whatever the model made of a row of its table, medicines of its own included")
def ungrounded(pack: LanguagePack, *, minimum_share: float = 0.5) -> Filter:
    """Reject a consultation whose doctor names a medicine or test that its knowledge row does not hold.

    `extra["named"]` holds the names, `extra["knowledge"]` the row; without them there is no opinion. The row holds a
    name that an entry of it is part of, and one of whose words it has `minimum_share`; of a script without spaces pairs
    of characters count in place of words.
    """

    def judge(record: Task | Dialogue, candidate: Candidate) -> Verdict:
        row, names = record.extra.get("knowledge"), record.extra.get("named")
        if not isinstance(row, Mapping) or not isinstance(names, list | tuple):
            return None
        entries = [tokens(str(entry)) for column in row.values() for entry in column]
        held = {part for entry in entries for part in _parts(entry)}
        for name in map(str, names):
            words = tokens(name)
            parts = _parts(words)
            share = sum(part in held for part in parts) / len(parts) if parts else 1.0
            if share < minimum_share and not any(entry and _run_of(entry, words) for entry in entries):
                return "not_in_the_row", {"name": name, "share": round(share, 4), "minimum": minimum_share}
        return None

    return of_record("ungrounded", judge)


def _parts(words: Sequence[str]) -> list[str]:
    """Return words, and pairs of neighbouring characters where a script has no spaces."""
    unspaced = [word for word in words if is_unspaced(word)]
    pairs = [one + other for one, other in pairwise(unspaced)] or unspaced
    return [*(word for word in words if not is_unspaced(word)), *pairs]


def _run_of(part: Sequence[str], whole: Sequence[str]) -> bool:
    """Tell whether the words of `part` come one after the other in `whole`."""
    return any(tuple(whole[at : at + len(part)]) == tuple(part) for at in range(len(whole) - len(part) + 1))


def questions(text: str, pack: LanguagePack) -> int:
    """Return how many sentences of a text are questions, by the pack's `question_ends`: marks, or words at the end."""
    return len(_question(pack).findall(text))


@lru_cache(maxsize=64)
def _question(pack: LanguagePack) -> re.Pattern[str]:
    def one_of(spellings: Iterable[str]) -> str:
        return "|".join(map(re.escape, sorted(set(spellings), key=len, reverse=True))) or "(?!)"

    marks = [end for end in pack.question_ends if not any(map(str.isalnum, end))]
    words = {end.rstrip("".join(pack.sentence_ends)) for end in pack.question_ends if end not in marks}
    ends = f"(?:{one_of((*pack.sentence_ends, *marks))})"
    # Where words stand apart a sentence's last one ends it; where they don't, a space does as well.
    apart, joined = (one_of(word for word in words if any(map(is_unspaced, word)) is kind) for kind in (False, True))
    return re.compile(rf"(?:{one_of(marks)})+|(?:{joined})(?:{ends}+|(?=\s|\Z))|(?:{apart})(?:{ends}+|(?=\n|\Z))")
