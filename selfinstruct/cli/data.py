"""`export`, `convert`, `dedup` and `verify`: data files in and out."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Iterable

    from selfinstruct.formats import Format, Report
    from selfinstruct.values import Record

_as_json = click.option("--json", "as_json", is_flag=True, help="JSON on stdout in place of a table.")


def _talk(line: str) -> None:
    click.echo(line, err=True)


@click.command(epilog="Example: selfinstruct export runs/zh --format sharegpt -o train.json")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--format", "name", metavar="NAME", help="A format of `selfinstruct list formats`; default the recipe's own."
)
@click.option("-o", "--output", metavar="PATH", help='File to write, "-" for stdout; default DIR/export/NAME.json.')
@click.option("--lossy", is_flag=True, help="Write also what the format holds only in part, without that part.")
@_as_json
def export(folder: Path, name: str | None, output: str | None, lossy: bool, as_json: bool) -> None:
    """Write the accepted records of a run in a format that its trainer loads.

    What the format can't hold, or not whole, is listed with its reason in OUT.lost.jsonl; the run keeps it.
    """
    from dataclasses import replace

    from selfinstruct import formats, plugins
    from selfinstruct.store import RunView

    with RunView.open(folder) as view:
        chosen = formats.get(name or view.meta("export"))
        if chosen.name in (view.meta("folders") or ()) and not _is_file(output):
            recipe = plugins.load("recipes", view.meta("config")["recipe"])
            target = output or str(folder / "export" / chosen.name)
            reports = {
                file: formats.write(format, records, str(Path(target) / file), lossy=lossy)
                for file, format, records in recipe.files[chosen.name](view)
            }
        else:
            ending = (
                ""
                if chosen.directory
                else {"jsonl": ".jsonl", "csv": ".csv", "parquet": ".parquet"}.get(chosen.layout, ".json")
            )
            target = output or str(folder / "export" / f"{chosen.name}{ending}")
            _some_fit((record for _, record in view.dataset()), chosen)
            # What is written together, such as a tree, must stand together: the lanes of a quota take turns.
            lane_by_lane = (each for lane in view.lanes() for each in view.accepted(lane.stages[-1]))
            stored = view.dataset() if chosen.group_records is None else lane_by_lane
            accepted = (replace(record, id=record.id or id) for id, record in stored)
            reports = {"": formats.write(chosen, accepted, target, lossy=lossy)}
    sides = {}
    if target != "-":
        sides = {file: _list_lost(Path(target) / file, report) for file, report in reports.items()}
    if as_json:
        found = {file: report.as_json() for file, report in reports.items()}
        shown = found.get("") or {"files": found}
        click.echo(json.dumps(shown, ensure_ascii=False, indent=2), err=target == "-")
        return
    for file, report in reports.items():
        _say_written(str(Path(target) / file) if file else target, report)
        if side := sides.get(file):
            _talk(f"  listed with reasons: {side}")


def _is_file(output: str | None) -> bool:
    """Tell whether a target names one file, of the formats that may also be a folder."""
    return output is not None and (
        output == "-" or Path(output).suffix in (".json", ".jsonl", ".csv", ".parquet", ".gz", ".zst")
    )


def _list_lost(target: Path, report: Report) -> Path | None:
    """Write the side file of a target and return its name; None, and no file, when every record is there, whole."""
    from selfinstruct.convert import beside
    from selfinstruct.formats.outputs import save

    side = beside(target)
    if not report.refused and not report.reduced:
        side.unlink(missing_ok=True)  # what an earlier export to the same target lost
        return None
    found = [(each, False) for each in report.refused] + [(each, True) for each in report.reduced]
    lines = [{"place": id, "reason": reason, "written": written} for (id, reason), written in found]
    save(target, [(side.name, "".join(json.dumps(line) + "\n" for line in lines))])
    return side


def _say_written(target: str, report: Report) -> None:
    _talk(f"{target}: {report.written} records in {report.rows} rows")
    for what, listed in (("not written", report.refused), ("not whole", report.reduced)):
        for reason, count in Counter(reason for _, reason in listed).most_common():
            first = [str(id) for id, why in listed if why == reason][:5]
            more = f" and {count - 5} more, listed by --json" if count > 5 else ""
            _talk(f"  {count} {what}: {reason} ({', '.join(first)}{more})")
    for label, count in sorted(report.labels.items()):
        # Every record of a run has an id; most formats have none.
        if label != "id":
            _talk(f"  {count} without {label}: the format has no place for it")


def _some_fit(records: Iterable[Record], format: Format) -> None:
    """Stop before a file is replaced by an empty one: no record of the run fits the format or keeps its rules."""
    from selfinstruct.errors import ConfigError, InputError
    from selfinstruct.formats import shape

    reason = ""
    for record in records:  # a run may hold several kinds: the comparisons and threads of a tree
        try:
            format.rows(shape.split(record, format.kinds))
            return
        except InputError as error:
            reason = reason or str(error)
    if reason:
        raise ConfigError(f"{format.name}: {reason}; see docs/formats.md for what each format holds")


@click.command(epilog="Example: selfinstruct dedup train.json --against benchmark.jsonl -o unique.json")
@click.argument("source", metavar="FILE")
@click.option("--against", metavar="FILE", multiple=True, help="Drop also what is near to this file; may be repeated.")
@click.option("--threshold", default="0.7", metavar="F", help="ROUGE-L F above which two texts are the same.")
@click.option(
    "--field",
    type=click.Choice(["question", "instruction", "output"]),
    default="question",
    help="What is compared: the instruction with its input, alone, or the answer.",
)
@click.option("--tokenizer", default="script", metavar="NAME", help="script, rouge, whitespace, chars or icu.")
@click.option("-o", "--output", required=True, metavar="OUT", help='File to write, "-" for stdout.')
@click.option("--pairs", metavar="PATH", help="Write each dropped record and the one it is near to, as JSON lines.")
@_as_json
def dedup(
    source: str,
    against: tuple[str, ...],
    threshold: str,
    field: str,
    tokenizer: str,
    output: str,
    pairs: str | None,
    as_json: bool,
) -> None:
    """Drop near-duplicate records of a dataset, exactly; the first of each stays, in its place."""
    import contextlib
    import time
    from collections.abc import Iterator

    from selfinstruct import formats
    from selfinstruct.checks import pair_of, question
    from selfinstruct.errors import InputError
    from selfinstruct.formats.outputs import apart
    from selfinstruct.novelty import NoveltyIndex

    if pairs:
        apart(pairs, source=source, target=output)

    def compared(record: Record) -> str:
        if field == "question":
            return question(record)
        pair = pair_of(record)
        return pair.asked if field == "instruction" else "\n".join(pair.answers)

    outside = NoveltyIndex(threshold=threshold, tokenizer=tokenizer)
    for path in against:
        numbered = enumerate(formats.read(path), 1)
        outside.add_many((f"{path} record {number}", compared(record)) for number, record in numbered)
    index = NoveltyIndex(threshold=threshold, tokenizer=tokenizer, against=outside if against else None)
    dropped = 0
    shown: list[dict[str, str | float]] = []
    report_at = time.monotonic() + 10

    with contextlib.ExitStack() as stack:
        listed = stack.enter_context(Path(pairs).open("w", encoding="utf-8")) if pairs else None

        def fresh(reading: formats.Reading) -> Iterator[Record]:
            nonlocal dropped, report_at
            for record in reading:
                near = index.offer(reading.place, compared(record))
                if time.monotonic() > report_at:
                    report_at = time.monotonic() + 10
                    _talk(f"{reading.records:,} records read, {dropped:,} dropped")
                if near is None:
                    yield record
                    continue
                dropped += 1
                pair: dict[str, str | float] = {"place": reading.place, "near": near.id, "score": near.score}
                if len(shown) < 20:
                    shown.append(pair)
                if listed:
                    listed.write(json.dumps(pair | {"text": compared(record)}, ensure_ascii=False) + "\n")

        def refuse(refusal: formats.Refusal) -> None:
            raise InputError(
                f"{reading.place}: {refusal.reason}; selfinstruct convert FILE OUT --to {reading.format.name} --lossy "
                "leaves such records out and lists them"
            )

        reading = stack.enter_context(formats.open_records(source))
        report = formats.write(reading.format, fresh(reading), output, on_refused=refuse)
    if as_json:
        found = {"records": reading.records, "written": report.written, "dropped": dropped, "first": shown}
        click.echo(json.dumps(found, ensure_ascii=False, indent=2), err=output == "-")
        return
    for each in shown:
        _talk(f"{each['place']}: ROUGE-L {each['score']:.2f} to {each['near']}")
    if dropped > len(shown):
        _talk(f"... and {dropped - len(shown):,} more; --pairs PATH lists them all")
    _talk(f"{reading.records:,} records, {dropped:,} too near to an earlier one, {report.written:,} written")


@click.command(epilog="Example: selfinstruct convert alpaca_data.json train.jsonl --to messages")
@click.argument("source", metavar="IN")
@click.argument("target", metavar="OUT")
@click.option(
    "--from", "source_format", default="auto", metavar="FORMAT", help='Format of IN; "auto" looks at the content.'
)
@click.option("--to", "target_format", required=True, metavar="FORMAT", help="Format of OUT.")
@click.option(
    "--lossy", is_flag=True, help="Go on past records that OUT can't hold (whole); list them in the side file."
)
@click.option("--skip-bad", is_flag=True, help="Go on past rows that can't be read; list them in the side file.")
@click.option(
    "--clean", "steps", multiple=True, metavar="STEP[=VALUE]", help="A cleaning step, in order; may be repeated."
)
@click.option("--lost", metavar="PATH", help="The side file; default OUT.lost.jsonl.")
@_as_json
def convert(
    source: str,
    target: str,
    source_format: str,
    target_format: str,
    lossy: bool,
    skip_bad: bool,
    steps: tuple[str, ...],
    lost: str | None,
    as_json: bool,
) -> None:
    """Turn a dataset from one format into another; every row is written or reported.

    IN and OUT may be "-". Input may be gzip or zstd; OUT is compressed when its name ends in .gz or .zst, and
    Parquet when it ends in .parquet. Cleaning steps are listed in docs/formats.md.
    """
    from selfinstruct.convert import convert as run_convert

    result = run_convert(
        source,
        target,
        to=target_format,
        source_format=source_format,
        lossy=lossy,
        skip_bad=skip_bad,
        clean=steps,
        lost=lost,
        tell=_talk,
    )
    if as_json:
        click.echo(json.dumps(result.as_json(), ensure_ascii=False, indent=2), err=target == "-")
        return
    _talk(f"{result.rows} rows in, {result.bad} bad, {result.records} records")
    for name, count in result.cleaned.items():
        _talk(f"  {name}: {count.changed} changed, {count.dropped} dropped, {count.added} added")
    _talk(f"{result.written} records written in {result.rows_out} rows")
    _talk(f"{result.refused} refused, {result.reduced} not whole")
    if result.renumbered:
        _talk(f"  {result.renumbered} with a number behind the id, which was there before")
    for reason, number in result.reasons.most_common(10):
        _talk(f"  {number}: {reason}")
    for label, number in sorted(result.labels.items()):
        _talk(f"  {number} without {label}: {result.target} has no place for it")
    for key, number in sorted(result.ignored.items()):
        _talk(f"  {number} rows had a key that means nothing in {result.format}: {key}")
    if result.lost:
        _talk(f"listed with reasons: {result.lost}")


@click.command(epilog="Example: selfinstruct verify train.json --against benchmark.jsonl --allow near-duplicate=0.01")
@click.argument("source", metavar="FILE")
@click.option("--format", "name", default="auto", metavar="NAME", help='Format of FILE; "auto" looks at the content.')
@click.option("-l", "--language", metavar="TAG", help="The answers' language; default the script of each question.")
@click.option("--against", metavar="FILE", help="A benchmark whose questions must not be in FILE.")
@click.option("--only", multiple=True, metavar="CHECK", help="Run this check only; may be repeated.")
@click.option("--skip", multiple=True, metavar="CHECK", help="Leave this check out; may be repeated.")
@click.option("--allow", multiple=True, metavar="CHECK=SHARE", help="Share of records (0 to 1) a check may object to.")
@click.option("-c", "--config", metavar="FILE", help="YAML with thresholds under verify:, shares under verify: allow:.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="A threshold: near_duplicate=0.8")
@click.option("--findings", metavar="PATH", help="Write every finding as a JSON line.")
@_as_json
def verify(
    source: str,
    name: str,
    language: str | None,
    against: str | None,
    only: tuple[str, ...],
    skip: tuple[str, ...],
    allow: tuple[str, ...],
    config: str | None,
    settings: tuple[str, ...],
    findings: str | None,
    as_json: bool,
) -> None:
    """Check a dataset; exit 1 when records are unfit to train on."""
    from contextlib import ExitStack
    from dataclasses import asdict

    from selfinstruct import checks as record_checks
    from selfinstruct import formats
    from selfinstruct import verify as checks
    from selfinstruct.formats.outputs import apart, created

    if findings:
        apart(findings, source=source)
    values, shares = _thresholds(config, settings, allow)
    texts = (record_checks.question(record) for record in formats.read(against)) if against else None
    verifier = checks.Verifier(
        thresholds=record_checks.Thresholds.of(values), language=language, against=texts, only=only, skip=skip
    )
    with ExitStack() as stack:
        stream = stack.enter_context(created(Path(findings))) if findings else None

        def write(finding: checks.Finding) -> None:
            if stream is not None:
                stream.write(json.dumps(asdict(finding), ensure_ascii=True).encode() + b"\n")

        result = checks.verify(source, name, verifier=verifier, allowed=shares, on_finding=write)
    if as_json:
        click.echo(json.dumps(result.as_json(), ensure_ascii=True, indent=2))
    else:
        _table(result, checks.CHECKS)
    if not result.fit:
        raise SystemExit(1)


def _table(result: Any, summaries: dict[str, str]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(f"{result.source}: {result.records} records ({result.format})"))
    for column in ("check", "found", "allowed", "", "what"):
        table.add_column(column, justify="right" if column in ("found", "allowed") else "left")
    for check in result.checks:
        verdict = "[red]too many[/red]" if check in result.failed else "ok"
        allowed = f"{result.allowed.get(check, 0.0):.2%}"
        table.add_row(check, str(result.counts[check]), allowed, verdict, summaries[check])
    console = Console()
    console.print(table)
    for finding in result.examples:
        console.print(escape(f"{finding.check}: {finding.place}: {finding.detail}"), highlight=False, soft_wrap=True)
    if not result.records:
        console.print("no record could be read")


def _thresholds(
    config: str | None, settings: tuple[str, ...], allow: tuple[str, ...]
) -> tuple[dict[str, Any], dict[str, float]]:
    from selfinstruct.errors import ConfigError

    values: dict[str, Any] = {}
    if config:
        import yaml

        try:
            read = yaml.safe_load(Path(config).read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise ConfigError(f"{config}: can't be read as YAML: {error}") from None
        section = read.get("verify") if isinstance(read, dict) else None
        if not isinstance(section, dict):
            raise ConfigError(f"{config}: expected a section verify: with thresholds")
        values |= section
    shares = values.pop("allow", {})
    if not isinstance(shares, dict):
        raise ConfigError(f"{config}: verify.allow: expected check: share")
    for text in settings:
        key, equals, value = text.removeprefix("verify.").partition("=")
        if not equals:
            raise ConfigError(f"--set {text}: expected KEY=VALUE")
        values[key] = _number(f"--set {key}", value)
    for text in allow:
        check, _, share = text.partition("=")
        shares[check] = _number(f"--allow {check}", share)
    for check, share in shares.items():
        if not isinstance(share, int | float) or isinstance(share, bool) or not 0 <= share <= 1:
            raise ConfigError(f"allowed share of {check}: expected a number from 0 to 1, found {share!r}")
    return values, {check: float(share) for check, share in shares.items()}


def _number(name: str, text: str) -> float:
    from selfinstruct.errors import ConfigError

    try:
        value = float(text)
    except ValueError:
        raise ConfigError(f'{name}: expected a number, found "{text}"') from None
    return int(value) if value.is_integer() else value
