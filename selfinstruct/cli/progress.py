"""What a person sees of a run while it works: one live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import shlex
import sys
import time
from collections import Counter
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from selfinstruct.cli import fall_silent, say
from selfinstruct.errors import SelfInstructError
from selfinstruct.report import outlook
from selfinstruct.run import Session
from selfinstruct.store import Commit

if TYPE_CHECKING:
    from rich.live import Live

_EVERY = 10.0
"""Seconds between two plain lines."""


class Progress:
    """Counts commits and shows accepted/target, yield, rejections, requests, tokens and the time left."""

    def __init__(self, session: Session, *, quiet: bool) -> None:
        self._session = session
        self._quiet = quiet
        summary = session.store.view.summary()
        self._own = {lane.stages[-1] for lane in session.store.view.lanes()}
        self._at_start = summary
        self.accepted = summary.accepted
        self.candidates = summary.candidates
        self.rejected: Counter[str] = Counter(summary.rejected)
        self._started = time.monotonic()
        self._shown = self._started
        self._live: Live | None = None
        self._ahead: dict[str, Any] | None = None

    def __enter__(self) -> Self:
        """Start showing."""
        if not self._quiet:
            say(self._opening())
            if sys.stderr.isatty():
                from rich.console import Console
                from rich.live import Live

                self._live = Live(
                    get_renderable=self._render, console=Console(stderr=True), refresh_per_second=4, transient=True
                )
                self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop showing."""
        if self._live:
            try:
                self._live.stop()
            except OSError:  # the terminal is gone
                fall_silent()
            self._live = None

    def commit(self, commit: Commit) -> None:
        """Take note of a commit."""
        own = commit.stage in self._own
        for decision in commit.decisions:
            self.candidates += own
            if decision.rejection is None:
                self.accepted += own
            else:
                self.rejected[decision.rejection.filter] += 1
        if commit.state == "failed":
            self.note(f"{commit.stage}, draw {commit.number} failed: {commit.error}")
        now = time.monotonic()
        if not self._quiet and now - self._shown >= _EVERY:
            self._shown = now
            self._ahead = outlook(self._session.store.view, self._session.budget.price)
            if self._live is None:
                say(self._line())

    def note(self, text: str) -> None:
        """Say something beside the progress."""
        if self._live is None:
            say(text)
            return
        try:
            self._live.console.print(text, markup=False, highlight=False)
        except OSError:
            fall_silent()

    def closing(self, error: SelfInstructError | None) -> None:
        """Print the closing summary: what there is, where, and the next command."""
        if self._quiet:
            return
        folder, target = shlex.quote(str(self._session.store.folder)), self._session.plan.target
        say(self._line())
        for name, count in self.rejected.most_common():
            say(f"  {count:>6}  {name}")
        if error is None:
            say(f"done: {self.accepted} of {target} records in {folder}")
        else:
            say(f"{self.accepted} of {target} records are safe in {folder}")
            say(f"go on:  selfinstruct resume {folder}")
        if form := self._session.store.view.meta("export"):
            say(f"export: selfinstruct export {folder} --format {form} -o {form}.json")

    def _opening(self) -> str:
        config, start = self._session.plan.config, self._at_start
        verb = "going on with" if start.draws else "starting"
        return (
            f"{verb} {config.recipe} ({config.style}, {config.language}) with {config.model}: "
            f"{start.accepted}/{self._session.plan.target} accepted, folder {self._session.store.folder}"
        )

    def _line(self) -> str:
        session, start = self._session, self._at_start
        target, seconds = session.plan.target, time.monotonic() - self._started
        parts = [f"{self.accepted}/{target} accepted"]
        if self.candidates:
            parts.append(f"yield {self.accepted / self.candidates:.0%} of {self.candidates}")
        budget = session.budget
        parts.append(f"{budget.requests} requests")
        spent = budget.settled_tokens - start.spent_tokens
        parts.append(f"{budget.settled_tokens:,} tokens ({spent / max(seconds, 1e-9):,.0f}/s)")
        if budget.price and budget.price.prompt:
            parts.append(f"${budget.cost:.2f}")
        gained = self.accepted - start.accepted
        if gained > 0 and self.accepted < target:
            parts.append(f"{_clock((target - self.accepted) * seconds / gained)} left")
            if self._ahead and "tokens" in self._ahead:
                parts.append("to go " + _range(self._ahead["tokens"], "{:,.0f}") + " tokens")
                if "cost" in self._ahead and self._ahead["cost"]["high"]:
                    parts.append(_range(self._ahead["cost"], "${:,.2f}"))
        return ", ".join(parts)

    def _render(self) -> Any:
        from rich.text import Text

        target = self._session.plan.target
        width = 24
        full = min(width, width * self.accepted // target)
        bar = "█" * full + "░" * (width - full)
        reasons = ", ".join(f"{name} {count}" for name, count in self.rejected.most_common(5))
        text = Text(f"{bar} {self._line()}")
        if reasons:
            text.append(f"\nrejected: {reasons}", style="dim")
        return text


def _range(span: dict[str, float], form: str) -> str:
    return f"{form.format(span['low'])} to {form.format(span['high'])}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
