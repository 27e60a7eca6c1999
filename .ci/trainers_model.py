"""A byte tokenizer and a tiny model for the trainers' runs: nothing to fetch."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

TEMPLATE = (
    "{%- for tool in tools or [] %}<tool>{{ tool | tojson }}</tool>{% endfor %}"
    "{%- for m in messages %}<s>{{ m.role }} {{ m.reasoning_content or '' }}{{ m.content }}"
    "{%- for c in m.tool_calls or [] %}{{ c.function.name }}{{ c.function.arguments | tojson }}{% endfor %}</s>"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}<s>assistant {% endif %}"
)


def tokenizer(
    special: tuple[str, str, str] = ("<pad>", "<s>", "</s>"), begins: bool = False
) -> PreTrainedTokenizerFast:
    """Build a tokenizer of bytes; `begins`: each text starts with the second special token, as Llama's do."""
    pad, begin, end = special
    names = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    base = Tokenizer(models.BPE({token: index for index, token in enumerate(names)}, merges=[]))
    base.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    base.decoder = decoders.ByteLevel()
    if begins:
        base.post_processor = TemplateProcessing(single=f"{begin} $A", special_tokens=[(begin, names.index(begin))])
    fast = PreTrainedTokenizerFast(tokenizer_object=base, pad_token=pad, bos_token=begin, eos_token=end)
    fast.chat_template = TEMPLATE
    return fast


def model(size: int, longest: int) -> LlamaForCausalLM:
    """Build a model of a few thousand weights for a vocabulary of `size` tokens and texts of up to `longest`."""
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=size,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=longest,
        )
    )
