"""The questions of the numba engine, compiled: the same mathematics as the numpy engine, in loops."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from selfinstruct.novelty.engine import SHORT
from selfinstruct.novelty.tables import (
    AFTER,
    BUCKETS,
    ENTRIES,
    FILL,
    FIRST,
    FREQUENCY,
    HEAD,
    LENGTH,
    LOCAL,
    LONGS,
    ROW,
    SHORT_BUCKETS,
    START,
    TOP,
    Tables,
    append,
    bit_of,
    compiled,
    fits,
    i64,
    popcount,
    u8,
    u32,
    u64,
)

_Ints = npt.NDArray[np.int32]
_Longs = npt.NDArray[np.int64]
_Words = npt.NDArray[np.uint64]


@compiled
def _prepare(t: Tables, query: _Ints) -> int:
    """Set the pattern masks of the query's tokens; return their number of words per token."""
    m = len(query)
    words = (m + 63) >> 6
    distinct = 0
    for i in range(m):
        token = query[i]
        at = t.token[token, LOCAL]
        if at == 0:
            distinct += 1
            at = distinct
            t.token[token, LOCAL] = at
            for w in range(words):
                t.pattern[at * words + w] = u64(0)
        t.pattern[at * words + (i >> 6)] |= u64(1) << u64(i & 63)
    return words


@compiled
def _release(t: Tables, query: _Ints) -> None:
    for token in query:
        t.token[token, LOCAL] = 0


@compiled
def _lcs(token: _Ints, pattern: _Words, vector: _Words, words: int, ids: _Ints, begin: int, n: int) -> int:
    """Return L of the prepared query and an entry: bit-parallel, with carries between words (Hyyro 2004).

    Takes the few arrays it needs and makes no slice: copying all of `Tables`, or counting a reference,
    would cost more than the work.
    """
    full = u64(0xFFFFFFFFFFFFFFFF)
    if words == 1:
        v = full
        for k in range(begin, begin + n):
            at = token[ids[k], LOCAL]
            if at:
                u = v & pattern[at]
                v = (v + u) | (v - u)
        return i64(popcount(~v))
    for w in range(words):
        vector[w] = full
    for k in range(begin, begin + n):
        at = token[ids[k], LOCAL]
        if at == 0:
            continue
        carry = u64(0)
        for w in range(words):
            v = vector[w]
            u = v & pattern[at * words + w]
            s = v + u
            up = u64(s < u)
            s += carry
            carry = up | u64(s < carry)
            vector[w] = s | (v - u)
    total = 0
    for w in range(words):
        total += i64(popcount(~vector[w]))
    return total


@compiled
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


@compiled
def above(t: Tables, query: _Ints, num: int, den: int, limit: int, best: _Longs, slots: _Longs, lengths: _Longs) -> int:
    """Find the entries that are too near.

    Writes slot, L of the nearest into `best`, the first hits into `slots` and `lengths` (their L);
    returns the number of hits, which may be more than fit.
    """
    m = len(query)
    words = _prepare(t, query)
    count = seen = 0
    low, high = u64(0), u64(0)
    known = 0
    for token in query:
        if t.token[token, FREQUENCY] > 0:
            known += 1
            bit = bit_of(token)
            if bit < 64:
                low |= u64(1) << u64(bit)
            else:
                high |= u64(1) << u64(bit - 64)
    # Every position whose token the entry has lies on a common bit, or is one of those that share a bit.
    slack = known - i64(popcount(low)) - i64(popcount(high))
    for n in range(SHORT + 1):
        t.need[n] = num * (m + n) // (2 * den) + 1
    _sort_by_frequency(t, query)

    bottom = 1
    for bucket in range(SHORT_BUCKETS):
        top = TOP[bucket]
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
        bar = least - slack
        # L >= need[n] means sharing a token with any m - need[n] + 1 positions: take the rarest ones.
        for rank in range(m - least + 1):
            i = t.order[rank]
            chunk = t.chain[query[i] * BUCKETS + bucket, HEAD]
            if chunk == 0:
                continue
            # At most m - least positions of the query and n - need[n] of the entry stay unmatched.
            left = max(0, i - (m - least))
            right = min(31, i + longest - t.need[longest])
            if left > right:
                continue
            window = (u32(0xFFFFFFFF) << u32(left)) & (u32(0xFFFFFFFF) >> u32(31 - right))
            while chunk:
                begin = t.chunk[chunk, FIRST]
                # Without branches, so that the processor waits for many entries at once, not for one after another.
                inside = 0
                for p in range(begin, begin + t.chunk[chunk, FILL]):
                    posting = t.posting[p]
                    slot = i64(posting >> u64(32))
                    t.queue[inside] = slot
                    inside += (u32(posting) & window != 0) & (slot < limit)
                likely = 0
                for p in range(inside):
                    slot = t.queue[p]
                    common = popcount(t.signature[slot, 0] & low) + popcount(t.signature[slot, 1] & high)
                    t.queue[likely] = slot
                    likely += i64(common) >= bar
                for p in range(likely):
                    slot = t.queue[p]
                    common = popcount(t.signature[slot, 0] & low) + popcount(t.signature[slot, 1] & high)
                    begin, n = t.entry[slot, START], t.entry[slot, LENGTH]
                    if i64(common) + slack < t.need[n] or t.overlap[slot] > 0:
                        continue
                    t.overlap[slot] = 1
                    t.touched[seen] = slot
                    seen += 1
                    lcs = _lcs(t.token, t.pattern, t.vector, words, t.ids, begin, n)
                    if lcs >= t.need[n]:
                        _record(t.entry, m, slot, lcs, count, best, slots, lengths)
                        count += 1
                chunk = t.chunk[chunk, AFTER]
    for k in range(seen):
        t.overlap[t.touched[k]] = 0

    if t.used[LONGS]:
        touched = _overlaps(t, query, num, den, limit)
        for k in range(touched):
            slot = i64(t.touched[k])
            overlap = t.overlap[slot]
            t.overlap[slot] = 0
            begin, n = t.entry[slot, START], t.entry[slot, LENGTH]
            need = num * (m + n) // (2 * den) + 1
            if overlap >= need:
                lcs = _lcs(t.token, t.pattern, t.vector, words, t.ids, begin, n)
                if lcs >= need:
                    _record(t.entry, m, slot, lcs, count, best, slots, lengths)
                    count += 1
    _release(t, query)
    return count


@compiled
def _record(
    entry: _Longs, m: int, slot: int, lcs: int, count: int, best: _Longs, slots: _Longs, lengths: _Longs
) -> None:
    if count < len(slots):
        slots[count] = slot
        lengths[count] = lcs
    new = lcs * (m + entry[best[0], LENGTH])
    old = best[1] * (m + entry[slot, LENGTH])
    if count == 0 or new > old or (new == old and slot < best[0]):
        best[0] = slot
        best[1] = lcs


@compiled
def _overlaps(t: Tables, query: _Ints, num: int, den: int, limit: int) -> int:
    """Add up the bag overlaps of the long entries whose length can do; return how many were touched.

    The query is prepared: a token's positions are the bits of its pattern.
    """
    m = len(query)
    words = (m + 63) >> 6
    touched = 0
    for i in range(m):
        token = query[i]
        at = t.token[token, LOCAL]
        count = i64(0)
        first = -1
        for w in range(words):
            bits = t.pattern[at * words + w]
            if bits and first < 0:
                first = 64 * w + i64(popcount((bits & (~bits + u64(1))) - u64(1)))
            count += i64(popcount(bits))
        if first != i:
            continue
        bottom = SHORT + 1
        for bucket in range(SHORT_BUCKETS, BUCKETS):
            top = TOP[bucket]
            feasible = num * (m + bottom) // (2 * den) + 1 <= m and num * (m + top) // (2 * den) + 1 <= top
            bottom = top + 1
            chunk = t.chain[token * BUCKETS + bucket, HEAD]
            if not feasible:
                continue
            while chunk:
                begin = t.chunk[chunk, FIRST]
                for p in range(begin, begin + t.chunk[chunk, FILL]):
                    posting = t.posting[p]
                    slot = i64(posting >> u64(32))
                    if slot >= limit:
                        break
                    if t.overlap[slot] == 0:
                        t.touched[touched] = slot
                        touched += 1
                    t.overlap[slot] += min(count, i64(u32(posting)))
                chunk = t.chunk[chunk, AFTER]
    return touched


@compiled
def long_overlaps(t: Tables, query: _Ints, limit: int, result: _Longs) -> None:
    """Write the bag overlap of each long entry with the query, in the order of `longs`."""
    _prepare(t, query)
    _overlaps(t, query, 0, 1, limit)
    for k in range(len(result)):
        result[k] = t.overlap[t.longs[k]]
        t.overlap[t.longs[k]] = 0
    _release(t, query)


@compiled
def measure(t: Tables, query: _Ints, slots: _Ints, result: _Longs) -> None:
    """Write L of the query and each of those entries."""
    words = _prepare(t, query)
    for k in range(len(slots)):
        begin, n = t.entry[slots[k], START], t.entry[slots[k], LENGTH]
        result[k] = _lcs(t.token, t.pattern, t.vector, words, t.ids, begin, n)
    _release(t, query)


@compiled
def offer_many(t: Tables, flat: _Ints, ends: _Longs, begin: int, num: int, den: int, results: _Longs) -> int:
    """Offer entries `begin`.. of a batch; write slot (-1: added) and L; return the first that needs room."""
    best = np.zeros(2, np.int64)
    none = np.zeros(0, np.int64)
    for i in range(begin, len(ends)):
        entry = flat[ends[i - 1] if i else 0 : ends[i]]
        if not fits(t, len(entry)):
            return i
        if above(t, entry, num, den, t.used[ENTRIES], best, none, none):
            results[i, 0] = best[0]
            results[i, 1] = best[1]
        else:
            results[i, 0] = -1
            append(t, entry)
    return len(ends)


@compiled
def fill_row(t: Tables, token: int, row: int) -> None:
    """Give a frequent token one mask per entry."""
    t.token[token, ROW] = row + 1
    for bucket in range(SHORT_BUCKETS):
        chunk = t.chain[token * BUCKETS + bucket, HEAD]
        while chunk:
            begin = t.chunk[chunk, FIRST]
            for p in range(begin, begin + t.chunk[chunk, FILL]):
                t.dense[row, t.posting[p] >> u64(32)] = u32(t.posting[p])
            chunk = t.chunk[chunk, AFTER]


@compiled
def every_lcs(t: Tables, query: _Ints, limit: int, histogram: _Longs) -> None:
    """Write L of every short entry into `lcs` and count the cells (n, L).

    Entries are the patterns: V = (V + (V & M)) | (V & ~M) for all of them in step with the query.
    """
    v = t.state[:limit]
    v[:] = u32(0xFFFFFFFF)
    for token in query:
        if t.token[token, ROW] > 0:
            _step(v, t.dense[t.token[token, ROW] - 1, :limit])
            continue
        for bucket in range(SHORT_BUCKETS):
            chunk = t.chain[token * BUCKETS + bucket, HEAD]
            while chunk:
                begin = t.chunk[chunk, FIRST]
                for p in range(begin, begin + t.chunk[chunk, FILL]):
                    slot = i64(t.posting[p] >> u64(32))
                    if slot >= limit:
                        break
                    before = v[slot]
                    matched = before & u32(t.posting[p])
                    v[slot] = u32(u32(before + matched) | u32(before ^ matched))
                chunk = t.chunk[chunk, AFTER]
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


@compiled
def _step(v: npt.NDArray[np.uint32], masks: npt.NDArray[np.uint32]) -> None:
    for i in range(len(v)):
        matched = v[i] & masks[i]
        v[i] = u32(u32(v[i] + matched) | u32(v[i] ^ matched))


@compiled
def _finish(v: npt.NDArray[np.uint32], lcs: npt.NDArray[np.uint8]) -> None:
    for i in range(len(v)):
        lcs[i] = u8(popcount(u32(~v[i])))


@compiled
def collect(t: Tables, wanted: _Longs, k: int, limit: int, slots: _Longs) -> int:
    """Write the first k slots of each wanted cell (`wanted[cell]` counts down from k); return how many."""
    count = 0
    least = u8(255)
    for cell in range(len(wanted)):
        if wanted[cell] > 0:
            least = min(least, u8(cell % (SHORT + 1)))
    for slot in range(limit):
        if t.lcs[slot] < least:
            continue
        cell = t.row33[slot] + t.lcs[slot]
        if wanted[cell] > 0:
            wanted[cell] -= 1
            slots[count] = slot
            count += 1
    return count
