"""The code in docs/cameras.md runs, what it asserts holds, and its figure is what the command draws."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "cameras.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 3
    exec("\n".join(blocks), {})
    assert (tmp_path / "face.ply").stat().st_size > 100_000


def test_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cv2 = pytest.importorskip("cv2")
    out = tmp_path / "cameras.png"
    monkeypatch.setattr(sys, "argv", ["draw_cameras.py", "--out", str(out)])
    runpy.run_path(str(DOCS / "draw_cameras.py"), run_name="__main__")
    drawn, kept = cv2.imread(str(out)), cv2.imread(str(DOCS / "cameras.png"))
    assert drawn.shape == kept.shape
    assert abs(drawn.astype(float) - kept).mean() < 1.0
    assert (DOCS / "cameras.png").stat().st_size < 300_000
