"""The checks of one record: each yields what is wrong with it. Texts are measured; nothing in them is ever run."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from fractions import Fraction
from typing import Any

from selfinstruct.cleaning import texts
from selfinstruct.errors import ConfigError
from selfinstruct.formats.pclue import off_list
from selfinstruct.identification import identifier, letters, prose
from selfinstruct.languages import LanguagePack, script, tokens
from selfinstruct.values import Comparison, Dialogue, Record, Task

PACK_OF_SCRIPT = {"Latn": "en", "Hani": "zh", "Jpan": "ja", "Cyrl": "ru", "Hang": "ko"}


@dataclass(frozen=True, slots=True)
class Thresholds:
    """What can be set under `verify:` in a config file, or with --set.

    `near_duplicate` and `overlap` are ROUGE-L F; `script_share` the least share of words in the language's
    scripts, looked at from `least_words` on; `truncated_from` the characters below which an answer without
    a full stop is a short answer.
    """

    near_duplicate: float = 0.7
    overlap: float = 0.7
    script_share: float = 0.5
    least_words: int = 20
    truncated_from: int = 160

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Thresholds:
        """Build from settings.

        Raises:
            ConfigError: no such threshold (names the closest), or not a number in its range.
        """
        known = {each.name: each for each in fields(cls)}
        for name, value in values.items():
            if name not in known:
                near = difflib.get_close_matches(str(name), known, n=1) or list(known)
                raise ConfigError(f"verify.{name}: no such threshold; there is {', '.join(near)}")
            whole = name in ("least_words", "truncated_from")
            good = isinstance(value, int | float) and not isinstance(value, bool)
            if not good or (whole and (value < 0 or value != int(value))) or (not whole and not 0 <= value <= 1):
                expected = "a whole number" if whole else "a number from 0 to 1"
                raise ConfigError(f"verify.{name}: expected {expected}, found {value!r}")
        return cls(**values)


@dataclass(frozen=True, slots=True)
class Pair:
    """What was asked and what was answered, as the checks see a record."""

    asked: str
    given: str
    answers: tuple[str, ...]


def question(record: Record) -> str:
    """Return what a record asks, input included: the text that duplicates and overlap are told by."""
    pair = pair_of(record)
    return f"{pair.asked}\n{pair.given}".strip()


def pair_of(record: Record) -> Pair:
    """Return what a record asks and answers."""
    if isinstance(record, Task):
        return Pair(
            record.instruction,
            "\n".join(instance.input for instance in record.instances),
            tuple(instance.output for instance in record.instances),
        )
    if isinstance(record, Dialogue):
        asked = next((message.content for message in record.messages if message.role == "user"), "")
        answers = (m.content for m in record.messages if m.role == "assistant" and not m.tool_calls)
        return Pair(asked, "", tuple(answers))
    prompt = record.prompt if isinstance(record.prompt, str) else pair_of(record.prompt).asked
    return Pair(prompt, "", tuple(response.content for response in record.responses))


# --- checks of one record

Check = Callable[[Record, Pair, LanguagePack, Thresholds], Iterator[str]]


def _empty(record: Record, pair: Pair, pack: LanguagePack, limits: Thresholds) -> Iterator[str]:
    if isinstance(record, Dialogue):
        for number, message in enumerate(record.messages, 1):
            if not message.content.strip() and not message.tool_calls and message.role != "tool":
                yield f"message {number} ({message.role}) is empty"
        if not record.messages:
            yield "no message"
        return
    what = "the instruction" if isinstance(record, Task) else "the prompt"
    if not pair.asked.strip():
        yield f"{what} is empty"
    if any(not answer.strip() for answer in pair.answers):
        yield "an output is empty"


def _placeholder(record: Record, pair: Pair, pack: LanguagePack, limits: Thresholds) -> Iterator[str]:
    if isinstance(record, Task):
        for instance in record.instances:
            if instance.input.strip().casefold() in {"<noinput>", "noinput", *map(str.casefold, pack.no_input)}:
                yield f'the input says "{instance.input.strip()}"; no input is ""'
    for answer in pair.answers:
        if answer.strip().rstrip(".。").casefold() in {"n/a", "<nooutput>", *map(str.casefold, pack.no_output)}:
            yield f'the output says "{answer.strip()}"'


_DANGLING = re.compile(r"(?:[,;(\[{，、；（「『《]|\b(?:and|or|the|a|an|of|to|with|for|because|that|which|in))\s*\Z")
_CLOSING = "\"'”’」』》）)]}*_`~>»"
_LIST_LINE = re.compile(r"\s*(?:[-*+•·|#>]|\d+\s*[.)、:：]|[A-Za-z]\s*[.)])")


def _truncated(record: Record, pair: Pair, pack: LanguagePack, limits: Thresholds) -> Iterator[str]:
    for answer in pair.answers:
        end = answer.rstrip()
        if not end:
            continue
        if end.count("```") % 2:
            yield "a code block is not closed"
            continue
        if "```" in end[-4:] or len(end) < limits.truncated_from:
            continue
        last = end.rpartition("\n")[2]
        if _DANGLING.search(end) and not _LIST_LINE.match(last) and not _looks_like_code(end):
            yield f'ends on "{end[-30:]}"'
        elif _stops_short(end, last, pack):
            yield f'ends without a full stop: "{end[-30:]}"'


def _looks_like_code(text: str) -> bool:
    return bool(re.search(r"[{};]\s*$|^\s*(?:def|class|import|for|if|while|return|SELECT|<\w+)\b", text, re.MULTILINE))


def _stops_short(end: str, last: str, pack: LanguagePack) -> bool:
    """Tell whether prose whose other sentences end with a mark stops in the middle of one."""
    bare = end.rstrip(_CLOSING)
    if not bare or bare.endswith((*pack.sentence_ends, ":", "：", "~", "～")) or not bare[-1].isalpha():
        return False
    if _LIST_LINE.match(last) or _looks_like_code(end) or re.search(r"https?://\S+\Z|\S+@\S+\Z|<[^>]+>\Z|[=\\$]", last):
        return False
    sentences = sum(end.count(mark) for mark in pack.sentence_ends)
    # A signature, a title or a line of verse has no full stop; the last line of cut prose is a long one.
    return sentences >= 3 and pack.length(last) >= 12 and any(mark in last for mark in pack.sentence_ends)


def _refusal(record: Record, pair: Pair, pack: LanguagePack, limits: Thresholds) -> Iterator[str]:
    for answer in pair.answers:
        if phrase := pack.refusals.opens(answer):
            yield f'the answer opens with "{phrase}"'


_LEAKS = re.compile(
    r"<\|(?:im_start|im_end|endoftext|eot_id|begin_of_text|start_header_id|Human|MOSS|user|assistant)\|>"
    r"|<eo[htcrm]>|\[\|(?:Human|AI)\|\]|\[/?INST\]|<<SYS>>|</s>|<(?:start|end)_of_turn>"
    r"|<noinput>|<nooutput>|<无输入>|(?m:^\s*#{2,}\s*(?:Instruction|Input|Response|指令|输入)\s*[:：]?\s*$)"
    r"|(?m:^\s*\d+\s*[.)]\s*(?:Instruction|指令|Input|输入)\s*[:：])"
    r"|Below is an instruction that describes a task|You are asked to come up with a set of \d+"
    r"|(?m:^\s*(?:Human|USER|User)\s*[:：].*\n(?:.*\n)*?\s*(?:Assistant|GPT|ASSISTANT)\s*[:：])"
)


def _leak(record: Record, pair: Pair, pack: LanguagePack, limits: Thresholds) -> Iterator[str]:
    for answer in pair.answers:
        if found := _LEAKS.search(answer):
            yield f'an answer holds prompt text: "{found[0].strip()[:40]}"'


def _initials(text: str) -> str:
    """Return the first letter of each word, so that a Latin word weighs as much as a Chinese character."""
    return "".join(word[0] for word in tokens(text) if word[0].isalpha())


def dominant(text: str) -> str:
    """Return the script that most words of a text are in, "Jpan" for Japanese, "" without letters."""
    counted = Counter("Jpan" if (name := script(char)) in ("Hira", "Kana") else name for char in _initials(text))
    # Japanese is written with Han letters too, so a tenth of kana decides.
    if counted["Jpan"] * 10 > counted.total():
        return "Jpan"
    return counted.most_common(1)[0][0] if counted else ""


def _language(record: Record, pair: Pair, pack: LanguagePack, limits: Thresholds) -> Iterator[str]:
    """Compare with the named language; without one, the answer with the question."""
    if pack.other_language.find(pair.asked):
        return
    for answer in pair.answers:
        share, words = pack.script_share(_initials(answer))
        if words >= limits.least_words and share < limits.script_share and not _looks_like_code(answer):
            yield f"{share:.0%} of an answer's words are in the script of {pack.name}"


def other_language(pair: Pair, pack: LanguagePack) -> Iterator[str]:
    """Yield the answers in another language of the same script: those that the model gives under one in twenty.

    Nothing without the extra `lang`, for short answers, and where another language was asked for or asked about.
    """
    model = identifier(pack)
    if model is None or pack.other_language.find(pair.asked) or pack.other_language.find(pair.given):
        return
    for answer in pair.answers:
        text = prose(answer)
        if letters(text) >= _LETTERS and (found := model.identify(text)).own < 0.05:
            yield f"an answer is in another language than {pack.name} (likeliest {found.language})"


_LETTERS = 40
"""Of a text whose language is told by its words; names and titles are shorter."""
_TERM = r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?"
_SUM = re.compile(
    rf"(?<![\w.,^√)(/*×÷+\-−=%$])(?<![-−+*/×÷=^()%][ \t])(?<!mod )"
    rf"(?P<left>(?:{_TERM})(?:[ \t]*[-+*/×÷][ \t]*(?:{_TERM}))+)[ \t]*=[ \t]*"
    rf"(?P<right>-?(?:{_TERM}))(?![\d.]*\s*[-+*/×÷^%(]|[\d]|,\d|[a-zA-Z√]|\s*(?:remainder|余|R\s*\d|…|\.\.\.|mod))"
)


def wrong_sums(text: str) -> list[str]:
    """Return the sums in a text that do not come out, such as "2 + 2 = 5".

    Plain numbers with + - * / only, worked out exactly; a result may be rounded to the places it shows. Sums with
    decimal commas (3,5 + 1 = 4,5) are passed over.
    """
    wrong = []
    for found in _SUM.finditer(text):
        terms = re.findall(rf"{_TERM}|[-+*/×÷]", found["left"])
        value = _worked_out([term.replace(",", "") for term in terms])
        shown = found["right"].replace(",", "")
        if value is None:
            continue
        places = len(shown.partition(".")[2])
        if not _rounds_to(value, Fraction(shown), places) and not _dotted_date(found["left"]):
            wrong.append(found[0])
    return wrong


def _rounds_to(value: Fraction, shown: Fraction, places: int) -> bool:
    """Tell whether `shown` is `value` with that many places: exact, rounded, or from one place on cut off."""
    unit = Fraction(1, 10**places)
    if not value % unit:
        return value == shown
    return abs(value - shown) < (unit if places else unit / 2)


def _dotted_date(left: str) -> bool:
    return bool(re.fullmatch(r"\d{1,4}-\d{1,2}-\d{1,4}|\d{1,2}/\d{1,2}/\d{2,4}", left.strip()))


def _worked_out(terms: list[str]) -> Fraction | None:
    """Work out number, sign, number, ... with * and / before + and -; None for a division by zero."""
    total, product, sign = Fraction(0), Fraction(terms[0]), 1
    for operator, term in zip(terms[1::2], terms[2::2], strict=True):
        number = Fraction(term)
        if operator in "*×":
            product *= number
        elif operator in "/÷":
            if not number:
                return None
            product /= number
        else:
            total += sign * product
            product, sign = number, 1 if operator == "+" else -1
    return total + sign * product


def _arithmetic(record: Record, pair: Pair, pack: LanguagePack, limits: Thresholds) -> Iterator[str]:
    answers = pair.answers
    if isinstance(record, Comparison):
        # A worse answer may be wrong: that is what it is there for.
        answers = answers[:0]
    for answer in answers:
        for found in wrong_sums(answer):
            yield f'does not come out: "{found}"'


_PERSONAL = {
    "e-mail address": re.compile(
        r"(?<![\w.+-])\w[\w.+-]{0,63}@(?!example\.|test\.|email\.com|domain\.)[\w-]+(?:\.[\w-]+)*\.[A-Za-z]{2,}\b"
    ),
    "phone number": re.compile(
        r"(?<![\d.+\w-])(?:\+\d{1,3}[ .-]?(?:\(?\d{1,4}\)?[ .-]?){2,4}\d{2,4}"
        r"|\(?(?!555)\d{3}\)?[ .-](?!555)\d{3}[ .-]\d{4}|1[3-9]\d{9})(?![\d\w-])"
    ),
    "key": re.compile(
        r"\bsk-(?:[a-z]+-)?[A-Za-z0-9_-]{20,}|\bAKIA[0-9A-Z]{16}\b|\bgh[pousr]_[A-Za-z0-9]{36,}|\bxox[abpr]-[\w-]{10,}"
        r"|\bAIza[\w-]{35}\b|\bhf_[A-Za-z0-9]{30,}|-----BEGIN (?:[A-Z]+ )?PRIVATE KEY-----"
        r"|\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}"
    ),
    "identity number": re.compile(
        r"(?<!\d)[1-9]\d{5}(?:19|20)\d{2}(?:0[1-9]|1[0-2])(?:[0-2]\d|3[01])\d{3}[\dXx](?!\d)"
    ),
}


def _personal(record: Record, pair: Pair, pack: LanguagePack, limits: Thresholds) -> Iterator[str]:
    for name, pattern in _PERSONAL.items():
        found = next((found for text in texts(record) if (found := pattern.search(text))), None)
        if found:
            # Not the thing itself: a report is passed around more freely than the data.
            yield f"{name} ({found[0][:3]}..., {len(found[0])} characters)"


_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufeff\ufffd\ufffe\uffff]")


def _characters(record: Record, pair: Pair, pack: LanguagePack, limits: Thresholds) -> Iterator[str]:
    for text in texts(record):
        if found := _CONTROL.search(text):
            yield f"holds U+{ord(found[0]):04X}, a control or replacement character"


def _choices(record: Record, pair: Pair, pack: LanguagePack, limits: Thresholds) -> Iterator[str]:
    if isinstance(record, Task) and off_list(record):
        yield "the target is not among answer_choices"


RECORD_CHECKS: dict[str, tuple[str, Check]] = {
    "empty": ("an empty instruction, output or turn", _empty),
    "placeholder": ("an input or output that only says that there is none", _placeholder),
    "truncated": ("an answer cut off in the middle", _truncated),
    "refusal": ("an answer that declines", _refusal),
    "leak": ("prompt text or markers in an answer", _leak),
    "language": ("an answer in another script than the language's, or (--language) in another language", _language),
    "arithmetic": ("a sum in an answer that does not come out", _arithmetic),
    "personal": ("e-mail addresses, phone and identity numbers, keys", _personal),
    "characters": ("control and replacement characters", _characters),
    "choices": ("a target that is no listed choice (pCLUE)", _choices),
}
