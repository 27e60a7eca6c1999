# ruff: noqa: T201
"""One optimizer step of TRL's trainers on our files, with a tiny randomly initialised model on the CPU."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset
from trainers_model import model, tokenizer
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

LONGEST = 8192
"""Tokens (bytes) of a row; what is longer TRL cuts, and leaves out when nothing to learn is left."""


def step(trainer_class: type, config_class: type, rows: Dataset, name: str) -> None:
    """Train one step; every row must have survived the trainer's own preparation."""
    fast = tokenizer()
    with tempfile.TemporaryDirectory() as folder:
        config = config_class(
            output_dir=folder,
            max_steps=1,
            max_length=LONGEST,
            per_device_train_batch_size=2,
            report_to=[],
            use_cpu=True,
            save_strategy="no",
            disable_tqdm=True,
            bf16=False,
        )
        # Without a reference model of its own a preference trainer fetches one by the model's name.
        more = {} if trainer_class is SFTTrainer else {"ref_model": model(len(fast), LONGEST)}
        trainer = trainer_class(
            model=model(len(fast), LONGEST), args=config, train_dataset=rows, processing_class=fast, **more
        )
        kept = len(trainer.train_dataset)
        assert kept == len(rows), f"{name}: {len(rows)} rows given, {kept} kept"
        loss = trainer.train().training_loss
    assert loss == loss and loss > 0, (name, loss)
    print(f"{trainer_class.__name__} on {name}: {len(rows)} rows, all kept, loss {loss:.3f}")


def calls(rows: Iterable[dict[str, Any]]) -> list[list[Any]]:
    """Return what each row's assistant calls."""
    messages = ([*row["messages"]] for row in rows)
    return [[call["function"] for message in row for call in message.get("tool_calls") or []] for row in messages]


def main(folder: Path) -> None:
    """Run every file that TRL has a trainer for."""
    try:
        from trl import KTOConfig, KTOTrainer
    except ImportError:
        from trl.experimental.kto import KTOConfig, KTOTrainer
    plan = {
        "messages.jsonl": (SFTTrainer, SFTConfig),
        "tools.jsonl": (SFTTrainer, SFTConfig),
        "messages.parquet": (SFTTrainer, SFTConfig),
        "tools.parquet": (SFTTrainer, SFTConfig),
        "prompt_completion.jsonl": (SFTTrainer, SFTConfig),
        "preference.jsonl": (DPOTrainer, DPOConfig),
        "preference_text.jsonl": (DPOTrainer, DPOConfig),
        "kto.jsonl": (KTOTrainer, KTOConfig),
        "kto_text.jsonl": (KTOTrainer, KTOConfig),
    }
    loaded = {}
    for name, (trainer, config) in plan.items():
        kind = "parquet" if name.endswith(".parquet") else "json"
        loaded[name] = load_dataset(kind, data_files=str(folder / name), split="train")
        step(trainer, config, loaded[name], name)
    lines = (folder / "tools.jsonl").read_text(encoding="utf-8").splitlines()
    for name in ("tools.jsonl", "tools.parquet"):
        assert calls(loaded[name]) == calls(map(json.loads, lines)), f"{name}: other tool calls came back"


if __name__ == "__main__":
    main(Path(sys.argv[1]) / "trl")
