"""From settings to a plan: everything that decides a run's records, read and checked, and nothing opened yet."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from selfinstruct import config as settings
from selfinstruct import formats, plugins, prompts, seeds
from selfinstruct.budget import Price, load_price
from selfinstruct.config import RunConfig
from selfinstruct.errors import ConfigError, InputError, PluginError, RunMismatch
from selfinstruct.filters import DEFAULT_FILTERS, FILTERS, Filter, build_filters, spec_of
from selfinstruct.languages import LanguagePack, load_pack
from selfinstruct.models import Profile, resolve
from selfinstruct.models.registry import REGISTRY
from selfinstruct.novelty import tokenizer
from selfinstruct.recipes import Brief, Recipe
from selfinstruct.store import RunStore, RunView, holds_run
from selfinstruct.values import Capabilities, Task


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
    items: tuple[Task, ...] | None = None
    price: Price | None = None
    notices: tuple[str, ...] = ()

    @property
    def target(self) -> int:
        """Return how many accepted records are wanted."""
        return self.config.target or (100 if self.items is None else len(self.items))

    def brief(self, capabilities: Capabilities) -> Brief:
        """Return what the recipe may know."""
        return Brief(self.config, self.config.style, self.pack, self.prompt, self.seeds, capabilities, self.items)


def plan(
    layers: Sequence[Mapping[str, Any]],
    *,
    fetch: bool = True,
    stored: Sequence[Task] = (),
) -> Plan:
    """Settle and check a run's settings.

    Args:
        layers: settings, later ones over earlier ones; `recipe` must be in one of them.
        fetch: whether a local model may be fetched now; without it only what is known by name is used.
        stored: the seed tasks of an existing run, which take the place of the seed file.

    Raises:
        ConfigError: anything that is not as it should be, with file:line or key.
    """
    recipe_name = next((layer["recipe"] for layer in reversed(layers) if layer.get("recipe")), None)
    if recipe_name is None:
        raise ConfigError(f"recipe: say what to make; there are: {', '.join(plugins.names('recipes'))}")
    recipe = plugins.load("recipes", str(recipe_name))
    if not isinstance(recipe, Recipe):
        raise PluginError(
            f"recipes: {recipe_name!r} must be a selfinstruct.recipes.Recipe, found {type(recipe).__name__}"
        )
    chosen = settings.build([recipe.defaults, *layers])
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
    tasks = tuple(stored) or _seed_tasks(chosen, pack, notices)
    prompt = prompts.load(recipe.prompts, pack.tag, style, recipe.variables[style])
    if not pack.shipped:
        notices.append(
            f"there is no language pack for {pack.tag}: the English prompt names the language, and no word lists apply"
        )
    if chosen.concurrency > chosen.window:
        notices.append(f"concurrency {chosen.concurrency} is held to the window of {chosen.window}; see --set window=N")
    items = _items(chosen.input, recipe) if chosen.input else None
    content = {
        "content.input": items is not None,
        "content.seeds": seeds.digest(tasks),
        "content.prompt": prompt.digest,
        "content.language_pack": _digest(asdict(pack)),
        "content.model_file": digest,
        "tokenizer": tokenizer(chosen.novelty.tokenizer).version,
    }
    planned = Plan(
        config=chosen,
        recipe=recipe,
        pack=pack,
        prompt=prompt,
        seeds=tasks,
        profile=profile,
        fingerprint=settings.fingerprint(chosen) | content,
        items=items,
        price=_price(chosen),
        notices=tuple(notices),
    )
    make_filters(planned)  # a wrong name or parameter is said now, before anything is opened
    return planned


def open_run(folder: Path, plan: Plan) -> RunStore:
    """Create the run in `folder`, or hold the one that is there if it was made with the same config.

    Raises:
        RunMismatch: it was made with another config; says which fields.
        RunLocked: another process holds it.
    """
    dumped = json.loads(plan.config.model_dump_json())
    if not holds_run(folder):
        store = RunStore.create(
            folder,
            config=dumped,
            config_yaml=settings.dump(plan.config),
            fingerprint=plan.fingerprint,
            seeds=plan.seeds,
        )
        store.set_meta(target=plan.target)
        return store
    store = RunStore.open(folder)
    try:
        changed = settings.differences(store.view.meta("fingerprint"), json.loads(json.dumps(plan.fingerprint)))
        if changed:
            raise RunMismatch(
                f"{folder} holds a run made with another config:\n  " + "\n  ".join(changed) + "\n"
                "Undo the change, or choose another folder with --output"
            )
        store.save_config(dumped, settings.dump(plan.config))
        store.set_meta(target=plan.target)
    except BaseException:
        store.close()
        raise
    return store


def resume_plan(folder: Path, layers: Sequence[Mapping[str, Any]], *, fetch: bool = True) -> Plan:
    """Read a run's own settings back and lay `layers` (a target, budgets) over them.

    Without `fetch` a local model need not be there any more: its file is taken to be the one the run was made with.

    Raises:
        RunNotFound: there is no run in the folder.
        ConfigError: its config.yaml is not valid any more.
    """
    with RunView.open(folder) as view:
        stored, own, made = view.seeds(), view.meta("config"), view.meta("fingerprint") or {}
    path = folder / "config.yaml"
    try:
        chosen = settings.read(path) if path.exists() else own
    except ConfigError as error:
        raise ConfigError(f"{error}. Mend it, or remove it: the run keeps a copy and writes it anew") from None
    planned = plan([chosen, *layers], stored=stored, fetch=fetch)
    if fetch:
        return planned
    same_file = {"content.model_file": made.get("content.model_file", "")}
    return replace(planned, fingerprint={**planned.fingerprint, **same_file})


def is_metered(plan: Plan) -> bool:
    """Tell whether requests cost money or somebody else's machine time: those under way are then waited for."""
    return not plan.config.model.startswith("llama.cpp/")


def make_filters(plan: Plan) -> list[Filter]:
    """Return the filters of a plan: the style's defaults, with what the model's profile and the person change.

    Raises:
        ConfigError: there is no such filter, or it has no such parameter.
    """
    kind = "answers" if plan.items is not None else "stepwise" if plan.config.style == "stepwise" else "list"
    defaults = DEFAULT_FILTERS[kind]
    wanted: dict[str, Mapping[str, Any]] = {name: {} for name in defaults}
    if "low_logprob" in wanted and plan.profile and plan.profile.min_logprob is not None:
        wanted["low_logprob"] = {"minimum": plan.profile.min_logprob}
    known = dict(FILTERS)
    for name, change in plan.config.filters.items():
        if name == "novelty":
            raise ConfigError("filters.novelty: set novelty.threshold instead; 1 lets every candidate through")
        if name not in known:
            known[name] = spec_of(name, plugins.load("filters", name, shipped=FILTERS), "plugin")
        if change is False:
            wanted.pop(name, None)
        else:
            wanted[name] = {**wanted.get(name, {}), **({} if change is True else change)}
    return [check for _, check in build_filters(wanted.items(), plan.pack, known)]


def _items(path: str, recipe: Recipe) -> tuple[Task, ...]:
    if not recipe.takes_input:
        raise ConfigError(f"--input: {recipe.name} invents its tasks and takes no input")
    items = []
    for number, record in enumerate(formats.read(path), 1):
        if not isinstance(record, Task):
            kind = type(record).__name__.lower()
            raise InputError(f"{path}: record {number} is a {kind}; {recipe.name} works through tasks")
        items.append(record)
    if not items:
        raise InputError(f"{path}: holds no record")
    return tuple(items)


def _price(config: RunConfig) -> Price | None:
    prices = config.budget.prices
    price = load_price(config.model, Path(prices) if prices else None)
    if price is None and config.budget.max_cost is not None:
        raise ConfigError(
            f"--max-cost: the price of {config.model} is not known, and it is not guessed. Name a price file with "
            "--set budget.prices=FILE (layout: as_of: DATE, models: {PROVIDER/MODEL: {prompt: USD, completion: USD}}, "
            "dollars per million tokens), or limit with --max-tokens"
        )
    return price


def _seed_tasks(config: RunConfig, pack: LanguagePack, notices: list[str]) -> tuple[Task, ...]:
    if config.seeds:
        return seeds.load_tasks(Path(config.seeds))
    path = seeds.path_for(pack.tag)
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
    provider, model = plugins.split_model(name)
    if fetch:
        plugins.load("backends", provider)  # a wrong name is told before there is a run folder made with it
    if provider != "llama.cpp":
        return None, ""
    if not fetch:
        entry = REGISTRY.get(model)
        return (entry.profile, entry.sha256) if entry else (None, "")
    local = resolve(model)
    return local.profile, local.digest


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]
