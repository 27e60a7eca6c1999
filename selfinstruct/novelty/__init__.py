"""The novelty filter: is this text too near to one we already have?

`NoveltyIndex` answers exactly (ROUGE-L F, the filter of Self-Instruct and Alpaca) for any language,
over a pool that grows with every accepted text. docs/novelty.md tells how.
"""

from selfinstruct.novelty.index import NoveltyIndex
from selfinstruct.novelty.tokens import Tokenizer, tokenizer

__all__ = ["NoveltyIndex", "Tokenizer", "tokenizer"]
