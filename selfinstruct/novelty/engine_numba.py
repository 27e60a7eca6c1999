"""The compiled engine (extra `fast`): grows the tables, and leaves the work to `kernels`.

The first use on a machine compiles for some ten seconds; the result is cached beside the package, or in
the user's cache folder when that is read-only (numba's own rule; NUMBA_CACHE_DIR overrides both).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from selfinstruct.novelty import kernels
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
from selfinstruct.novelty.kernels import BUCKETS, CHUNK, CHUNKS, ENTRIES, IDS, LONGS, POSTINGS, Tables

_Ints = npt.NDArray[np.int32]
_Longs = npt.NDArray[np.int64]

_ENTRY = {
    **{"length": np.int32, "start": np.int64, "row33": np.uint16, "stamp": np.int64, "overlap": np.int32},
    **{"state": np.uint32, "lcs": np.uint8, "longs": np.int32, "touched": np.int32},
}
_CHUNK = {"first": np.int64, "fill": np.int32, "size": np.int32, "after": np.int32}
_DENSE = 16
"""A token in more than 1/16 of the entries gets a dense row of masks."""


class NumbaEngine:
    """Exact engine compiled by numba; see `selfinstruct.novelty.engine.Engine`."""

    def __init__(self) -> None:
        columns: dict[str, npt.NDArray[Any]] = {name: np.zeros(0, kind) for name, kind in (_ENTRY | _CHUNK).items()}
        integers = {name: np.zeros(0, np.int32) for name in ("ids", "frequency", "head", "tail", "local", "row")}
        self._t = Tables(
            **columns,
            **integers,
            used=np.array([0, 0, 0, 1, 0, 0], np.int64),  # chunk 0 means "none"
            signature=np.zeros((0, 2), np.uint64),
            dense=np.zeros((0, 0), np.uint32),
            slot=np.zeros(0, np.uint32),
            mask=np.zeros(0, np.uint32),
            order=np.zeros(64, np.int64),
            pattern=np.zeros(0, np.uint64),
            vector=np.zeros(0, np.uint64),
            need=np.zeros(SHORT + 1, np.int64),
        )
        self._rows = 0
        self._best = np.zeros(2, np.int64)
        self._hits = np.zeros((2, 256), np.int64)
        self._grow(1, SHORT)

    def __len__(self) -> int:
        return int(self._t.used[ENTRIES])

    def add_many(self, entries: Sequence[list[int]]) -> None:
        """Append entries in order."""
        flat, ends = self._flat(entries)
        done = 0
        while (done := kernels.add_many(self._t, flat, ends, done)) < len(entries):
            self._grow(len(entries) - done, len(entries[done]))

    def above(self, query: list[int], threshold: Threshold, limit: int) -> list[Hit]:
        """Return every entry that is too near, best first."""
        ids = self._query(query)
        slots, lcs = self._hits
        count = kernels.above(self._t, ids, *threshold, limit, self._best, slots, lcs)
        if count == 0:
            return []
        if count > len(slots):
            self._hits = slots, lcs = np.zeros((2, 2 * count), np.int64)
            kernels.above(self._t, ids, *threshold, limit, self._best, slots, lcs)
        return best_first(self._hit(slot, found, len(ids)) for slot, found in self._hits[:, :count].T.tolist())

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

        return nearest_long(overlaps, self._t.length[longs].astype(np.int64), longs.astype(np.int64), m, best, measure)

    def top(self, query: list[int], k: int, limit: int) -> tuple[list[Hit], float]:
        """Return the k best entries and the mean score over all of them."""
        ids, m = self._query(query), len(query)
        hits, totals = self._short_top(ids, k, limit)
        longs = self._longs(limit)
        if len(longs):
            lcs, lengths = self._measured(ids, longs), self._t.length[longs].astype(np.int64)
            more, long_totals = best_long(lcs, lengths, longs.astype(np.int64), m, k)
            hits, totals = best_first(hits + more)[:k], totals + long_totals
        return hits, mean_score(totals, m, limit)

    def offer_many(self, entries: Sequence[list[int]], threshold: Threshold) -> list[Hit | None]:
        """Add each entry unless it is too near to one before it; return the nearest of those that are."""
        flat, ends = self._flat(entries)
        results = np.empty((len(entries), 2), np.int64)
        done = 0
        while (done := kernels.offer_many(self._t, flat, ends, done, *threshold, results)) < len(entries):
            self._grow(len(entries) - done, len(entries[done]))
        return [
            None if slot < 0 else self._hit(slot, lcs, len(entry))
            for (slot, lcs), entry in zip(results.tolist(), entries, strict=True)
        ]

    def _hit(self, slot: int, lcs: int, m: int) -> Hit:
        return slot, score(lcs, m, int(self._t.length[slot]))

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
        for token in set(ids[t.frequency[ids] * _DENSE > max(len(self), 1024)].tolist()):
            if t.row[token] < 0:
                if self._rows == len(t.dense):
                    t = self._t = t._replace(dense=_grown(t.dense, (2 * self._rows + 4, t.dense.shape[1])))
                kernels.fill_row(t, token, self._rows)
                self._rows += 1

    def _query(self, query: Sequence[int]) -> _Ints:
        self._reach(len(query))
        return np.array(query, np.int32)

    def _flat(self, entries: Sequence[list[int]]) -> tuple[_Ints, _Longs]:
        """Return the entries one after another, and where each ends; make room for their words."""
        ends = np.cumsum(np.fromiter(map(len, entries), np.int64, len(entries)))
        flat = np.fromiter((token for entry in entries for token in entry), np.int32, int(ends[-1]) if entries else 0)
        self._reach(max(map(len, entries), default=0))
        words = int(flat.max(initial=0)) + 1
        if words > len(self._t.frequency):
            size = max(words, 2 * len(self._t.frequency), 1024)
            keyed = {name: _grown(getattr(self._t, name), (size * BUCKETS,)) for name in ("head", "tail")}
            plain = {name: _grown(getattr(self._t, name), (size,)) for name in ("frequency", "local", "row")}
            plain["row"][len(self._t.row) :] = -1
            self._t = self._t._replace(**keyed, **plain)
        return flat, ends

    def _reach(self, m: int) -> None:
        """Make room for a query of m tokens."""
        words = (m + 63) >> 6
        if m > len(self._t.order) or (m + 1) * words > len(self._t.pattern):
            self._t = self._t._replace(
                order=np.zeros(max(64, 2 * m), np.int64),
                pattern=np.zeros(max(65, 4 * (m + 1) * words), np.uint64),
                vector=np.zeros(max(1, 2 * words), np.uint64),
            )

    def _grow(self, entries: int, n: int) -> None:
        """Make room for one more entry of n tokens, and about that many entries like those before."""
        t = self._t
        used = {name: int(t.used[i]) for name, i in (("entries", ENTRIES), ("ids", IDS), ("chunks", CHUNKS))}
        postings = int(t.used[POSTINGS])
        new: dict[str, npt.NDArray[Any]] = {}
        if used["entries"] >= len(t.length):
            size = max(1024, used["entries"] + max(used["entries"] // 2, entries))
            new |= {name: _grown(getattr(t, name), (size,)) for name in _ENTRY}
            new["signature"] = _grown(t.signature, (size, 2))
            new["dense"] = _grown(t.dense, (len(t.dense), size))
        if used["ids"] + n > len(t.ids):
            new["ids"] = _grown(t.ids, (max(16384, used["ids"] * 3 // 2 + n),))
        if postings + n * CHUNK > len(t.slot):
            size = max(65536, postings * 3 // 2 + n * CHUNK)
            new |= {name: _grown(getattr(t, name), (size,)) for name in ("slot", "mask")}
        if used["chunks"] + n > len(t.first):
            size = max(8192, used["chunks"] * 3 // 2 + n)
            new |= {name: _grown(getattr(t, name), (size,)) for name in _CHUNK}
        self._t = t._replace(**new)


def _grown(array: npt.NDArray[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """Return a larger copy, zero where it is new."""
    result = np.zeros(shape, array.dtype)
    result[tuple(map(slice, array.shape))] = array
    return result
