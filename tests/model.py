"""A model for tests: writes Alpaca lists, JSON or plain answers, as a function of the request alone."""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Callable

from tests.backends.endpoint import Reply, Seen, chat, continuation

_VERBS = "Explain Describe Compare Rewrite Summarise Classify Translate Estimate Plan Criticise Sort Continue".split()
_THINGS = (
    "harvest bridge contract recipe poem market timetable lighthouse budget orchard violin tram glacier notebook "
    "kettle parliament beehive sonnet warehouse canal lantern dialect compass vaccine loom quarry ferry anthem"
).split()
_TURNS = "for a child, in two sentences, as a list, without jargon, to a colleague, step by step, in a letter".split(
    ", "
)
_ZH = "解释 比较 改写 概括 分类 翻译 估算 规划 续写 点评".split()
_ZH_THINGS = (
    "丰收 桥梁 合同 菜谱 诗歌 集市 时刻表 灯塔 预算 果园 琵琶 电车 冰川 笔记 茶壶 蜂箱 码头 运河 灯笼 方言".split()
)
_ZH_TURNS = "，讲给孩子听。|，分三点回答。|，用两句话。|，不用术语。|，写成一封信。|，并举一个例子。".split("|")


def model(*, delay: Callable[[random.Random], float] = lambda _: 0.0, per_list: int = 4) -> Callable[[Seen], Reply]:
    """Return a script for an endpoint; `delay` is drawn for each request, and changes no text."""

    def answer(seen: Seen) -> Reply:
        body = seen.json
        asked = json.dumps([body.get("messages"), body.get("prompt"), body.get("seed")], sort_keys=True)
        rng = random.Random(hashlib.sha256(asked.encode()).digest())
        wait = delay(random.Random(f"{seen.number}/{seen.at}"))
        text = body["messages"][-1]["content"] if "messages" in body else body["prompt"]
        if "prompt" in body:
            reply = continuation(f" the {rng.choice(_THINGS)} and the {rng.choice(_THINGS)} {rng.choice(_TURNS)}.")
        elif re.match(r"Task \d+:", text.rpartition("\n")[2]):
            reply = chat(f"Task 5: {_en_task(rng)[0]}")
        elif "指令:" in text:
            reply = chat(_blocks(rng, per_list, ("指令", "输入", "输出"), "<无输入>", _zh_task))
        elif "Instruction:" in text:
            reply = chat(_blocks(rng, per_list, ("Instruction", "Input", "Output"), "<noinput>", _en_task))
        elif '{"tasks"' in text:
            rows = [
                dict(zip(("instruction", "output"), _en_task(rng), strict=True)) | {"input": ""}
                for _ in range(per_list)
            ]
            reply = chat(json.dumps({"tasks": rows}))
        else:
            reply = chat(f"A short answer about the {rng.choice(_THINGS)}: it rests on the {rng.choice(_THINGS)}.")
        return Reply(reply.status, reply.body, reply.headers, delay=wait)

    return answer


def _en_task(rng: random.Random) -> tuple[str, str]:
    one, two, three = rng.sample(_THINGS, 3)
    return (
        f"{rng.choice(_VERBS)} the {one}, the {two} and the {three} {rng.choice(_TURNS)}.",
        f"The {one} comes first, since the {two} depends on it; number {rng.randint(1, 99)} settles the rest.",
    )


def _zh_task(rng: random.Random) -> tuple[str, str]:
    one, two = rng.sample(_ZH_THINGS, 2)
    return (
        f"{rng.choice(_ZH)}{one}与{two}之间的关系{rng.choice(_ZH_TURNS)}",
        f"先看{one}，再看{two}，第{rng.randint(1, 99)}条足以说明。",
    )


def _blocks(
    rng: random.Random,
    count: int,
    labels: tuple[str, str, str],
    none: str,
    task: Callable[[random.Random], tuple[str, str]],
) -> str:
    pieces = []
    for number in range(4, 4 + count):
        instruction, output = task(rng)
        pieces.append(
            f"{number}. {labels[0]}: {instruction}\n{number}. {labels[1]}:\n{none}\n{number}. {labels[2]}:\n{output}\n"
        )
    return "###\n".join(pieces)
