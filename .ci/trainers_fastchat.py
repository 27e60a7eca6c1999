# ruff: noqa: T201
"""FastChat's own cleaning, filters and Vicuna training data set on our ShareGPT file."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path

from fastchat.data import clean_sharegpt, filter_wrong_format, split_long_conversation
from fastchat.train.train import SupervisedDataset
from trainers_model import tokenizer


def main(folder: Path) -> None:
    """Every row must pass the cleaning, and every answer must be learned."""
    rows = json.loads((folder / "sharegpt.json").read_text(encoding="utf-8"))
    cleaned = clean_sharegpt.clean_html_all(copy.deepcopy(rows), None, None)
    assert len(cleaned) == len(rows), f"{len(rows)} rows given, {len(cleaned)} cleaned"
    assert not any(map(filter_wrong_format.should_skip, rows))
    assert split_long_conversation.filter_invalid_roles(rows) == rows

    fast = tokenizer(begins=True)
    fast.model_max_length, fast.legacy = 1024, True
    for row, labels in zip(rows, SupervisedDataset(rows, fast).labels, strict=True):
        learned = fast.decode([token for token in labels.tolist() if token >= 0])
        for turn in row["conversations"]:
            assert (turn["value"] in learned) == (turn["from"] == "gpt"), (turn, learned)
    print(f"FastChat on sharegpt.json: {len(rows)} rows, all kept, every answer learned")


if __name__ == "__main__":
    main(Path(sys.argv[1]) / "fastchat")
