"""What a draw works with: its stage, its item, its randomness, the task pool, and a way to ask."""

from __future__ import annotations

import bisect
import hashlib
import json
import random
from array import array
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol, overload

from selfinstruct.judge import Judge
from selfinstruct.store import RunView
from selfinstruct.tools import Tool
from selfinstruct.values import Candidate, Completion, Record, Rejection, Request, Task, ToolResult


@dataclass(frozen=True, slots=True)
class Stage:
    """One step of a recipe: how a draw is made, where its items come from, how its candidates are judged.

    A *growing* stage has no items and goes on for as long as records are wanted; its task pool begins with
    `seeds`. A *mapping* stage has one draw per item: of `items`, gone through `rounds` times, or, with `source`,
    of the accepted records of the stage of that name. Items are known by their content: rows put in, taken out or
    moved about leave the answers to all the others as they are.

    `expected` is how many records a draw is expected to bring. `filters` judge its candidates, and the texts named by
    `novelty` ("subject", "whole": see `judge`) must be new against the pool. Unless `whole`, a task may be an
    instruction alone, and a dialogue may wait for a reply.
    """

    name: str
    draw: Callable[[Draw], Awaitable[Sequence[Candidate]]]
    expected: float = 1.0
    seeds: tuple[Task, ...] = ()
    items: Sequence[Record] | None = None
    rounds: int = 1
    source: str = ""
    filters: tuple[str, ...] = ()
    novelty: tuple[str, ...] = ()
    whole: bool = True

    @property
    def grows(self) -> bool:
        """True for a stage without items."""
        return self.items is None and not self.source


class Items(Sequence[Record]):
    """The items of a mapping stage in draw order, each with what tells it apart: its content, and which of several
    equal ones it is.
    """  # noqa: D205

    def __init__(self, items: Sequence[Record], rounds: int = 1) -> None:
        self._items = items
        self._rounds = rounds
        digests = [_digest(item) for item in items]
        self._times = Counter(digests)
        seen: Counter[str] = Counter()
        self._identities = []
        for digest in digests:
            self._identities.append((digest, seen[digest]))
            seen[digest] += 1

    def __len__(self) -> int:
        return len(self._items) * self._rounds

    @overload
    def __getitem__(self, number: int) -> Record: ...
    @overload
    def __getitem__(self, number: slice) -> Sequence[Record]: ...
    def __getitem__(self, number: int | slice) -> Record | Sequence[Record]:
        if isinstance(number, slice):
            return [self[each] for each in range(*number.indices(len(self)))]
        if not 0 <= number < len(self):
            raise IndexError(number)
        return self._items[number % len(self._items)]

    def identity(self, number: int) -> str:
        """Return what tells the item of draw `number` apart."""
        round, place = divmod(number, len(self._items))
        digest, earlier = self._identities[place]
        return f"{digest}-{earlier + round * self._times[digest]}"

    def first_change(self, known: Iterable[str]) -> int | None:
        """Return the first draw whose item is no longer the one it was, given the identities in draw order."""
        for number, identity in enumerate(known):
            if number >= len(self) or identity != self.identity(number):
                return number
        return None


class AcceptedRecords(Sequence[Record]):
    """The first `count` accepted records of a stage, read from the store as they are needed."""

    def __init__(self, view: RunView, stage: str, count: int) -> None:
        self._view, self._stage, self._count = view, stage, count

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, number: int) -> Record: ...
    @overload
    def __getitem__(self, number: slice) -> Sequence[Record]: ...
    def __getitem__(self, number: int | slice) -> Record | Sequence[Record]:
        if isinstance(number, slice):
            return [self[each] for each in range(*number.indices(len(self)))]
        if not 0 <= number < self._count:
            raise IndexError(number)
        return self._view.accepted_at(self._stage, number + 1)[1]


class Answers(Protocol):
    """Where a draw's completions and tool results come from: the journal, or a recording of it."""

    model: str

    async def complete(self, stage: str, draw: int, key: str, request: Request) -> Completion:
        """Return the completion of a request of a draw."""

    async def use(self, stage: str, draw: int, key: str, tool: Tool, arguments: Mapping[str, Any]) -> ToolResult:
        """Return what a tool gives for a draw."""


@dataclass
class Draw:
    """What a recipe's coroutine is given. `recorded` demonstrations take the place of sampled ones when an old draw
    is judged again.
    """  # noqa: D205

    stage: str
    number: int
    _seed: int
    _pool: TaskPool
    _machine: int
    _judge: Judge
    _journal: Answers
    recorded: tuple[Task, ...] | None = None
    item: Record | None = None
    identity: str = ""
    shown: tuple[Task, ...] = field(default=(), init=False)
    requests: list[str] = field(default_factory=list, init=False)

    @cached_property
    def rng(self) -> random.Random:
        """All randomness of the draw."""
        return random.Random(self._label)

    @property
    def _label(self) -> str:
        return f"{self._seed}/{self.stage}/{self.identity or self.number}"

    def demonstrations(self, *, seed: int, machine: int) -> tuple[Task, ...]:
        """Sample tasks to show: machine tasks first, seed tasks in place of those that do not exist yet, shuffled.

        Self-Instruct, `bootstrap_instructions.py`: 8 in all, of which up to 2 machine tasks.
        """
        if self.recorded is not None:
            self.shown = self.recorded
            return self.shown
        # A generator of its own: judged again, the draw is given recorded tasks, and `rng` must not notice.
        rng = random.Random(f"{self._label}/demonstrations")
        tasks = self._pool.sample_machine(rng, min(machine, self._machine), self._machine)
        tasks += rng.sample(self._pool.seeds, min(seed + machine - len(tasks), len(self._pool.seeds)))
        rng.shuffle(tasks)
        self.shown = tuple(tasks)
        return self.shown

    def show(self, tasks: Iterable[Task]) -> None:
        """Say which tasks the prompt shows, where the recipe chose them itself."""
        self.shown = tuple(tasks)

    async def complete(self, request: Request, *, shared: bool = False) -> Completion:
        """Ask the backend; the same call of the same draw is never asked twice.

        Two draws that ask in the same words get an answer each, unless the request is `shared`: then the run has one
        answer to it, whichever draw asks first.
        """
        nonce = f"{self._seed}/shared" if shared else f"{self._label}/{len(self.requests)}"
        seed = int.from_bytes(hashlib.sha256(nonce.encode()).digest()[:4]) >> 1
        request = replace(request, nonce=nonce, seed=seed)
        key = request.key(self._journal.model)
        self.requests.append(key)
        return await self._journal.complete(self.stage, self.number, key, request)

    async def use(self, tool: Tool, arguments: Mapping[str, Any]) -> ToolResult:
        """Run a tool; what it gave is journaled, so that the draw goes the same way when it is run again."""
        text = json.dumps([tool.name, dict(arguments)], ensure_ascii=True, sort_keys=True)
        key = "t1-" + hashlib.sha256(text.encode()).hexdigest()[:40]
        self.requests.append(key)
        return await self._journal.use(self.stage, self.number, key, tool, arguments)

    def screen(self, candidate: Candidate) -> Rejection | None:
        """Say whether a candidate is already lost, before more is paid for it."""
        shown = replace(candidate, demonstrations=self.shown)
        return self._judge.screen(shown, as_of=len(self._pool.seeds) + self._machine)


class TaskPool:
    """Seed tasks and accepted machine tasks, each with the draw it was accepted in."""

    def __init__(self, stage: Stage, view: RunView, draws: Iterable[int] | None = None) -> None:
        self.seeds = stage.seeds
        self._stage = stage.name
        self._view = view
        self._draws = array("q", view.accepted_draws(stage.name) if draws is None else draws)

    @property
    def accepted(self) -> int:
        """Number of machine tasks."""
        return len(self._draws)

    def as_of(self, draw: int) -> int:
        """Return how many machine tasks were accepted up to and including that draw."""
        return bisect.bisect_right(self._draws, draw)

    def extend(self, draw: int, decisions: Iterable[object]) -> None:
        """Count what a committed draw added."""
        self._draws.extend(draw for decision in decisions if getattr(decision, "accepted", False))

    def sample_machine(self, rng: random.Random, count: int, of: int) -> list[Task]:
        """Sample `count` of the first `of` machine tasks; they are read from the store, not kept in memory."""
        tasks = []
        for number in rng.sample(range(1, of + 1), count):
            id, record = self._view.accepted_at(self._stage, number)
            if isinstance(record, Task):
                tasks.append(replace(record, id=id))
        return tasks


def _digest(item: Record) -> str:
    """Return a hash of what a record says, whatever it is called and whatever its format kept beside it."""
    said = {key: value for key, value in asdict(item).items() if key not in ("id", "name", "extra")}
    return hashlib.sha256(json.dumps([type(item).__name__, said], sort_keys=True).encode()).hexdigest()[:20]
