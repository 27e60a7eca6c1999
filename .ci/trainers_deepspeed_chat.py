# ruff: noqa: T201
"""DeepSpeed-Chat's loading of train.json and eval.json: it is on no package index, so its lines are restated.

Source: DeepSpeedExamples applications/DeepSpeed-Chat, dschat/utils/data/raw_datasets.py LocalJsonFileDataset and
data_utils.py create_dataset_split: a sample whose prompt, chosen (or in step 2 rejected) is None is passed over.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from datasets import load_dataset


def main(folder: Path) -> None:
    """Load both files as it does, and count the samples that it would train on."""
    for name, keys in (("sft", ("prompt", "chosen")), ("ranking", ("prompt", "chosen", "rejected"))):
        files = {part: str(folder / name / f"{part}.json") for part in ("train", "eval")}
        loaded = load_dataset("json", data_files=files)
        for part, file in files.items():
            rows = json.loads(Path(file).read_text(encoding="utf-8"))
            kept = [sample for sample in loaded[part] if all(sample[key] is not None for key in keys)]
            assert len(kept) == len(rows) > 0, f"{file}: {len(rows)} rows given, {len(kept)} kept"
            texts = [" " + sample["prompt"] + " " + sample["chosen"] for sample in kept]
            assert all(text.startswith(" Human: ") and " Assistant: " in text for text in texts)
        print(f"DeepSpeed-Chat {name}: {len(loaded['train'])} + {len(loaded['eval'])} rows, all kept")


if __name__ == "__main__":
    main(Path(sys.argv[1]) / "deepspeed-chat")
