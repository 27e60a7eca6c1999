"""A model for tests of dialogue recipes: writes both sides, plays the person or answers, well or with the usual damage.

What it writes is a function of the request alone, so runs over a socket can be compared.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from selfinstruct import plan as plans
from selfinstruct.run import Session
from selfinstruct.store import RunView
from selfinstruct.values import Dialogue
from tests.backends.endpoint import Endpoint, Reply, Seen, chat, continuation
from tests.program import RPM

_THINGS = (
    "harvest bridge contract recipe poem market timetable lighthouse budget orchard violin tram glacier notebook "
    "kettle parliament beehive sonnet warehouse canal lantern dialect compass vaccine loom quarry ferry anthem"
).split()
_WHO = "my aunt|our landlord|the new colleague|a neighbour|the choir|my daughter|the old mason|nobody here".split("|")
_DOES = "repairs|sells|paints|borrows|hides|counts|moves|ruins|copies|praises|cleans|lends".split("|")
_WHEN = "before winter|on Sundays|at night|since the flood|after work|in spring|without asking|twice a year".split("|")
_ASKS = "Why is it that|What can be done when|Is it wise that|How does one cope when|Can it be true that".split("|")
_ZH_THINGS = "丰收 桥梁 合同 菜谱 诗歌 集市 时刻表 灯塔 预算 果园 琵琶 电车 冰川 笔记 茶壶 蜂箱 码头 运河".split()
_ZH_WHO = "姑妈 房东 新同事 邻居 合唱团 女儿 老石匠 校长".split()
_ZH_DOES = "修理 出售 粉刷 借走 藏起 清点 搬动 弄坏 抄写 称赞 清洗 转借".split()
_ZH_ASKS = "为什么|怎样应付|能不能说说|是真的吗，|谁知道".split("|")


def model(*, damage: float = 0.0, delay: Callable[[random.Random], float] = lambda _: 0.0) -> Callable[[Seen], Reply]:
    """Return a script for an endpoint; `damage` is the share of answers that come out wrong in some way."""

    def answer(seen: Seen) -> Reply:
        body = seen.json
        asked = json.dumps([body.get("messages"), body.get("prompt"), body.get("seed")], sort_keys=True)
        rng = random.Random(hashlib.sha256(asked.encode()).digest())
        text = body["prompt"] if "prompt" in body else body["messages"][-1]["content"]
        said, reason = write(text, rng, damage)
        for stop in body.get("stop", ()):
            said = said.partition(stop)[0]
        wait = delay(random.Random(f"{seen.number}/{seen.at}"))
        reply = continuation if "prompt" in body else chat
        return reply(said, finish_reason=reason, delay=wait)

    return answer


def write(text: str, rng: random.Random, damage: float = 0.0) -> tuple[str, str]:
    """Return what a model says to `text` and its finish reason."""
    chinese = sum("\u4e00" <= char <= "\u9fff" for char in text) > 10
    wrong = rng.random() < damage
    markers = re.findall(r"\[([^\]\n]{1,20})\](?! on a line| alone|，不用|。如果)", text)
    if re.match(r"Write a conversation|请围绕|请写一段", text):
        user, assistant = [name for name in markers if name != "END"][:2]
        turns = [
            each
            for _ in range(rng.randint(1, 4))
            for each in ((user, ask(rng, chinese)), (assistant, say(rng, chinese)))
        ]
        return _both(turns, rng, wrong)
    if re.match(r"Conversations |Letters of|下面是(普通人与助手|病人写给|几段问诊)", text):
        said = ask(rng, chinese)
        return rng.choice(["", "[Assistant] Well.", f"**{said}**"]) if wrong else f" {said}", "stop"
    if re.match(r"You play|请你扮演|下面是一个人与", text):
        ends = "[END]" in text and rng.random() < 0.2
        said = "[END]" if ends else ask(rng, chinese)
        kinds: tuple[str, ...] = (
            "",
            f'"{said}"',
            f"[User] {said}",
            f"{said}\n[Assistant] Well.",
            "[Assistant] I am ready to help.",
        )
        return (rng.choice(kinds) if wrong else said), "stop"
    said = say(rng, chinese)
    kinds = (
        "",
        f"{said}\n\nUser: And then?\nAssistant: Then it is done.",
        f"{said} {said[: len(said) // 4]}",
        "I'm sorry, but I can't help with that.",
        f"{said}<|im_end|>",
        "As an AI language model, I have no kettle.",
    )
    which = rng.randrange(len(kinds))
    return (kinds[which], "length" if which == 2 else "stop") if wrong else (said, "stop")


def _both(turns: list[tuple[str, str]], rng: random.Random, wrong: bool) -> tuple[str, str]:
    lines = [f"[{name}] {said}" for name, said in turns]
    text = "\n".join(lines)
    if not wrong:
        return text + rng.choice(["", "\n[END]"]), "stop"
    half = len(turns[-1][1]) // 2
    return rng.choice(
        [
            (text[:-half], "length"),
            ("Sure! Here is the conversation:\n\n" + "\n\n".join(f"**{n}:** {s}" for n, s in turns), "stop"),
            ("\n".join(lines[1:] + lines[:1]), "stop"),
            (f"[{turns[1][0]}] Hello! How may I help you today?\n{text}\n[|Human|] ", "stop"),
            ("\n".join([*lines, *lines[:2]]), "stop"),
            ("\n".join([*lines[:1], f"[{turns[1][0]}]", *lines[2:]]), "stop"),
            ("I would rather talk about the weather.", "stop"),
            (f"{text}<|im_end|>", "stop"),
        ]
    )


def ask(rng: random.Random, chinese: bool = False) -> str:
    """Return a question."""
    if chinese:
        return f"{rng.choice(_ZH_ASKS)}{_clause(rng, chinese)}，而{_clause(rng, chinese)}？"
    return f"{rng.choice(_ASKS)} {_clause(rng)}, and {_clause(rng)}?"


def say(rng: random.Random, chinese: bool = False) -> str:
    """Return an answer."""
    if chinese:
        return f"{_clause(rng, chinese)}，因此第{rng.randint(2, 99)}条最要紧。{_clause(rng, chinese)}，不必着急。"
    return (
        f"Since {_clause(rng)}, look at number {rng.randint(2, 99)} first. Then {_clause(rng)}, so there is no hurry."
    )


def _clause(rng: random.Random, chinese: bool = False) -> str:
    if chinese:
        return f"{rng.choice(_ZH_WHO)}{rng.choice(_ZH_DOES)}{rng.choice(_ZH_THINGS)}"
    return f"{rng.choice(_WHO)} {rng.choice(_DOES)} the {rng.choice(_THINGS)} {rng.choice(_WHEN)}"


def work(recipe: str, endpoint: Endpoint, folder: Path, *layers: Mapping[str, Any], **settings: Any) -> list[Dialogue]:
    """Run a recipe in this process against an endpoint over its socket and return the dataset."""
    address = {"model": "openai/test", "backend": {"base_url": endpoint.base_url}, "rpm": RPM}
    plan = plans.plan([{"recipe": recipe, "novelty": {"engine": "numpy"}}, address, settings, *layers])
    with plans.open_run(folder, plan) as store:
        asyncio.run(Session(plan, store).work(lambda commit: None))
    return dialogues(folder)


def dialogues(folder: Path) -> list[Dialogue]:
    """Return the dialogues of a run's dataset."""
    with RunView.open(folder) as view:
        return [record for _, record in view.dataset() if isinstance(record, Dialogue)]
