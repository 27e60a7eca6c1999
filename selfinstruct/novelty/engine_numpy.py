"""The core engine: numpy finds the few entries worth a look, rapidfuzz measures them.

Short entries (up to 32 tokens) are held in an inverted index whose postings carry *position masks*:
bit j of an entry's mask for a token is set where the entry has that token. The masks answer both
questions: which entries can be too near, and, with the entries as patterns of the bit-parallel LCS
recurrence (Hyyrö 2004), the exact L of every entry at once. Longer entries have postings with
counts, which give the overlap of the token bags: an upper bound of L.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain
from operator import attrgetter
from typing import Any

import numpy as np
import numpy.typing as npt
from rapidfuzz.distance import LCSseq
from rapidfuzz.process import cdist

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
    plan,
    required,
    score,
    totals_of,
)

_U64 = npt.NDArray[np.uint64]
_I64 = npt.NDArray[np.int64]
_Sequence = str | list[int]

_ELSEWHERE = SHORT + 1
"""Length column of an entry that the long pool holds."""
_SPLIT = 1024
"""A token's postings are split by entry length from this size on: 30 % faster at 50,000 entries, more above."""
_BUCKET = np.array([0] * 7 + [1] * 2 + [2] * 2 + [3] * 3 + [4] * 4 + [5] * 15, np.uint8)
"""Length -> bucket of split postings: ..6, 8, 10, 13, 17, 32."""
_DENSE = 16
"""A token in more than 1/16 of the entries also gets one mask per entry, so that its step is a plain loop."""
_ONES = np.uint32(0xFFFFFFFF)
_BULK = 256


def _sequence(ids: Sequence[int]) -> _Sequence:
    """Return the ids for rapidfuzz: as code points while they last (2 to 18 times faster than lists of int)."""
    if max(ids, default=0) < 0xD800:
        return "".join(map(chr, ids))
    codes = [i if i < 0xD800 else i + 0x800 for i in ids]  # no surrogates
    return "".join(map(chr, codes)) if max(codes) <= 0x10FFFF else codes


def _bit(token: int) -> int:
    """Return the token's bit in the 128-bit signature (Fibonacci hashing)."""
    return 1 << ((token * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF) >> 57)


class _Column:
    """A numpy column that grows by doubling."""

    def __init__(self, dtype: npt.DTypeLike) -> None:
        self._data: npt.NDArray[Any] = np.zeros(1024, dtype)
        self._size = 0

    def append(self, value: int) -> None:
        self._reach(self._size + 1)
        self._data[self._size - 1] = value

    def extend(self, values: npt.NDArray[Any]) -> None:
        begin = self._size
        self._reach(begin + len(values))
        self._data[begin : self._size] = values

    def _reach(self, size: int) -> None:
        if size > len(self._data):
            grown = np.zeros(max(size, 2 * len(self._data)), self._data.dtype)
            grown[: self._size] = self._data[: self._size]
            self._data = grown
        self._size = size

    def view(self) -> npt.NDArray[Any]:
        return self._data[: self._size]


class _Postings:
    """One token's postings, `slot << 32 | mask`, in slot order: one list, or one per length bucket."""

    __slots__ = ("bit", "buckets", "size")

    def __init__(self, token: int) -> None:
        self.bit = _bit(token)
        self.buckets = [array("q")]
        self.size = 0

    def append(self, posting: int, n: int) -> None:
        self.buckets[_BUCKET[n] if len(self.buckets) > 1 else 0].append(posting)
        self.size += 1

    def extend(self, postings: _I64, lengths: npt.NDArray[np.uint8]) -> None:
        if len(self.buckets) == 1:
            self.buckets[0].frombytes(postings.tobytes())
        else:
            self._scatter(postings, lengths)
        self.size += len(postings)

    def split(self, lengths: npt.NDArray[np.uint8]) -> None:
        whole = np.array(self.buckets[0], np.int64)
        self.buckets = [array("q") for _ in range(int(_BUCKET[-1]) + 1)]
        self._scatter(whole, lengths[whole >> 32])

    def views(self, shortest: int = 0, longest: int = SHORT) -> Iterator[_I64]:
        """Yield the lists that hold entries of those lengths (and others)."""
        buckets = self.buckets
        if len(buckets) > 1:
            buckets = buckets[_BUCKET[shortest] : int(_BUCKET[longest]) + 1]
        for bucket in buckets:
            if bucket:
                yield np.frombuffer(bucket, np.int64)

    def _scatter(self, postings: _I64, lengths: npt.NDArray[np.uint8]) -> None:
        bucket_of = _BUCKET[lengths]
        for i, bucket in enumerate(self.buckets):
            bucket.frombytes(postings[bucket_of == i].tobytes())


_size = attrgetter("size")


class _ShortPool:
    """Entries of up to 32 tokens, under the engine's own slots."""

    def __init__(self) -> None:
        self._sequences: list[_Sequence] = []
        self._lengths = _Column(np.uint8)
        self._low, self._high = _Column(np.uint64), _Column(np.uint64)
        self._postings: list[_Postings | None] = [None]
        self._rows: dict[int, tuple[npt.NDArray[np.uint32], int]] = {}
        self._scratch = np.empty((2, 0), np.uint32)

    def add(self, entry: list[int]) -> None:
        """Append one entry; a longer one is held elsewhere and leaves a mark."""
        slot, n, signature = len(self._sequences), len(entry), 0
        if n > SHORT:
            entry, n = [], _ELSEWHERE
        masks: dict[int, int] = {}
        for j, token in enumerate(entry):
            masks[token] = masks.get(token, 0) | 1 << j
        for token, mask in masks.items():
            postings = self._posting(token)
            signature |= postings.bit
            postings.append(slot << 32 | mask, n)
            if postings.size == _SPLIT:
                postings.split(np.append(self._lengths.view(), np.uint8(n)))
        self._sequences.append(_sequence(entry))
        self._lengths.append(n)
        self._low.append(signature & 0xFFFFFFFFFFFFFFFF)
        self._high.append(signature >> 64)

    def add_many(self, entries: Sequence[list[int]]) -> None:
        """Append entries with a few sorts instead of a loop over their tokens."""
        first = len(self._sequences)
        short = [entry if len(entry) <= SHORT else [] for entry in entries]
        sizes = np.array([len(entry) for entry in short])
        lengths = np.array([min(len(entry), _ELSEWHERE) for entry in entries], np.uint8)
        self._sequences.extend(map(_sequence, short))
        self._lengths.extend(lengths)
        tokens = np.fromiter(chain.from_iterable(short), np.int64, int(sizes.sum()))
        owners = np.repeat(np.arange(len(short)), sizes)
        positions = np.arange(len(tokens)) - np.repeat(np.cumsum(sizes) - sizes, sizes)

        with np.errstate(over="ignore"):
            bits = (tokens.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(57)
        words = np.left_shift(np.uint64(1), bits & np.uint64(63))
        for column, half in ((self._low, bits < 64), (self._high, bits >= 64)):
            signature = np.zeros(len(short), np.uint64)
            np.bitwise_or.at(signature, owners[half], words[half])
            column.extend(signature)

        if not len(tokens):
            return
        order = np.lexsort((owners, tokens))
        tokens, owners = tokens[order], owners[order]
        edge = np.flatnonzero(np.diff(tokens, prepend=-1) | np.diff(owners, prepend=-1))
        masks = np.bitwise_or.reduceat(np.left_shift(np.int64(1), positions[order]), edge)
        tokens, owners = tokens[edge], owners[edge]
        postings = (owners + first) << 32 | masks
        starts = np.flatnonzero(np.diff(tokens, prepend=-1))
        ends = np.append(starts[1:], len(tokens))
        for token, a, b in zip(tokens[starts].tolist(), starts.tolist(), ends.tolist(), strict=True):
            list_ = self._posting(token)
            list_.extend(postings[a:b], lengths[owners[a:b]])
            if list_.size >= _SPLIT and len(list_.buckets) == 1:
                list_.split(self._lengths.view())

    def above(self, query: list[int], threshold: Threshold, limit: int) -> list[Hit]:
        """Return the entries that are too near: rarest tokens first, then signatures, then the LCS itself."""
        m = len(query)
        way = plan(threshold, m)
        if not way.longest:
            return []
        found = [postings for token in query if (postings := self._find(token))]
        found.sort(key=_size)
        parts: list[_I64] = []
        # The words that no entry has are the rarest of all and take the first ranks.
        for postings, longest in zip(found, way.longest[m - len(found) :], strict=False):
            parts.extend(postings.views(way.shortest, longest))
        if not parts:
            return []
        slots = np.concatenate(parts) >> 32
        if limit < len(self._sequences):
            slots = slots[slots < limit]
        signature = 0
        for postings in found:
            signature |= postings.bit
        common = np.bitwise_count(self._low.view()[slots] & np.uint64(signature & 0xFFFFFFFFFFFFFFFF))
        common += np.bitwise_count(self._high.view()[slots] & np.uint64(signature >> 64))
        # Every position of the query whose token the entry has lies on a common bit, or is one of the slack
        # positions that share a bit with another: common + slack >= L.
        slack = len(found) - signature.bit_count()
        likely = np.flatnonzero(common >= int(way.need[way.shortest]) - slack)
        if not len(likely):
            return []
        slots, common = slots[likely], common[likely]
        kept = np.flatnonzero(common + np.int64(slack) >= way.need[self._lengths.view()[slots]])
        text = _sequence(query)
        hits = []
        for slot in set(slots[kept].tolist()):
            entry = self._sequences[slot]
            n = len(entry)
            lcs = LCSseq.similarity(text, entry, score_cutoff=int(way.need[n]))
            if lcs:
                hits.append((slot, score(lcs, m, n)))
        return hits

    def top(self, query: list[int], k: int, limit: int) -> tuple[list[Hit], _I64]:
        """Return the k best entries and the sum of L over all of them, by n."""
        cells = np.multiply(self._lengths.view()[:limit], SHORT + 1, dtype=np.uint16)
        cells += self._every_lcs(query, limit)
        histogram = np.bincount(cells, minlength=CELLS)
        hits: list[Hit] = []
        for cell, value in best_cells(histogram, len(query), k):
            hits.extend((slot, value) for slot in np.flatnonzero(cells == cell)[:k].tolist())
        return best_first(hits)[:k], totals_of(histogram)

    def has(self, token: int) -> bool:
        """Tell whether any entry has the token."""
        return self._find(token) is not None

    def _every_lcs(self, query: list[int], limit: int) -> npt.NDArray[np.uint8]:
        """Return L of each entry: the recurrence V = (V + (V & M)) | (V & ~M) on all entries in step."""
        if self._scratch.shape[1] < limit:
            self._scratch = np.empty((2, 2 * limit), np.uint32)
        v, u = self._scratch[0, :limit], self._scratch[1, :limit]
        v.fill(_ONES)
        for token in query:
            postings = self._find(token)
            if postings is None:
                continue
            if postings.size * _DENSE > len(self._sequences):
                np.bitwise_and(v, self._row(token, postings)[:limit], out=u)
                v ^= u  # V & ~M
                u += u  # V + (V & M) = (V & ~M) + 2 (V & M)
                u += v
                v |= u
                continue
            for view in postings.views():
                part = view if limit == len(self._sequences) else view[: np.searchsorted(view, limit << 32)]
                slots = part >> 32
                before = v[slots]
                matched = before & part.astype(np.uint32)
                v[slots] = (before + matched) | (before ^ matched)
        np.invert(v, out=v)
        return np.bitwise_count(v)

    def _row(self, token: int, postings: _Postings) -> npt.NDArray[np.uint32]:
        """Return one mask per entry for a frequent token: derived from its postings, caught up when asked for."""
        row, filled = self._rows.get(token, (np.zeros(0, np.uint32), 0))
        size = len(self._sequences)
        if len(row) < size:
            row = np.concatenate([row, np.zeros(max(1024, size + size // 2 - len(row)), np.uint32)])
        if filled < size:
            for view in postings.views():
                part = view[np.searchsorted(view, filled << 32) :]
                row[part >> 32] = part.astype(np.uint32)
            self._rows[token] = (row, size)
        return row

    def _posting(self, token: int) -> _Postings:
        if token >= len(self._postings):
            self._postings.extend([None] * (token + 1 - len(self._postings)))
        postings = self._postings[token]
        if postings is None:
            postings = self._postings[token] = _Postings(token)
        return postings

    def _find(self, token: int) -> _Postings | None:
        return self._postings[token] if token < len(self._postings) else None


class _LongPool:
    """Entries of more than 32 tokens; `slots` maps to the engine's."""

    def __init__(self) -> None:
        self.slots = _Column(np.int64)
        self._lengths = _Column(np.int64)
        self._sequences: list[_Sequence] = []
        self._postings: dict[int, array[int]] = {}

    def add(self, slot: int, entry: list[int]) -> None:
        """Append one entry."""
        here = len(self._sequences)
        for token, count in Counter(entry).items():
            self._postings.setdefault(token, array("q")).append(here << 32 | count)
        self._sequences.append(_sequence(entry))
        self.slots.append(slot)
        self._lengths.append(len(entry))

    def above(self, query: list[int], threshold: Threshold, limit: int) -> list[Hit]:
        """Return the entries that are too near: bags first, then the LCS itself."""
        m, lengths = len(query), self._lengths.view()[:limit]
        if not len(lengths) or required(threshold, m, SHORT + 1) > m:
            return []
        numerator, denominator = threshold
        need = numerator * (m + lengths) // (2 * denominator) + 1
        kept = np.flatnonzero(self._overlaps(query, limit) >= need)
        hits = []
        text = _sequence(query)
        for i in kept.tolist():
            lcs = LCSseq.similarity(text, self._sequences[i], score_cutoff=int(need[i]))
            if lcs:
                hits.append((int(self.slots.view()[i]), score(lcs, m, int(lengths[i]))))
        return hits

    def nearest(self, query: list[int], limit: int, floor: Hit | None) -> Hit | None:
        """Return the best of `floor` and the entries."""
        text = _sequence(query)

        def measure(places: npt.NDArray[np.intp]) -> _I64:
            return np.array([LCSseq.similarity(text, self._sequences[i]) for i in places.tolist()], np.int64)

        lengths, slots = self._lengths.view()[:limit], self.slots.view()[:limit]
        return nearest_long(self._overlaps(query, limit), lengths, slots, len(query), floor, measure)

    def top(self, query: list[int], k: int, limit: int) -> tuple[list[Hit], _I64]:
        """Return the k best entries and the sum of L over all of them, by n."""
        lcs = cdist([_sequence(query)], self._sequences[:limit], scorer=LCSseq.similarity, dtype=np.int64)[0]
        return best_long(lcs, self._lengths.view()[:limit], self.slots.view()[:limit], len(query), k)

    def has(self, token: int) -> bool:
        """Tell whether any entry has the token."""
        return token in self._postings

    def _overlaps(self, query: list[int], limit: int) -> _I64:
        """Return the overlap of each entry's token bag with the query's."""
        overlaps = np.zeros(len(self._sequences), np.int64)
        for token, count in Counter(query).items():
            postings = self._postings.get(token)
            if postings:
                view = np.frombuffer(postings, np.int64)
                overlaps[view >> 32] += np.minimum(view & 0xFFFFFFFF, count)
        return overlaps[:limit]


class NumpyEngine:
    """Exact engine on numpy and rapidfuzz; see `selfinstruct.novelty.engine.Engine`."""

    def __init__(self) -> None:
        self._short = _ShortPool()
        self._long = _LongPool()
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def add_many(self, entries: Sequence[list[int]]) -> None:
        """Append entries in order."""
        if len(entries) >= _BULK:
            self._short.add_many(entries)
        else:
            for entry in entries:
                self._short.add(entry)
        for slot, entry in enumerate(entries, self._size):
            if len(entry) > SHORT:
                self._long.add(slot, entry)
        self._size += len(entries)

    def above(self, query: list[int], threshold: Threshold, limit: int) -> list[Hit]:
        """Return every entry that is too near, best first."""
        hits = self._short.above(query, threshold, limit)
        hits += self._long.above(query, threshold, self._long_limit(limit))
        return best_first(hits) if len(hits) > 1 else hits

    def too_near(self, query: list[int], threshold: Threshold, limit: int) -> Hit | None:
        """Return the best of the entries that are too near."""
        return next(iter(self.above(query, threshold, limit)), None)

    def nearest(self, query: list[int], limit: int) -> Hit | None:
        """Return the best entry, whatever its score."""
        hits, _ = self._short.top(query, 1, limit)
        return self._long.nearest(query, self._long_limit(limit), hits[0] if hits else None)

    def top(self, query: list[int], k: int, limit: int) -> tuple[list[Hit], float]:
        """Return the k best entries and the mean score over all of them."""
        hits, totals = self._short.top(query, k, limit)
        long_limit = self._long_limit(limit)
        if long_limit:
            more, long_totals = self._long.top(query, k, long_limit)
            hits = best_first(hits + more)[:k]
            totals = np.concatenate([totals, long_totals[len(totals) :]])
        return hits, mean_score(totals, len(query), limit)

    def has(self, token: int) -> bool:
        """Tell whether any entry has the token."""
        return self._short.has(token) or self._long.has(token)

    def offer_many(self, entries: Sequence[list[int]], threshold: Threshold) -> list[Hit | None]:
        """Add each entry unless it is too near to one before it; return the nearest of those that are."""
        results: list[Hit | None] = []
        for entry in entries:
            hits = self.above(entry, threshold, self._size)
            if not hits:
                self.add_many([entry])
            results.append(hits[0] if hits else None)
        return results

    def _long_limit(self, limit: int) -> int:
        slots = self._long.slots.view()
        return len(slots) if limit >= self._size else int(np.searchsorted(slots, limit))
