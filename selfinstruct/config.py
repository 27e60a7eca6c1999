"""The settings of a run: what a person may write, checked once, frozen.

A setting either changes records or it is a *knob* (target, concurrency, budgets, time-outs,
addresses): only the former make the fingerprint that tells one run from another.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import pydantic
import pydantic_core
import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, JsonValue
from pydantic.config import JsonDict

from selfinstruct.errors import ConfigError

KNOB: JsonDict = {"knob": True}


def _decimal_text(value: object) -> object:
    """Keep 0.7 as the text "0.7": a threshold is an exact fraction, not a float."""
    return str(value) if isinstance(value, int | float | Decimal) and not isinstance(value, bool) else value


def _seconds(value: object) -> object:
    """Read "2h", "90m", "30s" or "1h30m" as seconds."""
    if not isinstance(value, str):
        return value
    units = {"d": 86400, "h": 3600, "m": 60, "s": 1}
    total, number = 0.0, ""
    for character in value.strip().lower():
        if character in units and number:
            total, number = total + _float(number) * units[character], ""
        elif character.isdigit() or character == ".":
            number += character
        else:
            raise ValueError("expected a time such as 90s, 45m or 2h30m")
    return total + _float(number or "0")


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError("expected a time such as 90s, 45m or 2h30m") from None


def _dollars(value: str | None) -> str | None:
    """Take a finite amount above nothing."""
    try:
        amount = Decimal(1 if value is None else value)
    except InvalidOperation:
        amount = Decimal("nan")
    if not amount.is_finite() or amount <= 0:
        raise ValueError("expected US dollars above 0, such as 2.50")
    return value


def _share(value: str) -> str:
    """Take a share above nothing; they need not add up to 1."""
    try:
        share = Decimal(value)
    except InvalidOperation:
        share = Decimal("nan")
    if not share.is_finite() or share <= 0:
        raise ValueError("expected a share above 0, such as 0.2")
    return value


def _address(value: str | None) -> str | None:
    """Take an http(s) address that may be written down: it goes into config.yaml."""
    if value is None:
        return None
    try:
        parts = urlsplit(value)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise ValueError("expected an address such as http://127.0.0.1:8000/v1")
    if parts.username is not None:
        raise pydantic_core.PydanticCustomError(
            "secret",
            "the address holds a name or password, which would be written into the run folder; give a key by "
            "--api-key-env, or the whole address in the environment variable OPENAI_BASE_URL",
        )
    return value


def _filter_change(value: object) -> object:
    if not isinstance(value, bool | dict):
        raise ValueError("expected true, false or the filter's parameters, such as {minimum: 3}")
    return value


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Demonstrations(_Section):
    """How many tasks a prompt shows, and from which part of the pool."""

    seed: int = Field(3, ge=0, le=50)
    """Seed tasks shown in each prompt (Alpaca: 3)."""
    machine: int = Field(0, ge=0, le=50)
    """Machine tasks shown; while too few exist, seed tasks take their place (Self-Instruct: 2)."""


class SamplingConfig(_Section):
    """Overrides of the recipe's sampling; null keeps the recipe's own value."""

    temperature: float | None = Field(None, ge=0, le=5)
    top_p: float | None = Field(None, gt=0, le=1)
    max_tokens: int | None = Field(None, ge=1)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    extra_body: dict[str, JsonValue] = Field(default_factory=dict)
    """Anything else the endpoint wants in each request's body."""


class NoveltyConfig(_Section):
    """The novelty filter: exact ROUGE-L against the task pool."""

    threshold: Annotated[str, BeforeValidator(_decimal_text)] = "0.7"
    """Reject when ROUGE-L F is above this, compared exactly in integers."""
    tokenizer: str = "script"
    """script, rouge, whitespace, chars or icu."""
    against: tuple[str, ...] = Field((), json_schema_extra=KNOB)
    """Data files and benchmarks, of any format, that no record may come near. Their content is in the fingerprint."""
    engine: str = Field("auto", json_schema_extra=KNOB)
    """auto, numpy, numba or rouge-score: all give the same answers."""


class BackendConfig(_Section):
    """How the endpoint is reached, and what a local model is given."""

    base_url: Annotated[str | None, AfterValidator(_address)] = Field(None, json_schema_extra=KNOB)
    """OpenAI-compatible server, such as http://127.0.0.1:8000/v1."""
    api_key_env: str = Field("OPENAI_API_KEY", json_schema_extra=KNOB)
    """Name of the environment variable that holds the key."""
    timeout: Annotated[float, BeforeValidator(_seconds)] = Field(600, gt=0, json_schema_extra=KNOB)
    """Longest wait for one answer."""
    attempts: int = Field(6, ge=1, json_schema_extra=KNOB)
    """Tries of one request that fails in a way that may pass."""
    patience: Annotated[float, BeforeValidator(_seconds)] = Field(300, ge=0, json_schema_extra=KNOB)
    """How long a dead endpoint is waited for before the run stops, resumable."""
    endpoint: Literal["auto", "chat", "completions"] = "auto"
    """Whether prompts go through the chat template or are continued raw."""
    json_schema: bool | None = None
    """Whether the endpoint enforces JSON schemas; null: what is known of the provider."""
    tools: bool | None = None
    """Whether the endpoint lets the model call tools; null: what is known of the provider."""
    slots: int = Field(8, ge=1, le=256, json_schema_extra=KNOB)
    """Requests an embedded model decodes together."""
    context: int = Field(1024, ge=256)
    """Context of each slot of an embedded model, in tokens."""
    threads: int | None = Field(None, ge=1, json_schema_extra=KNOB)
    """Threads of an embedded model; null: one per usable core."""


class BudgetConfig(_Section):
    """Limits over the whole life of the run; null is none."""

    max_requests: int | None = Field(None, ge=1, json_schema_extra=KNOB)
    max_tokens: int | None = Field(None, ge=1, json_schema_extra=KNOB)
    max_cost: Annotated[str | None, BeforeValidator(_decimal_text), AfterValidator(_dollars)] = Field(
        None, json_schema_extra=KNOB
    )
    """US dollars, by the price file."""
    max_time: Annotated[float | None, BeforeValidator(_seconds)] = Field(None, gt=0, json_schema_extra=KNOB)
    """Seconds of running, such as 2h."""
    prices: str | None = Field(None, json_schema_extra=KNOB)
    """Price file to use in place of the shipped one."""


class StopConfig(_Section):
    """When to stop short of the target because going on would be waste."""

    saturation_draws: int = Field(200, ge=10, json_schema_extra=KNOB)
    """Sliding window, in draws, over which the yield is watched."""
    saturation_yield: float = Field(0.02, ge=0, le=1, json_schema_extra=KNOB)
    """Stop when fewer than this share of the window's candidates were accepted."""
    failed_draws: int = Field(20, ge=1, json_schema_extra=KNOB)
    """Stop when this many draws in a row failed at the endpoint."""


class RunConfig(_Section):
    """Everything that decides a run."""

    recipe: str
    """What to make: see `selfinstruct list recipes`."""
    language: str = "en"
    """BCP 47 tag of the language to write in."""
    model: str = "llama.cpp/smollm2-135m"
    """PROVIDER/MODEL."""
    target: int | None = Field(None, ge=1, json_schema_extra=KNOB)
    """Accepted records wanted; null: every row of the input, or 100 where there is none."""
    seed: int = 42
    """Seed of all randomness."""
    seeds: str | None = Field(None, min_length=1, json_schema_extra=KNOB)
    """Seed task file; null: the language's own. Its content, not its path, is part of the fingerprint."""
    input: str | None = Field(None, min_length=1, json_schema_extra=KNOB)
    """Data file to work through, in any format; rows are told apart by content."""
    style: str = "auto"
    """How records are asked for, such as list, structured or stepwise: `selfinstruct list recipes` shows each
    recipe's; auto takes what suits the model."""
    tasks_per_request: int | None = Field(None, ge=1, le=100)
    """New tasks asked for in one completion of the list style; null: the recipe's own number."""
    demonstrations: Demonstrations = Demonstrations()
    quota: dict[str, Annotated[str, BeforeValidator(_decimal_text), AfterValidator(_share)]] = Field(
        default_factory=dict
    )
    """Shares of the dataset by language, or by category of the topics, such as {zh: 0.2, en: 0.8}."""
    options: dict[str, JsonValue] = Field(default_factory=dict)
    """The recipe's own settings: `selfinstruct list recipes --json` shows them with their defaults."""
    tools: tuple[str | dict[str, dict[str, JsonValue] | None], ...] = ()
    """Tools that a recipe's model may call, such as [calculator, {search: {corpus: docs}}]; empty: the recipe's own."""
    corpus: str | None = Field(None, min_length=1, json_schema_extra=KNOB)
    """Documents that the tool `search` looks through. Their content is in the fingerprint."""
    window: int = Field(128, ge=1, le=100_000)
    """Draw k samples the task pool as committed by draw k - window, and at most that many run ahead.

    With less than eight times the concurrency, very slow answers hold up the others.
    """
    sampling: SamplingConfig = SamplingConfig()
    novelty: NoveltyConfig = NoveltyConfig()
    filters: dict[str, Annotated[bool | dict[str, Any], BeforeValidator(_filter_change)]] = Field(default_factory=dict)
    """Filters to switch off (false), on (true) or give parameters; the others keep their defaults."""
    concurrency: int = Field(16, ge=1, le=4096, json_schema_extra=KNOB)
    rpm: int | None = Field(None, ge=1, json_schema_extra=KNOB)
    """Requests a minute."""
    tpm: int | None = Field(None, ge=1, json_schema_extra=KNOB)
    """Tokens a minute, prompt and completion together."""
    backend: BackendConfig = BackendConfig()
    budget: BudgetConfig = BudgetConfig()
    stop: StopConfig = StopConfig()


def build(layers: Sequence[Mapping[str, Any]], *, source: str = "command line") -> RunConfig:
    """Merge settings, later layers over earlier ones, and check them.

    Raises:
        ConfigError: an unknown key (with the closest valid one) or a value of the wrong kind.
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        merged = _merge(merged, layer)
    _check_texts(merged, source)
    try:
        return RunConfig.model_validate(merged)
    except pydantic.ValidationError as error:
        raise ConfigError(f"{source}: " + "; ".join(_explain(part) for part in error.errors())) from None


def read(path: Path) -> dict[str, Any]:
    """Read a YAML file of settings and check it by itself, so that a fault is laid at its door.

    Raises:
        ConfigError: unreadable, not YAML, not a mapping, or a key or value that `build` refuses.
    """
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"{path}: can't be read: {error.strerror}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: not UTF-8, the 45th of a month
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())[:300]}") from error
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise ConfigError(f"{path}: expected settings such as 'target: 100', found {type(loaded).__name__}")
    build([{"recipe": "any"}, loaded], source=str(path))
    return loaded


def parse_override(text: str) -> dict[str, Any]:
    """Turn "novelty.threshold=0.6" into nested settings; the value is read as YAML.

    Raises:
        ConfigError: no "=", or a value that is not YAML.
    """
    key, equals, value = text.partition("=")
    if not equals or not all(key.split(".")):
        raise ConfigError(f"--set {text}: expected key.path=value, such as novelty.threshold=0.6")
    try:
        tree: Any = yaml.safe_load(value)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: the 45th of a month
        raise ConfigError(
            f"--set {text}: the value is not valid YAML ({' '.join(str(error).split())[:200]})"
        ) from error
    for part in reversed(key.split(".")):
        tree = {part: tree}
    settings: dict[str, Any] = tree
    return settings


def parse_shares(text: str) -> dict[str, str]:
    """Read the shares of --quota, such as "zh=0.2,en=0.8".

    Raises:
        ConfigError: a part is not KEY=SHARE, or a key comes twice.
    """
    shares: dict[str, str] = {}
    for part in text.split(","):
        key, equals, share = (piece.strip() for piece in part.partition("="))
        if not (key and equals and share) or key in shares:
            raise ConfigError(f"--quota {text}: expected each key once with its share, such as zh=0.2,en=0.8")
        shares[key] = share
    return shares


def dump(config: RunConfig) -> str:
    """Render the settings as YAML that `read` and `build` turn back into the same config."""
    return yaml.safe_dump(config.model_dump(mode="json"), allow_unicode=True, sort_keys=False)


def fingerprint(config: RunConfig) -> dict[str, Any]:
    """Return the settings that change records, as a flat mapping of key path to value."""
    return dict(_record_settings(config, ""))


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Say which entries of two fingerprints differ, one line each."""
    return [
        f"{key}: {_short(old.get(key))} -> {_short(new.get(key))}"
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key)
    ]


def _record_settings(section: BaseModel, prefix: str) -> Iterator[tuple[str, Any]]:
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        extra = field.json_schema_extra
        if isinstance(extra, dict) and extra.get("knob"):
            continue
        if isinstance(value, BaseModel):
            yield from _record_settings(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _check_texts(value: object, source: str, key: str = "") -> None:
    """Refuse texts that neither a file name nor UTF-8 can hold; `yaml` makes them from escapes, `sys.argv` from bytes.

    Raises:
        ConfigError: names the setting.
    """
    if isinstance(value, Mapping):
        for name, part in value.items():
            _check_texts(part, source, f"{key}.{name}".lstrip("."))
    elif isinstance(value, str) and ("\0" in value or any("\ud800" <= character <= "\udfff" for character in value)):
        raise ConfigError(f"{source}: {key}: expected a text in Unicode without NUL (got {_short(value)})")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def _explain(error: Any) -> str:
    location = [str(part) for part in error["loc"]]
    key = ".".join(location)
    if error["type"] == "secret":
        return f"{key}: {error['msg']}"
    if error["type"] != "extra_forbidden":
        message = error["msg"].removeprefix("Value error, ")
        if error["type"] == "string_type":
            message = "expected a text; put what YAML takes for something else (no, 12, 2026-01-31) in quotes"
        elif error["type"] == "string_too_short":
            message = "expected a text, found an empty one"
        elif error["type"] == "model_type":
            message = f"expected a section with some of: {', '.join(_names(location))}"
        return f"{key}: {message} (got {_short(error.get('input'))})"
    names = _names(location[:-1])
    close = difflib.get_close_matches(location[-1], names, n=1)
    hint = f"did you mean {'.'.join([*location[:-1], close[0]])}?" if close else f"valid here: {', '.join(names)}"
    return f"{key}: there is no such setting; {hint}"


def _names(path: Sequence[str]) -> list[str]:
    section: type[BaseModel] = RunConfig
    for part in path:
        annotation = section.model_fields[part].annotation if part in section.model_fields else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        section = annotation
    return list(section.model_fields)
