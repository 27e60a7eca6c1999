# ruff: noqa: T201
"""Axolotl's own prompt strategies on our files, set up by the config lines that we wrote beside them."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import yaml
from axolotl.prompt_strategies.chat_template import load
from axolotl.prompt_tokenizers import AlpacaPromptTokenizingStrategy, GPTeacherPromptTokenizingStrategy
from axolotl.prompters import AlpacaPrompter, GPTeacherPrompter
from axolotl.utils.dict import DictDefault
from trainers_model import tokenizer

TASKS = {
    "alpaca": (AlpacaPromptTokenizingStrategy, AlpacaPrompter, "output"),
    "gpteacher": (GPTeacherPromptTokenizingStrategy, GPTeacherPrompter, "response"),
}
"""Files of one question and one answer: their strategy, its prompter, and the key of the answer."""


def read(folder: Path, name: str) -> tuple[Any, dict[str, Any], list[dict[str, Any]]]:
    """Return the config, its data set entry and the rows of the file that the entry names."""
    config = yaml.safe_load((folder / f"{name}.axolotl.yaml").read_text(encoding="utf-8"))
    config |= {"train_on_inputs": False, "sequence_len": 4096}
    (entry,) = config["datasets"]
    lines = (folder / entry["path"]).read_text(encoding="utf-8").splitlines()
    return DictDefault(config), entry, [json.loads(line) for line in lines]


def main(folder: Path) -> None:
    """Tokenize every row; each must have something to learn."""
    fast = tokenizer()
    config, entry, rows = read(folder, "tools")
    strategy = load(fast, config, ds_cfg=entry)
    for row in rows:
        found = strategy.tokenize_prompt(row)
        learned = fast.decode([label for label in found["labels"] if label != -100])
        assert row["messages"][-1]["content"] in learned, (row, learned)
    print(f"Axolotl {entry['type']}: {len(rows)} rows, all kept")

    config, entry, rows = read(folder, "dpo")
    module, _, function = entry["type"].rpartition(".")
    made = getattr(importlib.import_module(f"axolotl.prompt_strategies.dpo.{module}"), function)(config)
    transform = made[0] if isinstance(made, tuple) else made
    for row in rows:
        found = transform(row, tokenizer=fast)
        assert row["chosen"]["content"] in found["chosen"], found
        assert row["rejected"]["content"] in found["rejected"], found
        assert row["messages"][-1]["content"] in found["prompt"], found
    print(f"Axolotl dpo {entry['type']}: {len(rows)} rows, all kept")

    for name, (strategy_class, prompter, answer) in TASKS.items():
        rows = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        strategy = strategy_class(prompter(), fast, False, 4096)
        for row in rows:
            found = strategy.tokenize_prompt(row)
            learned = fast.decode([label for label in found["labels"] if label != -100])
            assert learned.startswith(row[answer]), (row, learned)
            shown = fast.decode(found["input_ids"])
            assert row["instruction"] in shown, (row, shown)
            assert f"### Input:\n{row['input']}\n" in shown if row["input"] else "### Input:" not in shown, (row, shown)
        print(f"Axolotl {name}: {len(rows)} rows, all kept")


if __name__ == "__main__":
    main(Path(sys.argv[1]) / "axolotl")
