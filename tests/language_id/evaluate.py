"""How well the language filters tell a run's language: `python -m tests.language_id.evaluate [--json]`.

`TAG.jsonl` holds texts in the language of each shipped pack, `neighbours.jsonl` texts in languages that ship no pack
and are easily taken for one that does. All were written for this. Each text is judged as in a run of each pack:
as an instruction, or as the answer to one of the pack's own seed tasks.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from selfinstruct import resources, seeds
from selfinstruct.filters import Filter, build_filters
from selfinstruct.languages import LanguagePack, load_pack
from selfinstruct.values import Candidate, Instance, Task

FOLDER = Path(__file__).parent
FILTERS = ("language_script", "script_variant", "language")


@dataclass
class Score:
    """What the filters of one pack did; precision and recall are of the texts they let pass."""

    own: int = 0
    own_kept: int = 0
    foreign: int = 0
    foreign_kept: Counter[str] = field(default_factory=Counter)
    neighbours_kept: Counter[str] = field(default_factory=Counter)

    @property
    def recall(self) -> float:
        """Share of the language's own texts that pass."""
        return self.own_kept / self.own

    @property
    def precision(self) -> float:
        """Share of what passes that is in the language; 14 texts in 15 are not."""
        return self.own_kept / (self.own_kept + self.foreign_kept.total())

    @property
    def rejected(self) -> float:
        """Share of the other packs' texts that are rejected."""
        return 1 - self.foreign_kept.total() / self.foreign


def rows(name: str) -> list[dict[str, Any]]:
    """Return the rows of one of the files."""
    return [json.loads(line) for line in (FOLDER / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


@cache
def texts() -> Mapping[str, list[dict[str, Any]]]:
    """Return the labelled texts by the pack they belong to."""
    return {tag: rows(tag) for tag in resources.folders("seeds") if (FOLDER / f"{tag}.jsonl").exists()}


def filters_of(pack: LanguagePack, *, names: tuple[str, ...] = FILTERS) -> list[Filter]:
    """Return the language filters as a run of the pack would have them."""
    return [check for _, check in build_filters(names, pack)]


def question(pack: LanguagePack) -> str:
    """Return an instruction of the pack's seeds that stands alone and asks for no other language."""
    path = seeds.path_for(pack.tag)
    assert path is not None
    tasks = seeds.load_tasks(path)
    return next(
        task.instruction
        for task in tasks
        if not task.instances[0].input and pack.other_language.find(task.instruction) is None
    )


def keeps(filters: list[Filter], asked: str, row: Mapping[str, Any]) -> bool:
    """Tell whether a text passes: instructions in their place, anything else as an answer."""
    task = Task(row["text"]) if row.get("kind") == "instruction" else Task(asked, (Instance("", row["text"]),))
    return all(check(Candidate(task)) is None for check in filters)


def evaluate(tag: str, *, names: tuple[str, ...] = FILTERS) -> Score:
    """Judge every text in a run of one pack."""
    pack = load_pack(tag)
    filters, asked = filters_of(pack, names=names), question(pack)
    score = Score()
    for language, labelled in texts().items():
        kept = sum(keeps(filters, asked, row) for row in labelled)
        if language == tag:
            score.own, score.own_kept = len(labelled), kept
        else:
            score.foreign += len(labelled)
            score.foreign_kept += Counter({language: kept} if kept else {})
    score.neighbours_kept = Counter(row["language"] for row in rows("neighbours") if keeps(filters, asked, row))
    return score


def misses(tag: str) -> list[str]:
    """Return the texts of one pack's run that were judged wrongly."""
    pack = load_pack(tag)
    filters, asked = filters_of(pack), question(pack)
    labelled = [(language, row) for language, found in texts().items() for row in found]
    return [f"{name}: {row['text']}" for name, row in labelled if keeps(filters, asked, row) != (name == tag)]


def main() -> None:
    """Print the scores of every pack; as text with what was judged wrongly."""
    scores = {tag: evaluate(tag) for tag in texts()}
    if "--json" in sys.argv:
        shown = {
            tag: asdict(score) | {"precision": score.precision, "recall": score.recall} for tag, score in scores.items()
        }
        print(json.dumps(shown, ensure_ascii=False, indent=1))
        return
    for tag, score in scores.items():
        print(
            f"{tag:8} precision {score.precision:.3f}  recall {score.recall:.3f}  rejected {score.rejected:.3f}", end=""
        )
        print(f"  kept of others {dict(score.foreign_kept)}, of neighbours {dict(score.neighbours_kept)}")
        for line in misses(tag):
            print(f"           {line}")


if __name__ == "__main__":
    main()
