"""From settings to a plan: everything that decides a run's records, read and checked, and nothing opened yet."""

from __future__ import annotations

import difflib
import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from selfinstruct import config as settings
from selfinstruct import formats, identification, plugins, prompts, quota, resources, seeds
from selfinstruct.backends.providers import takes_raw_prompts
from selfinstruct.budget import Price, load_price
from selfinstruct.config import RunConfig
from selfinstruct.errors import ConfigError, InputError, PluginError, RunMismatch
from selfinstruct.filters import FILTERS, Filter, build_filters, spec_of
from selfinstruct.judge import TEXTS, Judge, subject
from selfinstruct.languages import LanguagePack, load_pack
from selfinstruct.models import Profile, resolve
from selfinstruct.models.registry import REGISTRY
from selfinstruct.novelty import NoveltyIndex, tokenizer
from selfinstruct.recipes import Brief, Recipe
from selfinstruct.stages import Stage
from selfinstruct.store import RunStore, RunView, holds_run
from selfinstruct.tools import Setting, Tool, check_tools
from selfinstruct.values import Capabilities, Dialogue, Record, Task

_TOPIC_ROUNDS = 10_000
"""How often shipped topics are gone through: as good as for ever, since each time brings another dialogue."""


@dataclass(frozen=True, slots=True)
class Lane:
    """A share of the dataset with what its stages are laid out from: one language, or one category of topics.

    `key` is "" where the run has one lane only.
    """

    key: str
    share: Fraction
    brief: Brief


@dataclass(frozen=True, slots=True)
class Plan:
    """A run, checked and ready: everything that decides its records, and nothing opened yet."""

    config: RunConfig
    recipe: Recipe
    lanes: tuple[Lane, ...]
    profile: Profile | None
    fingerprint: Mapping[str, Any]
    price: Price | None = None
    notices: tuple[str, ...] = ()

    @property
    def target(self) -> int:
        """Return how many accepted records are wanted."""
        rows = sum(len(lane.brief.items or ()) for lane in self.lanes) if self.config.input else 0
        return self.config.target or rows or 100

    @property
    def export(self) -> str:
        """Return the format that the records are meant for: the recipe's, or that of the input where it has none."""
        if self.recipe.export or self.recipe.read or not self.config.input:
            return self.recipe.export
        with formats.open_records(self.config.input) as reading:
            return reading.format.name

    @property
    def tools(self) -> list[Setting]:
        """Return the settings of the tools that the recipe's model may call."""
        return _tools(self.config, self.recipe)

    @property
    def targets(self) -> list[int]:
        """Return how many records each lane is to bring."""
        return quota.split([lane.share for lane in self.lanes], self.target)

    def stages(
        self, lane: Lane, capabilities: Capabilities | None = None, tools: Sequence[Tool] = ()
    ) -> tuple[Stage, ...]:
        """Lay out the stages of a lane; where there are several lanes, its key is part of their names.

        A filter that no stage has by default, and the person asks for, judges the last stage's candidates.
        """
        known = capabilities or lane.brief.capabilities
        stages = self.recipe.stages(replace(lane.brief, capabilities=known, tools=tuple(tools)))
        default = {name for stage in stages for name in stage.filters}
        asked = [name for name, change in self.config.filters.items() if change is not False and name not in default]
        mark = f"@{lane.key}" if lane.key else ""
        return tuple(
            replace(
                stage,
                name=stage.name + mark,
                source=stage.source and stage.source + mark,
                filters=(*stage.filters, *asked) if stage is stages[-1] else stage.filters,
            )
            for stage in stages
        )

    def judge(self, lane: Lane, stage: Stage, view: RunView | None = None) -> Judge:
        """Return the judge of a stage, who knows what is accepted in `view`."""
        pools = {kind: self._index() for kind in stage.novelty}
        for kind, index in pools.items():
            index.add_many((task.id, TEXTS[kind](task)) for task in stage.seeds)
            if view is not None:
                index.add_many((id, TEXTS[kind](record)) for id, record in view.accepted(stage.name))
        outside = self._index() if self.config.novelty.against else None
        for path in self.config.novelty.against:
            assert outside is not None
            outside.add_many((f"{path}:{row}", subject(record)) for row, record in enumerate(formats.read(path), 1))
        return Judge(self.filters(lane, stage), pools, outside=outside, whole=stage.whole)

    def filters(self, lane: Lane, stage: Stage) -> list[Filter]:
        """Return the filters of a stage, with what the model's profile and the person set.

        Raises:
            ConfigError: there is no such filter, or it has no such parameter.
        """
        wanted: dict[str, Mapping[str, Any]] = {name: {} for name in stage.filters}
        if "low_logprob" in wanted and self.profile and self.profile.min_logprob is not None:
            wanted["low_logprob"] = {"minimum": self.profile.min_logprob}
        known = dict(FILTERS)
        for name, change in self.config.filters.items():
            if name in ("novelty", "against"):
                raise ConfigError(
                    f"filters.{name}: set novelty.threshold or novelty.against instead; a threshold of 1 lets every "
                    "candidate through"
                )
            if name not in known:
                known[name] = spec_of(name, plugins.load("filters", name, shipped=FILTERS), "plugin")
            if change is False:
                wanted.pop(name, None)
            elif name in wanted:
                wanted[name] = {**wanted[name], **({} if change is True else change)}
        return [check for _, check in build_filters(wanted.items(), lane.brief.pack, known)]

    def _index(self) -> NoveltyIndex:
        chosen = self.config.novelty
        return NoveltyIndex(tokenizer=chosen.tokenizer, threshold=chosen.threshold, engine=chosen.engine)


def plan(
    layers: Sequence[Mapping[str, Any]],
    *,
    fetch: bool = True,
    stored: Mapping[str, Sequence[Task]] | None = None,
) -> Plan:
    """Settle and check a run's settings.

    Args:
        layers: settings, later ones over earlier ones; `recipe` must be in one of them.
        fetch: whether a local model may be fetched now; without it only what is known by name is used.
        stored: the seed tasks of an existing run by lane, which take the place of the seed file.

    Raises:
        ConfigError: anything that is not as it should be, with file:line or key.
    """
    recipe = _recipe(layers)
    chosen = settings.build([recipe.defaults, *layers])
    provider, model = plugins.split_model(chosen.model)
    if fetch:
        plugins.load("backends", provider)  # a wrong name is told before there is a run folder made with it
    # A model known by name is fetched last, when all that costs nothing is checked.
    profile, digest = _model(provider, model, fetch=fetch and model not in REGISTRY)
    style = _style(chosen, recipe, profile)
    chosen = chosen.model_copy(update={"style": style})
    if fetch and recipe.starts == "input" and not chosen.input:  # a prompt can be shown without
        raise ConfigError(f"--input: {recipe.name} works through data of yours; give it a file with --input")
    if stored is None and chosen.seeds and (recipe.starts != "seeds" or chosen.input):
        way = "works through --input" if chosen.input or recipe.starts == "input" else "starts from topics, or --input,"
        raise ConfigError(f"--seeds: {recipe.name} {way} and shows no seed tasks; leave --seeds out")
    notices: list[str] = []
    if chosen.concurrency > chosen.window:
        notices.append(f"concurrency {chosen.concurrency} is held to the window of {chosen.window}; see --set window=N")
    lanes = _lanes(chosen, recipe, profile, stored or {}, notices)
    check_tools(_tools(chosen, recipe))
    price = _price(chosen)
    planned = Plan(
        config=chosen,
        recipe=recipe,
        lanes=lanes,
        profile=profile,
        fingerprint=settings.fingerprint(chosen)
        | {
            "content.input": bool(chosen.input),
            "content.model_file": digest,
            "content.corpus": _tree_digest(chosen.corpus) if chosen.corpus else "",
            "content.against": [_file_digest(path) for path in chosen.novelty.against],
            "tokenizer": tokenizer(chosen.novelty.tokenizer).version,
        }
        | {key: value for lane in lanes for key, value in _content(lane).items()},
        price=price,
        notices=tuple(dict.fromkeys(notices)),
    )
    for lane in lanes:
        for stage in planned.stages(lane):
            planned.filters(lane, stage)  # a wrong name or parameter is said now, before anything is opened
    if fetch and model in REGISTRY:
        _model(provider, model, fetch=True)
    return planned


def open_run(folder: Path, plan: Plan) -> RunStore:
    """Create the run in `folder`, or hold the one that is there if it was made with the same config.

    Raises:
        RunMismatch: it was made with another config; says which fields.
        RunLocked: another process holds it.
    """
    dumped = json.loads(plan.config.model_dump_json())
    if not holds_run(folder):
        return RunStore.create(
            folder,
            config=dumped,
            config_yaml=settings.dump(plan.config),
            fingerprint=plan.fingerprint,
            seeds={lane.key: lane.brief.seeds for lane in plan.lanes},
            notes=_notes(plan),
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
        store.set_meta(**_notes(plan))
    except BaseException:
        store.close()
        raise
    return store


def _notes(plan: Plan) -> dict[str, Any]:
    """Return what readers of the run need to know of its plan."""
    rows = [
        {"key": lane.key, "share": str(lane.share), "stages": [stage.name for stage in plan.stages(lane)]}
        for lane in plan.lanes
    ]
    return {"target": plan.target, "lanes": rows, "export": plan.export, "folders": list(plan.recipe.files)}


def resume_plan(folder: Path, layers: Sequence[Mapping[str, Any]], *, fetch: bool = True) -> Plan:
    """Read a run's own settings back and lay `layers` (a target, budgets) over them.

    Without `fetch` a local model need not be there any more: its file is taken to be the one the run was made with.

    Raises:
        RunNotFound: there is no run in the folder.
        ConfigError: its config.yaml is not valid any more.
    """
    with RunView.open(folder) as view:
        stored = {lane.key: view.seeds(lane.key) for lane in view.lanes()}
        own, made = view.meta("config"), view.meta("fingerprint") or {}
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


def _recipe(layers: Sequence[Mapping[str, Any]]) -> Recipe:
    name = next((layer["recipe"] for layer in reversed(layers) if layer.get("recipe")), None)
    if name is None:
        raise ConfigError(f"recipe: say what to make; there are: {', '.join(plugins.names('recipes'))}")
    recipe = plugins.load("recipes", str(name))
    if not isinstance(recipe, Recipe):
        raise PluginError(f"recipes: {name!r} must be a selfinstruct.recipes.Recipe, found {type(recipe).__name__}")
    return recipe


def _style(config: RunConfig, recipe: Recipe, profile: Profile | None) -> str:
    """Settle how records are asked for; "auto" takes what suits the model, then what the endpoint is known for.

    Raises:
        ConfigError: the recipe has no such style, or the endpoint is known not to take it.
    """
    raw = takes_raw_prompts(config)
    if config.style == "auto":
        if profile and profile.style in recipe.styles:
            return profile.style
        return "completion" if raw and "completion" in recipe.styles else recipe.styles[0]
    if config.style not in recipe.styles:
        raise ConfigError(f"style: {recipe.name} knows {', '.join(recipe.styles)}, not {config.style!r}")
    if config.style == "completion" and raw is False:
        raise ConfigError(
            f"style: completion sends raw prompts, and {config.model} is set or known to take chat messages only. Add "
            "--set backend.endpoint=completions if its server has /completions, or take another style"
        )
    return config.style


def _lanes(
    config: RunConfig,
    recipe: Recipe,
    profile: Profile | None,
    stored: Mapping[str, Sequence[Task]],
    notices: list[str],
) -> tuple[Lane, ...]:
    """Return one lane, or with a quota one for each language or category of topics, in the order of their names."""
    items = _items(config.input, recipe) if config.input else None

    def lane(key: str, share: Fraction, language: str, category: str = "") -> Lane:
        pack = load_pack(language)
        _refuse_unspoken(config.model, profile, pack)
        if not pack.shipped:
            notices.append(
                f"there is no language pack for {pack.tag}: the English prompt names the language, and no word lists "
                "apply"
            )
        if pack.draft:
            notices.append(
                f"the language pack of {pack.tag} is a draft: no speaker has read it and its seeds yet. Once one has, "
                f"take `draft: true` out of {resources.find('seeds', f'{pack.tag}/pack.yaml')}"
            )
        if pack.confusions and (told := identification.notice()):
            notices.append(told)
        if pack.shipped and "en" in pack.confusions and identification.version(pack) == "none":
            notices.append(
                f"answers in English are not told from {pack.name}: the letters are the same. "
                "pip install 'selfinstruct[lang]' adds what tells them"
            )
        tasks = stored.get(key)
        if tasks is None:
            tasks = _seed_tasks(config, pack, notices) if recipe.starts == "seeds" and items is None else ()
        own, rounds = items, 1
        if own is None and recipe.starts == "topics":
            own, rounds = _topics(config, recipe, pack, category, notices), _TOPIC_ROUNDS
        parts = prompts.load(recipe.prompts, pack.tag, recipe.variables[config.style])
        options = _options(config, recipe)
        return Lane(key, share, Brief(config, config.style, pack, parts, tuple(tasks), own, rounds, options))

    if not config.quota:
        return (lane("", Fraction(1), config.language),)
    total = sum(map(Fraction, config.quota.values()))
    shares = {key: Fraction(share) / total for key, share in sorted(config.quota.items())}
    categories = _categories(recipe, config)
    if set(shares) <= categories:
        return tuple(lane(key, share, config.language, key) for key, share in shares.items())
    if items is not None:
        raise ConfigError("quota: shares by language are of what a recipe makes anew; an input has its own")
    known = resources.folders("seeds")
    for key in shares:
        if key not in known and (categories or len(key.partition("-")[0]) > 3):
            close = difflib.get_close_matches(key, sorted(categories | set(known)), n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(sorted(categories | set(known)))}"
            raise ConfigError(f"quota: {key!r} is neither a language nor a category of the topics; {hint}")
    return tuple(lane(key, share, key) for key, share in shares.items())


def _content(lane: Lane) -> dict[str, Any]:
    """Return the entries of the fingerprint that are a lane's own."""
    mark = f"@{lane.key}" if lane.key else ""
    brief = lane.brief
    wording = {part: prompt.digest for part, prompt in brief.prompts.items()}
    return {
        f"content.seeds{mark}": seeds.digest(brief.seeds),
        f"content.prompt{mark}": next(iter(wording.values())) if len(wording) == 1 else wording,
        f"content.language_pack{mark}": _digest(asdict(replace(brief.pack, draft=False))),
        f"identifier{mark}": identification.version(brief.pack),
    }


def _tools(config: RunConfig, recipe: Recipe) -> list[Setting]:
    """Return the tools that are asked for, else the recipe's own; a corpus brings the tool that searches it."""
    if (config.tools or config.corpus) and not recipe.tools:
        raise ConfigError(f"tools: {recipe.name} calls none")
    chosen: list[Setting] = list(config.tools or recipe.tools)
    if config.corpus:
        chosen = [each for each in chosen if each != "search"]
        if not any(isinstance(each, Mapping) and "search" in each for each in chosen):
            chosen.append({"search": {"corpus": config.corpus}})
    return chosen


def _options(config: RunConfig, recipe: Recipe) -> dict[str, Any]:
    chosen = dict(recipe.options)
    for name, value in config.options.items():
        if name not in chosen:
            close = difflib.get_close_matches(name, chosen, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(chosen) or 'none'}"
            raise ConfigError(f"options.{name}: {recipe.name} has no such option; {hint}")
        default = chosen[name]
        fits = isinstance(value, type(default)) and isinstance(value, bool) == isinstance(default, bool)
        if not fits and not (isinstance(default, float) and isinstance(value, int)):
            raise ConfigError(f"options.{name}: expected {type(default).__name__} such as {default!r}, got {value!r}")
        chosen[name] = value
    return chosen


def _refuse_unspoken(model: str, profile: Profile | None, pack: LanguagePack) -> None:
    if profile and profile.languages and pack.tag.split("-")[0] not in profile.languages:
        raise ConfigError(
            f"language: {model} speaks only {', '.join(profile.languages)}, not {pack.name} ({pack.tag}): its "
            "output would be noise. Choose another model with --model, for example openai/NAME --base-url URL, or "
            f"llama.cpp/qwen2.5-1.5b, or a language that it speaks: -l {profile.languages[0]}"
        )


def _items(path: str, recipe: Recipe) -> tuple[Record, ...]:
    if not recipe.accepts:
        raise ConfigError(f"--input: {recipe.name} invents its records and takes no input")
    items = []
    for number, record in enumerate((recipe.read or formats.read)(path), 1):
        if not isinstance(record, recipe.accepts):
            kind = type(record).__name__.lower()
            takes = " or ".join(f"{each.__name__.lower()}s" for each in recipe.accepts)
            raise InputError(f"{path}: record {number} is a {kind}; {recipe.name} works through {takes}")
        items.append(record)
    if not items:
        raise InputError(f"{path}: holds no record")
    return tuple(items)


def _topics(
    config: RunConfig, recipe: Recipe, pack: LanguagePack, category: str, notices: list[str]
) -> tuple[Dialogue, ...]:
    """Return the topics of a language, shuffled: neighbours in the file are alike."""
    path = seeds.topics_path_for(pack.tag, recipe.topics)
    if path is None:
        path = seeds.topics_path_for("en", recipe.topics)
        notices.append(f"there are no topics for {pack.tag}: English ones are given; bring your own with --input")
    if path is None:
        raise ConfigError("seeds: the shipped topics are missing; give a file with --input")
    topics = [topic for topic in seeds.load_topics(path) if not category or topic.extra["category"] == category]
    if not topics:
        raise ConfigError(f"quota: {path} has no topic of the category {category!r}")
    random.Random(config.seed).shuffle(topics)
    return tuple(topics)


def _categories(recipe: Recipe, config: RunConfig) -> set[str]:
    if recipe.starts != "topics" or config.input:
        return set()
    tags = (load_pack(config.language).tag, "en")
    path = next((found for tag in tags if (found := seeds.topics_path_for(tag, recipe.topics))), None)
    return {str(topic.extra["category"]) for topic in seeds.load_topics(path)} if path else set()


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
        notices.append(f"there are no seed tasks for {pack.tag}: English ones are shown; give your own with --seeds")
    if path is None:
        raise ConfigError("seeds: the shipped seed tasks are missing; give a file with --seeds")
    return seeds.load_tasks(path)


def _model(provider: str, model: str, *, fetch: bool) -> tuple[Profile | None, str]:
    """Return what is known of a local model, and its file's digest; nothing for models behind an address."""
    if provider != "llama.cpp":
        return None, ""
    if not fetch:
        entry = REGISTRY.get(model)
        return (entry.profile, entry.sha256) if entry else (None, "")
    local = resolve(model)
    return local.profile, local.digest


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _tree_digest(path: str) -> str:
    """Return a hash of a file, or of all files in a folder with their places there."""
    root = Path(path)
    files = sorted(each for each in root.rglob("*") if each.is_file()) if root.is_dir() else [root]
    return _digest([(str(each.relative_to(root)), _file_digest(str(each))) for each in files])


def _file_digest(path: str) -> str:
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    except OSError as error:
        raise InputError(f"{path}: can't be read: {error.strerror}") from error
