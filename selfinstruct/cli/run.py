"""`run`, `resume` and `refilter`."""

from __future__ import annotations

import asyncio
import datetime
import json
import shlex
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from selfinstruct import plan as plans
from selfinstruct.cli import say
from selfinstruct.cli.progress import Progress
from selfinstruct.config import parse_override, parse_shares, read
from selfinstruct.errors import ConfigError, Interrupted, SelfInstructError, Stopped
from selfinstruct.report import outlook, outlook_lines
from selfinstruct.run import Session
from selfinstruct.store import RunStore

_Command = TypeVar("_Command", bound=Callable[..., Any])


def _options(*options: Callable[[_Command], _Command]) -> Callable[[_Command], _Command]:
    def decorate(command: _Command) -> _Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


knobs = _options(
    click.option("-n", "--target", type=int, metavar="N", help="Accepted records wanted."),
    click.option("--base-url", metavar="URL", help="OpenAI-compatible server."),
    click.option("--api-key-env", metavar="NAME", help="Environment variable with the key [default: OPENAI_API_KEY]."),
    click.option("--concurrency", type=int, metavar="N", help="Requests under way at once [default: 16]."),
    click.option("--rpm", type=int, metavar="N", help="Requests a minute."),
    click.option("--tpm", type=int, metavar="N", help="Tokens a minute."),
    click.option("--max-requests", type=int, metavar="N", help="Requests over the whole run."),
    click.option("--max-tokens", type=int, metavar="N", help="Tokens over the whole run."),
    click.option("--max-cost", metavar="USD", help="Dollars over the whole run, by the price file."),
    click.option("--max-time", metavar="TIME", help="Running time over the whole run, such as 2h."),
    click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Any setting by its path."),
    click.option("--pilot", type=click.IntRange(1), metavar="N", help="Ask N times, forecast the rest, and stop."),
    click.option("-q", "--quiet", is_flag=True, help="No progress on stderr."),
)

_KNOB_KEYS = {
    "target": "target",
    "base_url": "backend.base_url",
    "api_key_env": "backend.api_key_env",
    "concurrency": "concurrency",
    "rpm": "rpm",
    "tpm": "tpm",
    "max_requests": "budget.max_requests",
    "max_tokens": "budget.max_tokens",
    "max_cost": "budget.max_cost",
    "max_time": "budget.max_time",
}


@click.command(
    epilog="Example: selfinstruct run alpaca -n 1000 -m openai/gpt-4o-mini -l zh -o runs/zh --max-cost 5",
)
@click.argument("recipe")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Run folder [default: runs/RECIPE-LANG-TIME].")
@click.option("-m", "--model", metavar="PROVIDER/MODEL", help="[default: llama.cpp/smollm2-135m, embedded]")
@click.option("-l", "--language", metavar="TAG", help="BCP 47 tag [default: en, or the recipe's own].")
@click.option("--seeds", metavar="FILE", help="Seed tasks of your own.")
@click.option("--input", metavar="FILE", help="Input of recipes that work through one.")
@click.option("--corpus", metavar="PATH", help="Documents for the tool that searches.")
@click.option("--quota", metavar="KEY=SHARE,...", help="Shares by language or topic category, such as zh=0.2,en=0.8.")
@click.option("--against", multiple=True, metavar="FILE", help="Reject what is near to this file; may be repeated.")
@click.option("-c", "--config", type=click.Path(path_type=Path, dir_okay=False), help="YAML file with any setting.")
@click.option("--seed", type=int, metavar="N", help="Seed of all randomness [default: 42].")
@knobs
def run(
    recipe: str,
    output: Path | None,
    config: Path | None,
    overrides: tuple[str, ...],
    pilot: int | None,
    quiet: bool,
    quota: str | None,
    against: tuple[str, ...],
    **options: Any,
) -> None:
    """Start a run, or go on with it if the folder holds one with the same config."""
    layers = [read(config)] if config else []
    options |= {"quota": quota and parse_shares(quota), "novelty.against": list(against) or None}
    layers += [{"recipe": recipe}, *layers_of(options), *(parse_override(text) for text in overrides)]
    plan = plans.plan(layers)
    if output is None:
        time = datetime.datetime.now(datetime.UTC).astimezone().strftime("%Y%m%d-%H%M%S")
        output = Path("runs") / f"{Path(recipe).stem}-{plan.config.language}-{time}"
    with plans.open_run(output, plan) as store:
        work(plan, store, quiet=quiet, pilot=pilot)


@click.command(epilog="Example: selfinstruct resume runs/zh -n 2000 --max-cost 10")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@knobs
def resume(folder: Path, overrides: tuple[str, ...], pilot: int | None, quiet: bool, **options: Any) -> None:
    """Go on with a run from where it stopped."""
    plan = plans.resume_plan(folder, [*layers_of(options), *(parse_override(text) for text in overrides)])
    with plans.open_run(folder, plan) as store:
        work(plan, store, quiet=quiet, pilot=pilot)


def layers_of(options: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the settings that options on the command line stand for."""
    layers = []
    for name, value in options.items():
        if value is not None:
            tree: Any = value
            for part in reversed(_KNOB_KEYS.get(name, name).split(".")):
                tree = {part: tree}
            layers.append(tree)
    return layers


def work(plan: plans.Plan, store: RunStore, *, quiet: bool, pilot: int | None) -> None:
    """Go on with a run until it is done or stops, and say how it goes."""
    for notice in plan.notices:
        say(f"note: {notice}")
    session = Session(plan, store, pilot=pilot)
    progress = Progress(session, quiet=quiet)
    session.say = progress.note
    try:
        with progress:
            asyncio.run(_until_done(session, progress))
    except SelfInstructError as error:
        if not isinstance(error, ConfigError):
            progress.closing(error)
        if pilot is not None and type(error) is Stopped:
            _forecast(session)
            raise Stopped(f"the pilot of {pilot} requests is over; {_go_on(store)}") from None
        raise
    except (asyncio.CancelledError, KeyboardInterrupt):
        stopped = Interrupted(f"stopped at once; {_go_on(store)}")
        progress.closing(stopped)
        raise stopped from None
    progress.closing(None)


def _go_on(store: RunStore) -> str:
    return f"go on with: selfinstruct resume {shlex.quote(str(store.folder))}"


def _forecast(session: Session) -> None:
    for line in outlook_lines(outlook(session.store.view, session.budget.price)):
        say(line)


async def _until_done(session: Session, progress: Progress) -> None:
    task = asyncio.current_task()
    asked = 0

    def interrupt() -> None:
        nonlocal asked
        asked += 1
        if asked == 1:
            under_way = session.stop(Interrupted(f"asked to stop; {_go_on(session.store)}"))
            if under_way:
                progress.note(f"stopping: {under_way} requests are under way; once more stops at once")
        elif task is not None:
            task.cancel()

    if sys.platform != "win32":
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # the last when the terminal is closed
            asyncio.get_running_loop().add_signal_handler(number, interrupt)
    await session.work(progress.commit)


@click.command(epilog="Example: selfinstruct refilter runs/zh --set novelty.threshold=0.6 --dry-run")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Filters, novelty, or the target.")
@click.option("--dry-run", is_flag=True, help="Only say what would enter and leave.")
@click.option("--json", "as_json", is_flag=True, help="The difference as JSON on stdout.")
def refilter(folder: Path, overrides: tuple[str, ...], dry_run: bool, as_json: bool) -> None:
    """Judge a run again from its journal with other filters: zero requests."""
    from dataclasses import asdict

    from selfinstruct.replay import refilter as judge_again
    from selfinstruct.store import RunStore

    plan = plans.resume_plan(folder, [parse_override(text) for text in overrides], fetch=False)
    with RunStore.open(folder) as store:
        difference = asyncio.run(judge_again(plan, store, dry_run=dry_run))
    if as_json:
        click.echo(json.dumps(asdict(difference), ensure_ascii=False, indent=2))
        return
    for sign, changes in (("+", difference.entering), ("-", difference.leaving)):
        for change in changes:
            click.echo(f"{sign} {change.id}  {_excerpt(change.text)}  ({change.why})")
    did = "would be" if dry_run else "are"
    click.echo(f"{difference.before} records were accepted, {difference.after} {did}; no request was made", err=True)


@click.command(epilog="Example: selfinstruct replay runs/zh -o runs/zh-again")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Folder for the rebuilt run.")
def replay(folder: Path, output: Path) -> None:
    """Rebuild a run in another folder from the journal alone, and say whether it is the same."""
    from selfinstruct.replay import replay as rebuild

    count, same = asyncio.run(rebuild(folder, plans.resume_plan(folder, [], fetch=False), output))
    verdict = "the same" if same else "NOT the same: a prompt, pack or part of the program has changed since"
    click.echo(f"{count} records rebuilt in {output} without a request: {verdict}", err=True)
    if not same:
        sys.exit(1)


def _excerpt(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 80 else line[:79] + "…"
