from __future__ import annotations

from pathlib import Path

import pytest

from callbacks import MetricsCSV


def test_columns_grow_and_a_row_is_on_the_disk_at_once(tmp_path: Path) -> None:
    logger = MetricsCSV(tmp_path)
    logger.log_metrics({"train/loss": 0.5, "epoch": 0}, step=0)
    assert (tmp_path / "metrics.csv").read_text() == "step,epoch,train/loss\n0,0,0.5\n"
    logger.log_metrics({"val/nme": 1 / 3, "epoch": 0}, step=0)
    logger.log_metrics({"train/loss": 0.25, "epoch": 0}, step=1)
    assert (tmp_path / "metrics.csv").read_text() == (
        "step,epoch,train/loss,val/nme\n0,0,0.5,\n0,0,,0.333333333\n1,0,0.25,\n"
    )


def test_a_new_process_goes_on_and_replaces_the_steps_that_it_repeats(tmp_path: Path) -> None:
    first = MetricsCSV(tmp_path)
    for step in range(4):
        first.log_metrics({"train/loss": step}, step=step)
    first.log_metrics({"val/nme": 0.1}, step=1)
    # The kill cut the last row short.
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("4")
    second = MetricsCSV(tmp_path)
    second.log_metrics({"train/loss": 20}, step=2)
    second.log_metrics({"test/nme": 0.3}, step=0)
    assert (tmp_path / "metrics.csv").read_text() == (
        "step,test/nme,train/loss,val/nme\n0,,0,\n1,,1,\n1,,,0.1\n2,,20,\n0,0.3,,\n"
    )


def test_a_row_that_a_kill_cut_short_does_not_spoil_the_next(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("step,train/loss\n0,0.5\n1,0.2")
    logger = MetricsCSV(tmp_path)
    logger.log_metrics({"train/loss": 0.125}, step=2)
    assert (tmp_path / "metrics.csv").read_text() == "step,train/loss\n0,0.5\n2,0.125\n"


def test_damage_is_said_and_what_is_good_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "metrics.csv"
    damage = {
        "step,train/loss\n0,0.5\nx,0.25\n2,\x00\n3,a\n4,1,2\n5,0.125\n": "step,train/loss\n0,0.5\n5,0.125\n6,1\n",
        "\x00\x01\n\xff": "step,train/loss\n6,1\n",
        'step,train/loss\n0,0.5\n1,"0.25\n2,0.1\n': "step,train/loss\n0,0.5\n6,1\n",
    }
    for content, expected in damage.items():
        path.write_text(content)
        MetricsCSV(tmp_path).log_metrics({"train/loss": 1.0}, step=6)
        assert path.read_text() == expected
        assert f"rows of {path} are damaged and left out; metrics-damaged.csv has them" in capsys.readouterr().err
        assert (tmp_path / "metrics-damaged.csv").read_text() == content
