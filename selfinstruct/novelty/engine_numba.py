"""The compiled engine (extra `fast`): grows the tables, and leaves the work to `kernels`.

The first use on a machine compiles for some ten seconds; the result is cached beside the package, or in
the user's cache folder when that is read-only (numba's own rule; NUMBA_CACHE_DIR overrides both).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np
import numpy.typing as npt

from selfinstruct.novelty import kernels, tables
from selfinstruct.novelty.engine import (
    CELLS,
    SHORT,
    Hit,
    Threshold,
    best_cells,
    best_first,
    best_long,
    mean_score,
    nearest_long,
    score,
    totals_of,
)
from selfinstruct.novelty.tables import ENTRIES, FREQUENCY, LENGTH, LONGS, ROW

_Ints = npt.NDArray[np.int32]
_Longs = npt.NDArray[np.int64]

_DENSE = 16
"""A token in more than 1/16 of the entries gets a dense row of masks."""


class NumbaEngine:
    """Exact engine compiled by numba; see `selfinstruct.novelty.engine.Engine`."""

    def __init__(self) -> None:
        self._t = tables.with_entries(tables.empty(), 1, SHORT)
        self._rows = 0
        self._best = np.zeros(2, np.int64)
        self._slots, self._lcs = np.zeros((2, 256), np.int64)

    def __len__(self) -> int:
        return int(self._t.used[ENTRIES])

    def add_many(self, entries: Sequence[list[int]]) -> None:
        """Append entries in order."""
        flat, ends = self._flat(entries)
        done = 0
        while (done := tables.add_many(self._t, flat, ends, done)) < len(entries):
            self._t = tables.with_entries(self._t, len(entries) - done, len(entries[done]))

    def above(self, query: list[int], threshold: Threshold, limit: int) -> list[Hit]:
        """Return every entry that is too near, best first."""
        ids = self._query(query)
        count = kernels.above(self._t, ids, *threshold, limit, self._best, self._slots, self._lcs)
        if count == 0:
            return []
        if count > len(self._slots):
            self._slots, self._lcs = np.zeros((2, 2 * count), np.int64)
            kernels.above(self._t, ids, *threshold, limit, self._best, self._slots, self._lcs)
        pairs = zip(self._slots[:count].tolist(), self._lcs[:count].tolist(), strict=True)
        return best_first(self._hit(slot, lcs, len(query)) for slot, lcs in pairs)

    def nearest(self, query: list[int], limit: int) -> Hit | None:
        """Return the best entry, whatever its score."""
        ids, m = self._query(query), len(query)
        hits, _ = self._short_top(ids, 1, limit)
        best = hits[0] if hits else None
        longs = self._longs(limit)
        if not len(longs):
            return best
        overlaps = np.empty(len(longs), np.int64)
        kernels.long_overlaps(self._t, ids, limit, overlaps)

        def measure(places: npt.NDArray[np.intp]) -> _Longs:
            return self._measured(ids, longs[places])

        return nearest_long(overlaps, self._t.entry[longs, LENGTH], longs.astype(np.int64), m, best, measure)

    def top(self, query: list[int], k: int, limit: int) -> tuple[list[Hit], float]:
        """Return the k best entries and the mean score over all of them."""
        ids, m = self._query(query), len(query)
        hits, totals = self._short_top(ids, k, limit)
        longs = self._longs(limit)
        if len(longs):
            lcs, lengths = self._measured(ids, longs), self._t.entry[longs, LENGTH]
            more, long_totals = best_long(lcs, lengths, longs.astype(np.int64), m, k)
            hits, totals = best_first(hits + more)[:k], totals + long_totals
        return hits, mean_score(totals, m, limit)

    def has(self, token: int) -> bool:
        """Tell whether any entry has the token."""
        return bool(self._t.token[token, FREQUENCY])

    def offer_many(self, entries: Sequence[list[int]], threshold: Threshold) -> list[Hit | None]:
        """Add each entry unless it is too near to one before it; return the nearest of those that are."""
        flat, ends = self._flat(entries)
        results = np.empty((len(entries), 2), np.int64)
        done = 0
        while (done := kernels.offer_many(self._t, flat, ends, done, *threshold, results)) < len(entries):
            self._t = tables.with_entries(self._t, len(entries) - done, len(entries[done]))
        hits: list[Hit | None] = [None] * len(entries)
        for i in np.flatnonzero(results[:, 0] >= 0).tolist():
            hits[i] = self._hit(int(results[i, 0]), int(results[i, 1]), len(entries[i]))
        return hits

    def _hit(self, slot: int, lcs: int, m: int) -> Hit:
        return slot, score(lcs, m, int(self._t.entry[slot, LENGTH]))

    def _short_top(self, ids: _Ints, k: int, limit: int) -> tuple[list[Hit], list[tuple[int, int]]]:
        self._give_rows(ids)
        histogram = np.zeros(CELLS, np.int64)
        kernels.every_lcs(self._t, ids, limit, histogram)
        scores = dict(best_cells(histogram, len(ids), k))
        wanted = np.zeros(CELLS, np.int64)
        wanted[list(scores)] = k
        slots = np.empty(len(scores) * min(k, limit), np.int64)
        count = kernels.collect(self._t, wanted, k, limit, slots)
        found = slots[:count]
        cells = self._t.row33[found] + self._t.lcs[found]
        hits = zip(found.tolist(), map(scores.__getitem__, cells.tolist()), strict=True)
        return best_first(hits)[:k], totals_of(histogram)

    def _measured(self, ids: _Ints, slots: _Ints) -> _Longs:
        lcs = np.empty(len(slots), np.int64)
        kernels.measure(self._t, ids, slots, lcs)
        return lcs

    def _longs(self, limit: int) -> _Ints:
        longs = self._t.longs[: int(self._t.used[LONGS])]
        return longs if limit >= len(self) else longs[: int(np.searchsorted(longs, limit))]

    def _give_rows(self, ids: _Ints) -> None:
        """Give the query's frequent tokens a dense row each."""
        t = self._t
        for token in set(ids[t.token[ids, FREQUENCY] * _DENSE > max(len(self), 1024)].tolist()):
            if t.token[token, ROW] == 0:
                t = self._t = tables.with_rows(t, self._rows + 1)
                kernels.fill_row(t, token, self._rows)
                self._rows += 1

    def _query(self, query: Sequence[int]) -> _Ints:
        self._t = tables.with_positions(self._t, len(query))
        return np.array(query, np.int32)

    def _flat(self, entries: Sequence[list[int]]) -> tuple[_Ints, _Longs]:
        """Return the entries one after another, and where each ends; make room for their words."""
        ends = np.cumsum(np.fromiter(map(len, entries), np.int64, len(entries)))
        flat = np.fromiter(chain.from_iterable(entries), np.int32, int(ends[-1]) if entries else 0)
        self._t = tables.with_positions(self._t, max(map(len, entries), default=0))
        self._t = tables.with_tokens(self._t, int(flat.max(initial=0)) + 1)
        return flat, ends
