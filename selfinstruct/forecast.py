"""What the rest of a run will take, from what its draws have brought so far."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Yield:
    """What one draw came to."""

    accepted: int
    tokens: float
    requests: float


@dataclass(frozen=True, slots=True)
class Range:
    """An estimate and its 90 % interval."""

    middle: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Forecast:
    """What `wanted` further accepted records will take, should the yield stay as it is."""

    wanted: int
    draws: int
    accepted_per_request: float
    requests: Range
    tokens: Range


def forecast(yields: Iterable[Yield], wanted: int) -> Forecast | None:
    """Estimate requests and tokens for `wanted` more records; None without two draws and an accepted record.

    The ratio estimator of survey sampling over independent draws (Cochran, Sampling Techniques,
    chapter 6), widened by the chance of the draws still to come.
    """
    seen = list(yields)
    accepted = sum(each.accepted for each in seen)
    requests = sum(each.requests for each in seen)
    if len(seen) < 2 or not accepted or not requests:
        return None
    return Forecast(
        wanted,
        len(seen),
        accepted / requests,
        _range([(each.accepted, each.requests) for each in seen], wanted),
        _range([(each.accepted, each.tokens) for each in seen], wanted),
    )


def _range(pairs: list[tuple[int, float]], wanted: int) -> Range:
    count = len(pairs)
    per_draw = sum(accepted for accepted, _ in pairs) / count
    ratio = sum(spent for _, spent in pairs) / count / per_draw
    spread = sum((spent - ratio * accepted) ** 2 for accepted, spent in pairs) / (count - 1)
    still = wanted / per_draw
    deviation = math.sqrt(spread * (still**2 / count + still))
    # Student's t at 95 %, by its first term of expansion around the normal quantile.
    quantile = 1.645 * (1 + (1.645**2 + 1) / (4 * (count - 1)))
    middle = wanted * ratio
    return Range(middle, max(0.0, middle - quantile * deviation), middle + quantile * deviation)
