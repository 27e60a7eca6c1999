"""The nearest entry, compiled: counted by bits, then measured by falling count."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from selfinstruct.novelty.engine import SHORT
from selfinstruct.novelty.kernels import lcs_of, prepare, release
from selfinstruct.novelty.tables import (
    AFTER,
    BITS,
    BUCKETS,
    ENTRIES,
    FILL,
    FIRST,
    FREQUENCY,
    HEAD,
    LENGTH,
    LOCAL,
    SHORT_BUCKETS,
    START,
    WANTED,
    WHERE,
    Handle,
    Tables,
    compiled,
    i64,
    popcount,
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
def nearest(handle: Handle, query: _Ints, limit: int, best: _Longs) -> bool:
    """Write slot, L and length of the best entry into `best`; return whether any shares a token.

    L is at most the number of positions of the query whose token the entry has. So entries are measured by falling
    number, and of those with the same number only those short enough to be as good as the best so far.
    """
    t = handle.tables
    m = len(query)
    words = prepare(t, query)
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
    release(t, query)
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
        lcs = lcs_of(hint, token, pattern, vector, words, ids, entry[slot, START], n)
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
def fill_bits(handle: Handle, token: int, row: int) -> None:
    """Give a frequent token one bit per entry."""
    t = handle.tables
    t.token[token, BITS] = row + 1
    _gather(t, token, 1, t.used[ENTRIES], t.bits[row])
