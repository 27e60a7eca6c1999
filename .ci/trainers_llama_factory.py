# ruff: noqa: E402, T201
"""LLaMA-Factory's own reader on our dataset_info.json: converter, template and tokenizer; every row must be kept."""

from __future__ import annotations

import importlib.machinery
import json
import sys
import tempfile
import types
from pathlib import Path

# It is imported for sound, which we have none of, and has no build for torch on this CPU.
sys.modules["torchaudio"] = types.ModuleType("torchaudio")
sys.modules["torchaudio"].__spec__ = importlib.machinery.ModuleSpec("torchaudio", None)

from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
from llamafactory.hparams import DataArguments, ModelArguments
from trainers_model import tokenizer
from transformers import Seq2SeqTrainingArguments

PLAN = {"alpaca": "sft", "tools": "sft", "columns": "sft", "ranking": "rm", "kto": "kto"}
"""Our data sets and the training stage each is for."""


def main(folder: Path) -> None:
    """Load each data set by its name in dataset_info.json."""
    listed = json.loads((folder / "dataset_info.json").read_text(encoding="utf-8"))
    for name, stage in PLAN.items():
        # The same rows as Parquet: LLaMA-Factory must keep as many.
        file = "tools.json" if name == "columns" else listed[name]["file_name"]
        rows = json.loads((folder / file).read_text(encoding="utf-8"))
        fast = tokenizer(("<|endoftext|>", "<|im_start|>", "<|im_end|>"))
        data = DataArguments(
            template="qwen", dataset=name, dataset_dir=str(folder), cutoff_len=4096, overwrite_cache=True
        )
        with tempfile.TemporaryDirectory() as output:
            training = Seq2SeqTrainingArguments(output_dir=output, use_cpu=True, report_to=[])
            template = get_template_and_fix_tokenizer(fast, data)
            module = get_dataset(
                template, ModelArguments(model_name_or_path=output), data, training, stage=stage, tokenizer=fast
            )
        kept = module["train_dataset"]
        assert len(kept) == len(rows), f"{name}: {len(rows)} rows given, {len(kept)} kept"
        if stage == "sft":
            learned = [fast.decode([token for token in labels if token >= 0]) for labels in kept["labels"]]
            assert all(text.strip() for text in learned), f"{name}: a row without anything to learn"
        print(f"LLaMA-Factory {name} ({stage}): {len(rows)} rows, all kept")


if __name__ == "__main__":
    main(Path(sys.argv[1]) / "llama-factory")
