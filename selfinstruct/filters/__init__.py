"""The heuristic filters: small functions that reject a candidate, saying why and what they measured.

A filter is `Callable[[Candidate], Rejection | None]`. Each function in `completions`, `leaks`, `instructions`,
`outputs`, `languages` and `dialogues` that is named like a filter is its factory: `factory(pack, **parameters) ->
Filter`, entered with the source of its rule. The rules of the English originals hold in every language because their
units, word lists and marks come from the language pack. Filters look at tasks, and where the rule makes sense for them
at dialogues: what holds for an instruction holds for the person's first words, what holds for an output for each
reply. Of any other record only the rules of `languages` have an opinion.
"""

from selfinstruct.filters.dialogues import repeats
from selfinstruct.filters.registry import DEFAULT_FILTERS, FILTERS, build_filters
from selfinstruct.filters.rule import Factory, Filter, FilterSpec, spec_of

__all__ = ["DEFAULT_FILTERS", "FILTERS", "Factory", "Filter", "FilterSpec", "build_filters", "repeats", "spec_of"]
