"""NoveltyIndex: texts and ids on the outside, tokens, thresholds and engines inside."""

from __future__ import annotations

import difflib
import threading
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from itertools import islice
from typing import TYPE_CHECKING

from selfinstruct.errors import ConfigError
from selfinstruct.novelty.tokens import Tokenizer, tokenizer
from selfinstruct.values import Neighbour

if TYPE_CHECKING:
    from selfinstruct.novelty.engine import Engine, Hit, Threshold

_BATCH = 2048
_ENGINES = ("auto", "numpy", "numba", "rouge-score")


class NoveltyIndex:
    """An exact nearest-neighbour index by ROUGE-L F over a growing pool of texts.

    The score of two texts of m and n tokens with a longest common subsequence of L is 2L/(m+n). A
    text is too near when its score is *above* the threshold, decided in integers: 2L * den > num *
    (m+n) for a threshold num/den. (rouge_score's own float is above 0.7 in about half of the cases
    that are exactly 7/10.) Among equal scores the earliest added entry is the nearest.

    Every method takes one lock, so an index may be shared by threads; `offer` is atomic.

    Args:
        tokenizer: name of a tokenizer, see `selfinstruct.novelty.tokenizer`.
        threshold: 0 to 1; a float counts as the decimal that it prints as (0.7 is 7/10).
        engine: "auto" (numba when it is installed, else numpy), "numpy", "numba", or "rouge-score",
            the brute-force reference. All return the same values.
        against: an index over outside texts (published sets, evaluation sets). Its entries reject and are
            found as neighbours; they are no part of this pool: neither counted nor averaged nor in `top`.

    Raises:
        ConfigError: unknown tokenizer or engine, a threshold that is no number from 0 to 1, an
            engine that is not installed, or `against` with another tokenizer.
    """

    def __init__(
        self,
        *,
        tokenizer: str = "script",
        threshold: str | float = "0.7",
        engine: str = "auto",
        against: NoveltyIndex | None = None,
    ) -> None:
        self.tokenizer: Tokenizer = _tokenizer(tokenizer)
        self.threshold = _threshold(threshold)
        self._bar = self.threshold[0] / self.threshold[1]
        self.engine, self._engine = _engine(engine)
        if against is not None and against.tokenizer.version != self.tokenizer.version:
            raise ConfigError(
                f"`against` was indexed with tokenizer {against.tokenizer.version}, this index uses "
                f"{self.tokenizer.version}: build both with the same one"
            )
        self._against = against
        self._ids: list[str] = []
        self._words: dict[str, int] = {}
        self._next_word = 1
        self._lock = threading.RLock()

    def __len__(self) -> int:
        return len(self._ids)

    def tokens(self, text: str) -> list[str]:
        """Return the tokens of a text; a text without any is near to nothing."""
        return self.tokenizer(text)

    def add(self, id: str, text: str) -> None:
        """Append an entry, however near it is to others."""
        with self._lock:
            self._engine.add_many([self._entry(self.tokenizer.split(text))])
            self._ids.append(id)

    def add_many(self, items: Iterable[tuple[str, str]]) -> None:
        """Append (id, text) entries; in bulk far faster than one by one."""
        for batch in _batches(items):
            with self._lock:
                self._engine.add_many(self._interned([text for _, text in batch]))
                self._ids.extend(id for id, _ in batch)

    def nearest(self, text: str, *, as_of: int | None = None) -> Neighbour | None:
        """Return the nearest entry, or None when there is no entry or `text` has no token.

        `as_of` looks only at the first so many entries of this pool (and all of `against`).
        """
        with self._lock:
            query, limit = self._query(text), self._limit(as_of)
            hit = self._engine.nearest(query, limit) if query and limit else None
            own = self._neighbour(hit) if hit else None
            if self._against is None:
                return own
            return _best(self._against.nearest(text), own)

    def weigh(self, text: str) -> tuple[Neighbour | None, bool]:
        """Return the nearest entry and whether it is too near: `nearest` and `too_near` for the price of one."""
        with self._lock:
            nearest = self.nearest(text)
            if nearest is None or nearest.score != self._bar:
                return nearest, nearest is not None and nearest.score > self._bar
            # Rounded, the score equals the threshold: only whole numbers can tell.
            return nearest, self.too_near(text) is not None

    def too_near(self, text: str, *, as_of: int | None = None) -> Neighbour | None:
        """Return the nearest entry if it is above the threshold, else None: the cheap decision."""
        with self._lock:
            query, limit = self._query(text), self._limit(as_of)
            hit = self._engine.too_near(query, self.threshold, limit) if query and limit else None
            own = self._neighbour(hit) if hit else None
            if self._against is None:
                return own
            return _best(next(iter(self._outside(text, self.threshold)), None), own)

    def above(self, text: str, threshold: str | float | None = None) -> list[Neighbour]:
        """Return every entry above the threshold (the index's own by default), best first."""
        limit = self.threshold if threshold is None else _threshold(threshold)
        with self._lock:
            found = self._outside(text, limit) + self._above(text, limit, None)
        return sorted(found, key=lambda neighbour: -neighbour.score)

    def top(self, text: str, k: int = 10) -> tuple[list[Neighbour], float]:
        """Return the k nearest entries and the mean score over the whole pool (what Alpaca stores).

        Returns ([], 0.0) when the pool is empty or the text has no token.
        """
        with self._lock:
            query = self._query(text)
            if not query or not self._ids:
                return [], 0.0
            hits, mean = self._engine.top(query, k, len(self._ids))
            return [self._neighbour(hit) for hit in hits], mean

    def offer(self, id: str, text: str) -> Neighbour | None:
        """Add an entry unless it is too near; return the too-near neighbour, or None when added."""
        with self._lock:
            near = self.too_near(text)
            if near is None:
                self.add(id, text)
            return near

    def offer_many(self, items: Iterable[tuple[str, str]]) -> list[Neighbour | None]:
        """Offer (id, text) entries in order, each against all before it; returns what `offer` would."""
        results: list[Neighbour | None] = []
        for batch in _batches(items):
            with self._lock:
                if self._against is None:
                    results.extend(self._offered(batch))
                else:
                    results.extend(self.offer(id, text) for id, text in batch)
        return results

    def _offered(self, batch: list[tuple[str, str]]) -> Iterator[Neighbour | None]:
        first_new = self._next_word
        entries = self._interned([text for _, text in batch])
        hits = self._engine.offer_many(entries, self.threshold)
        for (id, _), hit in zip(batch, hits, strict=True):
            if hit is None:
                self._ids.append(id)
            yield None if hit is None else self._neighbour(hit)
        self._forget(first_new, entries, hits)

    def _forget(self, first_new: int, entries: Sequence[list[int]], hits: Sequence[Hit | None]) -> None:
        """Drop the words that only rejected texts brought, or the vocabulary would grow with every rejection."""
        rejected = {
            word for entry, hit in zip(entries, hits, strict=True) if hit for word in entry if word >= first_new
        }
        if lost := {word for word in rejected if not self._engine.has(word)}:
            for word in list(islice(reversed(self._words), self._next_word - first_new)):
                if self._words[word] in lost:
                    del self._words[word]

    def _interned(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the texts as token ids; a new word gets the next one."""
        return [self._entry(tokens) for tokens in self.tokenizer.split_many(texts)]

    def _entry(self, tokens: Sequence[str]) -> list[int]:
        words = self._words
        try:
            return [words[token] for token in tokens]
        except KeyError:
            for token in tokens:
                if token not in words:
                    words[token] = self._next_word
                    self._next_word += 1
            return [words[token] for token in tokens]

    def _query(self, text: str) -> list[int]:
        words = self._words
        return [words.get(token, 0) for token in self.tokenizer.split(text)]

    def _limit(self, as_of: int | None) -> int:
        return len(self._ids) if as_of is None else max(0, min(as_of, len(self._ids)))

    def _above(self, text: str, threshold: Threshold, as_of: int | None) -> list[Neighbour]:
        query, limit = self._query(text), self._limit(as_of)
        if not query or not limit:
            return []
        return [self._neighbour(hit) for hit in self._engine.above(query, threshold, limit)]

    def _outside(self, text: str, threshold: Threshold) -> list[Neighbour]:
        if self._against is None:
            return []
        with self._against._lock:
            return self._against._outside(text, threshold) + self._against._above(text, threshold, None)

    def _neighbour(self, hit: Hit) -> Neighbour:
        return Neighbour(self._ids[hit[0]], hit[1])


def _best(outside: Neighbour | None, own: Neighbour | None) -> Neighbour | None:
    """Return the nearer one; outside entries were there before the pool."""
    if outside is None or own is None:
        return outside or own
    return own if own.score > outside.score else outside


def _batches(items: Iterable[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    iterator = iter(items)
    while batch := list(islice(iterator, _BATCH)):
        yield batch


def _tokenizer(name: str) -> Tokenizer:
    return tokenizer(name)


def _threshold(value: str | float) -> Threshold:
    try:
        fraction = Fraction(str(value))
    except (ValueError, ZeroDivisionError):
        fraction = Fraction(-1)
    if not 0 <= fraction <= 1:
        raise ConfigError(f"novelty threshold {value!r}: expected a number from 0 to 1, such as 0.7")
    return fraction.numerator, fraction.denominator


def _engine(name: str) -> tuple[str, Engine]:
    """Return the engine and its name; imports are lazy, numpy and numba are slow to load."""
    if name not in _ENGINES:
        close = difflib.get_close_matches(name, _ENGINES, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ConfigError(f"unknown novelty engine {name!r}: expected one of {', '.join(_ENGINES)}{hint}")
    if name == "rouge-score":
        from selfinstruct.novelty.engine_reference import ReferenceEngine

        return name, ReferenceEngine()
    if name in ("auto", "numba"):
        try:
            from selfinstruct.novelty.engine_numba import NumbaEngine

            return "numba", NumbaEngine()
        except ImportError as error:
            if name == "numba":
                raise ConfigError("engine 'numba' needs the extra `fast`: pip install 'selfinstruct[fast]'") from error
    from selfinstruct.novelty.engine_numpy import NumpyEngine

    return "numpy", NumpyEngine()
