"""The reference engine: rouge_score itself against every entry, the way Self-Instruct and Alpaca did it.

Slow on purpose (seconds per text at 50,000 entries) and simple enough to believe. The other
engines are tested against it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from selfinstruct.novelty.engine import Hit, Threshold, best_first, mean_score, required, score


class _Ids:
    """Tokenizer for rouge_score whose texts are token ids joined by blanks."""

    def tokenize(self, text: str) -> list[str]:
        return text.split()


class ReferenceEngine:
    """Brute force with `rouge_score.RougeScorer` (google-research, 0.1.2)."""

    def __init__(self) -> None:
        from rouge_score.rouge_scorer import RougeScorer

        self._scorer = RougeScorer(["rougeL"], tokenizer=_Ids())
        self._entries: list[tuple[str, int]] = []

    def __len__(self) -> int:
        return len(self._entries)

    def add_many(self, entries: Sequence[list[int]]) -> None:
        """Append entries in order."""
        self._entries.extend((" ".join(map(str, entry)), len(entry)) for entry in entries)

    def above(self, query: list[int], threshold: Threshold, limit: int) -> list[Hit]:
        """Return every entry that is too near, best first."""
        m = len(query)
        found = [
            (slot, score(lcs, m, n)) for slot, lcs, n in self._all(query, limit) if lcs >= required(threshold, m, n)
        ]
        return best_first(found)

    def too_near(self, query: list[int], threshold: Threshold, limit: int) -> Hit | None:
        """Return the best of the entries that are too near."""
        return next(iter(self.above(query, threshold, limit)), None)

    def nearest(self, query: list[int], limit: int) -> Hit | None:
        """Return the best entry, whatever its score."""
        hits, _ = self.top(query, 1, limit)
        return hits[0] if hits else None

    def top(self, query: list[int], k: int, limit: int) -> tuple[list[Hit], float]:
        """Return the k best entries and the mean score over all of them."""
        m = len(query)
        scored = self._all(query, limit)
        hits = best_first((slot, score(lcs, m, n)) for slot, lcs, n in scored)[:k]
        totals = np.zeros(1 + max(n for _, _, n in scored), np.int64)
        for _, lcs, n in scored:
            totals[n] += lcs
        return hits, mean_score(totals, m, len(scored))

    def has(self, token: int) -> bool:
        """Tell whether any entry has the token."""
        return any(str(token) in text.split() for text, _ in self._entries)

    def offer_many(self, entries: Sequence[list[int]], threshold: Threshold) -> list[Hit | None]:
        """Add each entry unless it is too near to one before it."""
        results: list[Hit | None] = []
        for entry in entries:
            hits = self.above(entry, threshold, len(self))
            if not hits:
                self.add_many([entry])
            results.append(hits[0] if hits else None)
        return results

    def _all(self, query: list[int], limit: int) -> list[tuple[int, int, int]]:
        """Return (slot, L, n) of the entries; L is the integer behind rouge_score's precision L/m."""
        text, m = " ".join(map(str, query)), len(query)
        return [
            (slot, round(self._scorer.score(target, text)["rougeL"].precision * m), n)
            for slot, (target, n) in enumerate(self._entries[:limit])
        ]
