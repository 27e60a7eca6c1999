"""A translator for tests: words of the other language in the place of ours, as a function of the request alone.

What it is given between <text> and </text> comes back word by word, marks, figures and signs where they were. Words of
the request steer it: a text with DROPS loses its first mark on the first try, BREAKS on every try, and so on.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping

from tests.backends.endpoint import Reply, Seen, chat

LEXICON = {
    "sw": (
        "mtoto kitabu nyumba shule mwalimu rafiki chakula maji safari barabara sokoni mvua jua usiku asubuhi kazi "
        "lugha habari ndege mti maua mto bahari mlima shamba ng'ombe kuku samaki dawa hospitali daktari swali jibu "
        "sentensi andika soma eleza taja fikiria orodhesha kwa sababu lakini pia tena vizuri sana kila mmoja wetu"
    ).split(),
    "zh": (
        "孩子 书本 房屋 学校 老师 朋友 食物 清水 旅行 道路 市场 下雨 太阳 夜晚 清晨 工作 语言 消息 飞机 树木 花朵 河流 "
        "大海 高山 农场 耕牛 小鸡 鲜鱼 药品 医院 医生 问题 回答 句子 写出 阅读 解释 列举 思考 因为 但是 很好 每个 我们"
    ).split(),
    "de": (
        "Kind Buch Haus Schule Lehrerin Freundin Essen Wasser Reise Straße Markt Regen Sonne Nacht Morgen Arbeit "
        "Sprache Nachricht Flugzeug Baum Blume Fluss Meer Gebirge Bauernhof Kuh Huhn Fisch Arznei Krankenhaus Ärztin "
        "Frage Antwort Satz schreiben lesen erklären nennen denken weil aber auch wieder sehr gut jeder von uns"
    ).split(),
}

_TEXT = re.compile(r"<text>\n(.*)\n</text>", re.DOTALL)
_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)?")


def translated(text: str, language: str) -> str:
    """Return what the translator makes of a text."""
    return _WORD.sub(lambda word: word_for(word[0], language), text)


def word_for(word: str, language: str) -> str:
    """Return the other language's word for one of ours."""
    words = LEXICON[language]
    return words[int.from_bytes(hashlib.sha256(word.lower().encode()).digest()[:4]) % len(words)]


def translator(language: str, *, delay: float = 0.0) -> Callable[[Seen], Reply]:
    """Return a script for an endpoint."""

    def answer(seen: Seen) -> Reply:
        messages = seen.json["messages"]
        asked = messages[0]["content"]
        found = _TEXT.search(asked)
        if found is None:  # an output is to be written anew
            said = f"{messages[-1]['content']} {seen.json.get('seed')}"
            return chat(f"{translated(said, language)[:60]}.", delay=delay)
        text, first = found[1], len(messages) == 1
        if "TRUNCATES" in text and seen.json["max_tokens"] < 128 + 2 * len(text):
            return chat("<text>", finish_reason="length", delay=delay)
        reply = translated(text, language)
        terms = re.findall(r"^    (.+) → (.+)$", asked, re.MULTILINE)
        for source, term in terms:
            if "NEVER" not in text and not ("FORGETS" in text and first):
                reply = re.sub(re.escape(translated(source, language)), term, reply, flags=re.IGNORECASE)
        if "BREAKS" in text or ("DROPS" in text and first):
            reply = re.sub("⟦1⟧", "", reply)
        if "DOUBLES" in text and first:
            reply = reply.replace("⟦1⟧", "⟦1⟧ ⟦1⟧")
        if "MISCOUNTS" in text and first:
            reply = reply.replace("12", "21")
        if "ECHOES" in text and first:
            reply = text
        if "CUTS" in text and first:
            reply = reply[: len(reply) // 8]
        if "CHATTERS" in text:
            return chat(reply if not first else f"Sure! Here it is:\n\n{reply}", delay=delay)
        return chat(f"<text>\n{reply}\n</text>", delay=delay)

    return answer


WORDS = {
    "name": "Swahili",
    "native_name": "Kiswahili",
    "labels.instruction": "Agizo | Maagizo",
    "labels.input": "Ingizo",
    "labels.output": "Jibu | Tokeo",
    "labels.task": "Kazi",
    "roles.user": "Mtumiaji | Binadamu",
    "roles.assistant": "Msaidizi | AI",
    "roles.doctor": "Daktari",
    "roles.patient": "Mgonjwa",
    "roles.system": "Mfumo",
    "example": "Mfano",
    "class_label": "Aina",
    "yes": "Ndiyo",
    "no": "Hapana",
    "no_input": "hakuna ingizo | hakuna",
    "no_output": "hakuna tokeo",
    "blocked.words": "picha | video | faili",
    "blocked.openings": "Andika programu",
}
LISTS = {
    "declines to answer": "Samahani, siwezi | Pole, siwezi | Siwezi kusaidia",
    "speaks of itself": "kama programu ya kompyuta | kama akili bandia | mimi ni programu tu",
    "must then be there to read": "maandishi haya | aya ifuatayo | sentensi hii",
    "another language or script": "tafsiri | Kiingereza | Kifaransa | msimbo",
    "Requests begin": "Eleza kwa nini | Taja tano | Andika fupi | Linganisha | Pendekeza | Nini tofauti",
}


def drafter(
    language: str = "sw", *, delay: float = 0.0, spoilt: Mapping[str, str] | None = None
) -> Callable[[Seen], Reply]:
    """Return a script that drafts a language pack; `spoilt` are replies to prompts with those words in them."""

    def answer(seen: Seen) -> Reply:
        messages = seen.json["messages"]
        asked = messages[0]["content"]
        if "is to learn" in asked:
            reply = _words(asked, spoilt or {})
        elif "<instruction>" in asked:
            fields = re.findall(r"<(instruction|input)>\n(.*?)\n</\1>", asked, re.DOTALL)
            reply = "\n".join(f"<{name}>\n{translated(text, language)}\n</{name}>" for name, text in fields)
        elif "begin a conversation with" in asked:
            reply = translated(asked.split("\n\n")[1], language)
        else:
            question, _, how = asked.rpartition("\n---\n")
            words = _WORD.findall(question)
            reply = words[0] if "spelled just as" in how else f"{translated(question[::-1], language)[:80]}."
        return chat(reply, delay=delay)

    return answer


def _words(asked: str, spoilt: Mapping[str, str]) -> str:
    for group, reply in spoilt.items():
        if group in asked:
            return reply
    for told, phrases in LISTS.items():
        if told in asked:
            return "\n".join(f"{number}. {phrase}" for number, phrase in enumerate(phrases.split(" | "), 1))
    keys = re.findall(r"^([\w.]+): ", asked, re.MULTILINE)
    return "\n".join(f"**{key}**: {WORDS[key]}" for key in keys)
