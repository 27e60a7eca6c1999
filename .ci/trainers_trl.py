# ruff: noqa: S106, T201
"""One optimizer step of TRL's trainers on our files, with a tiny randomly initialised model on the CPU."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from datasets import Dataset, load_dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

TEMPLATE = (
    "{%- for tool in tools or [] %}<tool>{{ tool | tojson }}</tool>{% endfor %}"
    "{%- for m in messages %}<s>{{ m.role }} {{ m.reasoning_content or '' }}{{ m.content }}"
    "{%- for c in m.tool_calls or [] %}{{ c.function.name }}{{ c.function.arguments | tojson }}{% endfor %}</s>"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}<s>assistant {% endif %}"
)


def tokenizer() -> PreTrainedTokenizerFast:
    """Build a byte tokenizer: no vocabulary to fetch."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(["<pad>", "<s>", "</s>", *alphabet])}
    base = Tokenizer(models.BPE(vocabulary, merges=[]))
    base.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast = PreTrainedTokenizerFast(tokenizer_object=base, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    fast.chat_template = TEMPLATE
    return fast


def model(size: int) -> LlamaForCausalLM:
    """Build a model of a few thousand weights."""
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=size,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=1024,
        )
    )


def step(trainer_class: type, config_class: type, rows: Dataset, name: str) -> None:
    """Train one step; every row must have survived the trainer's own preparation."""
    fast = tokenizer()
    with tempfile.TemporaryDirectory() as folder:
        config = config_class(
            output_dir=folder,
            max_steps=1,
            per_device_train_batch_size=2,
            report_to=[],
            use_cpu=True,
            save_strategy="no",
            disable_tqdm=True,
            bf16=False,
        )
        # Without a reference model of its own a preference trainer fetches one by the model's name.
        more = {} if trainer_class is SFTTrainer else {"ref_model": model(len(fast))}
        trainer = trainer_class(model=model(len(fast)), args=config, train_dataset=rows, processing_class=fast, **more)
        kept = len(trainer.train_dataset)
        assert kept == len(rows), f"{name}: {len(rows)} rows given, {kept} kept"
        loss = trainer.train().training_loss
    assert loss == loss and loss > 0, (name, loss)
    print(f"{trainer_class.__name__} on {name}: {len(rows)} rows, all kept, loss {loss:.3f}")


def main(folder: Path) -> None:
    """Run every file that TRL has a trainer for."""
    for name in ("messages.jsonl", "tools.jsonl", "prompt_completion.jsonl"):
        rows = load_dataset("json", data_files=str(folder / name), split="train")
        step(SFTTrainer, SFTConfig, rows, name)
    rows = load_dataset("parquet", data_files=str(folder / "messages.parquet"), split="train")
    step(SFTTrainer, SFTConfig, rows, "messages.parquet")
    rows = load_dataset("json", data_files=str(folder / "preference.jsonl"), split="train")
    step(DPOTrainer, DPOConfig, rows, "preference.jsonl")
    try:
        from trl import KTOConfig, KTOTrainer
    except ImportError:
        from trl.experimental.kto import KTOConfig, KTOTrainer
    rows = load_dataset("json", data_files=str(folder / "kto.jsonl"), split="train")
    step(KTOTrainer, KTOConfig, rows, "kto.jsonl")


if __name__ == "__main__":
    main(Path(sys.argv[1]) / "trl")
