"""`language`: look after the material of a language."""

from __future__ import annotations

import json
from dataclasses import asdict

import click


@click.group(epilog="Example: selfinstruct language check --all")
def language() -> None:
    """Look after the material of a language: pack, seeds, topics, prompts."""


@language.command(epilog="Example: selfinstruct language check ja")
@click.argument("tag", required=False)
@click.option("--all", "every", is_flag=True, help="Check every language there is material for.")
@click.option("--json", "as_json", is_flag=True, help="JSON on stdout in place of a table.")
def check(tag: str | None, every: bool, as_json: bool) -> None:
    """Check a language without a model; exit 1 when its material has faults.

    Reads the pack strictly, holds seeds, topics and prompts against it, and rehearses each recipe: a run with replies
    made of the pack's own seeds in place of a model, which must come back as they were.
    """
    from selfinstruct import language_check

    if every == (tag is not None):
        raise click.UsageError("give the tag of a language, or --all")
    results = [language_check.check(each) for each in (language_check.tags() if every else [str(tag)])]
    if as_json:
        click.echo(json.dumps([asdict(result) for result in results], ensure_ascii=False, indent=2))
    else:
        for result in results:
            state = f"{len(result.faults)} faults" if result.faults else "ok"
            click.echo(
                f"{result.tag:<8} {result.name:<20} {result.seeds:>4} seeds {result.topics:>4} topics "
                f"{result.prompts:>3} prompts {len(result.rehearsed):>3} rehearsals  {state}"
            )
            for fault in result.faults:
                click.echo(f"  {fault.check}: {fault.where}: {fault.detail}")
    if any(result.faults for result in results):
        raise SystemExit(1)
