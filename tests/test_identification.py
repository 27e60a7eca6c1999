"""The model that tells languages apart is unpacked once, and reads as the package's own file does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfinstruct import identification
from selfinstruct.languages import load_pack
from selfinstruct.plan import plan

langid = pytest.importorskip("py3langid.langid")
TEXTS = ["The canal froze over in January.", "Der Kanal fror im Januar zu.", "Mfereji uliganda mwezi wa Januari."]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache folder, for a model that is loaded anew."""
    monkeypatch.setenv("SELFINSTRUCT_CACHE", str(tmp_path / "cache"))
    forget()
    yield tmp_path / "cache"
    forget()


def forget() -> None:
    identification._model.cache_clear()
    identification.identifier.cache_clear()


def found() -> list[str]:
    judge = identification.identifier(load_pack("en"))
    assert judge is not None
    return [judge.identify(text).language for text in TEXTS]


def unpacked(cache: Path) -> Path:
    (path,) = cache.glob("py3langid-*.npz")
    return path


@settings(deadline=None, max_examples=50)
@given(st.lists(st.sampled_from([*" ".join(TEXTS).split(), "运河", "قناة", "a", "9"]), max_size=12).map(" ".join))
def test_it_ranks_as_the_packages_own_file(own: object, text: str) -> None:
    kept, told = identification._model()
    assert told == ""
    assert kept.rank(text) == own.rank(text)  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def own() -> object:
    return langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)


def test_it_is_unpacked_once(cache: Path) -> None:
    first = found()
    written = unpacked(cache).stat()
    forget()
    assert found() == first
    assert (unpacked(cache).stat().st_ino, unpacked(cache).stat().st_mtime_ns) == (written.st_ino, written.st_mtime_ns)
    assert not list(cache.glob("*.part"))


@pytest.mark.parametrize("size", [0, 1000, -1000])
def test_a_damaged_file_is_unpacked_anew(size: int, cache: Path) -> None:
    first = found()
    path = unpacked(cache)
    whole = path.read_bytes()
    path.write_bytes(whole[:size])
    forget()
    assert found() == first
    assert path.read_bytes() == whole


def test_a_byte_that_has_changed_is_noticed(cache: Path) -> None:
    first = found()
    path = unpacked(cache)
    whole = path.read_bytes()
    middle = len(whole) // 2
    path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    forget()
    assert found() == first
    assert path.read_bytes() == whole


def test_without_a_cache_folder_it_works_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SELFINSTRUCT_CACHE", str(tmp_path / "file" / "cache"))
    assert found()[0] == "en"
    (told,) = [
        told for told in plan([{"recipe": "alpaca", "model": "openai/m"}]).notices if "SELFINSTRUCT_CACHE" in told
    ]
    assert told.startswith(str(tmp_path / "file" / "cache"))
    assert "\n" not in told
