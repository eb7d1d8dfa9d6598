"""Boards of records that strangers wrote, in terminals of any width."""

from __future__ import annotations

import csv
import io
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from lightning_faces.commands.leaderboard import main
from lightning_faces.errors import ConfigurationError
from lightning_faces.evaluation.records import MetricValue, Training
from lightning_faces.files.plain_text import csv_cell, printable
from lightning_faces.leaderboard.charts import curve_end, error_curve, round_up
from lightning_faces.leaderboard.collect import collect
from lightning_faces.leaderboard.markdown import markdown_text
from lightning_faces.leaderboard.rank import boards
from lightning_faces.leaderboard.text import print_boards
from tests.leaderboard.made_runs import write_run

HOSTILE = [
    '=HYPERLINK("http://evil","x")', "+1+1", "-2+3", "@SUM(A1)", "\t=1", "\r=1", " =1", "＝1", "[/red]",
    "[bold]x[/]", "[link=http://evil]x[/link]", "\x1b[31mred\x1b[0m", "\x1b]0;title\x07", "\x9b31m", "a\u202egnp.exe",
    "a|b", "`a`", "<img src=x onerror=alert(1)>", "[x](javascript:alert(1))", "**b**", "a\nb", "a\r\nb",
    "$(x)", "~~x~~", "https://evil.example", "www.evil.example", "_x_", "# x", "![x](http://evil)",
    "\ud800", "é", "日本",
]  # fmt: skip


def outputs(root: Path, folder: Path, capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, str]:
    files = {name: folder / f"board.{name}" for name in ("csv", "markdown", "html")}
    main([str(root), *options, *(word for name, path in files.items() for word in (f"--{name}", str(path)))])
    shown = capsys.readouterr()
    return {"out": shown.out, "err": shown.err, **{name: path.read_text() for name, path in files.items()}}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_a_record_says_is_text_everywhere(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "runs"
    unit = {f"m{name}": MetricValue(1.0, 0.5, 1.5, 300, name, False)}
    for number, seed in enumerate((1, 2)):
        write_run(
            root, name, f"run{number}", 0.05, seed, dataset="D", run_name=name, backbone=name, split=name,
            invalid={name: 1}, extra=unit,
        )  # fmt: skip
    written = outputs(root, tmp_path, capsys, "--metric", "nme", "--metric", f"m{name}")
    for text in written.values():
        # No control, direction or surrogate character but line ends.
        assert re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", text) is None
    spelt = printable(name)
    assert spelt in "".join(line.strip() for line in written["out"].splitlines())
    rows = list(csv.DictReader(io.StringIO(written["csv"])))
    assert {row["backbone"] for row in rows} == {csv_cell(name)}
    for row in rows:
        for cell in row.values():
            assert not re.match(r"\s*[=+\-@＝＋－＠]", cell) or re.fullmatch(r"-?[\d.e+-]+", cell), cell
    assert "<img src=x" not in written["html"]
    assert "](javascript" not in written["markdown"].replace("\\](", "")
    # In a table's row, the number of cells is that of the heading.
    table = [line for line in written["markdown"].split("## Quoted")[0].splitlines() if line.startswith("| ")]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table}) == 1


def test_markdown_is_what_it_shows() -> None:
    for name in HOSTILE:
        shown = markdown_text(name)
        for character in "`*[]<>|#!$~":
            assert len(re.findall(rf"(?<!\\)(?:\\\\)*{re.escape(character)}", shown)) == 0, (name, shown)
        assert re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", shown) == printable(name)
    assert markdown_text("nme_0_30 of e/my_run-2") == "nme_0_30 of e/my_run-2"
    assert markdown_text("_x_ https://a www.b") == r"\_x\_ https\://a www\.b"


def wide_runs(root: Path) -> Path:
    for number in range(3):
        write_run(root, f"Method{number}", f"experiment/run{number}", 0.04 + 0.01 * number, number, backbone="resnet50")
    write_run(root, "MeanLandmarks", "experiment/baseline", 0.2, 4)
    return root


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120, 160, 200])
def test_numbers_are_whole_at_any_width_and_what_has_no_room_is_named(width: int, tmp_path: Path) -> None:
    found = boards(collect([wide_runs(tmp_path)])[0])
    text = io.StringIO()
    print_boards(Console(file=text, width=width), found)
    lines = text.getvalue().splitlines()
    assert max(map(len, lines)) <= max(width, 50)
    shown = " ".join(lines)
    values = {row.entry.record.metrics["nme"].value for row in found[0].rows}
    for value in values:
        assert re.search(rf" {100 * value:.2f} ", shown), value
    assert "Method0" in shown
    table = shown.split("No room")[0]
    hidden = [name for name in ("parameters", "images/s", "nme_60_90", "backbone") if name not in table]
    for name in hidden:
        assert name in shown.split("No room for ")[1]
    if width == 80:
        assert "nme_0_30" in table
    if width == 200:
        assert not hidden


def test_a_pipe_has_room_for_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wide_runs(tmp_path / "runs")
    assert not sys.stdout.isatty()
    every = ["nme", "nme_0_30", "nme_30_60", "nme_60_90", "nme_auc_7", "vertex_mm"]
    main([str(tmp_path / "runs"), *(word for name in every for word in ("--metric", name))])
    out = capsys.readouterr().out
    assert "No room" not in out
    assert all(name in out for name in every)


def test_a_row_alone_in_its_setting_has_no_rank(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = wide_runs(tmp_path / "runs")
    write_run(root, "Alone", "experiment/alone", 0.01, 7, training=Training(9, 9, 0, True))
    written = outputs(root, tmp_path, capsys)
    rows = [row for row in csv.DictReader(io.StringIO(written["csv"])) if row["metric"] == "nme"]
    assert {row["method"]: row["rank"] for row in rows} == {
        "MeanLandmarks": "", "Method0": "1", "Method1": "2", "Method2": "3", "Alone": ""
    }  # fmt: skip
    assert "alone in its setting" in written["out"]
    assert "| – | Alone |" in written["markdown"]


def test_ties_of_aggregates_reach_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "runs"
    write_run(root, "First", "a", 0.05, 1)
    write_run(root, "Second", "b", 0.05, 1)
    write_run(root, "Third", "c", 0.07, 1)
    written = outputs(root, tmp_path, capsys)
    rows = {(row["method"], row["metric"]): row for row in csv.DictReader(io.StringIO(written["csv"]))}
    for metric in ("nme", "nme_mean", "nme_60_90", "nme_auc_7"):
        tied = {method: rows[method, metric]["tied_with_best"] for method in ("First", "Second", "Third")}
        assert sorted(tied[method] for method in ("First", "Second")) == ["False", "True"], metric
        assert tied["Third"] == "False"
    # No per-sample errors of it: it can't be told.
    assert rows["Third", "vertex_mm"]["tied_with_best"] == ""


def test_predictions_of_one_method_are_rows_of_their_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "runs"
    for number in (1, 2, 3):
        write_run(
            root, "PARM", "parm", 0.08 - 0.01 * number, number, prediction=f"stage_{number}", weights="w",
            invalid={"no face": 6} if number == 1 else {},
        )  # fmt: skip
    written = outputs(root, tmp_path, capsys)
    assert written["err"] == ""
    rows = [row for row in csv.DictReader(io.StringIO(written["csv"])) if row["metric"] == "nme"]
    assert [(row["method"], row["prediction"], row["rank"]) for row in rows] == [
        ("PARM", "stage_3", "1"), ("PARM", "stage_2", "2"), ("PARM", "stage_1", "3")
    ]  # fmt: skip
    assert [row["invalid"] for row in rows] == ["0", "0", "6"]
    for text in (written["out"], written["html"], written["markdown"]):
        assert "PARM (stage_2)" in text
        assert "6 of 300 faces are not valid and left out of the means (6: no face)" in " ".join(text.split())
    entries = {entry.record.prediction: entry for entry in collect([root])[0]}
    # Invalid faces are failures at every threshold.
    assert error_curve(entries["stage_1"], end=10.0)[-1][1] == pytest.approx(300 / 306)
    assert error_curve(entries["stage_3"], end=10.0)[-1][1] == 1.0


def test_the_error_axis_follows_the_methods_and_no_chart_is_empty(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "runs"
    write_run(root, "Good", "a", 0.03, 1)
    write_run(root, "MeanLandmarks", "b", 0.9, 2)
    entries = collect([root])[0]
    assert curve_end(entries, "nme") == 0.10
    write_run(root, "Bad", "c", 0.8, 3)
    entries = collect([root])[0]
    errors = next(entry for entry in entries if entry.record.method == "Bad").samples["nme"]
    end = curve_end(entries, "nme")
    assert np.quantile(errors, 0.9) <= end < 2 * np.quantile(errors, 0.9)
    assert all(error_curve(entry, "nme", end)[-1][1] > 0 for entry in entries)
    only = [entry for entry in entries if entry.record.method == "MeanLandmarks"]
    assert error_curve(only[0], "nme", curve_end(only, "nme"))[-1][1] >= 0.9
    assert [round_up(x) for x in (0.1, 0.11, 37.0, 99.0, 1e7, 3.1e-9)] == pytest.approx(
        [0.1, 0.15, 40.0, 100.0, 1e7, 4e-9]
    )
    far = tmp_path / "far"
    write_run(far, "Off", "a", 3.0, 1)
    html = outputs(far, tmp_path, capsys)["html"]
    assert 'stroke="#0072b2"' in html


def test_a_method_beyond_the_axis_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "runs"
    write_run(root, "Good", "a", 0.01, 1)
    write_run(root, "MeanLandmarks", "b", 9.0, 2)
    assert "All errors beyond 10 %: MeanLandmarks · b." in outputs(root, tmp_path, capsys)["html"]


def test_a_wrong_place_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = wide_runs(tmp_path / "runs")
    board = tmp_path / "board.md"
    board.write_text("# board")
    with pytest.raises(ConfigurationError, match=r"board.md is a Markdown document, not a folder of runs: give"):
        main([str(board)])
    with pytest.raises(ConfigurationError, match=r"--csv .*runs cannot be written \(Is a directory\): give another"):
        main([str(root), "--csv", str(root)])
    with pytest.raises(ConfigurationError, match=r"--html .*board.md/x cannot be written"):
        main([str(root), "--html", str(board / "x")])
    capsys.readouterr()
    # The folder of records itself is one too, and what is no file in it is named.
    records = root / "experiment" / "run0" / "records"
    (records / "folder.json").mkdir()
    main([str(records)])
    shown = capsys.readouterr()
    assert "Method0" in shown.out
    assert "folder.json is no file" in shown.err
