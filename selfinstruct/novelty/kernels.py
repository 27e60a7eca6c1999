"""The decision, compiled: every entry above a threshold. The same mathematics as the numpy engine, in loops."""

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
    HINTS,
    LENGTH,
    LOCAL,
    LONGS,
    ONE,
    OTHER,
    SHORT_BUCKETS,
    START,
    TOP,
    WHERE,
    Handle,
    Tables,
    append,
    bits_of,
    compiled,
    fits,
    i64,
    popcount,
    u32,
    u64,
)

_Bytes = npt.NDArray[np.uint8]
_Ints = npt.NDArray[np.int32]
_Longs = npt.NDArray[np.int64]
_Words = npt.NDArray[np.uint64]


@compiled
def prepare(t: Tables, query: _Ints) -> int:
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
            t.hint[token & (HINTS - 1)] = 1
            for w in range(words):
                t.pattern[at * words + w] = u64(0)
        t.pattern[at * words + (i >> 6)] |= u64(1) << u64(i & 63)
    return words


@compiled
def release(t: Tables, query: _Ints) -> None:
    """Undo `prepare`."""
    for token in query:
        t.token[token, LOCAL] = 0
        t.hint[token & (HINTS - 1)] = 0


@compiled
def lcs_of(
    hint: _Bytes, token: _Ints, pattern: _Words, vector: _Words, words: int, ids: _Ints, begin: int, n: int
) -> int:
    """Return L of the prepared query and an entry: bit-parallel, with carries between words (Hyyro 2004).

    Takes the few arrays it needs and makes no slice: copying all of `Tables`, or counting a reference,
    would cost more than the work. The hint, which stays in the nearest cache, spares most looks into `token`.
    """
    full = u64(0xFFFFFFFFFFFFFFFF)
    if words == 1:
        v = full
        for k in range(begin, begin + n):
            if hint[ids[k] & (HINTS - 1)]:
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
def above(
    handle: Handle, query: _Ints, num: int, den: int, limit: int, best: _Longs, slots: _Longs, lengths: _Longs
) -> int:
    """Find the entries that are too near.

    Writes slot and L of the nearest into `best`, the first hits into `slots` and `lengths` (their L);
    returns the number of hits, which may be more than fit.
    """
    t = handle.tables
    m = len(query)
    words = prepare(t, query)
    hint, tokens, pattern, vector, ids = t.hint, t.token, t.pattern, t.vector, t.ids
    entry, posting, queue, seen, need = t.entry, t.posting, t.queue, t.seen, t.need
    count = touched = known = 0
    one, other = u64(0), u64(0)
    for token in query:
        if tokens[token, FREQUENCY] > 0:
            known += 1
            bit, bit2 = bits_of(token)
            one |= bit
            other |= bit2
    # Every position whose token the entry has lies on a common bit, or is one of those that share a bit.
    slack, slack2 = known - i64(popcount(one)), known - i64(popcount(other))
    for n in range(SHORT + 1):
        need[n] = num * (m + n) // (2 * den) + 1
    _sort_by_frequency(t, query)

    bottom = 1
    for bucket in range(SHORT_BUCKETS):
        top = TOP[bucket]
        shortest, longest = 0, 0
        for n in range(bottom, top + 1):
            if need[n] <= min(m, n):
                longest = n
                if shortest == 0:
                    shortest = n
        bottom = top + 1
        if longest == 0:
            continue
        least = need[shortest]
        bar = least - slack
        # L >= need[n] means sharing a token with any m - need[n] + 1 positions: take the rarest ones.
        for rank in range(m - least + 1):
            i = t.order[rank]
            chunk = t.chain[query[i] * BUCKETS + bucket, HEAD]
            if chunk == 0:
                continue
            # At most m - least positions of the query and n - need[n] of the entry stay unmatched.
            left = max(0, i - (m - least))
            right = min(31, i + longest - need[longest])
            if left > right:
                continue
            window = (u32(0xFFFFFFFF) << u32(left)) & (u32(0xFFFFFFFF) >> u32(31 - right))
            while chunk:
                begin = t.chunk[chunk, FIRST]
                # Without branches, so that the processor reads on while it compares.
                likely = 0
                for p in range(begin, begin + t.chunk[chunk, FILL]):
                    where = posting[p, WHERE]
                    slot = i64(where >> u64(32))
                    queue[likely] = slot
                    common = i64(popcount(posting[p, ONE] & one))
                    likely += (common >= bar) & (u32(where) & window != 0) & (slot < limit)
                for p in range(likely):
                    slot = queue[p]
                    if seen[slot]:
                        continue
                    seen[slot] = 1
                    t.touched[touched] = slot
                    touched += 1
                    n = entry[slot, LENGTH]
                    if i64(popcount(u64(entry[slot, OTHER]) & other)) + slack2 < need[n]:
                        continue
                    lcs = lcs_of(hint, tokens, pattern, vector, words, ids, entry[slot, START], n)
                    if lcs >= need[n]:
                        _record(entry, m, slot, lcs, count, best, slots, lengths)
                        count += 1
                chunk = t.chunk[chunk, AFTER]
    for k in range(touched):
        seen[t.touched[k]] = 0

    if t.used[LONGS]:
        count = _long(t, query, words, num, den, limit, count, best, slots, lengths)
    release(t, query)
    return count


@compiled
def _long(
    t: Tables, query: _Ints, words: int, num: int, den: int, limit: int, count: int,
    best: _Longs, slots: _Longs, lengths: _Longs,
) -> int:  # fmt: skip
    """Go on with the long entries: the overlap of the token bags bounds L from above."""
    m = len(query)
    touched = _overlaps(t, query, num, den, limit)
    for k in range(touched):
        slot = i64(t.touched[k])
        overlap, n = t.overlap[slot], t.entry[slot, LENGTH]
        t.overlap[slot] = 0
        need = num * (m + n) // (2 * den) + 1
        if overlap < need:
            continue
        lcs = lcs_of(t.hint, t.token, t.pattern, t.vector, words, t.ids, t.entry[slot, START], n)
        if lcs >= need:
            _record(t.entry, m, slot, lcs, count, best, slots, lengths)
            count += 1
    return count


@compiled
def _record(
    entry: _Longs, m: int, slot: int, lcs: int, count: int, best: _Longs, slots: _Longs, lengths: _Longs
) -> None:
    """Take down a hit."""
    if count < len(slots):
        slots[count] = slot
        lengths[count] = lcs
    new = lcs * (m + best[2])
    old = best[1] * (m + entry[slot, LENGTH])
    if count == 0 or new > old or (new == old and slot < best[0]):
        best[0] = slot
        best[1] = lcs
        best[2] = entry[slot, LENGTH]


@compiled
def _overlaps(t: Tables, query: _Ints, num: int, den: int, limit: int) -> int:
    """Add up the bag overlaps of the long entries whose length can do; return how many were touched.

    The query is prepared: a token's positions are the bits of its pattern.
    """
    m = len(query)
    words = (m + 63) >> 6
    first_bucket, last_bucket = BUCKETS, SHORT_BUCKETS  # from, and to before: the lengths between can do
    bottom = SHORT + 1
    for bucket in range(SHORT_BUCKETS, BUCKETS):
        top = TOP[bucket]
        if num * (m + bottom) // (2 * den) + 1 <= m and num * (m + top) // (2 * den) + 1 <= top:
            first_bucket, last_bucket = min(first_bucket, bucket), bucket + 1
        bottom = top + 1
    if first_bucket >= last_bucket:
        return 0
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
        for bucket in range(first_bucket, last_bucket):
            chunk = t.chain[token * BUCKETS + bucket, HEAD]
            while chunk:
                begin = t.chunk[chunk, FIRST]
                for p in range(begin, begin + t.chunk[chunk, FILL]):
                    posting = t.posting[p, WHERE]
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
def offer_many(handle: Handle, flat: _Ints, ends: _Longs, begin: int, num: int, den: int, results: _Longs) -> int:
    """Offer entries `begin`.. of a batch; write slot (-1: added) and L; return the first that needs room."""
    t = handle.tables
    best = np.zeros(3, np.int64)
    none = np.zeros(0, np.int64)
    for i in range(begin, len(ends)):
        entry = flat[ends[i - 1] if i else 0 : ends[i]]
        if not fits(t, len(entry)):
            return i
        if above(handle, entry, num, den, t.used[ENTRIES], best, none, none):
            results[i, 0] = best[0]
            results[i, 1] = best[1]
        else:
            results[i, 0] = -1
            append(t, entry)
    return len(ends)
