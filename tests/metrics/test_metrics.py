from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, multiprocessing

from lightning_faces.errors import ConfigurationError
from lightning_faces.metrics import (
    AreaUnderCurve,
    AveragePointError,
    CrossViewConsistencyError,
    FailureRate,
    GroundTruthError,
    ICPError,
    NormalizedMeanError,
    ParameterError,
    PerSampleMetric,
    PerVertexError,
    functional,
)
from tests.metrics import reference

COUNT = 37


def arguments() -> dict[str, Tensor]:
    """What a test set of 37 faces, a few of them without some annotation, gives to every metric."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    target = normal(COUNT, 68, 3) * 40 + 100
    visible = torch.rand(COUNT, 68, generator=generator) < 0.7
    mask = torch.rand(COUNT, 68, 3, generator=generator) < 0.97
    mask[:, (36, 45)] = True
    yaw = torch.linspace(-92, 92, COUNT, dtype=torch.float64)
    pose = torch.cat((1 + normal(COUNT, 1).abs(), normal(COUNT, 5)), dim=1)
    return {
        "preds": target + normal(COUNT, 68, 3) * 4,
        "target": target,
        "index": torch.arange(COUNT),
        "yaw": yaw,
        "visible": visible,
        "landmark_mask": mask,
        "face_size": torch.full((COUNT,), 150.0, dtype=torch.float64),
        "subject": torch.arange(COUNT) // 3,
        "view": torch.arange(COUNT) % 3,
        "reference": target,
        "pose": pose,
        "preds_parameters": normal(COUNT, 12),
        "target_parameters": normal(COUNT, 12),
    }


def all_metrics() -> dict[str, PerSampleMetric]:
    return {
        "nme": NormalizedMeanError(),
        "nme_visible": NormalizedMeanError(visible_only=True),
        "nme_0_30": NormalizedMeanError(yaw_bin="0_30"),
        "nme_60_90": NormalizedMeanError(yaw_bin="60_90"),
        "nme_mean": NormalizedMeanError(yaw_bin="mean"),
        "nme_3d": NormalizedMeanError(3, "outer_interocular", "similarity"),
        "auc": AreaUnderCurve(0.05),
        "failure": FailureRate(0.04),
        "gte": GroundTruthError(),
        "ape": AveragePointError(),
        "cvgtce": CrossViewConsistencyError(),
        "cvgtce_printed": CrossViewConsistencyError("unsquared"),
        "icp": ICPError(),
        "pose": ParameterError("pose"),
        "identity": ParameterError("identity", num_identity=8),
        "expression": ParameterError("expression", num_identity=8),
        "vertices": PerVertexError(),
    }


def feed(metric: PerSampleMetric, rows: list[int], batch_size: int) -> None:
    values = arguments()
    for start in range(0, len(rows), batch_size):
        chosen = {name: value[rows[start : start + batch_size]] for name, value in values.items()}
        if isinstance(metric, ParameterError):
            chosen.update(preds=chosen["preds_parameters"], target=chosen["target_parameters"])
        metric.update(**metric._filter_kwargs(**chosen))


def whole() -> dict[str, float]:
    results = {}
    for name, metric in all_metrics().items():
        feed(metric, list(range(COUNT)), COUNT)
        results[name] = float(metric.compute())
    return results


def evaluated(rows: list[int]) -> dict[str, Any]:
    """The per-sample table of the evaluation callback for the given samples."""
    from lightning_faces.batch import collate_faces
    from lightning_faces.evaluation.scorer import Scorer, shared_model
    from tests.callbacks.test_evaluation_record import SHAPES, Data, Faces, Noisy

    scorer = Scorer(shared=shared_model(Noisy(), Data()))
    for start in range(0, len(rows), 4):
        batch = collate_faces([Faces()[i] for i in rows[start : start + 4]], SHAPES)
        with torch.no_grad():
            scorer.update(Noisy().predict_faces(batch), batch)
    return scorer.gather().table


def in_process(rank: int, folder: str) -> None:
    """One of two processes: rank 1 has fewer samples and a shorter last batch, and rank 0 repeats one of them."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    rows = [*range(0, COUNT, 2), 1] if rank == 0 else list(range(1, COUNT, 2))
    results = {}
    for name, metric in all_metrics().items():
        feed(metric, rows, 4)
        results[name] = metric.compute()
        assert metric.update_count == -(-len(rows) // 4)
    lonely = NormalizedMeanError()  # only rank 1 has a sample that can be scored
    values = {key: value[:1] for key, value in arguments().items()}
    lonely.update(values["preds"], values["target"], values["index"], landmark_mask=torch.full((1, 68), rank == 1))
    results["lonely"] = lonely.compute()
    torch.save(results, Path(folder) / f"{rank}.pt")
    np.savez(Path(folder) / f"lonely{rank}.npz", **evaluated([0, 1, 2, 3, 4] if rank == 0 else []))
    table = evaluated([*range(0, 22, 2), 1] if rank == 0 else list(range(1, 22, 2)))
    np.savez(Path(folder) / f"{rank}.npz", **table)
    torch.distributed.destroy_process_group()


def test_two_processes_with_uneven_batches_and_a_repeated_sample_give_the_same(tmp_path: Path) -> None:
    multiprocessing.spawn(in_process, (os.fspath(tmp_path),), nprocs=2)
    results = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    assert results[0] == results[1]
    expected = whole()
    values = {key: value[0].numpy() for key, value in arguments().items()}
    expected["lonely"] = reference.nme(values["preds"][:, :2], values["target"][:, :2])
    for name, value in expected.items():
        assert float(results[0][name]) == pytest.approx(value, abs=1e-12), name
    # A rank without a single batch takes part, and knows what the other has.
    lonely = evaluated([0, 1, 2, 3, 4])
    for rank in (0, 1):
        with np.load(tmp_path / f"lonely{rank}.npz") as table:
            assert set(table.files) == set(lonely)
            assert table["index"].tolist() == [0, 1, 2, 3, 4]
            np.testing.assert_allclose(table["identity_error"], lonely["identity_error"], rtol=0, atol=1e-12)
    alone = evaluated(list(range(22)))
    for rank in (0, 1):
        with np.load(tmp_path / f"{rank}.npz") as table:
            assert set(table.files) == set(alone)
            for name, column in alone.items():
                if column.dtype.kind == "U":
                    assert table[name].tolist() == column.tolist()
                else:
                    np.testing.assert_allclose(table[name], column, rtol=0, atol=1e-12, err_msg=name)


def test_repeated_samples_and_batch_size_do_not_matter() -> None:
    expected = whole()
    for name, metric in all_metrics().items():
        feed(metric, [*range(20, COUNT), *range(30), 3, 3, 36], 5)
        assert float(metric.compute()) == pytest.approx(expected[name], abs=1e-12), name


def test_values_equal_the_numpy_reference() -> None:
    values = {name: value.numpy() for name, value in arguments().items()}
    results = whole()
    flat = []
    for p, g, m in zip(values["preds"], values["target"], values["landmark_mask"][..., :2].all(-1)):
        flat.append(reference.nme(p[m][:, :2], g[m][:, :2]) * reference.box_size(g[m]) / 150.0)
    nme = np.array(flat)
    yaw = np.abs(values["yaw"])
    bins = [nme[yaw <= 30].mean(), nme[(yaw > 30) & (yaw <= 60)].mean(), nme[yaw > 60].mean()]
    assert results["nme"] == pytest.approx(nme.mean(), abs=1e-10)
    assert results["nme_0_30"] == pytest.approx(bins[0], abs=1e-10)
    assert results["nme_60_90"] == pytest.approx(bins[2], abs=1e-10)
    assert results["nme_mean"] == pytest.approx(np.mean(bins), abs=1e-10)
    assert results["auc"] == pytest.approx(np.maximum(0, 1 - nme / 0.05).mean(), abs=1e-10)
    assert results["failure"] == pytest.approx((nme > 0.04).mean(), abs=1e-10)
    assert results["identity"] == pytest.approx(
        np.linalg.norm((values["preds_parameters"] - values["target_parameters"])[:, :8], axis=1).mean(), abs=1e-10
    )
    seen = [
        reference.nme(p[m][:, :2], g[m][:, :2]) * reference.box_size(g[m]) / 150.0
        for p, g, m in zip(
            values["preds"], values["target"], values["visible"] & values["landmark_mask"][..., :2].all(-1)
        )
    ]
    assert results["nme_visible"] == pytest.approx(np.mean(seen), abs=1e-10)


def test_cross_view_error_is_over_all_ordered_pairs_of_distinct_views() -> None:
    values = {name: value.numpy() for name, value in arguments().items()}
    metric = CrossViewConsistencyError()
    subject = torch.tensor([4, 4, 4, 9, 9, 7, -1, -1])
    view = torch.tensor([0, 1, 2, 0, 1, 0, 0, 1])
    metric.update(*(torch.from_numpy(values[k][:8]) for k in ("preds", "target", "index")), subject, view)
    per_sample: dict[int, list[float]] = {}
    for i, j in itertools.permutations(range(8), 2):
        if subject[i] == subject[j] >= 0 and view[i] != view[j]:
            p, g = values["preds"][i], values["target"][j]
            distance = np.linalg.norm(reference.horn(p, g) - g, axis=1).mean()
            per_sample.setdefault(i, []).append(distance / reference.measure(g, "outer_interocular"))
    assert sorted(per_sample) == [0, 1, 2, 3, 4]
    assert metric.per_sample().index.tolist() == [0, 1, 2, 3, 4]
    assert float(metric.compute()) == pytest.approx(np.mean([np.mean(v) for v in per_sample.values()]), abs=1e-10)


def test_a_nan_is_reported_by_index_and_not_averaged_away() -> None:
    values = arguments()
    preds = values["preds"].clone()
    preds[[5, 11], 3, 1] = float("nan")
    preds[20, 3, 1] = float("inf")
    metric = NormalizedMeanError()
    metric.update(preds, values["target"], values["index"])
    with pytest.warns(UserWarning, match=r"3 of 37 samples is not finite \(index 5, 11, 20\)"):
        assert metric.compute().isnan()


def test_yaw_bins_close_above_and_an_empty_bin_makes_the_mean_undefined() -> None:
    values = {key: value[:6] for key, value in arguments().items()}
    yaw = torch.tensor([0.0, -30.0, 30.001, -60.0, 60.001, -95.0])
    for name, chosen in (("0_30", [0, 1]), ("30_60", [2, 3]), ("60_90", [4, 5])):
        metric = NormalizedMeanError(yaw_bin=name)
        metric.update(values["preds"], values["target"], values["index"], yaw=yaw)
        plain = functional.normalized_mean_error(values["preds"][..., :2], values["target"][..., :2])
        assert float(metric.compute()) == pytest.approx(float(plain[chosen].mean()), abs=1e-12)
    metric = NormalizedMeanError(yaw_bin="mean")
    metric.update(values["preds"], values["target"], values["index"], yaw=yaw.clamp(-60, 60))
    assert metric.compute().isnan()


def test_float32_inputs_are_scored_in_float64_and_dense_points_keep_one_number_per_sample() -> None:
    generator = torch.Generator().manual_seed(0)
    metric = NormalizedMeanError(3, depth="min")
    for batch in range(4):
        target = torch.randn(8, 5000, 3, generator=generator)
        landmarks = torch.randn(8, 68, 3, generator=generator)
        metric.update(target + 1, target, torch.arange(8) + 8 * batch, reference=landmarks)
    assert sum(t.numel() for name in metric.columns for t in getattr(metric, name)) == 3 * 32
    assert metric.compute().dtype == torch.float64


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NormalizedMeanError(4), "number of dimensions 4"),
        (lambda: NormalizedMeanError(normalizer="box"), "'box'.*bbox"),
        (lambda: NormalizedMeanError(depth="zero"), "'zero'.*raw"),
        (lambda: NormalizedMeanError(yaw_bin="0-30"), "'0-30'.*0_30"),  # type: ignore[arg-type]
        (lambda: ParameterError("shape"), "'shape'.*identity"),  # type: ignore[arg-type]
    ],
)
def test_wrong_options_are_named(make: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make()


def test_missing_targets_are_named() -> None:
    values = arguments()
    for metric, missing in (
        (NormalizedMeanError(visible_only=True), "visible"),
        (NormalizedMeanError(normalizer="given"), "face_size"),
    ):
        with pytest.raises(ConfigurationError, match=missing):
            metric.update(values["preds"], values["target"], values["index"])
