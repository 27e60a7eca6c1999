"""The compiled part of the numba engine: the same mathematics as the numpy engine, in loops.

All state is flat arrays in `Tables`. The postings of one token and one bucket of entry lengths are a
chain of chunks in a common arena; entries are only ever appended, so a chain is in slot order. Kernels
never grow an array: `room` tells the caller what an entry may need, and it grows the tables first.

numba turns mixed signed and unsigned arithmetic into floats, hence the casts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
import numpy.typing as npt
from numba import njit, types
from numba.extending import intrinsic

from selfinstruct.novelty.engine import SHORT

_F = TypeVar("_F", bound=Callable[..., Any])
_Ints = npt.NDArray[np.int32]
_Longs = npt.NDArray[np.int64]
_Words = npt.NDArray[np.uint64]

BUCKETS = 15
"""Entry lengths ..4, 6, 8, 10, 12, 16, 22, 32, then doubling: narrow where most entries are."""
_SHORT_BUCKETS = 8
_TOP = (4, 6, 8, 10, 12, 16, 22, 32, 64, 128, 256, 512, 1024, 2048, 2**31 - 1)
CHUNK = 256
"""Largest chunk of postings; chunks double up to it."""

ENTRIES, IDS, POSTINGS, CHUNKS, LONGS, STAMP = range(6)
"""Places in `Tables.used`."""


class Tables(NamedTuple):
    """Everything the kernels read and write."""

    used: _Longs
    # by entry
    length: _Ints
    start: _Longs
    signature: _Words  # (entry, 2)
    row33: npt.NDArray[np.uint16]  # 33 * min(length, 33): the entry's row in a histogram of (n, L)
    stamp: _Longs  # last query that looked at it
    overlap: _Ints  # zero between queries
    state: npt.NDArray[np.uint32]  # V of the recurrence
    lcs: npt.NDArray[np.uint8]
    dense: npt.NDArray[np.uint32]  # (row, entry) masks of frequent tokens
    longs: _Ints  # slots of the long entries
    touched: _Ints
    # by token
    ids: _Ints  # of the entries, one after another
    frequency: _Ints
    head: _Ints  # (token * BUCKETS + bucket) -> first chunk, 0 for none
    tail: _Ints
    local: _Ints  # zero between queries
    row: _Ints  # row in `dense`, -1 for none
    # by chunk
    first: _Longs
    fill: _Ints
    size: _Ints
    after: _Ints
    # by posting
    slot: npt.NDArray[np.uint32]
    mask: npt.NDArray[np.uint32]  # position mask, or the count in a long entry
    # by position of the query
    order: _Longs
    pattern: _Words
    vector: _Words
    need: _Longs


def _compiled(function: _F) -> _F:
    """Compile on first use and cache it on disk; where no cache folder is writable, compile in each process."""
    try:
        return cast(_F, njit(cache=True, nogil=True)(function))
    except RuntimeError:
        return cast(_F, njit(nogil=True)(function))


@intrinsic  # type: ignore[untyped-decorator]
def _popcount(_context: Any, word: Any) -> Any:
    def code(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return types.Integer.from_bitwidth(word.bitwidth, signed=False)(word), code


@_compiled
def _hash(token: int) -> int:
    """Return the token's bit, 0 to 127, in the signature (Fibonacci hashing)."""
    return np.int64((np.uint64(token) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(57))


@_compiled
def _post(t: Tables, key: int, slot: int, mask: int) -> None:
    chunk = t.tail[key]
    if chunk == 0 or t.fill[chunk] == t.size[chunk]:
        new = t.used[CHUNKS]
        t.used[CHUNKS] += 1
        t.first[new] = t.used[POSTINGS]
        t.size[new] = 2 if chunk == 0 else min(2 * t.size[chunk], CHUNK)
        t.fill[new] = 0
        t.after[new] = 0
        t.used[POSTINGS] += t.size[new]
        if chunk == 0:
            t.head[key] = new
        else:
            t.after[chunk] = new
        t.tail[key] = new
        chunk = new
    at = t.first[chunk] + t.fill[chunk]
    t.slot[at] = np.uint32(slot)
    t.mask[at] = np.uint32(mask)
    t.fill[chunk] += 1


@_compiled
def _add(t: Tables, entry: _Ints) -> None:
    slot, n, start = t.used[ENTRIES], len(entry), t.used[IDS]
    t.used[ENTRIES] += 1
    t.used[IDS] += n
    t.start[slot] = start
    t.length[slot] = n
    t.row33[slot] = np.uint16(33 * min(n, SHORT + 1))
    t.stamp[slot] = 0
    t.overlap[slot] = 0
    bucket = 0
    while _TOP[bucket] < n:
        bucket += 1
    low, high = np.uint64(0), np.uint64(0)
    for j in range(n):
        t.ids[start + j] = entry[j]
    if n > SHORT:
        t.longs[t.used[LONGS]] = slot
        t.used[LONGS] += 1
        for token in entry:
            t.local[token] += 1
        for token in entry:
            if t.local[token] > 0:
                _post(t, token * BUCKETS + bucket, slot, t.local[token])
                t.frequency[token] += 1
                t.local[token] = 0
    else:
        for j in range(n):
            token = entry[j]
            mask = np.uint32(0)
            repeated = False
            for i in range(n):
                if entry[i] == token:
                    if i < j:
                        repeated = True
                        break
                    mask |= np.uint32(1) << np.uint32(i)
            if repeated:
                continue
            _post(t, token * BUCKETS + bucket, slot, mask)
            t.frequency[token] += 1
            if t.row[token] >= 0:
                t.dense[t.row[token], slot] = mask
            bit = _hash(token)
            if bit < 64:
                low |= np.uint64(1) << np.uint64(bit)
            else:
                high |= np.uint64(1) << np.uint64(bit - 64)
    t.signature[slot, 0] = low
    t.signature[slot, 1] = high


@_compiled
def _room(t: Tables, n: int) -> bool:
    """Tell whether an entry of n tokens certainly fits."""
    return (
        t.used[ENTRIES] < len(t.length)
        and t.used[IDS] + n <= len(t.ids)
        and t.used[POSTINGS] + n * CHUNK <= len(t.slot)
        and t.used[CHUNKS] + n <= len(t.first)
    )


@_compiled
def add_many(t: Tables, flat: _Ints, ends: _Longs, begin: int) -> int:
    """Append entries `begin`.. of a batch; return the first that needs the tables grown."""
    for i in range(begin, len(ends)):
        entry = flat[ends[i - 1] if i else 0 : ends[i]]
        if not _room(t, len(entry)):
            return i
        _add(t, entry)
    return len(ends)


@_compiled
def _prepare(t: Tables, query: _Ints) -> int:
    """Set the pattern masks of the query's tokens; return their number of words per token."""
    m = len(query)
    words = (m + 63) >> 6
    distinct = 0
    for i in range(m):
        token = query[i]
        at = t.local[token]
        if at == 0:
            distinct += 1
            at = distinct
            t.local[token] = at
            for w in range(words):
                t.pattern[at * words + w] = np.uint64(0)
        t.pattern[at * words + (i >> 6)] |= np.uint64(1) << np.uint64(i & 63)
    return words


@_compiled
def _release(t: Tables, query: _Ints) -> None:
    for token in query:
        t.local[token] = 0


@_compiled
def _lcs(t: Tables, slot: int, words: int) -> int:
    """Return L of the prepared query and an entry: bit-parallel, with carries between words (Hyyro 2004)."""
    begin = t.start[slot]
    full = np.uint64(0xFFFFFFFFFFFFFFFF)
    total = 0
    if words == 1:
        v = full
        for k in range(begin, begin + t.length[slot]):
            at = t.local[t.ids[k]]
            if at:
                u = v & t.pattern[at]
                v = (v + u) | (v - u)
        return np.int64(_popcount(~v))
    for w in range(words):
        t.vector[w] = full
    for k in range(begin, begin + t.length[slot]):
        at = t.local[t.ids[k]]
        if at == 0:
            continue
        carry = np.uint64(0)
        for w in range(words):
            v = t.vector[w]
            u = v & t.pattern[at * words + w]
            s = v + u
            up = np.uint64(s < u)
            s += carry
            carry = up | np.uint64(s < carry)
            t.vector[w] = s | (v - u)
    for w in range(words):
        total += np.int64(_popcount(~t.vector[w]))
    return total


@_compiled
def _sort_by_frequency(t: Tables, query: _Ints) -> None:
    m = len(query)
    if m > 64:
        keys = np.empty(m, np.int64)
        for i in range(m):
            keys[i] = t.frequency[query[i]]
        t.order[:m] = np.argsort(keys)
        return
    for i in range(m):
        value = t.frequency[query[i]]
        j = i
        while j > 0 and t.frequency[query[t.order[j - 1]]] > value:
            t.order[j] = t.order[j - 1]
            j -= 1
        t.order[j] = i


@_compiled
def above(t: Tables, query: _Ints, num: int, den: int, limit: int, best: _Longs, slots: _Longs, lengths: _Longs) -> int:
    """Find the entries that are too near.

    Writes slot, L of the nearest into `best`, the first hits into `slots` and `lengths` (their L);
    returns the number of hits, which may be more than fit.
    """
    m = len(query)
    words = _prepare(t, query)
    t.used[STAMP] += 1
    stamp = t.used[STAMP]
    count = 0

    low, high = np.uint64(0), np.uint64(0)
    known = 0
    for token in query:
        if t.frequency[token] > 0:
            known += 1
            bit = _hash(token)
            if bit < 64:
                low |= np.uint64(1) << np.uint64(bit)
            else:
                high |= np.uint64(1) << np.uint64(bit - 64)
    # Every position whose token the entry has lies on a common bit, or is one of those that share a bit.
    slack = known - np.int64(_popcount(low)) - np.int64(_popcount(high))
    for n in range(SHORT + 1):
        t.need[n] = num * (m + n) // (2 * den) + 1
    _sort_by_frequency(t, query)

    bottom = 1
    for bucket in range(_SHORT_BUCKETS):
        top = _TOP[bucket]
        shortest, longest = 0, 0
        for n in range(bottom, top + 1):
            if t.need[n] <= min(m, n):
                longest = n
                if shortest == 0:
                    shortest = n
        bottom = top + 1
        if longest == 0:
            continue
        least = t.need[shortest]
        # L >= need[n] means sharing a token with any m - need[n] + 1 positions: take the rarest ones.
        for rank in range(m - least + 1):
            i = t.order[rank]
            chunk = t.head[query[i] * BUCKETS + bucket]
            if chunk == 0:
                continue
            # At most m - least positions of the query and n - need[n] of the entry stay unmatched.
            left = max(0, i - (m - least))
            right = min(31, i + longest - t.need[longest])
            if left > right:
                continue
            window = (np.uint32(0xFFFFFFFF) << np.uint32(left)) & (np.uint32(0xFFFFFFFF) >> np.uint32(31 - right))
            while chunk:
                begin = t.first[chunk]
                for p in range(begin, begin + t.fill[chunk]):
                    if t.mask[p] & window == 0:
                        continue
                    slot = np.int64(t.slot[p])
                    if slot >= limit:
                        break
                    common = _popcount(t.signature[slot, 0] & low) + _popcount(t.signature[slot, 1] & high)
                    bound = np.int64(common) + slack
                    if bound < least or t.stamp[slot] == stamp:
                        continue
                    need = t.need[t.length[slot]]
                    if bound < need:
                        continue
                    t.stamp[slot] = stamp
                    lcs = _lcs(t, slot, words)
                    if lcs >= need:
                        _record(t, m, slot, lcs, count, best, slots, lengths)
                        count += 1
                chunk = t.after[chunk]

    if t.used[LONGS]:
        touched = _overlaps(t, query, num, den, limit)
        for k in range(touched):
            slot = np.int64(t.touched[k])
            overlap = t.overlap[slot]
            t.overlap[slot] = 0
            need = num * (m + t.length[slot]) // (2 * den) + 1
            if overlap >= need:
                lcs = _lcs(t, slot, words)
                if lcs >= need:
                    _record(t, m, slot, lcs, count, best, slots, lengths)
                    count += 1
    _release(t, query)
    return count


@_compiled
def _record(t: Tables, m: int, slot: int, lcs: int, count: int, best: _Longs, slots: _Longs, lengths: _Longs) -> None:
    if count < len(slots):
        slots[count] = slot
        lengths[count] = lcs
    new = lcs * (m + t.length[best[0]])
    old = best[1] * (m + t.length[slot])
    if count == 0 or new > old or (new == old and slot < best[0]):
        best[0] = slot
        best[1] = lcs


@_compiled
def _overlaps(t: Tables, query: _Ints, num: int, den: int, limit: int) -> int:
    """Add up the bag overlaps of the long entries whose length can do; return how many were touched.

    The query is prepared: a token's positions are the bits of its pattern.
    """
    m = len(query)
    words = (m + 63) >> 6
    touched = 0
    for i in range(m):
        token = query[i]
        at = t.local[token]
        count = np.int64(0)
        first = -1
        for w in range(words):
            bits = t.pattern[at * words + w]
            if bits and first < 0:
                first = 64 * w + np.int64(_popcount((bits & (~bits + np.uint64(1))) - np.uint64(1)))
            count += np.int64(_popcount(bits))
        if first != i:
            continue
        bottom = SHORT + 1
        for bucket in range(_SHORT_BUCKETS, BUCKETS):
            top = _TOP[bucket]
            feasible = num * (m + bottom) // (2 * den) + 1 <= m and num * (m + top) // (2 * den) + 1 <= top
            bottom = top + 1
            chunk = t.head[token * BUCKETS + bucket]
            if not feasible:
                continue
            while chunk:
                begin = t.first[chunk]
                for p in range(begin, begin + t.fill[chunk]):
                    slot = np.int64(t.slot[p])
                    if slot >= limit:
                        break
                    if t.overlap[slot] == 0:
                        t.touched[touched] = slot
                        touched += 1
                    t.overlap[slot] += min(count, np.int64(t.mask[p]))
                chunk = t.after[chunk]
    return touched


@_compiled
def long_overlaps(t: Tables, query: _Ints, limit: int, result: _Longs) -> None:
    """Write the bag overlap of each long entry with the query, in the order of `longs`."""
    _prepare(t, query)
    _overlaps(t, query, 0, 1, limit)
    for k in range(len(result)):
        result[k] = t.overlap[t.longs[k]]
        t.overlap[t.longs[k]] = 0
    _release(t, query)


@_compiled
def measure(t: Tables, query: _Ints, slots: _Ints, result: _Longs) -> None:
    """Write L of the query and each of those entries."""
    words = _prepare(t, query)
    for k in range(len(slots)):
        result[k] = _lcs(t, np.int64(slots[k]), words)
    _release(t, query)


@_compiled
def offer_many(t: Tables, flat: _Ints, ends: _Longs, begin: int, num: int, den: int, results: _Longs) -> int:
    """Offer entries `begin`.. of a batch; write slot (-1: added) and L; return the first that needs room."""
    best = np.zeros(2, np.int64)
    none = np.zeros(0, np.int64)
    for i in range(begin, len(ends)):
        entry = flat[ends[i - 1] if i else 0 : ends[i]]
        if not _room(t, len(entry)):
            return i
        if above(t, entry, num, den, t.used[ENTRIES], best, none, none):
            results[i, 0] = best[0]
            results[i, 1] = best[1]
        else:
            results[i, 0] = -1
            _add(t, entry)
    return len(ends)


@_compiled
def fill_row(t: Tables, token: int, row: int) -> None:
    """Give a frequent token one mask per entry."""
    t.row[token] = row
    for bucket in range(_SHORT_BUCKETS):
        chunk = t.head[token * BUCKETS + bucket]
        while chunk:
            for p in range(t.first[chunk], t.first[chunk] + t.fill[chunk]):
                t.dense[row, t.slot[p]] = t.mask[p]
            chunk = t.after[chunk]


@_compiled
def every_lcs(t: Tables, query: _Ints, limit: int, histogram: _Longs) -> None:
    """Write L of every short entry into `lcs` and count the cells (n, L).

    Entries are the patterns: V = (V + (V & M)) | (V & ~M) for all of them in step with the query.
    """
    v = t.state[:limit]
    v[:] = np.uint32(0xFFFFFFFF)
    for token in query:
        if t.row[token] >= 0:
            _step(v, t.dense[t.row[token], :limit])
            continue
        for bucket in range(_SHORT_BUCKETS):
            chunk = t.head[token * BUCKETS + bucket]
            while chunk:
                for p in range(t.first[chunk], t.first[chunk] + t.fill[chunk]):
                    slot = t.slot[p]
                    if slot >= limit:
                        break
                    before = v[slot]
                    matched = before & t.mask[p]
                    v[slot] = np.uint32(np.uint32(before + matched) | np.uint32(before ^ matched))
                chunk = t.after[chunk]
    _finish(v, t.lcs[:limit])
    # Two histograms: equal neighbours would wait for each other's count.
    cells = len(histogram)
    other = np.zeros(cells, np.int64)
    even = limit - (limit & 1)
    for slot in range(0, even, 2):
        histogram[t.row33[slot] + t.lcs[slot]] += 1
        other[t.row33[slot + 1] + t.lcs[slot + 1]] += 1
    if even < limit:
        histogram[t.row33[even] + t.lcs[even]] += 1
    for cell in range(cells):
        histogram[cell] += other[cell]


@_compiled
def _step(v: npt.NDArray[np.uint32], masks: npt.NDArray[np.uint32]) -> None:
    for i in range(len(v)):
        matched = v[i] & masks[i]
        v[i] = np.uint32(np.uint32(v[i] + matched) | np.uint32(v[i] ^ matched))


@_compiled
def _finish(v: npt.NDArray[np.uint32], lcs: npt.NDArray[np.uint8]) -> None:
    for i in range(len(v)):
        lcs[i] = np.uint8(_popcount(np.uint32(~v[i])))


@_compiled
def collect(t: Tables, wanted: _Longs, k: int, limit: int, slots: _Longs) -> int:
    """Write the first k slots of each wanted cell (`wanted[cell]` counts down from k); return how many."""
    count = 0
    for slot in range(limit):
        cell = t.row33[slot] + t.lcs[slot]
        if wanted[cell] > 0:
            wanted[cell] -= 1
            slots[count] = slot
            count += 1
    return count
