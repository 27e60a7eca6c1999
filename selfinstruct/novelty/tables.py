"""The state of the numba engine: flat arrays, how they grow, and how an entry is added.

The postings of one token and one bucket of entry lengths are a chain of chunks in a common arena; entries are
only ever appended, so a chain is in slot order. Compiled code never grows an array: it stops at the
entry that may not fit, and `with_entries` makes the tables larger.

numba turns mixed signed and unsigned arithmetic into floats, hence the casts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
import numpy.typing as npt
from numba import njit, types
from numba.experimental import structref
from numba.extending import intrinsic

from selfinstruct.novelty.engine import CELLS, SHORT

_F = TypeVar("_F", bound=Callable[..., Any])
_Ints = npt.NDArray[np.int32]
_Longs = npt.NDArray[np.int64]
_Words = npt.NDArray[np.uint64]

# numba reads these as numpy's types, mypy as whatever the place needs.
_structref: Any = structref
i64: Callable[[Any], int] = cast(Any, np.int64)
u8, u16, u32, u64 = cast(Any, (np.uint8, np.uint16, np.uint32, np.uint64))

BUCKETS = 15
"""Entry lengths ..4, 6, 8, 10, 12, 16, 22, 32, then doubling: narrow where most entries are."""
SHORT_BUCKETS = 8
"""How many of them hold short entries."""
TOP = (4, 6, 8, 10, 12, 16, 22, 32, 64, 128, 256, 512, 1024, 2048, 2**31 - 1)
HINTS = 1024
"""Size of `Tables.hint`."""
CHUNK = 1024
"""Largest chunk of postings; chunks quadruple from 4 up to it."""

ENTRIES, IDS, POSTINGS, CHUNKS, LONGS, WANTED = range(6)
"""Places in `Tables.used`; WANTED is a token of the last query that should have a row in `bits`, or 0."""
START, LENGTH, OTHER = range(3)
"""Columns of `Tables.entry`: first token in `ids`, number of tokens, second half of a short entry's signature."""
WHERE, ONE = range(2)
"""Columns of `Tables.posting`: slot << 32 | position mask (or count in a long entry), first half of the signature."""
FREQUENCY, LOCAL, MASKS, BITS = range(4)
"""Columns of `Tables.token`: entries with it, place in the query's pattern, rows in `dense` and `bits` + 1; 0: none."""
HEAD, TAIL = range(2)
"""Columns of `Tables.chain`: first and last chunk, 0 for none."""
FIRST, FILL, SIZE, AFTER = range(4)
"""Columns of `Tables.chunk`: first posting, postings used, postings in all, next chunk."""


class Tables(NamedTuple):
    """Everything the kernels read and write; what a loop needs together lies together."""

    used: _Longs
    entry: _Longs  # (slot, 3)
    row33: npt.NDArray[np.uint16]  # 33 * min(length, 33): the entry's row in a histogram of (n, L)
    seen: npt.NDArray[np.uint8]  # scratch of a query: whether a short entry was looked at, zero between queries
    overlap: _Ints  # scratch of a query, zero between queries
    touched: _Ints  # scratch: the slots whose overlap is not zero
    state: npt.NDArray[np.uint32]  # scratch: V of the recurrence
    lcs: npt.NDArray[np.uint8]  # result of `every_lcs`
    dense: npt.NDArray[np.uint32]  # (row, slot) position masks of frequent tokens
    bits: _Words  # (row, block of 64 slots) which entries have a token, of the more frequent ones
    shorter: _Words  # (n, block) which entries have at most n tokens; all of them for n = 33
    plane: _Words  # (1 + bit, block) scratch: a count for each entry, bit by bit from row 1 on; two rows more
    longs: _Ints  # slots of the long entries
    ids: _Ints  # tokens of all entries, one after another
    token: _Ints  # (token, 4)
    chain: _Ints  # (token * BUCKETS + bucket, 2)
    chunk: _Longs  # (chunk, 4)
    posting: _Words  # (posting, 2); the signature stands with the posting, so that reading a chain jumps nowhere
    queue: _Longs  # scratch: slots of a chunk that may be hits
    order: _Longs  # scratch: positions of the query, rarest token first
    pattern: _Words  # scratch: (distinct token, word) position masks of the query
    vector: _Words  # scratch: V of the recurrence with several words
    hint: npt.NDArray[np.uint8]  # scratch: whether the query may have a token, by the token's last ten bits
    need: _Longs  # scratch: least L by entry length
    cells: _Ints  # (4, CELLS) scratch: histogram over (n, L), in four parts
    totals: _Longs  # scratch: sum of L by entry length


def _digest() -> str:
    """Return a digest of the sources that compiled code is made of."""
    here = Path(__file__)
    sources = [here.with_name("engine.py"), here, *sorted(here.parent.glob("kernels*.py"))]
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:12]


_DIGEST = _digest()


def compiled(function: _F) -> _F:
    """Compile on first use and cache it on disk; where no cache folder is writable, compile in each process.

    numba's cache looks only at the file of the function itself, though functions and constants of other files
    are compiled into it. The digest in the name keeps a changed file from meeting old code.
    """
    function.__qualname__ = f"{function.__name__}_{_DIGEST}"
    try:
        return cast(_F, njit(cache=True)(function))
    except RuntimeError:
        return cast(_F, njit()(function))


def _ctpop(_context: Any, word: Any) -> Any:
    def code(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return types.Integer.from_bitwidth(word.bitwidth, signed=False)(word), code


popcount: Any = intrinsic(_ctpop)


@_structref.register
class _HandleType(types.StructRef):
    pass


class Handle(structref.StructRefProxy):
    """Compiled code's own reference to tables: passing it costs a microsecond, passing them costs five."""

    tables: Tables


_structref.define_proxy(Handle, _HandleType, ["tables"])
_make: Any = Handle


@compiled
def handle_of(tables: Tables) -> Handle:
    """Return a handle of tables; numba's own constructor would be compiled anew in each process."""
    handle: Handle = _make(tables)
    return handle


@compiled
def bits_of(token: int) -> tuple[int, int]:
    """Return the token's bit in each half of a signature (Fibonacci hashing)."""
    hashed = u64(token) * u64(0x9E3779B97F4A7C15)
    return u64(1) << (hashed >> u64(58)), u64(1) << ((hashed >> u64(52)) & u64(63))


@compiled
def _post(t: Tables, key: int, slot: int, mask: int, one: int) -> None:
    chunk = t.chain[key, TAIL]
    if chunk == 0 or t.chunk[chunk, FILL] == t.chunk[chunk, SIZE]:
        new = t.used[CHUNKS]
        t.used[CHUNKS] += 1
        size = 4 if chunk == 0 else min(4 * t.chunk[chunk, SIZE], CHUNK)
        t.chunk[new, FIRST] = t.used[POSTINGS]
        t.chunk[new, SIZE] = size
        t.used[POSTINGS] += size
        if chunk == 0:
            t.chain[key, HEAD] = new
        else:
            t.chunk[chunk, AFTER] = new
        t.chain[key, TAIL] = new
        chunk = new
    place = t.chunk[chunk, FIRST] + t.chunk[chunk, FILL]
    t.posting[place, WHERE] = (u64(slot) << u64(32)) | u64(mask)
    t.posting[place, ONE] = one
    t.chunk[chunk, FILL] += 1


@compiled
def append(t: Tables, entry: _Ints) -> None:
    """Append an entry that `fits`."""
    slot, n, start = t.used[ENTRIES], len(entry), t.used[IDS]
    t.used[ENTRIES] += 1
    t.used[IDS] += n
    t.entry[slot, START] = start
    t.entry[slot, LENGTH] = n
    t.row33[slot] = u16(33 * min(n, SHORT + 1))
    bucket = 0
    while TOP[bucket] < n:
        bucket += 1
    for j in range(n):
        t.ids[start + j] = entry[j]
    block, place = slot >> 6, u64(1) << u64(slot & 63)
    for longest in range(min(n, SHORT + 1), SHORT + 2):
        t.shorter[longest, block] |= place
    if n > SHORT:
        t.longs[t.used[LONGS]] = slot
        t.used[LONGS] += 1
        for token in entry:
            t.token[token, LOCAL] += 1
        for token in entry:
            if t.token[token, LOCAL] > 0:
                _post(t, token * BUCKETS + bucket, slot, t.token[token, LOCAL], u64(0))
                t.token[token, FREQUENCY] += 1
                t.token[token, LOCAL] = 0
                if t.token[token, BITS] > 0:
                    t.bits[t.token[token, BITS] - 1, block] |= place
        return
    one, other = u64(0), u64(0)
    for token in entry:
        bit, bit2 = bits_of(token)
        one |= bit
        other |= bit2
    t.entry[slot, OTHER] = i64(other)
    for j in range(n):
        token = entry[j]
        mask = u32(0)
        repeated = False
        for i in range(n):
            if entry[i] == token:
                if i < j:
                    repeated = True
                    break
                mask |= u32(1) << u32(i)
        if repeated:
            continue
        _post(t, token * BUCKETS + bucket, slot, mask, one)
        t.token[token, FREQUENCY] += 1
        if t.token[token, MASKS] > 0:
            t.dense[t.token[token, MASKS] - 1, slot] = mask
        if t.token[token, BITS] > 0:
            t.bits[t.token[token, BITS] - 1, block] |= place


@compiled
def fits(t: Tables, n: int) -> bool:
    """Tell whether an entry of n tokens certainly fits."""
    return bool(
        t.used[ENTRIES] < len(t.entry)
        and n < len(t.totals)
        and t.used[IDS] + n <= len(t.ids)
        and t.used[POSTINGS] + n * CHUNK <= len(t.posting)
        and t.used[CHUNKS] + n <= len(t.chunk)
    )


@compiled
def add_many(handle: Handle, flat: _Ints, ends: _Longs, begin: int) -> int:
    """Append entries `begin`.. of a batch; return the first that needs the tables grown."""
    t = handle.tables
    for i in range(begin, len(ends)):
        entry = flat[ends[i - 1] if i else 0 : ends[i]]
        if not fits(t, len(entry)):
            return i
        append(t, entry)
    return len(ends)


_PER_ENTRY = ("entry", "row33", "seen", "overlap", "touched", "state", "lcs", "longs")
_PER_BLOCK = ("bits", "shorter", "plane")


def empty() -> Tables:
    """Return tables without entries, ready for queries of up to 64 tokens."""
    return Tables(
        used=np.array([0, 0, 0, 1, 0, 0], np.int64),  # chunk 0 means "none"
        entry=np.zeros((0, 3), np.int64),
        row33=np.zeros(0, np.uint16),
        seen=np.zeros(0, np.uint8),
        overlap=np.zeros(0, np.int32),
        touched=np.zeros(0, np.int32),
        state=np.zeros(0, np.uint32),
        lcs=np.zeros(0, np.uint8),
        dense=np.zeros((0, 0), np.uint32),
        bits=np.zeros((0, 0), np.uint64),
        shorter=np.zeros((SHORT + 2, 0), np.uint64),
        plane=np.zeros((9, 0), np.uint64),
        longs=np.zeros(0, np.int32),
        ids=np.zeros(0, np.int32),
        token=np.zeros((1024, 4), np.int32),
        chain=np.zeros((1024 * BUCKETS, 2), np.int32),
        chunk=np.zeros((0, 4), np.int64),
        posting=np.zeros((0, 2), np.uint64),
        queue=np.zeros(CHUNK, np.int64),
        order=np.zeros(64, np.int64),
        pattern=np.zeros(65, np.uint64),
        vector=np.zeros(1, np.uint64),
        hint=np.zeros(HINTS, np.uint8),
        need=np.zeros(SHORT + 1, np.int64),
        cells=np.zeros((4, CELLS), np.int32),
        totals=np.zeros(SHORT + 1, np.int64),
    )


def with_entries(t: Tables, entries: int, n: int) -> Tables:
    """Return tables with room for an entry of n tokens, and about that many entries like those before."""
    new: dict[str, npt.NDArray[Any]] = {}
    if n >= len(t.totals):
        new["totals"] = np.zeros(2 * n, np.int64)
    held, ids, postings, chunks = t.used[[ENTRIES, IDS, POSTINGS, CHUNKS]].tolist()
    if held >= len(t.entry):
        size = max(1024, held + max(held // 2, entries))
        new |= {name: _longer(getattr(t, name), size) for name in _PER_ENTRY}
        new["dense"] = _longer(t.dense, len(t.dense), size)
        new |= {name: _longer(part := getattr(t, name), len(part), -(-size // 64)) for name in _PER_BLOCK}
    if ids + n > len(t.ids):
        new["ids"] = _longer(t.ids, max(16384, ids * 3 // 2 + n))
    if postings + n * CHUNK > len(t.posting):
        new["posting"] = _longer(t.posting, max(65536, postings * 3 // 2 + n * CHUNK))
    if chunks + n > len(t.chunk):
        new["chunk"] = _longer(t.chunk, max(8192, chunks * 3 // 2 + n))
    return t._replace(**new)


def with_tokens(t: Tables, tokens: int) -> Tables:
    """Return tables with room for token ids below `tokens`."""
    if tokens <= len(t.token):
        return t
    size = max(tokens, 2 * len(t.token))
    return t._replace(token=_longer(t.token, size), chain=_longer(t.chain, size * BUCKETS))


def with_positions(t: Tables, m: int) -> Tables:
    """Return tables with room for a query of m tokens."""
    words = (m + 63) >> 6
    if m <= len(t.order) and (m + 1) * words <= len(t.pattern):
        return t
    return t._replace(
        order=np.zeros(2 * m, np.int64),
        pattern=np.zeros(4 * (m + 1) * words, np.uint64),
        vector=np.zeros(2 * words, np.uint64),
        plane=np.zeros((max(len(t.plane), 3 + m.bit_length()), t.plane.shape[1]), np.uint64),
    )


def with_rows(t: Tables, masks: int, bits: int) -> Tables:
    """Return tables with room for that many rows of masks and of bits."""
    if masks > len(t.dense):
        t = t._replace(dense=_longer(t.dense, 2 * masks))
    if bits > len(t.bits):
        t = t._replace(bits=_longer(t.bits, 2 * bits))
    return t


def _longer(array: npt.NDArray[Any], *sizes: int) -> npt.NDArray[Any]:
    """Return a copy with longer leading axes, zero where it is new."""
    result = np.zeros((*sizes, *array.shape[len(sizes) :]), array.dtype)
    result[tuple(map(slice, array.shape))] = array
    return result
