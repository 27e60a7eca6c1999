"""Put a run together: settings to recipe, prompt, seeds, backend and store; then let the loop work.

`plan` reads and checks everything a run needs and touches nothing; `Session` holds what is open while
it runs.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

from selfinstruct import config as settings
from selfinstruct import loop, plugins, prompts, seeds
from selfinstruct.backends import Backend
from selfinstruct.backends.governor import Governed
from selfinstruct.backends.retry import Retrying
from selfinstruct.budget import Budget, Limits, load_price
from selfinstruct.config import RunConfig
from selfinstruct.errors import BackendError, ConfigError, RunMismatch, SelfInstructError, Stopped
from selfinstruct.filters import DEFAULT_FILTERS, FILTERS, Filter, build_filters, spec_of
from selfinstruct.journal import Journal
from selfinstruct.judge import Judge
from selfinstruct.languages import LanguagePack, load_pack
from selfinstruct.models import Profile, resolve
from selfinstruct.models.registry import REGISTRY
from selfinstruct.novelty import NoveltyIndex, tokenizer
from selfinstruct.recipes import Brief, Recipe
from selfinstruct.store import Commit, RunStore, RunView, Summary
from selfinstruct.values import Capabilities, Task

Say = Callable[[str], None]

_NOTE_EVERY = 5.0
"""Seconds between two notes of the running time."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A run, checked and ready: everything that decides its records, and nothing opened yet."""

    config: RunConfig
    recipe: Recipe
    pack: LanguagePack
    prompt: prompts.Prompt
    seeds: tuple[Task, ...]
    profile: Profile | None
    fingerprint: Mapping[str, Any]
    notices: tuple[str, ...] = ()

    def brief(self, capabilities: Capabilities) -> Brief:
        """Return what the recipe may know."""
        return Brief(self.config, self.config.style, self.pack, self.prompt, self.seeds, capabilities)


def plan(
    layers: Sequence[Mapping[str, Any]],
    *,
    source: str = "command line",
    fetch: bool = True,
    stored: Sequence[Task] = (),
) -> Plan:
    """Settle and check a run's settings.

    Args:
        layers: settings, later ones over earlier ones; `recipe` must be in one of them.
        source: where they come from, for messages.
        fetch: whether a local model may be fetched now; without it only what is known by name is used.
        stored: the seed tasks of an existing run, which take the place of the seed file.

    Raises:
        ConfigError: anything that is not as it should be, with file:line or key.
    """
    recipe_name = next((layer["recipe"] for layer in reversed(layers) if layer.get("recipe")), None)
    if recipe_name is None:
        raise ConfigError(f"{source}: recipe: say what to make; there are: {', '.join(plugins.names('recipes'))}")
    recipe: Recipe = plugins.load("recipes", str(recipe_name))
    chosen = settings.build([recipe.defaults, *layers], source=source)
    pack = load_pack(chosen.language)
    profile, digest = _model(chosen.model, fetch=fetch)
    notices: list[str] = []
    if profile and profile.languages and pack.tag.split("-")[0] not in profile.languages:
        raise ConfigError(
            f"language: {chosen.model} speaks only {', '.join(profile.languages)}, not {pack.name} ({pack.tag}): its "
            "output would be noise. Choose another model with --model, for example openai/NAME --base-url URL, or "
            "llama.cpp/qwen2.5-1.5b"
        )
    style = chosen.style if chosen.style != "auto" else profile.style if profile else "list"
    if style not in recipe.styles:
        raise ConfigError(f"style: {recipe.name} knows {', '.join(recipe.styles)}, not {style!r}")
    chosen = chosen.model_copy(update={"style": style})
    tokenizer(chosen.novelty.tokenizer)
    tasks = tuple(stored) or _seed_tasks(chosen, notices)
    prompt = prompts.load(recipe.prompts, pack.tag, style, recipe.variables[style])
    if not pack.shipped:
        notices.append(
            f"there is no language pack for {pack.tag}: the English prompt names the language, and no word lists apply"
        )
    if chosen.concurrency > chosen.window:
        notices.append(f"concurrency {chosen.concurrency} is held to the window of {chosen.window}; see --set window=N")
    content = {
        "content.seeds": seeds.digest(tasks),
        "content.prompt": prompt.digest,
        "content.language_pack": _digest(asdict(pack)),
        "content.model_file": digest,
        "tokenizer": tokenizer(chosen.novelty.tokenizer).version,
    }
    return Plan(chosen, recipe, pack, prompt, tasks, profile, settings.fingerprint(chosen) | content, tuple(notices))


def open_run(folder: Path, plan: Plan) -> RunStore:
    """Create the run in `folder`, or hold the one that is there if it was made with the same config.

    Raises:
        RunMismatch: it was made with another config; says which fields.
        RunLocked: another process holds it.
    """
    dumped = json.loads(plan.config.model_dump_json())
    if not (folder / "run.sqlite").exists():
        return RunStore.create(
            folder,
            config=dumped,
            config_yaml=settings.dump(plan.config),
            fingerprint=plan.fingerprint,
            seeds=plan.seeds,
        )
    store = RunStore.open(folder)
    try:
        changed = settings.differences(store.view.meta("fingerprint"), json.loads(json.dumps(plan.fingerprint)))
        if changed:
            raise RunMismatch(
                f"{folder} holds a run made with another config:\n  " + "\n  ".join(changed) + "\n"
                "Undo the change, or choose another folder with --output"
            )
        store.save_config(dumped, settings.dump(plan.config))
    except BaseException:
        store.close()
        raise
    return store


def resume_plan(folder: Path, layers: Sequence[Mapping[str, Any]]) -> Plan:
    """Read a run's own settings back and lay `layers` (a target, budgets) over them.

    Raises:
        RunNotFound: there is no run in the folder.
        ConfigError: its config.yaml is not valid any more.
    """
    with RunView.open(folder) as view:
        stored = view.seeds()
    path = folder / "config.yaml"
    return plan([settings.read(path), *layers], source=str(path), stored=stored)


def is_metered(plan: Plan) -> bool:
    """Tell whether requests cost money or somebody else's machine time: those under way are then waited for."""
    return not plan.config.model.startswith("llama.cpp/")


@dataclass(slots=True)
class Session:
    """An open run: ask `work` to go on with it, `stop` to end it early."""

    plan: Plan
    store: RunStore
    say: Say
    budget: Budget = field(init=False)
    journal: Journal = field(init=False)
    governor: Governed = field(init=False)
    pool: loop.TaskPool = field(init=False)
    stage: str = field(init=False, default="tasks")
    _noted: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        """Set the budget up from what the run has spent so far."""
        spent, limits = self.store.view.summary(self.stage), self.plan.config.budget
        prices = Path(limits.prices) if limits.prices else None
        price = load_price(self.plan.config.model, prices)
        if limits.max_cost is not None and price is None:
            raise ConfigError(
                f"--max-cost: the price of {self.plan.config.model} is not known, and it is not guessed. Name a price "
                "file with --set budget.prices=FILE (layout: as_of: DATE, models: {PROVIDER/MODEL: {prompt: USD, "
                "completion: USD}}, dollars per million tokens), or limit with --max-tokens"
            )
        cost = None if limits.max_cost is None else Decimal(limits.max_cost)
        self.budget = Budget(
            Limits(limits.max_requests, limits.max_tokens, cost, limits.max_time),
            price,
            requests=spent.requests,
            tokens=spent.spent_tokens,
            cost=Decimal(spent.spent_cost),
            seconds=spent.seconds,
        )
        self.journal = Journal(self.store, self.budget, self.plan.config.model, drain=is_metered(self.plan))

    def stop(self, reason: Stopped) -> int:
        """Ask for nothing more; what is under way is finished and kept. Returns how many requests that are."""
        self.journal.close(reason)
        return self.journal.in_flight if self.journal.drain else 0

    async def work(self, on_commit: Callable[[Commit], None]) -> None:
        """Run to the target.

        Raises:
            Stopped: short of the target, resumable.
            BackendError: the endpoint is gone or denies access; resumable.
        """
        config, store = self.plan.config, self.store
        store.start()
        reason, state = "", "failed"
        try:
            async with aclosing(await self._backend()) as backend:
                stage = self._stage(backend)
                self.pool = loop.TaskPool(self.plan.seeds, stage.name, store)
                judge = self._judge(stage.name)
                guard = _Guard(config)
                commits = loop.grow(
                    stage, seed=config.seed, target=config.target, window=config.window, concurrency=self._concurrency(),
                    pool=self.pool, judge=judge, journal=self.journal, store=store,
                )  # fmt: skip
                async with aclosing(commits):
                    async for commit in commits:
                        on_commit(commit)
                        guard.check(commit)
                        await self._keep_time()
            state = "done"
        except Stopped as stopped:
            state, reason = ("interrupted" if stopped.exit_code == 130 else "stopped"), str(stopped)
            raise
        except SelfInstructError as error:
            reason = str(error)
            raise
        except asyncio.CancelledError:
            state, reason = "interrupted", "stopped at once"
            raise
        finally:
            store.set_meta(state={"state": state, "reason": reason}, seconds=self.budget.seconds)

    async def _keep_time(self) -> None:
        """Note the running time now and then, so that a crash forgets little of what --max-time counts."""
        if self.budget.seconds - self._noted >= _NOTE_EVERY:
            self._noted = self.budget.seconds
            await self.store.put_meta(seconds=self._noted)

    async def _backend(self) -> Backend:
        config = self.plan.config
        provider, _, model = config.model.partition("/")
        if not model:
            raise ConfigError(f"model: expected PROVIDER/MODEL such as openai/gpt-4o-mini, got {config.model!r}")
        backend: Backend = await plugins.load("backends", provider)(model, config)
        self.governor = Governed(
            self.journal.metered(backend),
            concurrency=self._concurrency(),
            rpm=config.rpm,
            tpm=config.tpm,
        )
        wrapped: Backend = Retrying(self.governor, attempts=config.backend.attempts, patience=config.backend.patience)
        self.journal.backend = wrapped
        return wrapped

    def _concurrency(self) -> int:
        config = self.plan.config
        slots = config.concurrency if is_metered(self.plan) else config.backend.slots
        return min(config.concurrency, config.window, slots)

    def _stage(self, backend: Backend) -> loop.Stage:
        stages = self.plan.recipe.stages(self.plan.brief(backend.capabilities))
        return stages[-1]

    def _judge(self, stage: str) -> Judge:
        config = self.plan.config
        index = NoveltyIndex(
            tokenizer=config.novelty.tokenizer, threshold=config.novelty.threshold, engine=config.novelty.engine
        )
        index.add_many((task.id, task.instruction) for task in self.plan.seeds)
        index.add_many(
            (id, record.instruction) for id, record in self.store.view.accepted(stage) if isinstance(record, Task)
        )
        return Judge(make_filters(self.plan), index)


def make_filters(plan: Plan) -> list[Filter]:
    """Return the filters of a plan: the style's defaults, with what the model's profile and the person change.

    Raises:
        ConfigError: there is no such filter, or it has no such parameter.
    """
    defaults = DEFAULT_FILTERS["stepwise" if plan.config.style == "stepwise" else "list"]
    wanted: dict[str, Mapping[str, Any]] = {name: {} for name in defaults}
    if "low_logprob" in wanted and plan.profile and plan.profile.min_logprob is not None:
        wanted["low_logprob"] = {"minimum": plan.profile.min_logprob}
    known = dict(FILTERS)
    for name, change in plan.config.filters.items():
        if name not in known:
            known[name] = spec_of(name, plugins.load("filters", name), "plugin")
        if change is False:
            wanted.pop(name, None)
        else:
            wanted[name] = {**wanted.get(name, {}), **({} if change is True else change)}
    return [check for _, check in build_filters(wanted.items(), plan.pack, known)]


class _Guard:
    """Watches commits and stops a run that brings nothing any more."""

    def __init__(self, config: RunConfig) -> None:
        self._limits = config.stop
        self._recent: deque[tuple[int, int]] = deque(maxlen=config.stop.saturation_draws)
        self._failed = 0

    def check(self, commit: Commit) -> None:
        """Take note of a commit.

        Raises:
            Stopped: the yield of the last draws has dried up.
            BackendError: too many draws in a row failed.
        """
        self._failed = self._failed + 1 if commit.state == "failed" else 0
        if self._failed >= self._limits.failed_draws:
            raise BackendError(
                f"the last {self._failed} draws all failed, most recently with: {commit.error}. Look at the cause, then "
                "resume; --set stop.failed_draws=N changes how many are borne"
            )
        self._recent.append((sum(d.accepted for d in commit.decisions), len(commit.decisions)))
        accepted, candidates = (sum(column) for column in zip(*self._recent, strict=True))
        if len(self._recent) == self._recent.maxlen and accepted < self._limits.saturation_yield * max(candidates, 1):
            raise Stopped(
                f"saturated: of the last {candidates} candidates in {len(self._recent)} draws only {accepted} were "
                "accepted. Look at the rejections with `selfinstruct status`; more or other seed tasks, a stronger model, "
                "or a higher --set novelty.threshold bring new ones; --set stop.saturation_yield=0 goes on regardless"
            )


def _seed_tasks(config: RunConfig, notices: list[str]) -> tuple[Task, ...]:
    if config.seeds:
        return seeds.load_tasks(Path(config.seeds))
    path = seeds.path_for(config.language)
    if path is None:
        path = seeds.path_for("en")
        notices.append(
            f"there are no seed tasks for {config.language}: English ones are shown; give your own with --seeds"
        )
    if path is None:
        raise ConfigError("seeds: the shipped seed tasks are missing; give a file with --seeds")
    return seeds.load_tasks(path)


def _model(name: str, *, fetch: bool) -> tuple[Profile | None, str]:
    """Return what is known of a local model, and its file's digest; nothing for models behind an address."""
    provider, _, model = name.partition("/")
    if provider != "llama.cpp":
        return None, ""
    if not fetch:
        entry = REGISTRY.get(model)
        return (entry.profile, entry.sha256) if entry else (None, "")
    local = resolve(model)
    return local.profile, local.digest


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def summary(folder: Path, stage: str = "tasks") -> Summary:
    """Return where the run in `folder` stands."""
    with RunView.open(folder) as view:
        return view.summary(stage)
