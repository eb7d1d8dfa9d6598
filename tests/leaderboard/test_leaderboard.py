from __future__ import annotations

import csv
import io
import json
import shutil
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lightning_faces.commands.leaderboard import main
from lightning_faces.errors import ConfigurationError
from lightning_faces.evaluation.records import Training
from lightning_faces.leaderboard.charts import error_by_yaw, error_curve
from lightning_faces.leaderboard.collect import collect, published
from tests.evaluation.test_records import edit
from tests.leaderboard.made_runs import YAW, errors_of, write_run


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    root = tmp_path / "runs"
    write_run(root, "Zhao2016", "e/zhao", 0.055, 1)
    write_run(root, "PRNet", "e/prnet", 0.040, 2)
    write_run(root, "Richardson2016", "e/richardson", 0.0372, 3, training=Training(1000, 3, 0, False))
    write_run(root, "MeanLandmarks", "e/mean", 0.20, 4)
    write_run(root, "Pix2Face", "e/long", 0.030, 5, training=Training(5000, 9, 0, True))
    return root


def table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text())))


def test_the_csv_has_a_row_per_method_data_set_and_metric_and_ranks_within_a_setting(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(runs), "--csv", str(tmp_path / "t.csv")]) == 0
    assert (tmp_path / "t.csv").read_text().startswith("method,dataset,metric,value,")
    rows = table(tmp_path / "t.csv")
    assert len(rows) == 5 * 7
    nme = [row for row in rows if row["metric"] == "nme"]
    assert [row["method"] for row in nme] == ["MeanLandmarks", "PRNet", "Richardson2016", "Zhao2016", "Pix2Face"]
    # Pix2Face is alone in its setting, and so neither first nor last.
    assert [row["rank"] for row in nme] == ["", "1", "2", "3", ""]
    assert [row["setting"] for row in nme] == ["", "A", "A", "A", "B"]
    assert float(nme[1]["value"]) == pytest.approx(errors_of(0.040, 2).mean(), abs=1e-12)
    assert float(nme[1]["low"]) < float(nme[1]["value"]) < float(nme[1]["high"])
    assert [row["tied_with_best"] for row in nme] == ["", "False", "True", "False", ""]
    area = {row["method"]: row["rank"] for row in rows if row["metric"] == "nme_auc_7"}
    assert area["PRNet"] < area["Zhao2016"]  # here higher is better
    assert {row["method"]: row["converged"] for row in nme}["Richardson2016"] == "False"
    out = capsys.readouterr().out
    assert "AFLW2000-3D (test)" in out
    assert "Richardson2016 †" in out.replace("\n", " ")
    assert out.index("MeanLandmarks") < out.index("PRNet")


def test_quoted_rows_are_apart_and_never_in_the_csv(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([str(runs), "--csv", str(tmp_path / "t.csv"), "--markdown", str(tmp_path / "t.md")])
    assert "SDM" not in (tmp_path / "t.csv").read_text()
    out = capsys.readouterr().out
    assert out.index("Pix2Face") < out.index("Quoted from the papers") < out.index("SDM")
    text = (tmp_path / "t.md").read_text()
    measured, quoted = text.split("## Quoted from the papers")
    assert "SDM" not in measured
    assert (
        "| PRNet | nme_0_30 2.75 %, nme_30_60 3.51 %, nme_60_90 4.61 %, nme_mean 3.62 % | 68 points, 2D; 696" in quoted
    )
    assert "Richardson et al. | vertex_mm not available, figure only |" in quoted
    assert "not trained to convergence" in measured
    assert "1,000 samples seen, crop 96 px with margin 1.3, seed 0" in measured


def test_published_values_are_those_of_the_papers_tables() -> None:
    values = {(row.paper, row.source, row.method, row.metric): row.value for row in published()}
    assert len(values) == len(published())
    for key, value in {
        ("Zhao 2016", "Table 1", "Zhao et al.", "gte"): 0.058835,
        ("Zhao 2016", "Table 1", "psxab5", "cvgtce"): 0.034767,
        ("Zhao 2016", "Table 2", "PIFA", "ape"): 4.75,
        ("PARM", "Table 2, stage 7", "PARM", "nme"): 0.0853,
        ("PARM", "Table 1", "PCLM", "identity_error"): 3.562,
        ("PRNet 2018", "Table 1", "3DDFA + SDM", "nme_60_90"): 0.0717,
        ("PRNet 2018", "Table 1", "PAWF", "nme_visible"): 0.0472,
        ("PRNet 2018", "Table 2", "PRNet", "milliseconds_per_image"): 9.8,
    }.items():
        assert values[key] == pytest.approx(value, abs=1e-12), key
    # The mean column of PRNet's table 1 is the mean of its bins (6.09 for SDM, where the paper prints 6.12).
    for method in ("PRNet", "3DDFA", "3DDFA + SDM", "3DSTN"):
        row = [values["PRNet 2018", "Table 1", method, f"nme_{name}"] for name in ("0_30", "30_60", "60_90", "mean")]
        assert None not in row
        assert np.mean(row[:3]) == pytest.approx(row[3], abs=1.01e-4)
    assert {row.paper for row in published() if row.value is None} == {
        "PARM", "PRNet 2018", "Richardson 2016", "pix2face 2017"
    }  # fmt: skip


def test_bad_records_are_named_and_left_out(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def copy(name: str) -> Path:
        shutil.copytree(runs / "e" / "zhao", runs / "e" / name)
        return runs / "e" / name / "records" / "aflw2000-3d-test.json"

    edit(copy("edited"), method="Winner")
    edit(copy("old"), version=0)
    half = copy("half")
    half.write_text(half.read_text()[:200])
    next(copy("torn").parent.glob("*.npz")).write_bytes(b"PK")
    copy("twice")
    assert main([str(runs), "--csv", str(tmp_path / "t.csv"), "--html", str(tmp_path / "t.html")]) == 0
    shown = capsys.readouterr()
    for name in ("edited", "old", "half", "torn", "twice"):
        assert f"e/{name}/records" in shown.err, name
    assert "5 record(s) left out" in shown.err
    assert "Winner" not in shown.out
    rows = [row for row in table(tmp_path / "t.csv") if row["metric"] == "nme"]
    assert sorted(row["method"] for row in rows) == ["MeanLandmarks", "PRNet", "Pix2Face", "Richardson2016", "Zhao2016"]
    assert "5 record(s) left out" in (tmp_path / "t.html").read_text()


def test_of_a_run_repeated_elsewhere_the_newer_record_counts(runs: Path, tmp_path: Path, capsys: Any) -> None:
    write_run(runs, "Zhao2016", "e/again", 0.055, 1, weights="Zhao2016-e/zhao-1", created="2026-02-01T00:00:00+00:00")
    main([str(runs), "--csv", str(tmp_path / "t.csv")])
    assert "e/zhao/records/aflw2000-3d-test.json is a duplicate of" in capsys.readouterr().err
    assert {row["run"] for row in table(tmp_path / "t.csv") if row["method"] == "Zhao2016"} == {"e/again"}


def test_data_sets_and_contents_have_boards_of_their_own_and_can_be_chosen(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(runs, "Zhao2016", "e/synthetic", 0.02, dataset="SyntheticFaces")
    write_run(runs, "Zhao2016", "e/part", 0.02, fingerprint="f2", protocol={"samples": "300 of 300", "yaw": "other"})
    main(
        [
            str(runs),
            "--dataset",
            "AFLW2000-3D",
            "--metric",
            "nme_60_90",
            "--metric",
            "vertex_mm",
            "--csv",
            str(tmp_path / "t.csv"),
        ]
    )
    out = capsys.readouterr().out
    assert "content f1" in out
    assert "content f2, yaw: other" in out
    assert "SyntheticFaces" not in out
    assert "vertex_mm" in out
    assert {row["metric"] for row in table(tmp_path / "t.csv")} == {"nme_60_90", "vertex_mm"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "no folder nowhere"),
        (["EMPTY"], "no usable record below .*run lightning-faces test"),
        (["RUNS", "--dataset", "AFLW"], "'AFLW': there are AFLW2000-3D"),
        (["RUNS", "--metric", "nmee"], "'nmee': there are .*nme_0_30"),
    ],
)
def test_wrong_arguments_are_one_sentence_and_exit_code_2(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    (tmp_path / "empty").mkdir()
    places = {"RUNS": str(runs), "EMPTY": str(tmp_path / "empty")}
    with pytest.raises(ConfigurationError, match=message):
        main([places.get(argument, argument) for argument in arguments])


def test_records_of_a_wandb_project_join_the_local_ones(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    elsewhere = tmp_path / "elsewhere"
    write_run(elsewhere, "Colleague", "their/run", 0.02, 9)
    sources = {
        "colleague:v0": elsewhere / "their" / "run" / "records",
        "zhao:v3": runs / "e" / "zhao" / "records",  # also here: not worth a word
    }

    class Artifact:
        def __init__(self, name: str) -> None:
            self.name = name

        def download(self, root: str) -> None:
            shutil.copytree(sources[self.name], root)

    class Api:
        def artifact_type(self, kind: str, project: str) -> Any:
            assert (kind, project) == ("evaluation-record", "team/faces")
            collection = types.SimpleNamespace(artifacts=lambda: [Artifact(name) for name in sources])
            return types.SimpleNamespace(collections=lambda: [collection])

    import wandb

    monkeypatch.setattr(wandb, "Api", Api)
    main([str(runs), "--wandb", "team/faces", "--csv", str(tmp_path / "t.csv")])
    assert capsys.readouterr().err == ""
    methods = [row["method"] for row in table(tmp_path / "t.csv") if row["metric"] == "nme"]
    assert methods == ["MeanLandmarks", "Colleague", "PRNet", "Richardson2016", "Zhao2016", "Pix2Face"]

    def refuse(*args: Any) -> Any:
        raise ValueError("project not found")

    monkeypatch.setattr(Api, "artifact_type", refuse)
    with pytest.raises(ConfigurationError, match="W&B project team/faces cannot be read: project not found"):
        main([str(runs), "--wandb", "team/faces"])


def test_the_table_goes_to_wandb(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    logged: dict[str, Any] = {}
    finished: list[bool] = []
    run = types.SimpleNamespace(log=logged.update, finish=lambda: finished.append(True))
    started: list[dict[str, Any]] = []
    monkeypatch.setattr(wandb, "init", lambda **options: started.append(options) or run)
    main([str(runs), "--wandb-table", "team/faces"])
    assert (started[0]["entity"], started[0]["project"], finished) == ("team", "faces", [True])
    rows = [dict(zip(logged["leaderboard"].columns, row)) for row in logged["leaderboard"].data]
    assert len(rows) == 5 * 7
    assert [row["rank"] for row in rows if row["metric"] == "nme" and row["method"] == "Zhao2016"] == [3]


def test_curves_are_those_of_the_errors(runs: Path) -> None:
    entries, _ = collect([runs])
    entry = next(e for e in entries if e.record.method == "PRNet")
    errors = errors_of(0.040, 2)
    curve = error_curve(entry)
    assert [x for x, _ in curve] == pytest.approx(np.linspace(0, 10, 101))
    assert [y for _, y in curve] == pytest.approx([(errors <= x).mean() for x in np.linspace(0, 0.1, 101)])
    by_yaw = dict(error_by_yaw(entry))
    inside = (np.abs(YAW) >= 40) & (np.abs(YAW) < 50)
    assert by_yaw[45.0] == pytest.approx(100 * errors[inside].mean())
    assert error_curve(entry, "icp") == error_by_yaw(entry, "icp") == []
    entry.samples["icp"] = errors / 2
    assert error_curve(entry, "icp")[20][1] == curve[40][1]
    assert dict(error_by_yaw(entry, "icp"))[45.0] == pytest.approx(50 * errors[inside].mean())


def test_the_page_escapes_what_records_say_and_refers_to_nothing_outside(runs: Path, tmp_path: Path) -> None:
    write_run(runs, "<script>alert(1)</script>", "e/bad", 0.05, 8)
    main([str(runs), "--html", str(tmp_path / "page.html")])
    text = (tmp_path / "page.html").read_text()
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert" in text
    for outside in ("http://", "https://", 'src="/', "url("):
        assert outside not in text


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def chromium(page: Path, profile: Path, *options: str) -> str:
    command = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
        f"--user-data-dir={profile}", "--window-size=1400,1500", "--virtual-time-budget=2000", *options, page.as_uri(),
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_the_page_in_a_browser_is_drawn_and_sorts(runs: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    shown = ["nme", "nme_0_30", "nme_30_60", "nme_60_90", "nme_mean", "vertex_mm"]
    write_run(runs, "Named", "experiment/of_a_longer_name", 0.06, 7, prediction="stage_5", backbone="mobilenetv3_small")
    main([str(runs), "--html", str(page), *(word for name in shown for word in ("--metric", name))])
    # A copy of the page that clicks on the heading of the 60-90 degree column twice and writes what it then shows.
    script = """<script>
    const table = document.querySelector("table"), heads = [...table.tHead.rows[0].cells];
    const column = heads.findIndex(head => head.textContent.startsWith("nme_60_90"));
    const names = () => [...table.tBodies[0].rows].map(row => row.cells[1].textContent);
    heads[column].firstChild.click(); const up = names(), sort = heads[column].getAttribute("aria-sort");
    heads[column].firstChild.click(); const down = names();
    const box = selector => [...document.querySelectorAll(selector)].map(e => e.getBoundingClientRect());
    const drawn = box("polyline").filter(r => r.width > 300 && r.top > 0).length;
    const images = [...document.images].filter(i => i.complete && i.naturalWidth > 100).length;
    const wide = document.documentElement.scrollWidth - innerWidth;
    const cut = Math.max(...[...document.querySelectorAll(".wide")].map(e => e.scrollWidth - e.clientWidth));
    document.body.innerHTML = "<pre id=result>" + JSON.stringify({up, down, sort, drawn, images, wide, cut}) + "</pre>";
    </script>"""
    probe = tmp_path / "probe.html"
    probe.write_text(page.read_text().replace("</body>", script + "</body>"))
    dumped = chromium(probe, tmp_path / "profile", "--dump-dom")
    result = json.loads(dumped.split('<pre id="result">')[1].split("</pre>")[0])
    best_first = ["Pix2Face", "Richardson2016 †", "PRNet", "Zhao2016", "Named (stage_5)"]
    assert result["up"] == ["MeanLandmarks", *best_first]
    assert result["down"] == ["MeanLandmarks", *reversed(best_first)]
    assert result["sort"] == "ascending"
    assert result["drawn"] == 12  # six rows in two charts
    assert result["images"] == 6  # best, median and worst of each side by side
    assert result["wide"] <= 0
    assert result["cut"] == 0  # all columns are seen
    picture = tmp_path / "page.png"
    chromium(page, tmp_path / "profile", f"--screenshot={picture}")
    pixels = np.asarray(Image.open(picture).convert("RGB")).astype(int)
    assert pixels.shape[:2] == (1500, 1400)
    for colour in ((0, 114, 178), (213, 94, 0), (0, 158, 115)):  # the first three curves
        assert (np.abs(pixels - colour).sum(axis=2) < 12).sum() > 300


def test_the_command_starts_without_torch(runs: Path) -> None:
    code = (
        "import sys; from lightning_faces.commands.leaderboard import main; main(sys.argv[1:]); "
        "assert not {'torch', 'wandb', 'lightning'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(runs)], check=True, capture_output=True, timeout=60)
