"""The questions of the numba engine, compiled: the same mathematics as the numpy engine, in loops."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from selfinstruct.novelty.engine import SHORT
from selfinstruct.novelty.tables import (
    AFTER,
    BITS,
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
    MASKS,
    ONE,
    OTHER,
    SHORT_BUCKETS,
    START,
    TOP,
    WANTED,
    WHERE,
    Handle,
    Tables,
    append,
    bits_of,
    compiled,
    fits,
    i64,
    popcount,
    u8,
    u32,
    u64,
)

_Bytes = npt.NDArray[np.uint8]
_Ints = npt.NDArray[np.int32]
_Longs = npt.NDArray[np.int64]
_Words = npt.NDArray[np.uint64]

QUEUE = 64
"""So many entries are fetched together before they are measured."""
BITS_SHARE, BITS_FROM = 256, 16_384
"""A token in more than 1/256 of the entries gets a row of bits, in a pool of that many: fewer are gathered as fast."""


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
            t.hint[token & (HINTS - 1)] = 1
            for w in range(words):
                t.pattern[at * words + w] = u64(0)
        t.pattern[at * words + (i >> 6)] |= u64(1) << u64(i & 63)
    return words


@compiled
def _release(t: Tables, query: _Ints) -> None:
    for token in query:
        t.token[token, LOCAL] = 0
        t.hint[token & (HINTS - 1)] = 0


@compiled
def _lcs(
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
    words = _prepare(t, query)
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
                    lcs = _lcs(hint, tokens, pattern, vector, words, ids, entry[slot, START], n)
                    if lcs >= need[n]:
                        _record(entry, m, slot, lcs, count, best, slots, lengths)
                        count += 1
                chunk = t.chunk[chunk, AFTER]
    for k in range(touched):
        seen[t.touched[k]] = 0

    if t.used[LONGS]:
        count = _long(t, query, words, num, den, limit, count, best, slots, lengths)
    _release(t, query)
    return count


@compiled
def nearest(handle: Handle, query: _Ints, limit: int, best: _Longs) -> bool:
    """Write slot, L and length of the best entry into `best`; return whether any shares a token.

    L is at most the number of positions of the query whose token the entry has. So entries are measured by falling
    number, and of those with the same number only those short enough to be as good as the best so far.
    """
    t = handle.tables
    m = len(query)
    words = _prepare(t, query)
    entry, queue = t.entry, t.queue
    blocks = (limit + 63) >> 6
    bits = _count_matches(t, query, words, limit, blocks)
    level = t.plane[0, :blocks]
    best[0], best[1], best[2] = 0, 0, 0
    for matches in range(_highest(t.plane, bits, blocks), 0, -1):
        longest = SHORT + 1
        if best[1] > 0:
            if matches * (m + best[2]) < best[1] * (m + matches):
                break  # not even an entry of just these tokens is as good
            longest = min(longest, matches * (m + best[2]) // best[1] - m)
        if not _level(t.plane, bits, matches, t.shorter[longest, :blocks], level):
            continue
        waiting = 0
        for block in range(blocks):
            word = level[block]
            while word:
                slot = (block << 6) + i64(popcount((word & (~word + u64(1))) - u64(1)))
                word &= word - u64(1)
                if slot >= limit:
                    break
                queue[waiting] = slot
                waiting += 1
                if waiting == QUEUE:
                    _measure(
                        t.hint, t.token, t.pattern, t.vector, words, t.ids, entry, m, matches, queue, waiting, best
                    )
                    waiting = 0
        _measure(t.hint, t.token, t.pattern, t.vector, words, t.ids, entry, m, matches, queue, waiting, best)
    _release(t, query)
    return bool(best[1] > 0)


@compiled
def _measure(
    hint: _Bytes, token: _Ints, pattern: _Words, vector: _Words, words: int, ids: _Ints, entry: _Longs,
    m: int, matches: int, queue: _Longs, waiting: int, best: _Longs,
) -> None:  # fmt: skip
    """Measure the entries in the queue that can be better than the best.

    All are fetched before the first is measured: the processor waits for one after another only when it can't tell
    which comes next.
    """
    fetched = 0
    for k in range(waiting):
        fetched |= ids[entry[queue[k], START]]
    if fetched < 0:
        return  # ids are positive; without this the compiler would leave the fetching out
    for k in range(waiting):
        slot = queue[k]
        n = entry[slot, LENGTH]
        bound, reached = matches * (m + best[2]), best[1] * (m + n)
        if bound < reached or (bound == reached and slot > best[0]):
            continue
        lcs = _lcs(hint, token, pattern, vector, words, ids, entry[slot, START], n)
        found = lcs * (m + best[2])
        if found > reached or (found == reached and slot < best[0]):
            best[0], best[1], best[2] = slot, lcs, n


@compiled
def _count_matches(t: Tables, query: _Ints, words: int, limit: int, blocks: int) -> int:
    """Count for each entry the positions of the query whose token it has; return the number of bits of the counts.

    Bit k of the counts of a block of 64 entries is one word of `plane[1 + k]`: adding one to any of them
    takes a few instructions. A token's second position counts for entries that have it twice, and so on,
    unless the query is short: there it is rare, and the row of bits is at hand.
    """
    m = len(query)
    bits = 3
    while m >> bits:
        bits += 1
    plane = t.plane
    plane[1 : 1 + bits, :blocks] = u64(0)
    low, middle, high = plane[1, :blocks], plane[2, :blocks], plane[3, :blocks]
    carry, gathered = plane[0, :blocks], plane[1 + bits, :blocks]
    t.used[WANTED] = 0
    for i in range(m):
        token = query[i]
        frequency, row = t.token[token, FREQUENCY], t.token[token, BITS]
        if frequency == 0:
            continue
        times = 1 if m <= SHORT else _times(t.pattern, t.token[token, LOCAL], words, i)
        if row > 0 and times == 1:
            some = _add_three(low, middle, high, t.bits[row - 1, :blocks], carry)
        else:
            gathered[:] = u64(0)
            _gather(t, token, times, limit, gathered)
            if row == 0 and frequency * BITS_SHARE > max(t.used[ENTRIES], BITS_FROM):
                t.used[WANTED] = token
            some = _add_three(low, middle, high, gathered, carry)
        k = 4
        while some:
            some = _add(plane[k, :blocks], carry)
            k += 1
    return bits


@compiled
def _times(pattern: _Words, at: int, words: int, i: int) -> int:
    """Return how often the token of position i stands in the query up to there."""
    times = i64(popcount(pattern[at * words + (i >> 6)] << u64(63 - (i & 63))))
    for w in range(i >> 6):
        times += i64(popcount(pattern[at * words + w]))
    return times


@compiled
def _gather(t: Tables, token: int, times: int, limit: int, bits: _Words) -> None:
    """Set the bits of the entries below `limit` that have the token so many times."""
    for bucket in range(BUCKETS):
        chunk = t.chain[token * BUCKETS + bucket, HEAD]
        while chunk:
            begin = t.chunk[chunk, FIRST]
            for p in range(begin, begin + t.chunk[chunk, FILL]):
                where = t.posting[p, WHERE]
                slot = i64(where >> u64(32))
                if slot >= limit:
                    break
                held = i64(popcount(u32(where))) if bucket < SHORT_BUCKETS else i64(u32(where))
                if held >= times:
                    bits[slot >> 6] |= u64(1) << u64(slot & 63)
            chunk = t.chunk[chunk, AFTER]


@compiled
def _add_three(low: _Words, middle: _Words, high: _Words, bits: _Words, carry: _Words) -> bool:
    """Add bits to three planes at once, leave what is carried to the next in `carry`; tell whether there is any."""
    some = u64(0)
    for block in range(len(bits)):
        one = low[block] & bits[block]
        two = middle[block] & one
        four = high[block] & two
        low[block] ^= bits[block]
        middle[block] ^= one
        high[block] ^= two
        carry[block] = four
        some |= four
    return bool(some)


@compiled
def _add(plane: _Words, carry: _Words) -> bool:
    """Add bits to a plane, leave what is carried to the next one in `carry`; tell whether there is any."""
    some = u64(0)
    for block in range(len(plane)):
        both = plane[block] & carry[block]
        plane[block] ^= carry[block]
        carry[block] = both
        some |= both
    return bool(some)


@compiled
def _highest(plane: _Words, bits: int, blocks: int) -> int:
    """Return the highest of the counts."""
    highest = 0
    among, with_bit = plane[0, :blocks], np.empty(blocks, np.uint64)
    among[:] = u64(0xFFFFFFFFFFFFFFFF)
    for k in range(bits - 1, -1, -1):
        row = plane[1 + k]
        some = u64(0)
        for block in range(blocks):
            with_bit[block] = among[block] & row[block]
            some |= with_bit[block]
        if some:
            highest |= 1 << k
            among[:] = with_bit
    return highest


@compiled
def _level(plane: _Words, bits: int, count: int, among: _Words, level: _Words) -> bool:
    """Write into `level` which of the entries `among` have exactly that count; tell whether any has."""
    level[:] = among
    some = u64(0)
    for k in range(bits):
        flip = u64(0) if (count >> k) & 1 else u64(0xFFFFFFFFFFFFFFFF)
        row = plane[1 + k]
        for block in range(len(level)):
            level[block] &= row[block] ^ flip
    for block in range(len(level)):
        some |= level[block]
    return bool(some)


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
        lcs = _lcs(t.hint, t.token, t.pattern, t.vector, words, t.ids, t.entry[slot, START], n)
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


@compiled
def without_masks(handle: Handle, query: _Ints, share: int) -> int:
    """Return a token of the query that is in more than 1/share of the entries and has no row of masks, or 0."""
    t = handle.tables
    for token in query:
        if t.token[token, FREQUENCY] * share > max(t.used[ENTRIES], 1024) and t.token[token, MASKS] == 0:
            return i64(token)
    return 0


@compiled
def fill_masks(handle: Handle, token: int, row: int) -> None:
    """Give a frequent token one mask per entry."""
    t = handle.tables
    t.token[token, MASKS] = row + 1
    for bucket in range(SHORT_BUCKETS):
        chunk = t.chain[token * BUCKETS + bucket, HEAD]
        while chunk:
            begin = t.chunk[chunk, FIRST]
            for p in range(begin, begin + t.chunk[chunk, FILL]):
                t.dense[row, t.posting[p, WHERE] >> u64(32)] = u32(t.posting[p, WHERE])
            chunk = t.chunk[chunk, AFTER]


@compiled
def fill_bits(handle: Handle, token: int, row: int) -> None:
    """Give a frequent token one bit per entry."""
    t = handle.tables
    t.token[token, BITS] = row + 1
    _gather(t, token, 1, t.used[ENTRIES], t.bits[row])


@compiled
def top(handle: Handle, query: _Ints, k: int, limit: int, by_score: _Longs, slots: _Longs, lengths: _Longs) -> int:
    """Find the k best entries, with all that are as good as the last of them, in no order.

    `by_score` has the cells n * 33 + L of short entries by falling score. Writes slots and their L, and adds up
    the L of all entries by their length in `totals`. Returns the number of finds, which may be more than fit.
    """
    t = handle.tables
    m = len(query)
    _every_lcs(t, query, limit)
    cells = t.cells
    _count_cells(t.row33[:limit], t.lcs[:limit], cells)
    for n in range(SHORT + 1):
        for lcs in range(SHORT + 1):
            t.totals[n] += lcs * cells[0, n * (SHORT + 1) + lcs]
    found, last = i64(0), i64(0)  # entries found, and the last cell wanted
    least = u8(255)
    for cell in by_score:
        size = cells[0, cell]
        if size == 0:
            continue
        n, lcs = cell // (SHORT + 1), cell % (SHORT + 1)
        if found >= k and lcs * (m + last // (SHORT + 1)) < (last % (SHORT + 1)) * (m + n):
            break
        cells[1, cell] = min(size, k)
        found += size
        last = cell
        least = min(least, u8(lcs))
    count = 0
    if found:
        count = _collect(t.row33[:limit], t.lcs[:limit], cells[1], least, slots, lengths)
    cells[:2] = 0
    if t.used[LONGS]:
        words = _prepare(t, query)
        for at in range(t.used[LONGS]):
            slot = i64(t.longs[at])
            if slot >= limit:
                break
            n = t.entry[slot, LENGTH]
            lcs = _lcs(t.hint, t.token, t.pattern, t.vector, words, t.ids, t.entry[slot, START], n)
            t.totals[n] += lcs
            if found < k or lcs * (m + last // (SHORT + 1)) >= (last % (SHORT + 1)) * (m + n):
                if count < len(slots):
                    slots[count] = slot
                    lengths[count] = lcs
                count += 1
        _release(t, query)
    return count


@compiled
def _every_lcs(t: Tables, query: _Ints, limit: int) -> None:
    """Write L of every short entry into `lcs`.

    Entries are the patterns: V = (V + (V & M)) | (V & ~M) for all of them in step with the query.
    """
    v = t.state[:limit]
    v[:] = u32(0xFFFFFFFF)
    for token in query:
        if t.token[token, MASKS] > 0:
            _step(v, t.dense[t.token[token, MASKS] - 1, :limit])
            continue
        for bucket in range(SHORT_BUCKETS):
            chunk = t.chain[token * BUCKETS + bucket, HEAD]
            while chunk:
                begin = t.chunk[chunk, FIRST]
                for p in range(begin, begin + t.chunk[chunk, FILL]):
                    where = t.posting[p, WHERE]
                    slot = i64(where >> u64(32))
                    if slot >= limit:
                        break
                    before = v[slot]
                    matched = before & u32(where)
                    v[slot] = u32(u32(before + matched) | u32(before ^ matched))
                chunk = t.chunk[chunk, AFTER]
    _finish(v, t.lcs[:limit])


@compiled
def _step(v: npt.NDArray[np.uint32], masks: npt.NDArray[np.uint32]) -> None:
    for i in range(len(v)):
        matched = v[i] & masks[i]
        v[i] = u32(u32(v[i] + matched) | u32(v[i] ^ matched))


@compiled
def _finish(v: npt.NDArray[np.uint32], lcs: _Bytes) -> None:
    for i in range(len(v)):
        lcs[i] = u8(popcount(u32(~v[i])))


@compiled
def _count_cells(row33: npt.NDArray[np.uint16], lcs: _Bytes, cells: _Ints) -> None:
    """Count the short entries by (n, L) into `cells[0]`, in turns: equal neighbours would wait for each other."""
    whole = len(lcs) & ~3
    for slot in range(0, whole, 4):
        cells[0, row33[slot] + lcs[slot]] += 1
        cells[1, row33[slot + 1] + lcs[slot + 1]] += 1
        cells[2, row33[slot + 2] + lcs[slot + 2]] += 1
        cells[3, row33[slot + 3] + lcs[slot + 3]] += 1
    for slot in range(whole, len(lcs)):
        cells[0, row33[slot] + lcs[slot]] += 1
    for cell in range(cells.shape[1]):
        cells[0, cell] += cells[1, cell] + cells[2, cell] + cells[3, cell]
        cells[1, cell] = cells[2, cell] = cells[3, cell] = 0


@compiled
def _reaches(lcs: _Bytes, least: int) -> bool:
    """Tell whether any L is that high; without a branch it becomes a few vector instructions."""
    some = u8(0)
    for slot in range(len(lcs)):
        some |= u8(lcs[slot] >= least)
    return bool(some)


@compiled
def _collect(
    row33: npt.NDArray[np.uint16], lcs: _Bytes, wanted: _Ints, least: int, slots: _Longs, lengths: _Longs
) -> int:
    """Write the first slots of each wanted cell (`wanted[cell]` counts down); return how many."""
    count = 0
    bar = u8(least)
    for block in range(0, len(lcs), 64):
        if not _reaches(lcs[block : block + 64], bar):
            continue
        for slot in range(block, min(block + 64, len(lcs))):
            if lcs[slot] < bar:
                continue
            cell = row33[slot] + lcs[slot]
            if wanted[cell] > 0:
                wanted[cell] -= 1
                if count < len(slots):
                    slots[count] = slot
                    lengths[count] = lcs[slot]
                count += 1
    return count
