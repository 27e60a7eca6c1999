"""`status`, `trace`, `list` and `show`: look, and change nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

_as_json = click.option("--json", "as_json", is_flag=True, help="JSON on stdout in place of a table.")


@click.command(epilog="Example: selfinstruct status runs/zh --json | jq .accepted")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--seeds", is_flag=True, help="Also how each seed task has served.")
@_as_json
def status(folder: Path, seeds: bool, as_json: bool) -> None:
    """Show where a run stands and what the rest will take; also while it works."""
    from selfinstruct.budget import load_price
    from selfinstruct.report import outlook, outlook_lines, seed_table
    from selfinstruct.store import RunView

    with RunView.open(folder) as view:
        found = view.summary()
        config = view.meta("config") or {}
        prices = (config.get("budget") or {}).get("prices")
        ahead = outlook(view, load_price(config.get("model", ""), Path(prices) if prices else None))
        table = seed_table(view) if seeds else []
    if as_json:
        shown = asdict(found) | {"forecast": ahead} | ({"seeds": table} if seeds else {})
        click.echo(json.dumps(shown, ensure_ascii=False, indent=2))
        return
    rows = [
        ("state", f"{found.state}{': ' if found.reason else ''}{found.reason}"),
        ("accepted", f"{found.accepted} of {found.target}"),
        (
            "yield",
            f"{found.accepted / found.candidates:.1%} of {found.candidates} candidates" if found.candidates else "-",
        ),
        ("draws", f"{found.draws}, {found.failed_draws} failed"),
        ("requests", f"{found.requests}, {found.lost} lost in flight"),
        ("tokens", f"{found.prompt_tokens:,} prompt + {found.completion_tokens:,} completion"),
        ("cost", f"${found.spent_cost}"),
        ("running time", f"{found.seconds:.0f} s"),
    ]
    for name, value in rows:
        click.echo(f"{name:<13} {value}")
    if len(found.stages) > 1:
        for name, stage in found.stages.items():
            lost = sum(stage.rejected.values())
            click.echo(f"  {name}: {stage.accepted} accepted, {lost} rejected, {stage.draws} draws")
    if found.rejected:
        click.echo("rejected by")
        for name, count in found.rejected.items():
            click.echo(f"  {count:>7}  {name}")
    if ahead["wanted"] and found.draws:
        for line in outlook_lines(ahead):
            click.echo(line)
    if table:
        _print_table(table)


@click.command(epilog="Example: selfinstruct trace runs/zh tasks-17-3")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.argument("record_id")
@_as_json
def trace(folder: Path, record_id: str, as_json: bool) -> None:
    """Show where a record came from: prompts as sent, completions as received, siblings, verdicts."""
    from selfinstruct.report import trace_record

    origin = trace_record(folder, record_id)
    if as_json:
        click.echo(json.dumps(origin, ensure_ascii=False, indent=2))
        return
    for line in _trace_lines(origin):
        click.echo(line)


def _trace_lines(origin: dict[str, Any]) -> list[str]:
    candidate = origin["candidate"]
    verdict = "accepted" if candidate["accepted"] else f"rejected by {candidate['filter']}: {candidate['reason']}"
    lines = [f"{candidate['id']}: {verdict}"]
    if candidate["measured"]:
        lines.append("measured: " + ", ".join(f"{key} {value}" for key, value in candidate["measured"].items()))
    if candidate["nearest"]:
        lines.append(f"nearest: {candidate['nearest']} (ROUGE-L {candidate['similarity']:.3f})")
    for verdict in origin["verdicts"]:
        measured = ", ".join(f"{key} {value}" for key, value in verdict["measured"].items())
        lines.append(f"  {verdict['filter']:<26} {verdict['verdict']}{': ' if measured else ''}{measured}")
    if origin["sources"]:
        lines.append(f"made from: {', '.join(origin['sources'])}")
    lines += ["", json.dumps(candidate["record"], ensure_ascii=False, indent=2)]
    for number, exchange in enumerate(origin["exchanges"], 1):
        if "tool" in exchange:
            result = exchange["result"]
            lines += [
                "",
                f"── tool {number}: {exchange['tool']} {json.dumps(exchange['arguments'], ensure_ascii=False)}",
            ]
            lines += [f"failed: {result['reason']}" if result["failed"] else result["text"]]
            continue
        request, completion = exchange["request"], exchange["completion"]
        lines += ["", f"── request {number} ({exchange['key']})"]
        lines += [f"{message['role']}> {message['content']}" for message in request.get("messages", [])]
        lines += [request["prompt"]] if request.get("prompt") else []
        usage = completion["usage"]
        tokens = f"{usage['prompt_tokens']} + {usage['completion_tokens']} tokens"
        lines += [f"── completion {number} ({completion['finish_reason']}, {tokens})", completion["text"]]
    lines += ["", "demonstrations: " + (", ".join(origin["demonstrations"]) or "none")]
    lines.append("siblings: " + (", ".join(f"{s['id']} {s['verdict']}" for s in origin["siblings"]) or "none"))
    return lines


@click.command(epilog="Example: selfinstruct show prompt alpaca -l zh")
@click.argument("what", type=click.Choice(["prompt"]))
@click.argument("recipe")
@click.option("-l", "--language", metavar="TAG", help="BCP 47 tag [default: en, or the recipe's own].")
@click.option("-m", "--model", metavar="PROVIDER/MODEL", help="Model whose style is shown.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Any setting by its path.")
def show(what: str, recipe: str, language: str | None, model: str | None, overrides: tuple[str, ...]) -> None:
    """Show the rendered prompt of a recipe; no request is made."""
    from dataclasses import replace

    from selfinstruct import plugins
    from selfinstruct.config import parse_override
    from selfinstruct.plan import plan
    from selfinstruct.values import Capabilities

    if model:
        plugins.load("backends", plugins.split_model(model)[0])
    # Without a model the recipe's list prompt is meant: that is what any endpoint gets.
    given = {key: value for key, value in {"language": language, "model": model or "openai/any"}.items() if value}
    planned = plan([{"recipe": recipe}, given, *(parse_override(text) for text in overrides)], fetch=False)
    for lane in planned.lanes:
        click.echo(planned.recipe.preview(replace(lane.brief, capabilities=Capabilities(completions=True))))


@click.command("list", epilog="Example: selfinstruct list recipes")
@click.argument(
    "kind", type=click.Choice(["recipes", "formats", "backends", "filters", "languages", "models", "tools"])
)
@_as_json
def list_(kind: str, as_json: bool) -> None:
    """List what there is, plugins included."""
    if kind == "formats" and not as_json:
        from selfinstruct import formats
        from selfinstruct.formats.about import card

        click.echo("\n\n".join(card(formats.get(name)) for name in formats.names()))
        return
    rows = _LISTS[kind]()
    if as_json:
        click.echo(json.dumps(rows, ensure_ascii=False, indent=2))
        return
    _print_table(rows)


def _print_table(rows: list[dict[str, Any]]) -> None:
    columns = list(rows[0]) if rows else []
    widths = {name: max(len(name), *(len(str(row[name])) for row in rows)) for name in columns[:-1]}
    for row in [{name: name for name in columns}, *rows]:
        cells = [f"{row[name]!s:<{widths[name]}}" for name in columns[:-1]]
        click.echo("  ".join([*cells, str(row[columns[-1]])]).rstrip())


def _recipes() -> list[dict[str, Any]]:
    from selfinstruct import plugins

    loaded = [plugins.load("recipes", name) for name in plugins.names("recipes")]
    return [{"recipe": r.name, "styles": ", ".join(r.styles), "source": r.source, "summary": r.summary} for r in loaded]


def _formats() -> list[dict[str, Any]]:
    from selfinstruct import formats
    from selfinstruct.formats.about import describe

    return [describe(formats.get(name)) for name in formats.names()]


def _backends() -> list[dict[str, Any]]:
    from selfinstruct import plugins

    rows = []
    for name in plugins.names("backends"):
        doc = (plugins.load("backends", name).__doc__ or "").strip().split("\n")[0]
        rows.append({"backend": name, "what": doc})
    return rows


def _filters() -> list[dict[str, Any]]:
    from selfinstruct import plugins
    from selfinstruct.filters import DEFAULT_FILTERS, FILTERS, spec_of

    known = dict(FILTERS)
    others = [name for name in plugins.names("filters") if name not in FILTERS]
    known |= {name: spec_of(name, plugins.load("filters", name), "plugin") for name in others}
    return [
        {
            "filter": name,
            "on by default": ", ".join(style for style, names in DEFAULT_FILTERS.items() if name in names) or "-",
            "parameters": ", ".join(f"{key}={value}" for key, value in spec.parameters.items()) or "-",
            "what": spec.summary,
        }
        for name, spec in known.items()
    ]


def _languages() -> list[dict[str, Any]]:
    from selfinstruct import resources, seeds
    from selfinstruct.languages import load_pack

    rows = []
    for tag in resources.folders("seeds"):
        pack, path = load_pack(tag), resources.find("seeds", f"{tag}/tasks.jsonl")
        count = len(seeds.load_tasks(path)) if path else 0
        draft = "yes" if pack.draft else "-"
        rows.append({"tag": tag, "seeds": count, "draft": draft, "name": pack.name, "native name": pack.native_name})
    return rows


def _models() -> list[dict[str, Any]]:
    from selfinstruct.models import is_cached, known_models

    return [
        {
            "model": f"llama.cpp/{entry.name}",
            "size": f"{entry.profile.size / 1e6:,.0f} MB",
            "licence": entry.profile.licence,
            "here": "yes" if is_cached(entry) else "no",
            "languages": ", ".join(entry.profile.languages),
            "note": entry.profile.note,
        }
        for entry in known_models()
    ]


def _tools() -> list[dict[str, Any]]:
    from selfinstruct.tools import describe_tools

    return describe_tools()


_LISTS: dict[str, Callable[[], list[dict[str, Any]]]] = {
    "recipes": _recipes,
    "formats": _formats,
    "backends": _backends,
    "filters": _filters,
    "languages": _languages,
    "models": _models,
    "tools": _tools,
}
