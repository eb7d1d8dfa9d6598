"""Scores of the scorer against NumPy, one sample at a time, and what it does with what is missing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from lightning_faces.batch import FaceBatch, FacePrediction, FaceSpec, collate_faces
from lightning_faces.evaluation.score_values import SharedModel
from lightning_faces.evaluation.scorer import Scored, Scorer, shared_model
from lightning_faces.evaluation.scores import SCORES, Score, logged_names, logged_scores, units
from lightning_faces.geometry import Camera
from lightning_faces.metrics import PerSampleMetric
from lightning_faces.morphable import MorphableModel
from tests.metrics import reference

COUNT, SIZE, VERTICES, IDENTITY, ACTIONS = 7, 12, 30, 4, 3
SHAPES = {
    "landmarks": (68, 3), "landmark_mask": (68, 3), "visible": (68,), "face_size": (), "yaw": (), "pose": (6,),
    "coefficients": (IDENTITY + ACTIONS,), "vertices": (VERTICES, 3), "pncc": (3, SIZE, SIZE),
    "offsets": (3, SIZE, SIZE), "face_mask": (1, SIZE, SIZE),
}  # fmt: skip


@pytest.fixture(scope="module")
def model() -> MorphableModel:
    rng = np.random.default_rng(0)
    return MorphableModel(
        "tiny",
        rng.normal(size=(VERTICES, 3)) * 50,
        rng.integers(0, VERTICES, (20, 3)),
        rng.normal(size=(IDENTITY, VERTICES, 3)),
        rng.random(IDENTITY) + 1,
        rng.normal(size=(ACTIONS, VERTICES, 3)) * 3,
        np.ones(ACTIONS),
        expression_kind="blendshapes",
        expression_names=("jawOpen", "eyeBlinkLeft", "browInnerUp"),
    )


def sample(index: int) -> dict[str, Any]:
    rng = np.random.default_rng(index)
    landmarks = (rng.normal(size=(68, 3)) * 5 + 16).astype(np.float32)
    mask = np.zeros((1, SIZE, SIZE))
    mask[:, 2:9, 3 : 8 + index % 3] = 1
    return {
        "index": index, "sample_id": f"face{index}", "image": rng.random((3, SIZE, SIZE), dtype=np.float32),
        "box": np.array([0, 0, 31, 31]), "crop_to_file": np.eye(2, 3), "landmarks": landmarks,
        "landmark_mask": np.ones((68, 3), dtype=bool), "visible": rng.random(68) < 0.6,
        "face_size": reference.box_size(landmarks.astype(np.float64)), "yaw": -80.0 + 25 * index,
        "pose": np.array([0.2, *rng.uniform(-3.1, 3.1, size=3), 16, 16]), "coefficients": rng.normal(size=7),
        "vertices": rng.normal(size=(VERTICES, 3)) * 5 + 16, "pncc": rng.normal(size=(3, SIZE, SIZE)) * 40,
        "offsets": rng.normal(size=(3, SIZE, SIZE)) * 4, "face_mask": mask,
    }  # fmt: skip


def batch_of(indices: list[int], without: dict[int, tuple[str, ...]] | None = None) -> FaceBatch:
    samples = [sample(i) for i in indices]
    for entry in samples:
        for key in (without or {}).get(entry["index"], ()):
            del entry[key]
    return collate_faces(samples, SHAPES)


def noisy(batch: FaceBatch) -> FacePrediction:
    """The truth and noise that depends on the sample alone."""

    def noise(key: str, size: float) -> Tensor:
        made = [np.random.default_rng(100 + i).normal(size=SHAPES[key]) * size for i in batch["index"].tolist()]
        return batch[key] + torch.from_numpy(np.stack(made)).float()  # type: ignore[literal-required,no-any-return]

    chance = torch.from_numpy(np.stack([np.random.default_rng(7 + i).random(68) for i in batch["index"].tolist()]))
    return FacePrediction(
        noise("landmarks", 1.0),
        noise("vertices", 0.5)[:, 5:25],
        torch.arange(5, 25),
        noise("coefficients", 0.4),
        Camera.from_pose(noise("pose", 0.5)),
        {"pncc": noise("pncc", 3.0), "offsets": noise("offsets", 1.0)},
        batch["face_mask"].roll(1, 3) > 0.5,
        chance.float(),
    )


def scored(prediction: FacePrediction, batch: FaceBatch, shared: SharedModel | None = None) -> Scored:
    scorer = Scorer(shared=shared)
    scorer.update(prediction, batch)
    return scorer.gather()


def test_every_score_equals_its_numpy_reference(model: MorphableModel) -> None:
    batch = batch_of(list(range(COUNT)))
    found = noisy(batch)
    table = scored(found, batch, SharedModel(IDENTITY, model)).table
    basis = np.concatenate((model.identity_basis.numpy(), model.expression_basis.numpy())).astype(np.float64)
    deviation = np.concatenate((model.identity_std.numpy(), model.expression_std.numpy())).astype(np.float64)
    expected: dict[str, list[float]] = {}

    def add(name: str, value: float) -> None:
        expected.setdefault(name, []).append(float(value))

    for i in range(COUNT):
        true = {key: batch[key][i].double().numpy() for key in SHAPES if key not in ("visible", "landmark_mask")}  # type: ignore[literal-required]
        assert found.pose is not None
        assert found.vertices is not None
        assert found.coefficients is not None
        assert found.visible is not None
        assert found.dense_mask is not None
        points, target = found.vertices[i].double().numpy(), true["vertices"][5:25]
        box = reference.box_size(true["landmarks"])
        add("dense_nme", np.linalg.norm((points - target)[:, :2], axis=1).mean() / box)
        raw = points - target
        raw[:, 2] -= raw[:, 2].mean()
        add("dense_nme_3d", np.linalg.norm(raw, axis=1).mean() / box)
        moved = reference.horn(points, target)
        add("vertex_mm", np.linalg.norm(moved - target, axis=1).mean() / true["pose"][0])
        for name, place in (("pitch_deg", 1), ("yaw_deg", 2), ("roll_deg", 3)):
            turned = np.exp(1j * (float(found.pose[i, place]) - true["pose"][place]))
            add(name, abs(np.degrees(np.angle(turned))))
        difference = found.coefficients[i].double().numpy() - true["coefficients"]
        shape = ((difference * deviation)[:, None, None] * basis).sum(0)
        add("geometry_mm", np.sqrt((shape**2).sum(1)).mean())
        add("geometry_rms_mm", np.sqrt((shape**2).sum(1).mean()))
        add("identity_error", np.sqrt((difference[:IDENTITY] ** 2).sum()))
        add("expression_error", np.sqrt((difference[IDENTITY:] ** 2).sum()))
        add("action_error", np.abs(difference[IDENTITY:]).mean())
        inside = true["face_mask"][0] > 0
        wrong = (found.dense["pncc"][i] + found.dense["offsets"][i]).double().numpy() - true["pncc"] - true["offsets"]
        distance = np.sqrt((wrong**2).sum(0))[inside]
        add("pixel_mm", distance.mean())
        add("pixel_median_mm", np.median(distance))
        mask = found.dense_mask[i, 0].numpy()
        add("mask_iou", (mask & inside).sum() / (mask | inside).sum())
        seen = batch["visible"][i].numpy()
        add("visibility_error", np.mean([(p > 0.5) != s for p, s in zip(found.visible[i].tolist(), seen)]))
    for name, values in expected.items():
        np.testing.assert_allclose(table[name], values, rtol=2e-5, atol=1e-7, err_msg=name)
    assert {"pixel_mm", "geometry_mm", "pitch_deg"} <= set(expected)
    assert set(table) - {"index", "sample_id", "yaw", "subject", "invalid"} <= {score.name for score in SCORES}
    assert {name: units()[name] for name in ("pixel_mm", "yaw_deg", "mask_iou", "action_error", "nme_auc_7")} == {
        "pixel_mm": ("mm", False), "yaw_deg": ("deg", False), "mask_iou": ("fraction", True),
        "action_error": ("fraction", False), "nme_auc_7": ("fraction", True),
    }  # fmt: skip


def test_the_worst_facial_actions_are_named(model: MorphableModel) -> None:
    batch = batch_of([0, 1])
    off = torch.tensor([0.0] * IDENTITY + [0.1, 0.3, 0.0])
    found = FacePrediction(batch["landmarks"], coefficients=batch["coefficients"] + off)
    result = scored(found, batch, SharedModel(IDENTITY, model))
    assert result.table["action_error"] == pytest.approx(0.4 / 3, rel=1e-5)
    assert "Worst facial actions: eyeBlinkLeft 0.300, jawOpen 0.100, browInnerUp 0.000." in result.notes


def test_what_is_missing_is_left_out_with_a_line_and_drops_nothing_else() -> None:
    batch = batch_of([0, 1, 2], without={1: ("pose", "landmarks"), 2: ("pncc",)})
    found = replace(noisy(batch), camera=None)
    result = scored(found, batch, SharedModel(IDENTITY))
    table = result.table
    # No pose drops what compares poses, and nothing dense.
    assert not {"pose_error", "yaw_deg"} & set(table)
    assert np.isfinite(table["vertex_mm"]).tolist() == [True, False, True]
    assert np.isfinite(table["pixel_mm"]).tolist() == [True, True, False]
    assert np.isfinite(table["nme"]).tolist() == [True, False, True]
    for line in (
        "Not scored, since the method predicts no camera: pose_error, pitch_deg, yaw_deg, roll_deg.",
        "Not scored, since the face model's bases are not at hand: geometry_mm, geometry_rms_mm, action_error.",
    ):
        assert line in result.notes
    other = scored(FacePrediction(batch["landmarks"][:1, :34]), collate_faces(
        [{**sample(0), "landmarks": np.zeros((34, 3)) + np.arange(34)[:, None]}], {"landmarks": (34, 3)}
    ))  # fmt: skip
    assert "Not scored, since 34 landmarks have no outer eye corners: gte, cvgtce, cvgtce_printed." in other.notes


def test_a_sample_without_mask_or_size_among_others_that_have_them() -> None:
    whole, part = batch_of([0, 1]), batch_of([0, 1], without={1: ("landmark_mask", "face_size")})
    part["landmark_mask"][0, :, 2] = False
    expected, found = (scored(noisy(whole), batch).table for batch in (whole, part))
    np.testing.assert_allclose(found["nme"], expected["nme"], rtol=1e-6)
    # Flat labels have no error in depth; those of the other sample count whole.
    assert np.isnan(found["gte"]).tolist() == [True, False]
    assert found["gte"][1] == pytest.approx(expected["gte"][1])


def test_invalid_faces_are_counted_named_and_failures() -> None:
    batch = batch_of([0, 1, 2, 3], without={3: tuple(SHAPES)})
    found = noisy(batch)
    found.landmarks[1] = float("nan")
    valid = torch.tensor([True, False, True, False])
    result = scored(replace(found, valid=valid, reason=["", "fewer than 10 pixels", "", "no face"]), batch)
    expected = scored(noisy(batch), batch).table["nme"]
    # Of the last there are no labels, so that nothing is lost.
    assert result.invalid == {"fewer than 10 pixels": 1}
    assert result.table["invalid"].tolist() == [False, True, False]
    np.testing.assert_allclose(result.table["nme"], [expected[0], np.nan, expected[2]])
    assert any(note.startswith("1 of 3 faces are not valid (1: fewer than 10 pixels)") for note in result.notes)
    from lightning_faces.evaluation.aggregate import summarise

    table = {**result.table, "nme": np.array([0.02, np.nan, 0.04])}
    metrics = summarise(table, units())
    assert metrics["nme"].samples == 2
    assert metrics["nme_failure_7"].value == pytest.approx(1 / 3)
    assert metrics["nme_auc_7"].value == pytest.approx((1 - 0.02 / 0.07 + 1 - 0.04 / 0.07) / 3)
    silent = scored(replace(found, valid=valid), batch)
    assert silent.invalid == {"no reason given": 1}


def test_a_batch_without_a_valid_face_changes_no_score(model: MorphableModel) -> None:
    shared = SharedModel(IDENTITY, model)
    lost, kept = batch_of([0, 1]), batch_of([2])
    scorer = Scorer(shared=shared)
    scorer.update(replace(noisy(lost), valid=torch.zeros(2, dtype=torch.bool)), lost)
    scorer.update(noisy(kept), kept)
    table, expected = scorer.gather().table, scored(noisy(kept), kept, shared).table
    assert set(table) == set(expected)
    for name in set(expected) - {"index", "sample_id", "yaw", "subject", "invalid"}:
        assert np.isnan(table[name][:2]).all(), name
        np.testing.assert_array_equal(table[name][2:], expected[name], err_msg=name)


def test_the_means_of_an_untrained_method_that_finds_no_face_are_nan_not_absent(model: MorphableModel) -> None:
    batch = batch_of([0, 1])
    flat = batch_of([0, 1], without={0: ("coefficients",), 1: ("coefficients",)})
    for given in (batch, flat):
        lost = scored(
            replace(noisy(batch), valid=torch.zeros(2, dtype=torch.bool)), given, SharedModel(IDENTITY, model)
        )
        means = lost.means(logged_scores("val"), aggregates=False)
        assert set(means) == set(
            scored(noisy(batch), given, SharedModel(IDENTITY, model)).means(logged_scores("val"), False)
        )
        assert means and all(np.isnan(value) for value in means.values())
    assert "geometry_mm" not in means
    assert any(note.startswith("Not scored, since no face is valid: nme") for note in lost.notes)
    # Valid faces that a score cannot use are another reason.
    kept = scored(noisy(batch), batch, SharedModel(IDENTITY, model))
    assert not any("no face is valid" in note for note in kept.notes)
    batch["landmark_mask"][..., 2] = False
    assert not any("no face is valid" in note for note in scored(noisy(batch), batch).notes)


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_errors_are_those_of_the_prediction_whatever_the_precision_around_it(precision: torch.dtype) -> None:
    batch = batch_of([0, 1, 2])
    exact = noisy(batch)
    rounded = exact.landmarks.to(precision)
    expected = scored(replace(exact, landmarks=rounded.float()), batch).table
    torch.set_default_dtype(precision)
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = scored(replace(exact, landmarks=rounded), batch).table
        assert torch.get_default_dtype() == precision
    finally:
        torch.set_default_dtype(torch.float32)
    for name in ("nme", "nme_3d_similarity", "cvgtce", "vertex_mm", "yaw_deg", "pixel_mm", "yaw"):
        if name in expected:
            np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


def test_an_error_that_is_not_finite_makes_the_logged_mean_nan_and_is_named() -> None:
    batch = batch_of([0, 1, 2])
    found = noisy(batch)
    found.landmarks[2, 0] = float("inf")
    result = scored(found, batch)
    assert result.not_finite["nme"] == [2]
    with pytest.warns(UserWarning, match=r"nme of 1 samples is not finite \(index 2\)"):
        means = result.means([score for score in SCORES if score.name in ("nme", "pixel_mm")], aggregates=True)
    assert np.isnan(means["nme"])
    assert np.isnan(means["nme_0_30"])
    assert "nme_auc_7" not in means


class SurfaceDistance(PerSampleMetric):
    """Mean distance of predicted points to the nearest point of a scan, millimetres."""

    def __init__(self) -> None:
        super().__init__("error")

    def update(self, preds: Tensor, scan: Tensor, index: Tensor) -> None:
        trees = [cKDTree(points) for points in scan.double().numpy()]
        distance = [tree.query(points)[0].mean() for tree, points in zip(trees, preds.double().numpy())]
        self._store(index, None, index >= 0, error=torch.tensor(distance))


def test_a_score_of_another_kind_is_one_row() -> None:
    row = Score(
        "surface_mm", "mm", lambda _: SurfaceDistance(),
        lambda prediction, batch, _: {
            "preds": prediction.vertices, "scan": batch["scan"], "index": batch["index"],
        },
        ("vertices",), ("scan",), by_yaw=True,
    )  # fmt: skip
    batch = batch_of([0, 1, 2])
    batch["scan"] = batch["vertices"] + torch.tensor([0.0, 0.0, 0.001])  # type: ignore[typeddict-unknown-key]
    batch["has"]["scan"] = torch.tensor([True, False, True])
    scorer = Scorer([row])
    scorer.update(FacePrediction(batch["landmarks"], batch["vertices"]), batch)
    table = scorer.gather().table
    assert table["index"].tolist() == [0, 2]
    assert table["surface_mm"] == pytest.approx(0.001, rel=1e-3)
    assert units([row])["surface_mm_mean"] == ("mm", False)


def test_the_model_in_common_is_found_by_its_content(model: MorphableModel) -> None:
    class Sided(torch.nn.Module):
        def __init__(self, spec: FaceSpec, model: MorphableModel | None = None) -> None:
            super().__init__()
            self.spec, self.inner, self.model = spec, torch.nn.ModuleList([model] if model else []), None

    spec = FaceSpec(face_model="a", face_model_hash=model.hash, num_identity=IDENTITY)
    assert shared_model(Sided(spec, model), Sided(spec)) == SharedModel(IDENTITY, model)
    assert shared_model(Sided(spec), Sided(spec)) == SharedModel(IDENTITY, None)
    assert shared_model(Sided(spec, model), Sided(replace(spec, face_model_hash="0"))) == SharedModel()
    assert shared_model(Sided(FaceSpec()), Sided(FaceSpec())) == SharedModel()


def test_what_a_validation_may_log_is_known_beforehand() -> None:
    assert {"nme", "gte", "geometry_mm", "pixel_median_mm"} <= set(logged_names("val"))
    assert {"nme_mean", "nme_60_90"} <= set(logged_names("test")) - set(logged_names("val"))
    assert not any("auc" in name for name in logged_names("test"))
