"""The seed packs: enough of them, in the right shares, native, and no two alike."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from selfinstruct import resources, seeds
from selfinstruct.errors import SeedError
from selfinstruct.filters import DEFAULT_FILTERS, build_filters
from selfinstruct.languages import load_pack
from selfinstruct.novelty import NoveltyIndex
from selfinstruct.values import Candidate, Task

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"
TAGS = [tag for tag in resources.folders("seeds") if (ROOT / "seeds" / tag / "tasks.jsonl").is_file()]
EXPECTED = {"en": 175, "zh": 175}


def load(tag: str) -> tuple[Task, ...]:
    return seeds.load_tasks(ROOT / "seeds" / tag / "tasks.jsonl")


@pytest.mark.parametrize("tag", TAGS)
def test_shares(tag: str) -> None:
    tasks = load(tag)
    assert len(tasks) == EXPECTED.get(tag, 60)
    labelled = sum(bool(task.is_classification) for task in tasks) / len(tasks)
    alone = sum(task.instances[0].input == "" for task in tasks) / len(tasks)
    assert 0.12 <= labelled <= 0.18
    assert 0.25 <= alone <= 0.35
    assert len({task.name for task in tasks}) == len(tasks)
    # Self-Instruct's instance prompts show these: further cases of a task, for a classification with other labels.
    several = [task for task in tasks if len(task.instances) > 1]
    assert sum(bool(task.is_classification) for task in several) >= 3
    assert sum(not task.is_classification for task in several) >= 2
    assert all(len({case.output for case in task.instances}) > 1 for task in several)
    openings = Counter(task.instruction.split()[0][:4].lower() for task in tasks)
    assert openings.most_common(1)[0][1] <= max(0.1 * len(tasks), 6), openings.most_common(3)


@pytest.mark.parametrize("tag", TAGS)
@pytest.mark.parametrize("style", sorted(DEFAULT_FILTERS))
def test_no_filter_rejects_a_seed_of_its_own_pack(tag: str, style: str) -> None:
    names = [name for name in DEFAULT_FILTERS[style] if name != "needs_context"]
    checks = build_filters(names, load_pack(tag))
    rejected = [(task.id, verdict) for task in load(tag) for _, check in checks if (verdict := check(Candidate(task)))]
    assert not rejected


def test_no_two_seeds_are_alike_within_and_across_packs_and_none_is_taken_from_elsewhere() -> None:
    index = NoveltyIndex(threshold="0.6", engine="numpy")
    for name in ("stanford_seed_tasks.jsonl", "belle_zh_seed_tasks.json"):
        if (SHARED / name).is_file():
            index.add_many((f"{name}:{task.id}", task.instruction) for task in seeds.load_tasks(SHARED / name))
    alike = []
    for tag in TAGS:
        for task in load(tag):
            near = index.offer(task.id, task.instruction)
            if near:
                alike.append((task.id, near))
    assert not alike


@pytest.mark.parametrize("tag", [tag for tag in TAGS if (ROOT / "seeds" / tag / "topics.jsonl").is_file()])
def test_topics(tag: str) -> None:
    lines = (ROOT / "seeds" / tag / "topics.jsonl").read_text(encoding="utf-8").splitlines()
    topics = [json.loads(line) for line in lines]
    assert len(topics) >= 60
    assert all(set(topic) == {"topic", "category"} for topic in topics)
    assert len({topic["topic"] for topic in topics}) == len(topics)
    assert len({topic["category"] for topic in topics}) >= 10


@pytest.mark.parametrize("name", ["stanford_seed_tasks.jsonl", "belle_zh_seed_tasks.json"])
def test_the_originals_seed_files_load_as_they_are(name: str) -> None:
    if not (SHARED / name).is_file():
        pytest.skip(f"{name} is not beside the checkout")
    assert len(seeds.load_tasks(SHARED / name)) == 175


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "not valid JSON"),
        ("[1]", "expected an object"),
        ('"text"', "expected an object"),
        ('{"instruction": ""}', "non-empty text"),
        ('{"instruction": 5, "instances": []}', "non-empty text"),
        ('{"instruction": "Do it.", "instances": []}', "non-empty list"),
        ('{"instruction": "Do it.", "instances": [{"input": "x"}]}', "output"),
        ('{"instruction": "Do it.", "instances": [{"input": 1, "output": "y"}]}', "input"),
        ('{"instruction": "Do it.", "instances": [{"output": "y"}], "is_classification": "no"}', "true or false"),
    ],
)
def test_a_bad_line_is_named(line: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "tasks.jsonl"
    good = json.dumps({"instruction": "Say it.", "instances": [{"input": "", "output": "it"}]})
    path.write_text(f"{good}\n{line}\n", encoding="utf-8")
    with pytest.raises(SeedError, match=words) as raised:
        if line.startswith("["):
            path.write_text(line, encoding="utf-8")
        seeds.load_tasks(path)
    assert "tasks.jsonl" in str(raised.value)


def test_a_separator_inside_a_text_does_not_end_the_line(tmp_path: Path) -> None:
    path = tmp_path / "tasks.jsonl"
    row = {"instruction": "Join\u2028these\u0085lines.", "instances": [{"input": "", "output": "done"}]}
    path.write_text(json.dumps(row, ensure_ascii=False) + "\r\n", encoding="utf-8")
    assert seeds.load_tasks(path)[0].instruction == row["instruction"]
