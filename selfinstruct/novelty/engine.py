"""What an engine answers, and the integer arithmetic all engines share.

An engine sees texts as lists of token ids: 1, 2, 3 ... for the words of the pool, 0 for a word no
entry has. A *slot* is an entry's place in the order of adding. m is the query's length, n an
entry's, L their longest common subsequence; the score 2L/(m+n) is ROUGE-L F.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

Hit = tuple[int, float]
"""Slot and score."""

Threshold = tuple[int, int]
"""Numerator and denominator: too near means 2L * denominator > numerator * (m+n)."""

SHORT = 32
"""Entries up to this length are kept as one-word position masks (99.9 % of English instructions)."""

CELLS = (SHORT + 2) * (SHORT + 1)
"""Cells of a histogram over (n, L) at n * 33 + L; the row n = 33 holds the long entries and is not read."""


class Engine(Protocol):
    """An exact index over token ids. Hits come best first, ties by the lower slot; `limit` hides slots >= limit."""

    def __len__(self) -> int:
        """Return the number of entries."""

    def add_many(self, entries: Sequence[list[int]]) -> None:
        """Append entries in order."""

    def above(self, query: list[int], threshold: Threshold, limit: int) -> list[Hit]:
        """Return every entry that is too near."""

    def too_near(self, query: list[int], threshold: Threshold, limit: int) -> Hit | None:
        """Return the best of the entries that are too near."""

    def nearest(self, query: list[int], limit: int) -> Hit | None:
        """Return the best entry, whatever its score."""

    def top(self, query: list[int], k: int, limit: int) -> tuple[list[Hit], float]:
        """Return the k best entries and the mean score over all of them."""

    def has(self, token: int) -> bool:
        """Tell whether any entry has the token."""

    def offer_many(self, entries: Sequence[list[int]], threshold: Threshold) -> list[Hit | None]:
        """Add each entry unless it is too near to one before it; return the nearest of those that are."""


def required(threshold: Threshold, m: int, n: int) -> int:
    """Return the least L that makes lengths m and n too near (it may exceed both)."""
    numerator, denominator = threshold
    return numerator * (m + n) // (2 * denominator) + 1


def score(lcs: int, m: int, n: int) -> float:
    """Return 2L/(m+n), correctly rounded: it orders exactly like the rational number."""
    return 2 * lcs / (m + n)


def best_first(hits: Iterable[Hit]) -> list[Hit]:
    """Return the hits by falling score, ties by rising slot."""
    return sorted(hits, key=lambda hit: (-hit[1], hit[0]))


def mean_score(totals: npt.NDArray[np.int64], m: int, count: int) -> float:
    """Return the mean score from the sum of L over the entries of length n, by n.

    The sums are integers and `fsum` rounds once, so every engine returns the same bits.
    """
    lengths = np.flatnonzero(totals)
    return math.fsum((2 * totals[lengths] / (m + lengths)).tolist()) / count


@dataclass(frozen=True, slots=True)
class Plan:
    """How a query of length m finds the short entries that are too near.

    An entry of length n is too near only with L >= `need[n]` (255: impossible), so it shares a
    token with any m - need[n] + 1 positions of the query, and we choose the rarest ones. Position of
    rank r (0 is the rarest) therefore only has to find lengths `shortest` .. `longest[r]`.
    This is prefix filtering (Chaudhuri et al. 2006; PPJoin, Xiao et al. 2008) with the order
    chosen by each query, so that nothing goes stale when frequencies drift.
    """

    need: npt.NDArray[np.uint8]
    shortest: int
    longest: tuple[int, ...]


@functools.lru_cache(maxsize=4096)
def plan(threshold: Threshold, m: int) -> Plan:
    """Return the plan of a query of length m."""
    need = np.full(SHORT + 2, 255, np.uint8)
    feasible = [n for n in range(1, SHORT + 1) if required(threshold, m, n) <= min(m, n)]
    for n in feasible:
        need[n] = required(threshold, m, n)
    longest = []
    for rank in range(m):
        reached = [n for n in feasible if need[n] <= m - rank]
        if not reached:
            break
        longest.append(reached[-1])
    return Plan(need, feasible[0] if feasible else 0, tuple(longest))


@functools.lru_cache(maxsize=128)
def cells_by_score(m: int) -> npt.NDArray[np.int64]:
    """Return the readable cells ordered by falling score."""
    return np.argsort(-_scores(np.arange((SHORT + 1) * (SHORT + 1)), m), kind="stable")


def _scores(cells: npt.NDArray[np.int64], m: int) -> npt.NDArray[np.float64]:
    return 2.0 * (cells % (SHORT + 1)) / (m + cells // (SHORT + 1))


def best_cells(histogram: npt.NDArray[np.int64], m: int, k: int) -> list[tuple[int, float]]:
    """Return the (cell, score) pairs that hold the k best short entries and all their ties."""
    order = cells_by_score(m)
    scores = _scores(order, m)
    counts = histogram[order]
    reached = int(np.searchsorted(np.cumsum(counts), k))
    last = scores[min(reached, len(scores) - 1)]
    chosen = np.flatnonzero((counts > 0) & (scores >= last))
    return [(int(order[i]), float(scores[i])) for i in chosen]


def totals_of(histogram: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the sum of L of the short entries by n from a histogram."""
    return histogram.reshape(SHORT + 2, SHORT + 1)[: SHORT + 1] @ np.arange(SHORT + 1)


def best_long(
    lcs: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64], slots: npt.NDArray[np.int64], m: int, k: int
) -> tuple[list[Hit], npt.NDArray[np.int64]]:
    """Return the k best of the long entries and the sum of L over all of them, by n."""
    scores = 2 * lcs / (m + lengths)
    best = np.argsort(-scores, kind="stable")[:k]
    totals = np.bincount(lengths, weights=lcs)  # sums of integers far below 2**53: exact
    return list(zip(slots[best].tolist(), scores[best].tolist(), strict=True)), totals.astype(np.int64)


def nearest_long(
    overlaps: npt.NDArray[np.int64],
    lengths: npt.NDArray[np.int64],
    slots: npt.NDArray[np.int64],
    m: int,
    floor: Hit | None,
    measure: Callable[[npt.NDArray[np.intp]], npt.NDArray[np.int64]],
) -> Hit | None:
    """Return the best of `floor` and the long entries.

    The overlap of the token bags bounds L from above, so entries are measured by falling bound until
    no bound reaches the best score. `measure` returns L of the entries at some places.
    """
    best, bounds = floor, 2 * overlaps / (m + lengths)
    order = np.argsort(-bounds, kind="stable")
    begin, step = 0, 8
    while begin < len(order) and (best is None or bounds[order[begin]] >= best[1]):
        places = order[begin : begin + step]
        scores = 2 * measure(places) / (m + lengths[places])
        found = best_first(zip(slots[places].tolist(), scores.tolist(), strict=True))[0]
        if best is None or best_first([best, found])[0] is found:
            best = found
        begin, step = begin + step, 2 * step
    return best
