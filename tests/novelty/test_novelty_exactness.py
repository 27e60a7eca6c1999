"""No mismatch against rouge_score: 20,000 text pairs, a stream of 10,000 texts, real and generated."""

import importlib.util
import itertools
import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from rapidfuzz.distance import LCSseq
from rapidfuzz.process import cdist
from rouge_score.rouge_scorer import RougeScorer

from selfinstruct.novelty import NoveltyIndex
from selfinstruct.values import Neighbour

DATA = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"
ENGINES = ["numpy"] + (["numba"] if importlib.util.find_spec("numba") else [])


class Blanks:
    """rouge_score's own way to be given other tokens."""

    def tokenize(self, text: str) -> list[str]:
        return text.split()


def corpus(language: str, count: int, seed: int) -> list[str]:
    """Texts with Zipf-like words; half are an earlier text with some words changed, dropped or added."""
    rng = random.Random(seed)
    join = " " if language == "en" else ""
    vocabulary = [f"w{i}" for i in range(4000)] if language == "en" else [chr(0x4E00 + i) for i in range(2500)]
    steps = list(itertools.accumulate(1 / (i + 2) for i in range(len(vocabulary))))

    def words(n: int) -> list[str]:
        return rng.choices(vocabulary, cum_weights=steps, k=n)

    texts: list[list[str]] = []
    while len(texts) < count:
        if texts and rng.random() < 0.5:
            strength = rng.choice([0.05, 0.1, 0.2, 0.3, 0.4])
            text: list[str] = []
            for word in rng.choice(texts):
                change = rng.random() / strength
                text.extend(
                    words(1) if change < 0.4 else [] if change < 0.7 else [word, *words(1)] if change < 1 else [word]
                )
        else:
            text = words(max(1, round(rng.lognormvariate(2.3, 0.5))))
        if text:
            texts.append(text)
    return [join.join(text) for text in texts]


def real(language: str) -> list[str]:
    path = DATA / f"alpaca_{language}_demo.json"
    if not path.exists():
        pytest.skip("real instructions are not here")
    return list(dict.fromkeys(row["instruction"] for row in json.loads(path.read_text(encoding="utf-8"))))


def made(language: str) -> list[str]:
    return corpus(language, 250, seed=11)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("source", [made, real])
@pytest.mark.parametrize("language", ["en", "zh"])
def test_10000_pairs_equal_rouge_score(language: str, source: Callable[[str], list[str]], engine: str) -> None:
    """Scores, order, mean and decisions of 100 texts against 100 others, and the ties at exactly 0.7."""
    texts = source(language)
    pool, queries = texts[:100], texts[100:200]
    index = NoveltyIndex(engine=engine)
    index.add_many((str(i), text) for i, text in enumerate(pool))
    scorer = RougeScorer(["rougeL"], tokenizer=Blanks())
    split = {text: index.tokens(text) for text in pool + queries}
    pairs = 0
    for query in queries:
        ranked, mean = index.top(query, len(pool))
        stock = [
            scorer.score(" ".join(split[entry]), " ".join(split[query]))["rougeL"].fmeasure if split[entry] else 0.0
            for entry in pool
        ]
        assert sorted(int(n.id) for n in ranked) == list(range(len(pool)))
        above = {n.id: n.score for n in index.above(query)}
        for neighbour in ranked:
            theirs = stock[int(neighbour.id)]
            assert abs(neighbour.score - theirs) < 3e-16  # their formula rounds twice more
            if neighbour.score == 0.7:  # the integer rule: not above
                assert neighbour.id not in above
            else:
                assert (neighbour.id in above) == (theirs > 0.7)
            pairs += 1
        assert [n.score for n in ranked] == sorted((n.score for n in ranked), reverse=True)
        assert index.top(query, 10)[0] == ranked[:10]
        assert index.nearest(query) == ranked[0]
        assert mean == pytest.approx(np.mean(stock), abs=1e-12)
    assert pairs == 10_000


@pytest.mark.slow
@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_stream_of_10000_texts_equals_brute_force(language: str) -> None:
    """Every decision and every neighbour, on each engine, one by one and batched; rejections checked by rouge_score."""
    texts = corpus(language, 10_000, seed=5)
    split = NoveltyIndex(engine="numpy").tokens
    tokens = [split(text) for text in texts]
    letters: dict[str, str] = {}
    strings = ["".join(letters.setdefault(t, chr(len(letters) + 1)) for t in text) for text in tokens]
    lengths = np.array([len(s) for s in strings], np.int64)
    expected: list[Neighbour | None] = []
    accepted = np.zeros(len(texts), bool)
    for begin in range(0, len(texts), 100):
        block = cdist(strings[begin : begin + 100], strings[: begin + 100], scorer=LCSseq.similarity, dtype=np.int16)
        for i, row in enumerate(block.astype(np.int64), begin):
            total = lengths[i] + lengths[: len(row)]
            near = accepted[: len(row)] & (20 * row > 7 * total)
            if near.any():
                scores = np.where(near, 2 * row / total, 0.0)
                expected.append(Neighbour(str(scores.argmax()), float(scores.max())))
            else:
                expected.append(None)
                accepted[i] = True
    rejected = [i for i, neighbour in enumerate(expected) if neighbour]
    assert 1500 < len(rejected) < 8500

    scorer = RougeScorer(["rougeL"], tokenizer=Blanks())
    for i in rejected[:500]:
        neighbour = expected[i]
        assert neighbour is not None
        other = tokens[int(neighbour.id)]
        assert scorer.score(" ".join(other), " ".join(tokens[i]))["rougeL"].fmeasure == pytest.approx(neighbour.score)

    items = [(str(i), text) for i, text in enumerate(texts)]
    for engine in ENGINES:
        one, many = NoveltyIndex(engine=engine), NoveltyIndex(engine=engine)
        assert [one.offer(id, text) for id, text in items] == expected
        assert many.offer_many(items) == expected
        assert len(one) == len(many) == accepted.sum()


@pytest.mark.parametrize("engine", ENGINES)
def test_real_chinese_duplicates_are_found(engine: str) -> None:
    texts = real("zh")
    index = NoveltyIndex(engine=engine)
    index.add_many((str(i), text) for i, text in enumerate(texts))
    for i, text in enumerate(texts[:200]):
        near = index.too_near(text)
        assert near is not None
        assert near.score == 1.0
        assert index.tokens(texts[int(near.id)]) == index.tokens(texts[i])
