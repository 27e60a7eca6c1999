"""The index: laws against a textbook LCS, on every engine that is installed."""

import gc
import importlib.util
import itertools
import os
import random
import shutil
import subprocess
import sys
import threading
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import selfinstruct
from selfinstruct.errors import ConfigError
from selfinstruct.novelty import NoveltyIndex
from selfinstruct.values import Neighbour

FAST = ["numpy"] + (["numba"] if importlib.util.find_spec("numba") else [])
ENGINES = [*FAST, "rouge-score"]

words = st.sampled_from("abcdefgh")
short = st.lists(words, max_size=14)
any_length = st.one_of(short, st.lists(words, min_size=25, max_size=40), st.lists(words, min_size=60, max_size=140))
pools = st.lists(any_length.map(" ".join), max_size=12)
thresholds = st.sampled_from(["0", "0.3", "1/2", "0.6", "2/3", "0.7", "0.8", "0.95", "1"])
several = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=60)


def lcs(a: list[str], b: list[str]) -> int:
    """Longest common subsequence, as in the textbook."""
    row = [0] * (len(b) + 1)
    for x in a:
        last = 0
        for j, y in enumerate(b):
            last, row[j + 1] = row[j + 1], last + 1 if x == y else max(row[j], row[j + 1])
    return row[-1]


def scores(pool: list[str], text: str) -> list[Neighbour]:
    """Every entry with its exact score, best first, ties in the order of adding."""
    query = text.split()
    if not query:
        return []
    exact = [(Fraction(2 * lcs(query, e.split()), len(query) + len(e.split())), i) for i, e in enumerate(pool)]
    exact.sort(key=lambda pair: (-pair[0], pair[1]))
    return [Neighbour(str(i), float(f)) for f, i in exact]


def filled(engine: str, pool: list[str], threshold: str = "0.7") -> NoveltyIndex:
    index = NoveltyIndex(tokenizer="rouge", engine=engine, threshold=threshold)
    index.add_many((str(i), text) for i, text in enumerate(pool))
    return index


@several
@given(pool=pools, text=any_length.map(" ".join), threshold=thresholds, data=st.data())
def test_every_answer_equals_brute_force(pool: list[str], text: str, threshold: str, data: st.DataObject) -> None:
    text = data.draw(st.sampled_from([text, *pool]))
    expected, limit = scores(pool, text), Fraction(threshold)
    m = len(text.split())
    near = [
        e
        for e in expected
        if Fraction(2 * lcs(text.split(), pool[int(e.id)].split()), m + len(pool[int(e.id)].split())) > limit
    ]
    for engine in ENGINES:
        index = filled(engine, pool, threshold)
        assert index.above(text) == near, engine
        assert index.too_near(text) == (near[0] if near else None), engine
        assert index.nearest(text) == (expected[0] if expected else None), engine
        assert index.weigh(text) == (index.nearest(text), bool(near)), engine
        top, mean = index.top(text, 3)
        assert top == expected[:3], engine
        assert mean == pytest.approx(sum(e.score for e in expected) / max(1, len(expected)), abs=1e-12), engine


@pytest.mark.parametrize("engine", ENGINES)
@several
@given(pool=pools, text=any_length.map(" ".join), data=st.data())
def test_as_of_is_the_index_as_it_was(engine: str, pool: list[str], text: str, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(pool) + 2))
    text = data.draw(st.sampled_from([text, *pool]))
    index, before = filled(engine, pool, "0.5"), filled(engine, pool[:cut], "0.5")
    assert index.nearest(text, as_of=cut) == before.nearest(text)
    assert index.too_near(text, as_of=cut) == before.too_near(text)


@several
@given(texts=st.lists(any_length.map(" ".join), max_size=14), threshold=thresholds, data=st.data())
def test_offering_one_by_one_or_many_or_after_a_rebuild_is_the_same(
    texts: list[str], threshold: str, data: st.DataObject
) -> None:
    items = [(str(i), text) for i, text in enumerate(texts)]
    cut = data.draw(st.integers(0, len(items)))
    kept: list[tuple[str, str]] = []
    expected: list[Neighbour | None] = []
    for id, text in items:
        near = [
            n
            for n in scores([t for _, t in kept], text)
            if Fraction(n.score).limit_denominator(999) > Fraction(threshold)
        ]
        expected.append(Neighbour(kept[int(near[0].id)][0], near[0].score) if near else None)
        if not near:
            kept.append((id, text))

    for engine in ENGINES:
        one, many, rebuilt = (filled(engine, [], threshold) for _ in range(3))
        assert [one.offer(id, text) for id, text in items] == expected, engine
        assert many.offer_many(items[:cut]) + many.offer_many(items[cut:]) == expected, engine
        assert len(one) == len(many) == len(kept), engine
        rebuilt.add_many(kept)
        for text in texts:
            assert rebuilt.nearest(text) == one.nearest(text) == many.nearest(text), engine
            assert rebuilt.top(text, 4) == one.top(text, 4) == many.top(text, 4), engine


@pytest.mark.slow
@pytest.mark.parametrize("engine", FAST)
@pytest.mark.parametrize("seed", range(2))
def test_large_mixed_pool_agrees_with_the_reference_at_every_growth_step(engine: str, seed: int) -> None:
    """Grows past every internal boundary that a small example does not reach: bulk adding, wide rows, many words."""
    random_ = random.Random(seed)

    def text(size: int) -> str:
        return " ".join(f"w{int(random_.paretovariate(0.6)) % 3000}" for _ in range(size))

    pool = [text(random_.choice([0, 1, 3, 6, 10, 12, 20, 31, 32, 33, 34, 64, 65, 130])) for _ in range(320)]
    reference, index = filled("rouge-score", []), filled(engine, [])
    step = [0, 3, 300, 320]
    for a, b in itertools.pairwise(step):
        for i in (reference, index):
            i.add_many((str(j), pool[j]) for j in range(a, b))
        for size in (1, 11, 32, 33, 70):
            copy = random_.choice(pool[:b]).split()
            for query in (text(size), " ".join(w for w in copy if random_.random() < 0.9)):
                ranked, mean = reference.top(query, b)
                assert index.top(query, 12) == (ranked[:12], mean)
                assert index.nearest(query) == (ranked[0] if ranked else None)
                assert index.above(query, 0.3) == [n for n in ranked if n.score > 0.3]
                early = [n for n in ranked if int(n.id) < b // 2]
                assert index.nearest(query, as_of=b // 2) == (early[0] if early else None)


@pytest.mark.slow
def test_frequent_words_cross_the_posting_boundaries() -> None:
    """20,000 entries that share a few very frequent words; checked by arithmetic, not by another index."""
    random_ = random.Random(7)
    frames = ["the of a to x{} y{} in", "the x{} y{}", "write a the of to in on for x{} y{} and so then it was", "x{}"]
    entries = [
        frames[random_.randrange(4)].format(random_.randrange(4000), random_.randrange(4000)) for _ in range(20000)
    ]
    indexes = [NoveltyIndex(engine=engine, tokenizer="rouge") for engine in FAST]
    for index in indexes:
        index.add_many((str(i), text) for i, text in enumerate(entries[:12000]))
        for i, text in enumerate(entries[12000:], 12000):
            index.add(str(i), text)
    split = [entry.split() for entry in entries]
    for text in [*random_.sample(entries, 15), "the of a to", "x1 y1", "the the the of"]:
        query = text.split()
        exact = [(2 * lcs(query, entry) / (len(query) + len(entry)), -i) for i, entry in enumerate(split)]
        best = [Neighbour(str(-i), score) for score, i in sorted(exact, reverse=True)[:10]]
        early = max((Neighbour(str(-i), score) for score, i in exact if -i < 9000), key=lambda n: (n.score, -int(n.id)))
        for index in indexes:
            top, mean = index.top(text, 10)
            assert top == best, index.engine
            assert mean == pytest.approx(sum(score for score, _ in exact) / len(exact), abs=1e-12), index.engine
            assert index.nearest(text) == top[0], index.engine
            assert len(index.above(text, 0.6)) == sum(score > 0.6 for score, _ in exact), index.engine
            assert index.nearest(text, as_of=9000) == early, index.engine


@pytest.mark.parametrize("engine", ENGINES)
def test_exactly_seven_tenths_passes(engine: str) -> None:
    """L 7, lengths 7 and 13: rouge_score's float is 0.7000000000000001, the fraction is not above 7/10."""
    from rouge_score.rouge_scorer import RougeScorer

    entry, text = "a b c d e f g", "a b c d e f g 1 2 3 4 5 6"
    stock = RougeScorer(["rougeL"]).score(entry, text)["rougeL"].fmeasure
    assert stock > 0.7
    index = filled(engine, [entry])
    assert index.too_near(text) is None
    assert index.nearest(text) == Neighbour("0", 0.7)
    assert index.weigh(text) == (Neighbour("0", 0.7), False)
    assert index.offer("new", text) is None
    assert filled(engine, [entry], "0.6999").too_near(text) == Neighbour("0", 0.7)
    # A threshold that is less, and rounds to the float of the score: only whole numbers can tell.
    assert filled(engine, ["a b c d", "e"], "0.49999999999999999").weigh("e f g") == (Neighbour("1", 0.5), True)


@pytest.mark.parametrize("engine", ENGINES)
def test_texts_without_tokens_and_empty_pools(engine: str) -> None:
    index = filled(engine, [])
    assert (index.nearest("a"), index.too_near("a"), index.above("a"), index.top("a")) == (None, None, [], ([], 0.0))
    index.add("blank", " ?! ")
    assert len(index) == 1
    assert index.tokens("?!") == []
    assert index.nearest("?!") is None
    assert index.top("?!") == ([], 0.0)
    assert index.nearest("a") == Neighbour("blank", 0.0)
    assert index.offer("again", "...") is None
    index.add("a", "a")
    assert index.top("a", 5) == ([Neighbour("a", 1.0), Neighbour("blank", 0.0), Neighbour("again", 0.0)], 1 / 3)


@pytest.mark.parametrize("engine", ENGINES)
def test_outside_texts_reject_and_are_no_part_of_the_pool(engine: str) -> None:
    outside = filled(engine, ["list five fruits", "name a colour"])
    index = NoveltyIndex(tokenizer="rouge", engine=engine, against=outside)
    assert index.offer("first", "list five fruits") == Neighbour("0", 1.0)
    assert len(index) == 0
    assert index.offer_many([("x", "name a colour"), ("y", "sing a song"), ("z", "sing a song")]) == [
        *(Neighbour("1", 1.0), None, Neighbour("y", 1.0))
    ]
    assert index.top("name a colour") == ([Neighbour("y", 1 / 3)], 1 / 3)
    assert index.weigh("name a colour!") == (Neighbour("1", 1.0), True)
    assert index.nearest("name a song") == Neighbour("1", 2 / 3)  # a tie with y: the outside text was there before
    assert [n.id for n in index.above("list a song", 0.1)] == ["y", "0", "1"]
    with pytest.raises(ConfigError, match="build both with the same one"):
        NoveltyIndex(engine=engine, against=outside)


@pytest.mark.parametrize("engine", ENGINES)
def test_rejected_texts_leave_no_words_behind(engine: str) -> None:
    index = filled(engine, ["a b c d e f g h i j"])
    before = len(index._words)
    assert index.offer("x", "a b c d e f g h i new") is not None
    assert index.offer_many([("y", "a b c d e f g other i j"), ("z", "one two three")])[1] is None
    assert len(index._words) == before + 3
    index.add("u", "new other three")
    assert index.nearest("new other three") == Neighbour("u", 1.0)
    assert index.nearest("one two three") == Neighbour("z", 1.0)


@pytest.mark.parametrize("value", ["", "x", "1/0", -0.1, 1.5, "nan", float("inf")])
def test_a_threshold_is_a_number_from_0_to_1(value: str | float) -> None:
    with pytest.raises(ConfigError, match="expected a number from 0 to 1"):
        NoveltyIndex(threshold=value)


def test_a_float_threshold_is_the_decimal_it_prints_as() -> None:
    assert NoveltyIndex(threshold=0.7).threshold == NoveltyIndex(threshold="7/10").threshold == (7, 10)


def test_unknown_engine_names_the_closest() -> None:
    with pytest.raises(ConfigError, match=r"'nunba'.*auto, numpy, numba, rouge-score.*did you mean 'numba'"):
        NoveltyIndex(engine="nunba")


def test_auto_takes_numba_when_it_is_installed_and_says_so_when_it_is_asked_for_and_missing() -> None:
    assert NoveltyIndex().engine == FAST[-1]
    hide = "import sys; sys.modules['numba'] = None; from selfinstruct.novelty import NoveltyIndex as N; "
    done = subprocess.run(
        [sys.executable, "-c", hide + "print(N().engine); N(engine='numba')"], capture_output=True, text=True
    )
    assert done.stdout.strip() == "numpy"
    assert "pip install 'selfinstruct[fast]'" in done.stderr


def test_importing_the_package_loads_neither_numpy_nor_numba() -> None:
    code = "import sys, selfinstruct.novelty; print([m for m in ('numpy', 'numba', 'rapidfuzz') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


@pytest.mark.parametrize("engine", FAST)
def test_threads_never_let_two_near_duplicates_in(engine: str) -> None:
    random_ = random.Random(3)
    base = [" ".join(random_.choices([f"w{i}" for i in range(60)], k=10)) for _ in range(60)]
    index = NoveltyIndex(engine=engine)
    accepted: list[str] = []
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        own = random.Random(seed)
        try:
            for i in range(120):
                text = own.choice(base).split()
                text[own.randrange(10)] = f"new{seed}x{i}"
                if index.offer(f"{seed}-{i}", " ".join(text)) is None:
                    accepted.append(" ".join(text))
                index.top(" ".join(text), 3)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert len(accepted) == len(index)
    for i, text in enumerate(accepted):
        assert all(20 * lcs(text.split(), other.split()) <= 7 * 20 for other in accepted[:i])


@pytest.mark.parametrize("engine", FAST)
def test_more_words_than_code_points_stay_exact(engine: str) -> None:
    """Ids above 0x10FFFF can't be characters; the arithmetic must not notice."""
    index = NoveltyIndex(engine=engine, tokenizer="rouge")
    index.add("low", "a b c d")
    index._next_word = 0xD7FE
    index.add("edge", "e f g h")
    index._next_word = 0x10FFFF - 0x800 - 1
    index.add("high", "i j k l")
    index.add("long", " ".join(f"z{i}" for i in range(40)) + " a b")
    assert index.nearest("a b c d") == Neighbour("low", 1.0)
    assert index.nearest("e f g h") == Neighbour("edge", 1.0)
    assert index.nearest("i j k l") == Neighbour("high", 1.0)
    assert index.nearest("j k l a") == Neighbour("high", 0.75)
    assert index.nearest("c d l a b") == Neighbour("low", 4 / 9)
    assert index.nearest(" ".join(f"z{i}" for i in range(0, 40, 2)) + " a b") == Neighbour("long", 44 / 64)


def test_an_index_is_freed_with_its_last_reference() -> None:
    index = filled(FAST[-1], ["a b c", "d e f"])
    index.nearest("a b d")
    lock = index._lock
    del index
    gc.collect()
    assert not [o for o in gc.get_referrers(lock) if isinstance(o, NoveltyIndex)]


@pytest.mark.slow
def test_numba_works_where_no_cache_folder_is_writable() -> None:
    pytest.importorskip("numba")
    code = (
        "import numba.core.caching as c; c.CacheImpl._locator_classes = []\n"
        "from selfinstruct.novelty import tables\n"
        "print(*tables.bits_of(3), tables.bits_of._cache.__class__.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    hashed = 3 * 0x9E3779B97F4A7C15 % 2**64
    assert done.stdout.split() == [str(1 << (hashed >> 58)), str(1 << (hashed >> 52 & 63)), "NullCache"]


_EVERY_LENGTH = """
from selfinstruct.novelty import NoveltyIndex
for size in (1, 70, 1100):
    for n in (1, 31, 32, 33, 63, 64, 65, 130, 300):
        words = " ".join(["a"] * n)
        for ask in ("weigh", "too_near", "above", "top"):
            index = NoveltyIndex(engine="numba")
            index.add_many([(str(i), f"a b c{i} d") for i in range(size)])
            getattr(index, ask)(words)
            index.offer_many([("x", words + " x"), ("y", "b y")])
"""


@pytest.mark.slow
def test_compiled_code_keeps_within_its_arrays_whatever_the_length_of_a_text(tmp_path: Path) -> None:
    pytest.importorskip("numba")
    checked = os.environ | {"NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", _EVERY_LENGTH], env=checked, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_compiled_code_is_never_older_than_its_sources(tmp_path: Path) -> None:
    """numba alone would load `kernels` as they were although `tables`, compiled into them, has changed."""
    pytest.importorskip("numba")
    package = Path(selfinstruct.__file__).parent
    shutil.copytree(package, tmp_path / "selfinstruct", ignore=shutil.ignore_patterns("__pycache__"))
    code = "from selfinstruct.novelty import kernels; print(kernels.above.py_func.__qualname__)"

    def name() -> str:
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    names = [name(), name()]
    assert names[0] == names[1]
    for changed in ("engine.py", "tables.py", "kernels.py", "kernels_nearest.py", "kernels_top.py"):
        with (tmp_path / "selfinstruct" / "novelty" / changed).open("a") as file:
            file.write("# changed")
        names.append(name())
        assert names[-1] not in names[:-1], changed


@pytest.mark.parametrize("engine", ENGINES)
def test_a_carry_crosses_a_whole_word_of_the_recurrence(engine: str) -> None:
    """Query of three 64-bit words: "a" stands in the first and the last, and may count only once."""
    query = " ".join(["a", *(f"q{i}" for i in range(140)), "a"])
    index = filled(engine, [" ".join(["a", *(f"e{i}" for i in range(39))])])
    assert index.nearest(query) == Neighbour("0", 2 / 182)
    assert index.top(query) == ([Neighbour("0", 2 / 182)], 2 / 182)


@pytest.mark.parametrize("engine", ENGINES)
def test_an_earlier_long_entry_wins_a_tie_although_others_promise_more(engine: str) -> None:
    """Entry 0 has L 20 and an overlap of 20; the others have L 20 and an overlap of 29."""
    query = [f"q{i}" for i in range(40)]

    def padded(words: list[str], i: int) -> str:
        return " ".join([*words, *(f"pad{i}x{j}" for j in range(40 - len(words)))])

    others = [padded(query[:19] + query[:29:-1], i) for i in range(1, 25)]
    index = filled(engine, [padded(query[:20], 0), *others])
    assert index.nearest(" ".join(query)) == Neighbour("0", 0.5)
    assert index.top(" ".join(query), 2)[0] == [Neighbour("0", 0.5), Neighbour("1", 0.5)]
