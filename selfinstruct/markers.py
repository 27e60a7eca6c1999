"""Who speaks in a written conversation: `[User] ...`, `[|AI|] ...`, `**Assistant:** ...`, `用户：...`.

Names are those of the language pack and of English, in any letter case, with full-width brackets, bars and colons too.
Two kinds of marker differ in what they are worth:

- **Strong**: in brackets (`[User]`, `【用户】`), as prompts print it, at the start of a line or behind a finished
  sentence; with bars (`[|Human|]`) anywhere. A comma, a full stop or a bracket right behind it makes it text:
  `Dear [User],`.
- **Weak**: in brackets elsewhere; or bare (`User:`, `**User**`, `### Assistant`) at the start of a line, with a colon,
  or alone on the line in bold or as a heading. A config file has such lines too.

Fenced code hides both, except a marker exactly as the prompt printed it: then the fence was never closed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from selfinstruct.languages import LanguagePack, Roles

Speaker = Literal["user", "assistant"]

# Invisible marks of direction stand around names in right-to-left scripts.
# A marker is short: no more of them are looked at than it may have.
_BLANK = "[ \t\u00a0\u3000\u200c-\u200f\u202a-\u202e\u2066-\u2069]{0,8}"
_SENTENCE_END = re.compile(r"[.!?…。！？।؟۔)\]）】」』”’\"'`*_>]\s*\Z")
_FENCE = re.compile(r"^[ \t]*(?:`{3,}|~{3,})(?P<info>[^`\n]*)$", re.MULTILINE)
_END = re.compile(
    r"[*_]{0,3}[\[<(【［]\s*[|｜/]?\s*(?:the\s+)?end(?:\s+of\s+(?:the\s+)?(?:conversation|dialogue|dialog|chat))?"
    r"\s*[|｜]?\s*[\]>)】］][*_]{0,3}",
    re.IGNORECASE,
)

END = "[END]"
"""What prompts ask for where a conversation is over."""


@dataclass(frozen=True, slots=True)
class Voices:
    """The spellings of both sides' names; prompts print the first of each."""

    user: tuple[str, ...]
    assistant: tuple[str, ...]

    def marker(self, speaker: Speaker) -> str:
        """Return the marker that prompts print before a turn."""
        return f"[{(self.user if speaker == 'user' else self.assistant)[0]}]"


@dataclass(frozen=True, slots=True)
class Marker:
    """A marker in a text: it reaches from `start` to `end`, where the turn's own text begins."""

    speaker: Speaker
    start: int
    end: int
    strong: bool


def voices(pack: LanguagePack, user: str = "user", assistant: str = "assistant") -> Voices:
    """Return how a pack names two roles of its `roles`, such as "patient" and "doctor".

    A model falls back on the plain names and on English ones, so they are understood as well.
    """

    def spellings(role: str, plain: str) -> tuple[str, ...]:
        found: dict[str, str] = {}
        for roles in (pack.roles, Roles()):
            for name in (*getattr(roles, role), *getattr(roles, plain)):
                found.setdefault(name.casefold(), name)
        return tuple(found.values())

    return Voices(spellings(user, "user"), spellings(assistant, "assistant"))


def markers_in(text: str, voices: Voices) -> list[Marker]:
    """Return the markers of a text in their order."""
    bracketed, bare, names = _patterns(voices)
    found: list[Marker] = []
    printed: set[int] = set()
    for match in bracketed.finditer(text):
        # re's IGNORECASE takes a dotless i for an i, casefold does not.
        speaker = names.get(match["name"].casefold())
        start = match.start()
        barred = "|" in match[0] or "｜" in match[0]
        behind = match["line"] is not None or _SENTENCE_END.search(text[max(0, start - 8) : start])
        if speaker:
            found.append(Marker(speaker, start, match.end(), strong=bool(barred or behind)))
            if barred or voices.marker(speaker) in match[0]:
                printed.add(start)
    for match in bare.finditer(text):
        speaker = names.get(match["name"].casefold())
        if speaker and (match["alone"] is None or match["bold"] or match["head"]):
            found.append(Marker(speaker, match.start(), match.end(), strong=False))
    found.sort(key=lambda marker: marker.start)
    return _outside_code(text, found, printed)


def end_mark(text: str) -> tuple[int, int] | None:
    """Return where a text says that the conversation is over (start, end), or None."""
    match = _END.search(text)
    return match.span() if match else None


def _outside_code(text: str, markers: list[Marker], printed: set[int]) -> list[Marker]:
    fences = list(_FENCE.finditer(text))
    if not fences or not markers:
        return markers
    hidden: list[tuple[int, int]] = []
    at = 0
    while at < len(fences):
        opening = fences[at]
        closing = next((each for each in fences[at + 1 :] if not each["info"].strip()), None)
        if closing is None:
            break
        inside = [start for start in printed if opening.end() < start < closing.start()]
        if inside:
            at = next(number for number, each in enumerate(fences) if each.start() > min(inside))
        else:
            hidden.append((opening.start(), closing.end()))
            at = fences.index(closing) + 1
    return [each for each in markers if not any(start <= each.start < end for start, end in hidden)]


@lru_cache(maxsize=128)
def _patterns(voices: Voices) -> tuple[re.Pattern[str], re.Pattern[str], dict[str, Speaker]]:
    names: dict[str, Speaker] = {name.casefold(): "assistant" for name in voices.assistant}
    names |= {name.casefold(): "user" for name in voices.user}
    spelled = "|".join(sorted(map(re.escape, (*voices.user, *voices.assistant)), key=len, reverse=True))
    line = rf"(?P<line>^{_BLANK}(?P<head>\#{{1,6}}{_BLANK})?(?:[-•>][ \t]{{1,8}}|\d{{1,3}}[.)、．]{_BLANK})?)"
    name = rf"(?P<name>{spelled})(?:{_BLANK}\d{{1,2}})?"
    bracketed = (
        rf"{line}?(?P<bold>[*_]{{1,3}})?[\[【［]{_BLANK}[|｜]?{_BLANK}{name}{_BLANK}[|｜]?{_BLANK}[\]】］]"
        r"(?![,.;!?，。；！？(（])(?(bold)[*_]{0,3})[:：]?(?(bold)[*_]{0,3})\s*"
    )
    bare = (
        rf"{line}(?P<bold>[*_]{{1,3}})?{_BLANK}{name}{_BLANK}(?(bold)[*_]{{0,3}}){_BLANK}"
        rf"(?:[:：﹕](?(bold)[*_]{{0,3}})|(?P<alone>)(?={_BLANK}$))\s*"
    )
    flags = re.IGNORECASE | re.MULTILINE
    return re.compile(bracketed, flags), re.compile(bare, flags), names
