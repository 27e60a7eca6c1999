"""Decide which candidates become records: the filters, in order, then novelty against the task pool."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from selfinstruct.filters import Filter
from selfinstruct.novelty import NoveltyIndex
from selfinstruct.values import Candidate, Decision, Neighbour, Record, Rejection, Task


class Judge:
    """Filters and a novelty index; deciding a candidate that passes adds it to the index.

    Without an index novelty is not judged: rows of an input are the person's own, however alike.
    """

    def __init__(self, filters: Sequence[Filter], index: NoveltyIndex | None) -> None:
        self._filters = tuple(filters)
        self._index = index

    def screen(self, candidate: Candidate, *, as_of: int) -> Rejection | None:
        """Say whether a candidate is already lost, before more is paid for it.

        Novelty is that of the first `as_of` entries of the pool, so the answer depends on the draw
        and not on what happens to be committed by now.
        """
        rejection = self._first_rejection(candidate)
        if rejection is None and candidate.record is not None and self._index is not None:
            nearest = self._index.too_near(subject(candidate.record), as_of=as_of)
            if nearest is not None:
                rejection = _too_near(nearest)
        return rejection

    def decide(self, id: str, candidate: Candidate) -> Decision:
        """Accept or reject a candidate against everything accepted so far."""
        rejection = candidate.rejection or _unfinished(candidate) or self._first_rejection(candidate)
        if candidate.record is None:
            return Decision(id, candidate, rejection)
        if self._index is None:
            return Decision(id, candidate, rejection)
        text = subject(candidate.record)
        nearest = self._index.too_near(text)
        if nearest is not None and rejection is None:
            rejection = _too_near(nearest)
        nearest = nearest or self._index.nearest(text)
        if rejection is None:
            candidate = replace(candidate, record=_capitalised(candidate.record))
            self._index.add(id, text)
        return Decision(id, candidate, rejection, nearest)

    def _first_rejection(self, candidate: Candidate) -> Rejection | None:
        for check in self._filters:
            rejection = check(candidate)
            if rejection is not None:
                return rejection
        return None


def _unfinished(candidate: Candidate) -> Rejection | None:
    """Reject what is no record yet: an instruction alone passes every filter, because it is screened by them."""
    record = candidate.record
    if record is None or (isinstance(record, Task) and not record.instances):
        return Rejection("parse", "no record" if record is None else "no output")
    return None


def _too_near(nearest: Neighbour) -> Rejection:
    return Rejection("novelty", "too near", {"rouge_l": nearest.score, "nearest": nearest.id})


def subject(record: Record) -> str:
    """Return the text whose novelty counts: a task's instruction, a dialogue's first user turn, a prompt."""
    if isinstance(record, Task):
        return record.instruction
    messages = getattr(record, "messages", None)
    if messages is not None:
        return next((message.content for message in messages if message.role == "user"), "")
    prompt = getattr(record, "prompt", "")
    return prompt if isinstance(prompt, str) else subject(prompt)


def _capitalised(record: Record) -> Record:
    """Raise the first letter of an instruction and leave the rest alone.

    Self-Instruct's `bootstrap_instructions.py` uses str.capitalize, which turns "explain NASA"
    into "Explain nasa".
    """
    if not isinstance(record, Task) or not record.instruction[:1].islower():
        return record
    return replace(record, instruction=record.instruction[0].upper() + record.instruction[1:])
