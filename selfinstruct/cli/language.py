"""`language`: look after the material of a language."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from selfinstruct.cli import say
from selfinstruct.cli.run import knobs

if TYPE_CHECKING:
    from selfinstruct.draft import Draft, Review
    from selfinstruct.plan import Plan
    from selfinstruct.store import RunStore, RunView

_NAMED = 5
"""Places of which the same is to be said that are named; --json names them all."""


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
            state += ", a draft" if result.draft else ""
            click.echo(
                f"{result.tag:<8} {result.name:<20} {result.seeds:>4} seeds {result.topics:>4} topics "
                f"{result.prompts:>3} prompts {len(result.rehearsed):>3} rehearsals  {state}"
            )
            for fault in result.faults:
                click.echo(f"  {fault.check}: {fault.where}: {fault.detail}")
    if any(result.faults for result in results):
        raise SystemExit(1)


@language.command(epilog="Example: selfinstruct language new sw --from en -m openai/gpt-4o-mini --max-cost 5")
@click.argument("tag")
@click.option("--from", "source", default="en", show_default=True, metavar="TAG", help="Language to start from.")
@click.option("--name", "called", default="", metavar="TEXT", help="Its English name [default: the model is asked].")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Run folder [default: runs/language-TAG].")
@click.option("-m", "--model", metavar="PROVIDER/MODEL", help="[default: llama.cpp/smollm2-135m, embedded]")
@click.option("--unspoken", is_flag=True, help="Also with a model that does not speak it: noise, to try the command.")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Seed tasks and topics, each [default: all].")
@click.option("--seed", type=int, metavar="N", help="Seed of all randomness [default: 42].")
@knobs
@click.option("--json", "as_json", is_flag=True, help="What there is to review as JSON on stdout.")
def new(
    tag: str,
    source: str,
    called: str,
    output: Path | None,
    unspoken: bool,
    limit: int | None,
    overrides: tuple[str, ...],
    pilot: int | None,
    quiet: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Draft the material of a language from another's: pack, seed tasks and topics.

    A run like any other: stopped or killed, the same command goes on, and asks for nothing twice. What it drafts is
    checked, marked as a draft, and written into your own folder; what a speaker should look at is printed.
    """
    from selfinstruct import language_check, resources
    from selfinstruct.cli.run import layers_of, work
    from selfinstruct.config import parse_override
    from selfinstruct.draft import Review, compose
    from selfinstruct.languages import canonical, load_pack
    from selfinstruct.plan import open_run, plan

    tag = canonical(tag)
    _refuse_what_is_there(tag)
    settings: dict[str, Any] = {"recipe": "language-pack", "language": source}
    settings["input"] = f"{source}:{limit}" if limit else source
    settings["options"] = {"language": tag, "name": called}
    planned = plan([settings, *layers_of(options), *(parse_override(text) for text in overrides)])
    noise = _is_unspoken(planned, tag, allowed=unspoken)
    with open_run(output or Path("runs") / f"language-{tag}", planned) as store:
        work(planned, store, quiet=quiet, pilot=pilot)
        records = (record for _, record in store.view.dataset())
        draft = compose(tag, called, load_pack(source), records, planned.config.model, noise=noise)
        folder = resources.user_folder() / "seeds" / tag
        changed = _write(draft.files, folder, store)
        review = [*draft.review, *_rejected(planned, store.view)]
    if not changed:
        review += [Review(fault.where, fault.detail) for fault in language_check.check(tag).faults]
    if as_json:
        shown = {"tag": tag, "draft": True, "folder": str(folder), "tasks": draft.tasks, "topics": draft.topics}
        click.echo(json.dumps(shown | {"review": [asdict(each) for each in review]}, ensure_ascii=False, indent=2))
        return
    _print_review(tag, folder, draft, review)


def _refuse_what_is_there(tag: str) -> None:
    from selfinstruct import resources
    from selfinstruct.errors import ConfigError
    from selfinstruct.languages import read_pack

    path = resources.find("seeds", f"{tag}/pack.yaml")
    if path is not None and not read_pack(path, tag).draft:
        raise ConfigError(f"{tag}: there is a language pack already, and it is no draft: {path}")


def _is_unspoken(planned: Plan, tag: str, *, allowed: bool) -> bool:
    """Tell whether the model is known not to speak the language: that is refused, or loudly said."""
    from selfinstruct.errors import ConfigError

    spoken = planned.profile.languages if planned.profile else ()
    if not spoken or tag.split("-")[0] in spoken:
        return False
    what = f"{planned.config.model} speaks only {', '.join(spoken)}, not {tag}: its draft would be noise"
    if not allowed:
        raise ConfigError(
            f"--model: {what}. Choose one that speaks it, for example openai/NAME --base-url URL; "
            "--unspoken drafts all the same, to try the command"
        )
    say(f"note: {what}. It is good for trying the command and for nothing else")
    return True


def _write(files: Mapping[str, str], folder: Path, store: RunStore) -> list[Path]:
    """Write the files of a draft into the run and into the person's folder; return those they have changed since.

    What the run has drafted before may be replaced. What a person has changed is theirs.
    """
    import hashlib

    from selfinstruct.store.disk import write_atomically

    def digest(text: str) -> str:
        return hashlib.sha256(text.encode()).hexdigest()

    drafted = {*(store.view.meta("drafted") or ()), *map(digest, files.values())}
    store.set_meta(drafted=sorted(drafted))
    changed = []
    for target in (store.folder / "export", folder):
        target.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            path = target / name
            if target == folder and path.exists() and digest(path.read_text(encoding="utf-8")) not in drafted:
                changed.append(path)
                say(f"note: {path} was changed since it was drafted and stays; the draft is in {store.folder}/export")
            else:
                write_atomically(path, text)
    return changed


def _rejected(planned: Plan, view: RunView) -> list[Review]:
    """Return what the run did not bring, by the items it was asked for."""
    from selfinstruct.draft import Review
    from selfinstruct.values import Dialogue, Task

    found = []
    settled, _ = view.next_draw("pack")
    for number, item in enumerate((planned.lanes[0].brief.items or ())[:settled]):
        for row in view.decisions("pack", number):
            if row["accepted"] is None and isinstance(item, Task | Dialogue):
                where = item.id if isinstance(item, Task) else item.topic[:60] or item.messages[0].content
                found.append(Review(where, f"rejected by {row['filter']}: {row['reason']}"))
    return found


def _print_review(tag: str, folder: Path, draft: Draft, review: list[Review]) -> None:
    click.echo(f"{folder}: a draft of {tag} with {draft.tasks} seed tasks and {draft.topics} topics")
    alike: dict[str, list[str]] = {}
    for each in review:
        alike.setdefault(each.what, []).append(each.where)
    for what, places in alike.items():
        more = f" and {len(places) - _NAMED} more" if len(places) > _NAMED else ""
        click.echo(f"  {', '.join(places[:_NAMED])}{more}: {what}")
    click.echo("A speaker should now")
    click.echo(f"  1. read pack.yaml in {folder}, above all what is listed here")
    click.echo("  2. read every seed task and topic: is it natural, is the answer right, is it of their world")
    click.echo(f"  3. run: selfinstruct language check {tag}")
    click.echo(f"  4. take `draft: true` out of {folder / 'pack.yaml'}")
