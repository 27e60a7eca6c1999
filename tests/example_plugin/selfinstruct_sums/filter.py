"""The filter: add up what the question says and compare it with the answer."""

from __future__ import annotations

import re

from selfinstruct.filters import Filter
from selfinstruct.languages import LanguagePack
from selfinstruct.values import Candidate, Rejection, Task


def right_sum(pack: LanguagePack, *, largest: int = 1998) -> Filter:
    """Reject a word problem whose answer is not the sum of its numbers, or whose sum is larger than `largest`."""

    def check(candidate: Candidate) -> Rejection | None:
        task = candidate.record
        if not isinstance(task, Task) or not task.instances:
            return None
        asked = [int(number) for number in re.findall(r"\d+", task.instruction)]
        answered = [int(number) for number in re.findall(r"\d+", task.instances[0].output)]
        if len(asked) != 2 or not answered:
            return Rejection("right_sum", "no sum", {"numbers": len(asked)})
        expected, found = sum(asked), answered[-1]
        if expected != found:
            return Rejection("right_sum", "wrong sum", {"expected": expected, "found": found})
        if expected > largest:
            return Rejection("right_sum", "too large", {"sum": expected, "largest": largest})
        return None

    return check
