"""The compiled engine (extra `fast`): grows the tables, and leaves the work to `kernels`.

The first use on a machine compiles for some ten seconds; the result is cached beside the package, or in
the user's cache folder when that is read-only (numba's own rule; NUMBA_CACHE_DIR overrides both).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np
import numpy.typing as npt

from selfinstruct.novelty import kernels, kernels_nearest, kernels_top, tables
from selfinstruct.novelty.engine import SHORT, Hit, Threshold, best_first, cells_by_score, mean_score, score
from selfinstruct.novelty.tables import ENTRIES, FREQUENCY, LENGTH, LONGS, WANTED, Tables

_Ints = npt.NDArray[np.int32]
_Longs = npt.NDArray[np.int64]

_DENSE = 32
"""A token in more than 1/32 of the entries gets a dense row of masks."""


class NumbaEngine:
    """Exact engine compiled by numba; see `selfinstruct.novelty.engine.Engine`."""

    def __init__(self) -> None:
        self._t = tables.with_entries(tables.empty(), 1, SHORT)
        self._handle = tables.handle_of(self._t)
        self._masks = self._bits = 0
        self._best = np.zeros(3, np.int64)
        self._slots, self._lcs = np.zeros((2, 256), np.int64)

    def __len__(self) -> int:
        return int(self._t.used[ENTRIES])

    def add_many(self, entries: Sequence[list[int]]) -> None:
        """Append entries in order."""
        if len(entries) == 1:
            flat, ends = np.array(entries[0], np.int32), np.array([len(entries[0])])
            self._hold(tables.with_tokens(self._t, max(entries[0], default=0) + 1))
        else:
            flat, ends = self._flat(entries)
        done = 0
        while (done := tables.add_many(self._handle, flat, ends, done)) < len(entries):
            self._hold(tables.with_entries(self._t, len(entries) - done, len(entries[done])))

    def above(self, query: list[int], threshold: Threshold, limit: int) -> list[Hit]:
        """Return every entry that is too near, best first."""
        ids = self._query(query)
        count = kernels.above(self._handle, ids, *threshold, limit, self._best, self._slots, self._lcs)
        if count == 0:
            return []
        if count > len(self._slots):
            self._slots, self._lcs = np.zeros((2, 2 * count), np.int64)
            kernels.above(self._handle, ids, *threshold, limit, self._best, self._slots, self._lcs)
        return best_first(self._hits(self._slots, self._lcs, count, len(query)))

    def too_near(self, query: list[int], threshold: Threshold, limit: int) -> Hit | None:
        """Return the best of the entries that are too near."""
        ids = self._query(query)
        if kernels.above(self._handle, ids, *threshold, limit, self._best, self._slots, self._lcs):
            return self._best_hit(len(query))
        return None

    def nearest(self, query: list[int], limit: int) -> Hit | None:
        """Return the best entry, whatever its score."""
        if not limit:
            return None
        ids = self._query(query)  # before the handle is looked up: it may make the tables larger
        found = kernels_nearest.nearest(self._handle, ids, limit, self._best)
        if token := int(self._t.used[WANTED]):
            self._hold(tables.with_rows(self._t, self._masks, self._bits + 1))
            kernels_nearest.fill_bits(self._handle, token, self._bits)
            self._bits += 1
        return self._best_hit(len(query)) if found else (0, 0.0)

    def top(self, query: list[int], k: int, limit: int) -> tuple[list[Hit], float]:
        """Return the k best entries and the mean score over all of them."""
        ids, m = self._query(query), len(query)
        self._give_masks(ids)
        # Some k of each cell, and as many cells as hold k entries, or are as good as the last of these.
        slots, lcs = np.empty((2, k * (k + SHORT + 1) + int(self._t.used[LONGS])), np.int64)
        count = kernels_top.top(self._handle, ids, k, limit, cells_by_score(m), slots, lcs)
        mean = mean_score(self._t.totals, m, limit)
        self._t.totals[:] = 0
        found = slots[:count]
        scores = 2 * lcs[:count] / (m + self._t.entry[found, LENGTH])
        best = np.lexsort((found, -scores))[:k]
        return list(zip(found[best].tolist(), scores[best].tolist(), strict=True)), mean

    def has(self, token: int) -> bool:
        """Tell whether any entry has the token."""
        return bool(self._t.token[token, FREQUENCY])

    def offer_many(self, entries: Sequence[list[int]], threshold: Threshold) -> list[Hit | None]:
        """Add each entry unless it is too near to one before it; return the nearest of those that are."""
        flat, ends = self._flat(entries)
        results = np.empty((len(entries), 2), np.int64)
        done = 0
        while (done := kernels.offer_many(self._handle, flat, ends, done, *threshold, results)) < len(entries):
            self._hold(tables.with_entries(self._t, len(entries) - done, len(entries[done])))
        hits: list[Hit | None] = [None] * len(entries)
        for i in np.flatnonzero(results[:, 0] >= 0).tolist():
            hits[i] = self._hits(results[i, :1], results[i, 1:], 1, len(entries[i]))[0]
        return hits

    def _hold(self, t: Tables) -> None:
        """Go on with tables that may have grown."""
        if t is not self._t:
            self._t = t
            self._handle = tables.handle_of(t)

    def _hits(self, slots: _Longs, lcs: _Longs, count: int, m: int) -> list[Hit]:
        found, lengths = slots[:count], self._t.entry[slots[:count], LENGTH].tolist()
        return [(s, score(c, m, n)) for s, c, n in zip(found.tolist(), lcs[:count].tolist(), lengths, strict=True)]

    def _best_hit(self, m: int) -> Hit:
        slot, lcs, n = self._best.tolist()
        return slot, score(lcs, m, n)

    def _give_masks(self, ids: _Ints) -> None:
        """Give the query's frequent tokens a row of masks each."""
        while token := kernels_top.without_masks(self._handle, ids, _DENSE):
            self._hold(tables.with_rows(self._t, self._masks + 1, self._bits))
            kernels_top.fill_masks(self._handle, token, self._masks)
            self._masks += 1

    def _query(self, query: Sequence[int]) -> _Ints:
        self._hold(tables.with_positions(self._t, len(query)))
        return np.array(query, np.int32)

    def _flat(self, entries: Sequence[list[int]]) -> tuple[_Ints, _Longs]:
        """Return the entries one after another, and where each ends; make room for their words."""
        ends = np.cumsum(np.fromiter(map(len, entries), np.int64, len(entries)))
        flat = np.fromiter(chain.from_iterable(entries), np.int32, int(ends[-1]) if entries else 0)
        self._hold(tables.with_positions(self._t, max(map(len, entries), default=0)))
        self._hold(tables.with_tokens(self._t, int(flat.max(initial=0)) + 1))
        return flat, ends
