"""What the rest of a run will take, from what its draws have brought so far."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Yield:
    """What one draw came to."""

    accepted: int
    tokens: float
    requests: float


@dataclass(frozen=True, slots=True)
class Seen:
    """What is known of a stage: its draws, and how many records of the stage before it are still to be drawn."""

    name: str
    draws: Sequence[Yield]
    stock: int = 0

    @property
    def tells(self) -> bool:
        """Tell whether its draws are enough to go by: two, with an accepted record and a request among them."""
        return len(self.draws) > 1 and any(each.accepted for each in self.draws)


@dataclass(frozen=True, slots=True)
class Range:
    """An estimate and its 90 % interval."""

    middle: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Forecast:
    """What `wanted` further accepted records will take, should the yield of each stage stay as it is.

    `draws` are those of the stage with the fewest.
    """

    wanted: int
    draws: int
    accepted_per_request: float
    requests: Range
    tokens: Range


def forecast(stages: Sequence[Seen], wanted: int) -> Forecast | None:
    """Estimate requests and tokens for `wanted` more records of the last stage; None unless every stage tells.

    A stage makes a draw of each record of the one before: what is in stock comes first, and the rest has to be made,
    at the price it has had so far.
    """
    if not stages or not all(stage.tells for stage in stages):
        return None
    requests = [[(each.accepted, each.requests) for each in stage.draws] for stage in stages]
    tokens = [[(each.accepted, each.tokens) for each in stage.draws] for stage in stages]
    price = _prices(requests)[-1]
    if not price:
        return None
    stock = [stage.stock for stage in stages]
    return Forecast(
        wanted,
        min(len(stage.draws) for stage in stages),
        1 / price,
        _range(requests, stock, wanted),
        _range(tokens, stock, wanted),
    )


Pairs = Sequence[tuple[int, float]]
"""Accepted records and what was spent, by draw."""


def _prices(stages: Sequence[Pairs]) -> list[float]:
    """Return what a record of each stage costs, what the stages before took for it included."""
    prices: list[float] = []
    for pairs in stages:
        before = prices[-1] if prices else 0.0
        prices.append(sum(spent + before for _, spent in pairs) / sum(accepted for accepted, _ in pairs))
    return prices


def _range(stages: Sequence[Pairs], stock: Sequence[int], wanted: float) -> Range:
    """Add the stages up from the last to the first; the chances of each are its own."""
    prices, middle, variance, fewest = _prices(stages), 0.0, 0.0, math.inf
    for at in range(len(stages) - 1, -1, -1):
        pairs = stages[at]
        draws = wanted * len(pairs) / sum(accepted for accepted, _ in pairs)
        short = max(0.0, draws - stock[at]) if at else 0.0
        before = prices[at - 1] if short else 0.0
        middle += draws * sum(spent for _, spent in pairs) / len(pairs)
        variance += _variance([(accepted, spent + before) for accepted, spent in pairs], draws)
        fewest = min(fewest, len(pairs))
        wanted = short
        if not short:
            break
    # Student's t at 95 %, by its first term of expansion around the normal quantile.
    quantile = 1.645 * (1 + (1.645**2 + 1) / (4 * (fewest - 1)))
    deviation = quantile * math.sqrt(variance)
    return Range(middle, max(0.0, middle - deviation), middle + deviation)


def _variance(pairs: Pairs, draws: float) -> float:
    """Return the variance of what further draws take for the records they are to bring.

    The ratio estimator of survey sampling over independent draws (Cochran, Sampling Techniques, chapter 6), widened by
    the chance of the draws still to come.
    """
    count = len(pairs)
    ratio = sum(spent for _, spent in pairs) / sum(accepted for accepted, _ in pairs)
    spread = sum((spent - ratio * accepted) ** 2 for accepted, spent in pairs) / (count - 1)
    return spread * (draws**2 / count + draws)
