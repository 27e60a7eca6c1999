"""Grow a few seed tasks into an instruction dataset: any recipe, any language, any LLM."""

__version__ = "0.1.0"
