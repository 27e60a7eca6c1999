"""`dedup` keeps the first of each, in order, and says what it dropped and why."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from click.testing import CliRunner
from rouge_score.rouge_scorer import RougeScorer

from selfinstruct.cli.data import dedup

WORDS = (
    "amber bridge candle dusk engine forest garden harbour island jungle kettle lantern meadow needle orchard".split()
)


def row(instruction: str, output: str = "ok", input: str = "") -> dict[str, str]:
    return {"instruction": instruction, "input": input, "output": output}


def run(*arguments: object) -> str:
    result = CliRunner().invoke(dedup, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


def rows(path: Path) -> list[dict[str, str]]:
    loaded: list[dict[str, str]] = json.loads(path.read_text(encoding="utf-8"))
    return loaded


def test_it_decides_as_rouge_score_does(tmp_path: Path) -> None:
    rng = random.Random(3)
    texts = [" ".join(rng.choices(WORDS, k=rng.randint(3, 9))) for _ in range(300)]
    (tmp_path / "in.json").write_text(json.dumps([row(text) for text in texts]))
    run(tmp_path / "in.json", "-o", tmp_path / "out.json", "--pairs", tmp_path / "pairs.jsonl")
    scorer, kept = RougeScorer(["rougeL"]), list[str]()
    for text in texts:
        # Exactly 0.7 is not above it; rouge_score's floats may be a hair off there.
        if all(scorer.score(other, text)["rougeL"].fmeasure <= 0.7 + 1e-9 for other in kept):
            kept.append(text)
    assert [each["instruction"] for each in rows(tmp_path / "out.json")] == kept
    pairs = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    assert len(pairs) == len(texts) - len(kept)
    assert all(pair["score"] > 0.7 for pair in pairs)


def test_the_field_decides_what_is_compared(tmp_path: Path) -> None:
    data = [
        row("Name the colour of the sky.", "Blue on a clear day, grey otherwise.", "noon"),
        row("Name the colour of the sky.", "Red at dusk over the sea.", "a long evening in late summer by the coast"),
        row("Say how the evening sky looks.", "Red at dusk over the sea."),
    ]
    (tmp_path / "in.json").write_text(json.dumps(data))
    kept = {}
    for field in ("question", "instruction", "output"):
        run(tmp_path / "in.json", "-o", tmp_path / f"{field}.json", "--field", field)
        kept[field] = [data.index(each) for each in rows(tmp_path / f"{field}.json")]
    assert kept == {"question": [0, 1, 2], "instruction": [0, 2], "output": [0, 1]}


def test_against_other_files(tmp_path: Path) -> None:
    (tmp_path / "in.json").write_text(json.dumps([row("Plan a walk along the old harbour."), row("Count the bees.")]))
    (tmp_path / "bench.jsonl").write_text(json.dumps(row("Plan a walk along the old harbour wall.")) + "\n")
    talk = run(
        tmp_path / "in.json", "-o", tmp_path / "out.json", "--against", tmp_path / "bench.jsonl",
        "--pairs", tmp_path / "p.jsonl",
    )  # fmt: skip
    assert [each["instruction"] for each in rows(tmp_path / "out.json")] == ["Count the bees."]
    assert "bench.jsonl record 1" in talk
    assert "bench.jsonl" in (tmp_path / "p.jsonl").read_text()


@pytest.mark.parametrize(("name", "words"), [("--threshold", "1.x"), ("--tokenizer", "scrpit")])
def test_a_wrong_value_is_named(name: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "in.json").write_text(json.dumps([row("Count the bees.")]))
    result = CliRunner().invoke(dedup, [str(tmp_path / "in.json"), "-o", str(tmp_path / "o.json"), name, words])
    assert result.exit_code != 0
    assert words in str(result.exception) + result.output
