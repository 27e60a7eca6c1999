"""The committed benchmark runs, and its generator has the shape it claims."""

import importlib.util
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "novelty.py"
pytestmark = pytest.mark.skipif(not SCRIPT.exists(), reason="benchmarks are only in a checkout")


def module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("novelty_benchmark", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


@pytest.mark.slow
def test_quick_run_prints_every_table() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), "--quick"], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("| 1,000 |") == 2
    for line in (
        "decision vs rouge_score",
        "decision vs best rapidfuzz batch",
        "top-10 + mean",
        "Texts of 200 to 2,000",
    ):
        assert line in done.stdout


def test_generated_texts_have_the_published_length_and_frequency_profile() -> None:
    texts = [text.rstrip(".").lower().split() for text in module().generate(20_000)]
    lengths = sorted(map(len, texts))
    frequencies = Counter(word for text in texts for word in set(text)).most_common()
    shares = [count / len(texts) for _, count in frequencies]
    assert 9.5 < sum(lengths) / len(lengths) < 11
    assert 19 <= lengths[int(0.99 * len(lengths))] <= 25
    assert 0.5 < shares[0] < 0.7
    assert 7 <= sum(share > 1 / 8 for share in shares) <= 11
    assert 14 <= sum(share > 1 / 16 for share in shares) <= 22


def test_texts_are_read_from_arrays_lines_and_plain_text(tmp_path: Path) -> None:
    read = module().read_texts
    array, lines, plain = tmp_path / "a.json", tmp_path / "b.jsonl", tmp_path / "c.txt"
    array.write_text('[{"instruction": "Name a tree."}, {"instruction": "Name a tree."}, {"instruction": "..."}]')
    lines.write_text('{"instruction": "Name a tree."}\n\n{"instruction": "Sing."}\n')
    plain.write_text("Name a tree.\n\nSing.\n")
    assert read(array) == ["Name a tree."]
    assert read(lines) == read(plain) == ["Name a tree.", "Sing."]
