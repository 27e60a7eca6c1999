"""Rules for what is answered, by itself and against what was asked."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import islice

from selfinstruct.filters.rule import Filter, Rules, Verdict, answers_of, exchanges_of, of_record, of_task, texts_of
from selfinstruct.languages import LanguagePack, is_unspaced, tokens
from selfinstruct.values import Candidate, Dialogue, Task

RULES = Rules()


@RULES.add("AlpacaDataCleaned: 28 empty outputs in Alpaca's release, and N/A outputs")
def empty_output(pack: LanguagePack) -> Filter:
    """Reject an empty output or reply, or one that only says "N/A" where that was no answer to choose."""
    none = {_plain(spelling) for spelling in pack.no_output}
    longest = max(map(len, none), default=0)

    def judge(record: Task | Dialogue, candidate: Candidate) -> Verdict:
        for asked, given, answer in exchanges_of(record):
            if not answer.strip():
                return "empty", {}
            said = _plain(answer, longest + 1)
            if said and said in none and said not in _plain(asked + given):
                return "says_none", {"output": answer[:40]}
        return None

    return of_record("empty_output", judge)


@RULES.add("AlpacaDataCleaned, and our measurement of small chat models")
def refusal(pack: LanguagePack) -> Filter:
    """Reject an output or reply that opens by declining, such as "I'm sorry, but I can't"."""

    def judge(record: Task | Dialogue, candidate: Candidate) -> Verdict:
        for answer in answers_of(record):
            found = pack.refusals.opens(answer)
            if found is not None:
                return "refusal", {"phrase": found}
        return None

    return of_record("refusal", judge)


@RULES.add("our measurement of small models: answers that loop repeat over 40 % of their 3-grams")
def repetition(
    pack: LanguagePack, *, maximum: float = 0.4, minimum_tokens: int = 24, line_run: int = 5, character_run: int = 40
) -> Filter:
    """Reject an output or turn that loops: repeated word groups, one line again and again, one letter without end.

    The grams are three words, or five characters of a script without spaces, where three are hardly more than a word
    (a sound legal text in BELLE's seeds repeats 46 % of them). An output of fewer than `minimum_tokens` words or
    characters is only looked at for the runs.
    """
    same = re.compile(rf"([^\W_])\1{{{max(character_run, 1) - 1},}}")

    def judge(record: Task | Dialogue, candidate: Candidate) -> Verdict:
        said = [text for _, text in texts_of(record)] if isinstance(record, Dialogue) else answers_of(record)
        for text in said:
            words = tokens(text)
            unspaced = 0 if text.isascii() else sum(map(is_unspaced, words))
            size = 5 if 2 * unspaced > len(words) else 3
            grams = set(zip(*(words[at:] for at in range(size)), strict=False))
            share = 1 - len(grams) / (len(words) - size + 1) if grams else 0.0
            if len(words) >= minimum_tokens and share > maximum:
                return "repeated_grams", {"share": round(share, 4), "maximum": maximum, "gram": size}
            lines = [line.strip() for line in text.splitlines() if any(map(str.isalnum, line))]
            if (run := _longest_run(lines)) >= line_run:
                return "repeated_line", {"run": run, "maximum": line_run - 1}
            if run := max((len(found[0]) for found in same.finditer(text)), default=0):
                return "repeated_character", {"run": run, "maximum": character_run - 1}
        return None

    return of_record("repetition", judge)


@RULES.add("Self-Instruct prepare_for_finetuning.py: input equal to output")
def output_equals_input(pack: LanguagePack) -> Filter:
    """Reject a task whose output is its input, white space aside.

    Letter case and punctuation count: there are tasks that mend just these.
    """

    def judge(task: Task) -> Verdict:
        for case in task.instances:
            if case.input and case.input.split() == case.output.split():
                return "output_equals_input", {}
        return None

    return of_task("output_equals_input", judge)


@RULES.add("our measurement of small models: answers that restate the question, there by ROUGE-L F > 0.7")
def output_repeats_instruction(pack: LanguagePack, *, minimum_share: float = 0.8, minimum_tokens: int = 5) -> Filter:
    """Reject an output or reply that is what was asked again: equal, or most of its words in its order and no other.

    `minimum_share` is how many of the instruction's words must come back. One word more passes: "The product of 9 and 5
    is 45." answers, though ROUGE-L F would be high. Outputs of fewer than `minimum_tokens` words must be equal.
    """

    def judge(record: Task | Dialogue, candidate: Candidate) -> Verdict:
        for question, _, answer in exchanges_of(record):
            asked, answered = tokens(question), tokens(answer)
            if not asked or not answered or len(answered) > len(asked):
                continue
            share = len(answered) / len(asked)
            nothing_new = len(answered) >= minimum_tokens and share >= minimum_share and _within(answered, asked)
            if asked == answered or nothing_new:
                return "output_repeats_instruction", {"share": round(share, 4), "minimum": minimum_share}
        return None

    return of_record("output_repeats_instruction", judge)


@RULES.add("Self-Instruct prepare_for_finetuning.py: an instance whose input or output ends with a colon is unfinished")
def ends_with_colon(pack: LanguagePack, *, input: bool = True, output: bool = True) -> Filter:
    """Reject a record of which an input, an output or a reply ends with a colon: something was to follow."""

    def judge(record: Task | Dialogue, candidate: Candidate) -> Verdict:
        given = [case.input for case in record.instances] if isinstance(record, Task) else []
        for where, texts in (("input", given if input else []), ("output", answers_of(record) if output else [])):
            if any(text.rstrip().endswith((":", "：")) for text in texts):
                return "ends_with_colon", {"field": where}
        return None

    return of_record("ends_with_colon", judge)


@RULES.add("Self-Instruct prepare_for_finetuning.py: one input with several outputs drops all instances of its task")
def conflicting_outputs(pack: LanguagePack) -> Filter:
    """Reject a task that answers one input in several ways; without input several answers are no conflict."""

    def judge(task: Task) -> Verdict:
        answers: dict[str, str] = {}
        for case in task.instances:
            if case.input and answers.setdefault(case.input, case.output) != case.output:
                return "conflicting_outputs", {"input": case.input[:60]}
        return None

    return of_task("conflicting_outputs", judge)


def _plain(text: str, most: int | None = None) -> str:
    """Return the first `most` letters, digits and slashes of a text."""
    return "".join(islice((char for char in text.casefold() if char.isalnum() or char == "/"), most))


def _within(part: Sequence[str], whole: Sequence[str]) -> bool:
    """Tell whether the words of `part` come in `whole`, in that order."""
    rest = iter(whole)
    return all(word in rest for word in part)


def _longest_run(items: list[str]) -> int:
    longest = run = 0
    previous: str | None = None
    for item in items:
        run = (run + 1 if item == previous else 1) if item else 0
        previous = item
        longest = max(longest, run)
    return longest
