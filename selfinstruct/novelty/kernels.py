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

# numba reads these as numpy's types, mypy as whatever the place needs.
_int: Callable[[Any], int] = cast(Any, np.int64)
_u8, _u16, _u32, _u64 = cast(Any, (np.uint8, np.uint16, np.uint32, np.uint64))

BUCKETS = 15
"""Entry lengths ..4, 6, 8, 10, 12, 16, 22, 32, then doubling: narrow where most entries are."""
_SHORT_BUCKETS = 8
_TOP = (4, 6, 8, 10, 12, 16, 22, 32, 64, 128, 256, 512, 1024, 2048, 2**31 - 1)
CHUNK = 256
"""Largest chunk of postings; chunks double up to it."""

ENTRIES, IDS, POSTINGS, CHUNKS, LONGS = range(5)
"""Places in `Tables.used`."""
_LOW, _HIGH, _START, LENGTH = range(4)
"""Columns of `Tables.entry`: the two halves of the signature, first token in `ids`, number of tokens."""
FREQUENCY, _LOCAL, ROW = range(3)
"""Columns of `Tables.token`: entries with it, place in the query's pattern, row in `dense` + 1; 0 for none."""
_HEAD, _TAIL = range(2)
"""Columns of `Tables.chain`: first and last chunk, 0 for none."""
_FIRST, _FILL, _SIZE, _AFTER = range(4)
"""Columns of `Tables.chunk`: first posting, postings used, postings in all, next chunk."""


class Tables(NamedTuple):
    """Everything the kernels read and write; what a loop needs together lies together."""

    used: _Longs
    entry: _Words  # (slot, 4)
    row33: npt.NDArray[np.uint16]  # 33 * min(length, 33): the entry's row in a histogram of (n, L)
    overlap: _Ints  # scratch of a query, zero between queries
    touched: _Ints  # scratch: the slots whose overlap is not zero
    state: npt.NDArray[np.uint32]  # scratch: V of the recurrence
    lcs: npt.NDArray[np.uint8]  # result of `every_lcs`
    dense: npt.NDArray[np.uint32]  # (row, slot) masks of frequent tokens
    longs: _Ints  # slots of the long entries
    ids: _Ints  # tokens of all entries, one after another
    token: _Ints  # (token, 3)
    chain: _Ints  # (token * BUCKETS + bucket, 2)
    chunk: _Longs  # (chunk, 4)
    posting: _Words  # slot << 32 | position mask, or count in a long entry
    order: _Longs  # scratch: positions of the query, rarest token first
    pattern: _Words  # scratch: (distinct token, word) position masks of the query
    vector: _Words  # scratch: V of the recurrence with several words
    need: _Longs  # scratch: least L by entry length


def _compiled(function: _F) -> _F:
    """Compile on first use and cache it on disk; where no cache folder is writable, compile in each process."""
    try:
        return cast(_F, njit(cache=True, nogil=True)(function))
    except RuntimeError:
        return cast(_F, njit(nogil=True)(function))


def _ctpop(_context: Any, word: Any) -> Any:
    def code(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return types.Integer.from_bitwidth(word.bitwidth, signed=False)(word), code


_popcount: Any = intrinsic(_ctpop)


@_compiled
def _hash(token: int) -> int:
    """Return the token's bit, 0 to 127, in the signature (Fibonacci hashing)."""
    return _int((_u64(token) * _u64(0x9E3779B97F4A7C15)) >> _u64(57))


@_compiled
def _post(t: Tables, key: int, slot: int, mask: int) -> None:
    chunk = t.chain[key, _TAIL]
    if chunk == 0 or t.chunk[chunk, _FILL] == t.chunk[chunk, _SIZE]:
        new = t.used[CHUNKS]
        t.used[CHUNKS] += 1
        size = 2 if chunk == 0 else min(2 * t.chunk[chunk, _SIZE], CHUNK)
        t.chunk[new, _FIRST] = t.used[POSTINGS]
        t.chunk[new, _SIZE] = size
        t.used[POSTINGS] += size
        if chunk == 0:
            t.chain[key, _HEAD] = new
        else:
            t.chunk[chunk, _AFTER] = new
        t.chain[key, _TAIL] = new
        chunk = new
    t.posting[t.chunk[chunk, _FIRST] + t.chunk[chunk, _FILL]] = (_u64(slot) << _u64(32)) | _u64(mask)
    t.chunk[chunk, _FILL] += 1


@_compiled
def _add(t: Tables, entry: _Ints) -> None:
    slot, n, start = t.used[ENTRIES], len(entry), t.used[IDS]
    t.used[ENTRIES] += 1
    t.used[IDS] += n
    t.entry[slot, _START] = start
    t.entry[slot, LENGTH] = n
    t.row33[slot] = _u16(33 * min(n, SHORT + 1))
    bucket = 0
    while _TOP[bucket] < n:
        bucket += 1
    for j in range(n):
        t.ids[start + j] = entry[j]
    if n > SHORT:
        t.longs[t.used[LONGS]] = slot
        t.used[LONGS] += 1
        for token in entry:
            t.token[token, _LOCAL] += 1
        for token in entry:
            if t.token[token, _LOCAL] > 0:
                _post(t, token * BUCKETS + bucket, slot, t.token[token, _LOCAL])
                t.token[token, FREQUENCY] += 1
                t.token[token, _LOCAL] = 0
        return
    for j in range(n):
        token = entry[j]
        mask = _u32(0)
        repeated = False
        for i in range(n):
            if entry[i] == token:
                if i < j:
                    repeated = True
                    break
                mask |= _u32(1) << _u32(i)
        if repeated:
            continue
        _post(t, token * BUCKETS + bucket, slot, mask)
        t.token[token, FREQUENCY] += 1
        if t.token[token, ROW] > 0:
            t.dense[t.token[token, ROW] - 1, slot] = mask
        bit = _hash(token)
        t.entry[slot, _LOW + (bit >> 6)] |= _u64(1) << _u64(bit & 63)


@_compiled
def _room(t: Tables, n: int) -> bool:
    """Tell whether an entry of n tokens certainly fits."""
    return bool(
        t.used[ENTRIES] < len(t.entry)
        and t.used[IDS] + n <= len(t.ids)
        and t.used[POSTINGS] + n * CHUNK <= len(t.posting)
        and t.used[CHUNKS] + n <= len(t.chunk)
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
        at = t.token[token, _LOCAL]
        if at == 0:
            distinct += 1
            at = distinct
            t.token[token, _LOCAL] = at
            for w in range(words):
                t.pattern[at * words + w] = _u64(0)
        t.pattern[at * words + (i >> 6)] |= _u64(1) << _u64(i & 63)
    return words


@_compiled
def _release(t: Tables, query: _Ints) -> None:
    for token in query:
        t.token[token, _LOCAL] = 0


@_compiled
def _lcs(t: Tables, slot: int, words: int) -> int:
    """Return L of the prepared query and an entry: bit-parallel, with carries between words (Hyyro 2004)."""
    begin = _int(t.entry[slot, _START])
    end = begin + _int(t.entry[slot, LENGTH])
    full = _u64(0xFFFFFFFFFFFFFFFF)
    total = 0
    if words == 1:
        v = full
        for k in range(begin, end):
            at = t.token[t.ids[k], _LOCAL]
            if at:
                u = v & t.pattern[at]
                v = (v + u) | (v - u)
        return _int(_popcount(~v))
    for w in range(words):
        t.vector[w] = full
    for k in range(begin, end):
        at = t.token[t.ids[k], _LOCAL]
        if at == 0:
            continue
        carry = _u64(0)
        for w in range(words):
            v = t.vector[w]
            u = v & t.pattern[at * words + w]
            s = v + u
            up = _u64(s < u)
            s += carry
            carry = up | _u64(s < carry)
            t.vector[w] = s | (v - u)
    for w in range(words):
        total += _int(_popcount(~t.vector[w]))
    return total


@_compiled
def _sort_by_frequency(t: Tables, query: _Ints) -> None:
    m = len(query)
    if m > 64:
        keys = np.empty(m, np.int64)
        for i in range(m):
            keys[i] = t.token[query[i], FREQUENCY]
        t.order[:m] = np.argsort(keys)
        return
    for i in range(m):
        value = t.token[query[i], FREQUENCY]
        j = i
        while j > 0 and t.token[query[t.order[j - 1]], FREQUENCY] > value:
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
    count = seen = 0
    low, high = _u64(0), _u64(0)
    known = 0
    for token in query:
        if t.token[token, FREQUENCY] > 0:
            known += 1
            bit = _hash(token)
            if bit < 64:
                low |= _u64(1) << _u64(bit)
            else:
                high |= _u64(1) << _u64(bit - 64)
    # Every position whose token the entry has lies on a common bit, or is one of those that share a bit.
    slack = known - _int(_popcount(low)) - _int(_popcount(high))
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
            chunk = t.chain[query[i] * BUCKETS + bucket, _HEAD]
            if chunk == 0:
                continue
            # At most m - least positions of the query and n - need[n] of the entry stay unmatched.
            left = max(0, i - (m - least))
            right = min(31, i + longest - t.need[longest])
            if left > right:
                continue
            window = (_u32(0xFFFFFFFF) << _u32(left)) & (_u32(0xFFFFFFFF) >> _u32(31 - right))
            while chunk:
                begin = t.chunk[chunk, _FIRST]
                for p in range(begin, begin + t.chunk[chunk, _FILL]):
                    posting = t.posting[p]
                    if _u32(posting) & window == 0:
                        continue
                    slot = _int(posting >> _u64(32))
                    if slot >= limit:
                        break
                    common = _popcount(t.entry[slot, _LOW] & low) + _popcount(t.entry[slot, _HIGH] & high)
                    bound = _int(common) + slack
                    if bound < least or bound < t.need[t.entry[slot, LENGTH]] or t.overlap[slot] > 0:
                        continue
                    t.overlap[slot] = 1
                    t.touched[seen] = slot
                    seen += 1
                    lcs = _lcs(t, slot, words)
                    if lcs >= t.need[t.entry[slot, LENGTH]]:
                        _record(t, m, slot, lcs, count, best, slots, lengths)
                        count += 1
                chunk = t.chunk[chunk, _AFTER]
    for k in range(seen):
        t.overlap[t.touched[k]] = 0

    if t.used[LONGS]:
        touched = _overlaps(t, query, num, den, limit)
        for k in range(touched):
            slot = _int(t.touched[k])
            overlap = t.overlap[slot]
            t.overlap[slot] = 0
            need = num * (m + _int(t.entry[slot, LENGTH])) // (2 * den) + 1
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
    new = lcs * (m + _int(t.entry[best[0], LENGTH]))
    old = best[1] * (m + _int(t.entry[slot, LENGTH]))
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
        at = t.token[token, _LOCAL]
        count = _int(0)
        first = -1
        for w in range(words):
            bits = t.pattern[at * words + w]
            if bits and first < 0:
                first = 64 * w + _int(_popcount((bits & (~bits + _u64(1))) - _u64(1)))
            count += _int(_popcount(bits))
        if first != i:
            continue
        bottom = SHORT + 1
        for bucket in range(_SHORT_BUCKETS, BUCKETS):
            top = _TOP[bucket]
            feasible = num * (m + bottom) // (2 * den) + 1 <= m and num * (m + top) // (2 * den) + 1 <= top
            bottom = top + 1
            chunk = t.chain[token * BUCKETS + bucket, _HEAD]
            if not feasible:
                continue
            while chunk:
                begin = t.chunk[chunk, _FIRST]
                for p in range(begin, begin + t.chunk[chunk, _FILL]):
                    posting = t.posting[p]
                    slot = _int(posting >> _u64(32))
                    if slot >= limit:
                        break
                    if t.overlap[slot] == 0:
                        t.touched[touched] = slot
                        touched += 1
                    t.overlap[slot] += min(count, _int(_u32(posting)))
                chunk = t.chunk[chunk, _AFTER]
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
        result[k] = _lcs(t, _int(slots[k]), words)
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
    t.token[token, ROW] = row + 1
    for bucket in range(_SHORT_BUCKETS):
        chunk = t.chain[token * BUCKETS + bucket, _HEAD]
        while chunk:
            begin = t.chunk[chunk, _FIRST]
            for p in range(begin, begin + t.chunk[chunk, _FILL]):
                t.dense[row, t.posting[p] >> _u64(32)] = _u32(t.posting[p])
            chunk = t.chunk[chunk, _AFTER]


@_compiled
def every_lcs(t: Tables, query: _Ints, limit: int, histogram: _Longs) -> None:
    """Write L of every short entry into `lcs` and count the cells (n, L).

    Entries are the patterns: V = (V + (V & M)) | (V & ~M) for all of them in step with the query.
    """
    v = t.state[:limit]
    v[:] = _u32(0xFFFFFFFF)
    for token in query:
        if t.token[token, ROW] > 0:
            _step(v, t.dense[t.token[token, ROW] - 1, :limit])
            continue
        for bucket in range(_SHORT_BUCKETS):
            chunk = t.chain[token * BUCKETS + bucket, _HEAD]
            while chunk:
                begin = t.chunk[chunk, _FIRST]
                for p in range(begin, begin + t.chunk[chunk, _FILL]):
                    slot = _int(t.posting[p] >> _u64(32))
                    if slot >= limit:
                        break
                    before = v[slot]
                    matched = before & _u32(t.posting[p])
                    v[slot] = _u32(_u32(before + matched) | _u32(before ^ matched))
                chunk = t.chunk[chunk, _AFTER]
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
        v[i] = _u32(_u32(v[i] + matched) | _u32(v[i] ^ matched))


@_compiled
def _finish(v: npt.NDArray[np.uint32], lcs: npt.NDArray[np.uint8]) -> None:
    for i in range(len(v)):
        lcs[i] = _u8(_popcount(_u32(~v[i])))


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
