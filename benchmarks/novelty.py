"""How fast the novelty filter answers, against rouge_score and the best brute force.

    python benchmarks/novelty.py                     all pool sizes, some minutes
    python benchmarks/novelty.py --quick             a few seconds, the shape of the tables only
    python benchmarks/novelty.py --texts FILE        real instructions: JSON, JSON lines or plain lines

All methods and all pool sizes take turns in one process; times are CPU time (`process_time`) and
ratios are taken within one turn, so that a slow moment of the machine hits both sides. The median
over the turns is printed with the smallest and the largest.

Where there are not enough real instructions, texts are generated. The generator was fitted to the figures
of the 52,002 instructions of Alpaca: mean 10 tokens, 99 % of at most 22, 99.9 % of at most 32, the
most frequent word in 0.6 of the texts, nine words in more than 1/8 and 19 in more than 1/16 of them.
"""

from __future__ import annotations

import argparse
import bisect
import gc
import importlib.util
import itertools
import json
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from rapidfuzz.distance import LCSseq
from rapidfuzz.process import cdist
from rouge_score.rouge_scorer import _score_lcs
from rouge_score.tokenize import tokenize

from selfinstruct.novelty import NoveltyIndex

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
GOAL_SIZE = 52_000
ENGINES = ["numpy"] + (["numba"] if importlib.util.find_spec("numba") else [])

SYLLABLES = [a + b for a in "bdfgklmnprstvz" for b in "aeiou"]


def word(number: int) -> str:
    """Return the number as a word of syllables; a lower number is shorter."""
    syllables = []
    number += 1
    while number:
        number, digit = divmod(number, len(SYLLABLES))
        syllables.append(SYLLABLES[digit])
    return "".join(syllables)


def generate(count: int, seed: int = 0) -> list[str]:
    """Return instruction-like texts: frames of frequent words with gaps for rare ones, both Zipf-like."""
    rng = random.Random(seed)
    function_words = [word(i) for i in range(60)]
    weights = [1 / (i + 1.3) for i in range(60)]
    frames = []
    for _ in range(4000):
        n = max(2, min(60, round(rng.lognormvariate(2.25, 0.35))))
        if rng.random() < 0.0012:
            n = rng.randrange(33, 85)
        frame = [rng.choices(function_words, weights)[0] if rng.random() < 0.52 else "" for _ in range(n)]
        frames.append(frame if not all(frame) else [*frame[:-1], ""])
    popularity = list(itertools.accumulate(1 / (i + 40) ** 0.6 for i in range(len(frames))))
    content = [word(i + 100) for i in range(80_000)]
    steps = list(itertools.accumulate(1 / (i + 60) ** 1.2 for i in range(len(content))))
    texts = []
    for _ in range(count):
        words = []
        for fixed in rng.choices(frames, cum_weights=popularity)[0]:
            if not fixed:
                words.append(content[bisect.bisect(steps, rng.random() * steps[-1])])
            else:
                words.append(fixed if rng.random() < 0.8 else rng.choices(function_words, weights)[0])
        texts.append(" ".join(words).capitalize() + ".")
    return texts


def read_texts(path: Path) -> list[str]:
    """Return the distinct instructions of a JSON array, of JSON lines, or of plain lines."""
    content = path.read_text(encoding="utf-8")
    if content.lstrip().startswith("["):
        rows = json.loads(content)
    elif content.lstrip().startswith("{"):
        rows = [json.loads(line) for line in content.splitlines() if line.strip()]
    else:
        rows = content.splitlines()
    texts = [row if isinstance(row, str) else row["instruction"] for row in rows]
    return list(dict.fromkeys(text for text in texts if tokenize(text, None)))


def resident() -> int:
    """Return the bytes of memory this process holds; 0 where the system does not say."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * 4096 if statm.exists() else 0


class Pool:
    """One pool size: the texts in the form that each method wants, and the queries held out."""

    def __init__(self, texts: Sequence[str], queries: Sequence[str], kind: str) -> None:
        self.size, self.kind = len(texts), kind
        self.queries = list(queries)
        self.tokens = [tokenize(text, None) for text in texts[:2000]]
        self.query_tokens = [tokenize(text, None) for text in queries]
        self.indexes: dict[str, NoveltyIndex] = {}
        self.rebuild: dict[str, float] = {}
        self.bytes: dict[str, float] = {}
        for engine in ENGINES:
            index = NoveltyIndex(engine=engine)
            gc.collect()
            before, start = resident(), time.process_time()
            index.add_many((str(i), text) for i, text in enumerate(texts))
            self.rebuild[engine] = time.process_time() - start
            self.bytes[engine] = (resident() - before) / len(texts)
            index.top(queries[0])
            index.weigh(queries[0])
            self.indexes[engine] = index
        words: dict[str, int] = {}
        self.strings, self.query_strings = (
            ["".join(self._letter(words, token) for token in tokenize(text, None)) for text in some]
            for some in (texts, queries)
        )
        self.rejected = sum(self.indexes[ENGINES[-1]].too_near(text) is not None for text in queries) / len(queries)

    @staticmethod
    def _letter(words: dict[str, int], token: str) -> str:
        number = words.setdefault(token, len(words) + 1)
        return chr(number if number < 0xD800 else number + 0x800)

    def stock(self, turn: int, pairs: int) -> float:
        """Return seconds per candidate of rouge_score on tokens made before, scaled up from some pairs."""
        rng = random.Random(turn)
        chosen = [(rng.choice(self.query_tokens), rng.choice(self.tokens)) for _ in range(pairs)]
        start = time.process_time()
        for query, entry in chosen:
            _score_lcs(query, entry)
        return (time.process_time() - start) / pairs * self.size

    def brute(self, turn: int) -> float:
        """Return seconds per candidate of rapidfuzz with many candidates per call (SIMD), the best of two batches."""
        best = float("inf")
        for batch in (16, 128) if self.size <= GOAL_SIZE else (16,):
            chosen = [self.query_strings[(turn * batch + i) % len(self.query_strings)] for i in range(batch)]
            start = time.process_time()
            cdist(chosen, self.strings, scorer=LCSseq.similarity, dtype=np.uint8)
            best = min(best, (time.process_time() - start) / batch)
        return best

    def ours(self, call: Callable[[str], object], turn: int, count: int) -> float:
        """Return seconds per candidate of one of our questions, tokenizing included."""
        chosen = [self.queries[(turn * count + i) % len(self.queries)] for i in range(count)]
        start = time.process_time()
        for text in chosen:
            call(text)
        return (time.process_time() - start) / count


Times = dict[tuple[int, str], list[float]]


def measure(pools: Sequence[Pool], repeats: int, quick: bool) -> Times:
    """Take turns over all pools and methods; returns seconds per candidate by (size, method)."""
    times: Times = {}
    for turn in range(repeats):
        for pool in pools:
            few = 20 if quick else max(20, min(400, 20_000_000 // pool.size))
            found = {"rouge_score": pool.stock(turn, 50 if quick else 500), "rapidfuzz": pool.brute(turn)}
            for engine, index in pool.indexes.items():
                found[f"{engine} decision"] = pool.ours(index.too_near, turn, few * (5 if engine == "numba" else 1))
                found[f"{engine} nearest"] = pool.ours(index.weigh, turn, few)
                found[f"{engine} top-10 + mean"] = pool.ours(index.top, turn, max(10, few // 4))
            for method, seconds in found.items():
                times.setdefault((pool.size, method), []).append(seconds)
    return times


def measure_stream(texts: Sequence[str], repeats: int) -> dict[str, list[float]]:
    """Return the seconds of a whole stream, offered in one call, and of rouge_score's tokenizer alone."""
    items = [(str(i), text) for i, text in enumerate(texts)]
    times: dict[str, list[float]] = {}
    for _ in range(repeats):
        for method in ("tokenize", *ENGINES):
            index = NoveltyIndex(engine=method) if method != "tokenize" else None
            gc.collect()
            start = time.process_time()
            if index is None:
                for text in texts:
                    tokenize(text, None)
            else:
                index.offer_many(items)
            times.setdefault(method, []).append(time.process_time() - start)
    return times


def measure_long(count: int, repeats: int) -> dict[str, list[float]]:
    """Return seconds per candidate for texts of 200 to 2,000 tokens, a third of them near-duplicates."""
    rng = random.Random(5)
    words = " ".join(text.rstrip(".").lower() for text in generate(count * 120, seed=9)).split()

    def text() -> str:
        begin, size = rng.randrange(len(words) - 2000), rng.randrange(200, 2001)
        return " ".join(words[begin : begin + size])

    pool = [text() for _ in range(count)]
    near = [" ".join(w for w in rng.choice(pool).split() if rng.random() < 0.9) for _ in range(5)]
    queries = near + [text() for _ in range(10)]
    tokens, query_tokens = [p.split() for p in pool[:50]], [q.split() for q in queries]
    indexes = {engine: NoveltyIndex(engine=engine) for engine in ENGINES}
    for index in indexes.values():
        index.add_many((str(i), entry) for i, entry in enumerate(pool))
        index.top(queries[0])
    times: dict[str, list[float]] = {}
    for turn in range(repeats):
        start = time.process_time()
        _score_lcs(query_tokens[turn % len(queries)], tokens[turn % len(tokens)])
        times.setdefault("rouge_score", []).append((time.process_time() - start) * count)
        for engine, index in indexes.items():
            questions: dict[str, Callable[[str], object]] = {"decision": index.too_near, "top-10 + mean": index.top}
            for name, call in questions.items():
                start = time.process_time()
                for query in queries:
                    call(query)
                times.setdefault(f"{engine} {name}", []).append((time.process_time() - start) / len(queries))
    return times


def ratio(slow: Sequence[float], fast: Sequence[float], digits: int = 0) -> str:
    """Return the median ratio of the turns with its range."""
    ratios = [a / b for a, b in zip(slow, fast, strict=True)]
    return f"{statistics.median(ratios):,.{digits}f} [{min(ratios):,.{digits}f}..{max(ratios):,.{digits}f}]"


def shown(seconds: float) -> str:
    """Return a time with three significant digits."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"


def print_pools(pools: Sequence[Pool], times: Times) -> None:
    """Print time per candidate, and rouge_score's time over it, for each pool size."""
    print("Per candidate, median CPU time; in brackets: rouge_score takes so many times as long.\n")
    methods = list(dict.fromkeys(method for _, method in times))
    print(f"| pool | texts | {' | '.join(methods)} |")
    print("|---" * (len(methods) + 2) + "|")
    for pool in pools:
        stock = times[pool.size, "rouge_score"]
        cells = [shown(statistics.median(stock))]
        for method in methods[1:]:
            own = times[pool.size, method]
            cells.append(f"{shown(statistics.median(own))} ({ratio(stock, own).split()[0]})")
        kind = f"{pool.kind}, {pool.rejected:.1%} too near"
        print(f"| {pool.size:,} | {kind} | {' | '.join(cells)} |")
    print("\n| pool | " + " | ".join(f"{e} bytes per entry | {e} rebuild from texts" for e in ENGINES) + " |")
    print("|---" * (1 + 2 * len(ENGINES)) + "|")
    for pool in pools:
        cells = [f"{pool.bytes[e]:,.0f} | {shown(pool.rebuild[e])}" for e in ENGINES]
        print(f"| {pool.size:,} | {' | '.join(cells)} |")


def print_goals(times: Times, stream: dict[str, list[float]], middle: int, large: int) -> None:
    """Print each goal with what was measured: median [smallest..largest]."""

    def row(title: str, measured: dict[str, tuple[list[float], list[float]]], bound: dict[str, int], sign: int) -> None:
        cells = []
        for engine, (a, b) in measured.items():
            distance = statistics.median(x / y for x, y in zip(a, b, strict=True)) - bound[engine]
            # The goals are meant for one size of pool.
            verdict = "–" if middle != GOAL_SIZE else "yes" if distance * sign >= 0 else "**no**"
            cells.append(f"{bound[engine]:,} | {ratio(a, b, int(bound[engine] < 100))} | {verdict}")
        print(f"| {title} | {' | '.join(cells)} |")

    print(f"\nRatios at {middle:,} entries: median [smallest..largest] of the turns.\n")
    print("| goal | " + " | ".join(f"{e}: goal | {e}: measured | met" for e in ENGINES) + " |")
    print("|---" * (1 + 3 * len(ENGINES)) + "|")
    for title, slow, fast, bound in (
        ("decision vs rouge_score, at least", "rouge_score", "decision", {"numpy": 10_000, "numba": 50_000}),
        ("decision vs best rapidfuzz batch, at least", "rapidfuzz", "decision", {"numpy": 7, "numba": 30}),
        ("top-10 + mean vs rouge_score, at least", "rouge_score", "top-10 + mean", {"numpy": 1_500, "numba": 5_000}),
    ):
        row(title, {e: (times[middle, slow], times[middle, f"{e} {fast}"]) for e in ENGINES}, bound, 1)
    streams = {e: (stream[e], stream["tokenize"]) for e in ENGINES}
    row("whole stream vs rouge_score's tokenizing alone, at most", streams, {"numpy": 12, "numba": 2}, -1)
    growth = {e: (times[large, f"{e} decision"], times[middle, f"{e} decision"]) for e in ENGINES}
    row(f"decision at {large:,} vs at {middle:,}, at most", growth, {"numpy": 20, "numba": 20}, -1)
    medians = ", ".join(f"{name} {shown(statistics.median(seconds))}" for name, seconds in stream.items())
    print(f"\nWhole stream (offer_many): {medians}.")


def main() -> None:
    """Run the benchmark and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=Path, help="real instructions")
    parser.add_argument("--sizes", default="1000,10000,52000,250000,1000000", help="pool sizes (default %(default)s)")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="pools of 300 and 1,000, 3 repeats")
    options = parser.parse_args()
    sizes = [300, 1000] if options.quick else sorted(int(size) for size in options.sizes.split(","))
    repeats = 3 if options.quick else options.repeats
    middle = GOAL_SIZE if GOAL_SIZE in sizes else sizes[-1]

    demo = DATA / "alpaca_en_demo.json"
    source = options.texts or (demo if demo.exists() else None)
    real = read_texts(source) if source else []
    random.Random(1).shuffle(real)
    made = generate(max(sizes) + 2000)
    pools = []
    for size in sizes:
        held_out = min(2000, max(50, size // 10))
        enough = len(real) >= size + held_out
        texts = real if enough else made
        queries = texts[size : size + held_out] if enough else made[-held_out:]
        pools.append(Pool(texts[:size], queries, "real" if enough else "generated"))

    times = measure(pools, repeats, options.quick)
    stream = measure_stream((real if len(real) >= middle else made)[:middle], repeats)
    long_count = 100 if options.quick else 2000
    long = measure_long(long_count, 2 if options.quick else repeats)

    print(f"Python {platform.python_version()}, numpy {np.__version__}, {platform.machine()}, {repeats} turns.\n")
    print_pools(pools, times)
    print_goals(times, stream, middle, sizes[-1])
    print(f"\nTexts of 200 to 2,000 tokens, pool of {long_count:,}, a third of the queries near-duplicates:")
    print("; ".join(f"{method} {shown(statistics.median(seconds))}" for method, seconds in long.items()) + ".")


if __name__ == "__main__":
    main()
