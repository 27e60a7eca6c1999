"""One run in SQLite: the journal, the draws, every decision. The only package that speaks SQL.

One process writes (a lock file sees to it), any number read while it does. All writes go through
one thread that groups whatever is waiting into one transaction and fsyncs it, so an awaited write
is durable and sixty-four of them cost hardly more than one. A few megabytes are set aside while a
run is written: when the disk fills up they take in what has been paid for, and nothing more is asked.

    sends        each request handed to the endpoint, before it leaves: what a budget counts
    completions  the journal: what came back, under the request's content key
    tool_results the journal: what tools gave, under the call's content key
    draws        what has been committed, in draw order
    candidates   every candidate with its decision, accepted or not
"""

from selfinstruct.store.codec import decision_from, record_from
from selfinstruct.store.view import Commit, Lane, RunView, StageSummary, Summary, holds_run
from selfinstruct.store.writer import RunStore

__all__ = [
    "Commit",
    "Lane",
    "RunStore",
    "RunView",
    "StageSummary",
    "Summary",
    "decision_from",
    "holds_run",
    "record_from",
]
