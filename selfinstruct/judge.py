"""Decide which candidates become records: the filters, in order, then novelty against the task pool."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from selfinstruct.filters import Filter
from selfinstruct.novelty import NoveltyIndex
from selfinstruct.values import Candidate, Comparison, Decision, Dialogue, Neighbour, Record, Rejection, Task


class Judge:
    """Filters and novelty indexes; deciding a candidate that passes adds it to the indexes.

    `pools` holds an index for each text of a record that must be new: its "subject", or the "whole" of it. Without
    one novelty is not judged: rows of an input are the person's own, however alike. `outside` holds texts of other
    data sets and benchmarks, which no candidate may come near. Unless `whole`, an instruction alone is a record,
    and so is a dialogue that waits for a reply.
    """

    def __init__(
        self,
        filters: Sequence[Filter],
        pools: Mapping[str, NoveltyIndex],
        *,
        outside: NoveltyIndex | None = None,
        whole: bool = True,
    ) -> None:
        self._filters = tuple(filters)
        self._pools = dict(pools)
        self._outside = outside
        self._whole = whole

    def screen(self, candidate: Candidate, *, as_of: int) -> Rejection | None:
        """Say whether a candidate is already lost, before more is paid for it.

        Novelty is that of the first `as_of` entries of the pool, so the answer depends on the draw
        and not on what happens to be committed by now.
        """
        rejection = self._first_rejection(candidate)
        pool = self._pools.get("subject")
        if rejection is None and candidate.record is not None and pool is not None:
            nearest = pool.too_near(subject(candidate.record), as_of=as_of)
            rejection = _too_near("novelty", nearest) if nearest else None
        return rejection

    def sifted(self, candidate: Candidate) -> Candidate:
        """Return a candidate with what the filters object to; they look at nothing but the candidate."""
        found = candidate.rejection or self._unfinished(candidate.record) or self._first_rejection(candidate)
        return candidate if found is candidate.rejection else replace(candidate, rejection=found)

    def decide(self, id: str, candidate: Candidate) -> Decision:
        """Accept or reject a sifted candidate against everything accepted so far."""
        record, rejection = candidate.record, candidate.rejection
        if record is None:
            return Decision(id, candidate, rejection)
        nearest = None
        for kind, pool in self._pools.items():
            text = TEXTS[kind](record)
            if kind == "subject":
                nearest, near = pool.weigh(text)
                found = nearest if near else None
            else:
                found = pool.too_near(text)
            if found is not None and rejection is None:
                rejection = _too_near("novelty" if kind == "subject" else f"novelty_{kind}", found)
        if rejection is None:
            candidate = replace(candidate, record=_capitalised(record))
            for kind, pool in self._pools.items():
                pool.add(id, TEXTS[kind](record))
        return Decision(id, candidate, rejection, nearest)

    def _first_rejection(self, candidate: Candidate) -> Rejection | None:
        for check in self._filters:
            rejection = check(candidate)
            if rejection is not None:
                return rejection
        if self._outside is not None and candidate.record is not None:
            nearest = self._outside.too_near(subject(candidate.record))
            return _too_near("against", nearest) if nearest else None
        return None

    def _unfinished(self, record: Record | None) -> Rejection | None:
        """Reject what is no record yet: an instruction alone passes every filter, because it is screened by them."""
        if record is None:
            return Rejection("parse", "no record")
        if self._whole and isinstance(record, Task) and not record.instances:
            return Rejection("parse", "no output")
        if (
            self._whole
            and isinstance(record, Dialogue)
            and [each.role for each in record.messages[-1:]] != ["assistant"]
        ):
            return Rejection("parse", "no reply")
        return None


def _too_near(filter: str, nearest: Neighbour) -> Rejection:
    return Rejection(filter, "too near", {"rouge_l": nearest.score, "nearest": nearest.id})


def subject(record: Record) -> str:
    """Return the text whose novelty counts: a task's instruction, a dialogue's first user turn, a prompt."""
    if isinstance(record, Task):
        return record.instruction
    if isinstance(record, Dialogue):
        return next((message.content for message in record.messages if message.role == "user"), "")
    return record.prompt if isinstance(record.prompt, str) else subject(record.prompt)


def whole(record: Record) -> str:
    """Return all that a record says, for finding copies that only begin otherwise."""
    if isinstance(record, Task):
        return "\n".join([record.instruction, *(f"{case.input}\n{case.output}" for case in record.instances)])
    if isinstance(record, Comparison):
        prompt = record.prompt if isinstance(record.prompt, str) else whole(record.prompt)
        return "\n".join([prompt, *(response.content for response in record.responses)])
    return "\n".join(message.content for message in record.messages)


TEXTS = {"subject": subject, "whole": whole}


def _capitalised(record: Record) -> Record:
    """Raise the first letter of an instruction and leave the rest alone.

    Self-Instruct's `bootstrap_instructions.py` uses str.capitalize, which turns "explain NASA"
    into "Explain nasa".
    """
    if not isinstance(record, Task) or not record.instruction[:1].islower():
        return record
    return replace(record, instruction=record.instruction[0].upper() + record.instruction[1:])
