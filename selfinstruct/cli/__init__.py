"""The command line: parse arguments, call the program, print.

Commands are loaded when they are called, so `selfinstruct --help` imports nothing heavy. Stdout is
data, stderr is talk. Errors are formatted here and nowhere else.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

import click

from selfinstruct import __version__
from selfinstruct.errors import SelfInstructError

COMMANDS = {
    "run": ("selfinstruct.cli.run:run", "Start a run, or go on with the one in the folder."),
    "resume": ("selfinstruct.cli.run:resume", "Go on with a run, perhaps with a higher target or another budget."),
    "status": ("selfinstruct.cli.inspect:status", "Show where a run stands; also while it works."),
    "export": ("selfinstruct.cli.data:export", "Write the accepted records of a run in a format."),
    "convert": ("selfinstruct.cli.data:convert", "Turn a dataset from one format into another."),
    "refilter": ("selfinstruct.cli.run:refilter", "Judge a run again from its journal: zero requests."),
    "replay": ("selfinstruct.cli.run:replay", "Rebuild a run from its journal alone, and compare."),
    "dedup": ("selfinstruct.cli.data:dedup", "Drop near-duplicate records of a dataset, exactly."),
    "verify": ("selfinstruct.cli.data:verify", "Check a dataset; exit 1 when records are unfit to train on."),
    "trace": ("selfinstruct.cli.inspect:trace", "Show where a record came from, whole."),
    "list": ("selfinstruct.cli.inspect:list_", "List recipes, formats, backends, filters, languages, models."),
    "show": ("selfinstruct.cli.inspect:show", "Show the rendered prompt of a recipe; no request is made."),
    "language": ("selfinstruct.cli.language:language", "Look after the material of a language."),
    "model": ("selfinstruct.cli.model:model", "Fetch and look after local models."),
}
"""Each command's place, and the line `--help` shows for it without importing it."""


class LazyGroup(click.Group):
    """A group that imports a command's module when the command is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands in the order a person meets them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return a command."""
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; a reader that goes early (head, less) took what it wanted, and click would exit 1."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            return 0

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; a wrong name gets the closest valid one."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            import difflib

            close = difflib.get_close_matches(args[0], COMMANDS, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(COMMANDS)}"
            raise click.UsageError(f"there is no command {args[0]!r}; {hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands from the table above."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Example: selfinstruct run alpaca --target 10",
)
@click.version_option(__version__, prog_name="selfinstruct")
def cli() -> None:
    """Grow a few seed tasks into an instruction dataset: any recipe, any language, any LLM."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its documented code."""
    code = 1
    _stand_in()
    try:
        code = cli.main(args=arguments, prog_name="selfinstruct", standalone_mode=False) or 0
    except click.ClickException as error:
        error.show(sys.stderr)
        code = 2
    except SelfInstructError as error:
        say(f"{_headline(error)}: {error}")
        code = error.exit_code
    except (KeyboardInterrupt, click.Abort):
        say("interrupted")
        code = 130
        # An interrupt that fell into exec() of a text (a dataclass being made) leaves CPython the note to die of SIGINT
        # at the end, caught or not; the next evaluation of a text clears it (pythonrun.c, run_eval_code_obj).
        eval("None")  # noqa: S307
    except OSError as error:
        say(f"error: {error.filename or 'output'}: {error.strerror or error}")
        code = 1
    _let_go_of_stdout()
    sys.exit(code if isinstance(code, int) else 0)


def say(text: str) -> None:
    """Talk to the person; when nobody listens any more (terminal closed, pipe broken), go on in silence."""
    try:
        click.echo(text, err=True)
    except OSError:
        fall_silent()


def fall_silent() -> None:
    """Let all further talk go nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stderr.fileno())
    os.close(nowhere)


def _let_go_of_stdout() -> None:
    """Write out what is left, or let it go nowhere: Python would try again at exit, complain and change the code."""
    try:
        sys.stdout.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def _stand_in() -> None:
    """Give closed standard streams a place: else the next file opened takes their number, and hears their talk."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode, encoding="utf-8"))


def _headline(error: SelfInstructError) -> str:
    return {5: "stopped", 130: "interrupted"}.get(error.exit_code, "error")
