"""The wheel ships prompts and seeds, and works from another directory in a fresh environment."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    built = subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)
    assert built.returncode == 0, built.stdout + built.stderr
    return next(folder.glob("*.whl"))


@pytest.mark.slow
def test_the_wheel_holds_the_same_prompts_and_seeds_as_the_checkout(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for kind in ("prompts", "seeds"):
            prefix = f"selfinstruct/_data/{kind}/"
            shipped = {n.removeprefix(prefix): archive.read(n) for n in archive.namelist() if n.startswith(prefix)}
            ours = {str(p.relative_to(ROOT / kind)): p.read_bytes() for p in (ROOT / kind).rglob("*") if p.is_file()}
            assert shipped == ours
            assert len(shipped) > 3
        names = archive.namelist()
        assert not [name for name in names if name.startswith(("tests", "runs"))]
        assert "selfinstruct/py.typed" in names
        assert "selfinstruct/prices.yaml" in names


@pytest.mark.slow
def test_the_wheel_works_elsewhere(wheel: Path, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True, timeout=120)
    python = tmp_path / "venv" / "bin" / "python"
    install = [
        str(python),
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--no-compile",
        str(wheel),
    ]
    subprocess.run(install, check=True, timeout=280)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()

    def program(*arguments: str) -> str:
        command = [str(tmp_path / "venv" / "bin" / "selfinstruct"), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=elsewhere, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "4. Instruction:" in program("show", "prompt", "alpaca")
    assert "4. 指令:" in program("show", "prompt", "alpaca", "-l", "zh")
    assert "175" in program("list", "languages")
    where = "import selfinstruct; print(selfinstruct.__file__)"
    found = subprocess.run([str(python), "-c", where], capture_output=True, text=True, check=True, cwd=elsewhere)
    assert str(tmp_path) in found.stdout, "the checkout was imported, not the wheel"
