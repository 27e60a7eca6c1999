"""Shares of a dataset: whose turn the next record is, so that after any number each has its share within one."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from fractions import Fraction


def order(shares: Sequence[Fraction]) -> Iterator[int]:
    """Yield for ever the number of the share that the next record belongs to.

    Tijdeman's algorithm for the chairman assignment problem (Discrete Mathematics 32, 1980): after each record
    every count is off its exact share by at most 1 - 1/(2n - 2), where handing out by largest remainders would
    take records away again as the total rises. `shares` are positive and add up to 1.
    """
    if len(shares) == 1:
        yield from itertools.repeat(0)
    slack = Fraction(1, 2 * len(shares) - 2)
    counts = [0] * len(shares)
    for total in itertools.count(1):
        behind = [share * total - count for share, count in zip(shares, counts, strict=True)]
        due = [which for which, debt in enumerate(behind) if debt >= slack]
        chosen = min(due, key=lambda which: (1 - slack - behind[which]) / shares[which])
        counts[chosen] += 1
        yield chosen


def split(shares: Sequence[Fraction], total: int) -> list[int]:
    """Return how many of the first `total` records belong to each share; none shrinks as `total` grows."""
    if len(shares) == 1:
        return [total]
    counts = Counter(itertools.islice(order(shares), total))
    return [counts[which] for which in range(len(shares))]
