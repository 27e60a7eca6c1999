"""Every entry's L at once, compiled: the best k and the mean; entries are bit masks, see docs/novelty.md."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from selfinstruct.novelty.engine import SHORT
from selfinstruct.novelty.kernels import lcs_of, prepare, release
from selfinstruct.novelty.tables import (
    AFTER,
    BUCKETS,
    ENTRIES,
    FILL,
    FIRST,
    FREQUENCY,
    HEAD,
    LENGTH,
    LONGS,
    MASKS,
    SHORT_BUCKETS,
    START,
    WHERE,
    Handle,
    Tables,
    compiled,
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
        words = prepare(t, query)
        for at in range(t.used[LONGS]):
            slot = i64(t.longs[at])
            if slot >= limit:
                break
            n = t.entry[slot, LENGTH]
            lcs = lcs_of(t.hint, t.token, t.pattern, t.vector, words, t.ids, t.entry[slot, START], n)
            t.totals[n] += lcs
            if found < k or lcs * (m + last // (SHORT + 1)) >= (last % (SHORT + 1)) * (m + n):
                if count < len(slots):
                    slots[count] = slot
                    lengths[count] = lcs
                count += 1
        release(t, query)
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
