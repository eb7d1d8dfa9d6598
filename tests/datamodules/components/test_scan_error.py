"""Distances between a mesh and a scan: a plane, a loop over triangles, trimesh's own, holes, noise, units."""

from __future__ import annotations

import csv
import dataclasses
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from datamodules.components.scan_error import SEVEN, scan_error
from datamodules.components.scans import Scan, landmark_path, read_scan
from lightning_faces.__main__ import main
from lightning_faces.errors import ConfigurationError, DataError
from lightning_faces.geometry import euler_to_matrix
from lightning_faces.morphable import MorphableModel
from lightning_faces.morphable.mesh_files import write_mesh

pytestmark = pytest.mark.skipif(importlib.util.find_spec("trimesh") is None, reason="trimesh (extra scans) is absent")
Floats = np.ndarray


@pytest.fixture(scope="module")
def model() -> MorphableModel:
    return MorphableModel.load("embedded")


@pytest.fixture(scope="module")
def person(model: MorphableModel) -> torch.Tensor:
    identity = torch.randn(1, model.num_identity, generator=torch.Generator().manual_seed(3))
    return model.vertices(identity, torch.zeros(1, model.num_expression))[0].double()


def seven_of(model: MorphableModel, shape: torch.Tensor) -> Floats:
    return model.landmarks(shape[None], "ibug")[0, list(SEVEN)].numpy()


def scan_of(model: MorphableModel, shape: torch.Tensor, noise: float = 0.0, unit: float = 1.0) -> Scan:
    """A face moved, with a hole in its left cheek and noise; the vertices of its skin only."""
    faces = model.faces.numpy()
    kept = faces[model.region_masks["face"].numpy()[faces].all(axis=1)]
    cheek = shape[kept].mean(dim=1).numpy()
    centre = shape[model.region_masks["face"]].mean(dim=0).numpy() + np.array((35.0, -10.0, 20.0))
    kept = kept[np.linalg.norm(cheek - centre, axis=1) > 15.0]
    turn = euler_to_matrix(torch.tensor([0.2, 0.4, -0.1], dtype=torch.float64))
    shift = torch.tensor([30.0, -200.0, 500.0], dtype=torch.float64)
    moved = (shape @ turn.T + shift).numpy()
    moved = moved + np.random.default_rng(0).normal(0, noise, moved.shape)
    marks = seven_of(model, shape) @ turn.numpy().T + shift.numpy()
    return Scan(Path("a.ply"), moved / unit, kept, np.array(SEVEN), marks / unit)


def nearest_on_triangles(points: Floats, corners: Floats) -> Floats:
    """Distances by minimising over each triangle: inside it by its plane, else over its edges."""
    best = np.full(len(points), np.inf)
    for a, b, c in corners:
        normal = np.cross(b - a, c - a)
        basis = np.stack((b - a, c - a, normal), axis=1)
        u, v, w = np.linalg.solve(basis, (points - a).T)
        inside = (u >= 0) & (v >= 0) & (u + v <= 1)
        distance = np.where(inside, np.abs(w) * np.linalg.norm(normal), np.inf)
        for p, q in ((a, b), (b, c), (c, a)):
            t = (((points - p) @ (q - p)) / ((q - p) @ (q - p))).clip(0, 1)
            distance = np.minimum(distance, np.linalg.norm(points - p - t[:, None] * (q - p), axis=1))
        best = np.minimum(best, distance)
    return best


def flat_scan() -> tuple[Floats, Floats, Floats]:
    """A square of 200 mm in the plane z = 0, and seven landmarks in it as a face has them."""
    x, y = np.meshgrid(np.linspace(-100, 100, 21), np.linspace(-100, 100, 21))
    points = np.stack((x.ravel(), y.ravel(), np.zeros(x.size)), axis=1)
    corner = (np.arange(20)[:, None] * 21 + np.arange(20)).ravel()
    faces = np.concatenate(
        (np.stack((corner, corner + 1, corner + 21), axis=1), np.stack((corner + 1, corner + 22, corner + 21), axis=1))
    )
    seven = [[-45, 30, 0], [-15, 30, 0], [15, 30, 0], [45, 30, 0], [0, -10, 0], [-25, -35, 0], [25, -35, 0]]
    return points, faces, np.array(seven, dtype=np.float64)


def test_a_plane_two_millimetres_before_another_one() -> None:
    points, faces, seven = flat_scan()
    scan = Scan(Path("flat.ply"), points, faces, np.array(SEVEN), seven)
    error = scan_error(points + np.array((3.0, 1.0, 2.0)), faces, seven, scan)
    np.testing.assert_allclose(error.mesh_to_scan, 2.0, atol=1e-9)
    np.testing.assert_allclose(error.scan_to_mesh, 2.0, atol=1e-9)
    # The sphere: radius 1.2 (90 + 40) / 2 around (0, 2, 0), vertices of the scan 10 mm apart.
    assert len(error.scan_to_mesh) == (np.linalg.norm(points - (0, 2, 0), axis=1) <= 78.0).sum()
    # Twice as large and with a free scale it is 1 mm before it, since the landmarks bring its scale back.
    free = scan_error(2 * (points + np.array((0.0, 0.0, 1.0))), faces, 2 * seven, scan, with_scale=True)
    np.testing.assert_allclose(free.scan_to_mesh, 1.0, atol=1e-9)
    assert free.scale == pytest.approx(0.5)


def test_distances_are_those_of_a_loop_and_of_trimesh(model: MorphableModel, person: torch.Tensor) -> None:
    import trimesh
    from trimesh.proximity import closest_point

    scan = scan_of(model, person, noise=0.2)
    own = seven_of(model, model.mean.double())
    error = scan_error(model.mean, model.faces, own, scan)
    # Kabsch in NumPy, then the two directions.
    source, goal = own - own.mean(axis=0), scan.landmarks - scan.landmarks.mean(axis=0)
    u, _, vt = np.linalg.svd(goal.T @ source)
    turn = u @ np.diag((1.0, 1.0, np.linalg.det(u @ vt))) @ vt
    moved = (model.mean.double().numpy() - own.mean(axis=0)) @ turn.T + scan.landmarks.mean(axis=0)
    bridge, nose = scan.landmarks[1:3].mean(axis=0), scan.landmarks[4]
    radius = 0.6 * (np.linalg.norm(scan.landmarks[0] - scan.landmarks[3]) + np.linalg.norm(bridge - nose))
    middle = 0.7 * nose + 0.3 * bridge
    points = scan.vertices[np.unique(scan.faces)]
    points = points[np.linalg.norm(points - middle, axis=1) <= radius]
    mesh = trimesh.Trimesh(moved, model.faces.numpy(), process=False)
    np.testing.assert_allclose(error.scan_to_mesh, closest_point(mesh, points)[1], atol=1e-9)
    some = np.arange(0, len(points), 40)
    expected = nearest_on_triangles(points[some], moved[model.faces.numpy()])
    np.testing.assert_allclose(error.scan_to_mesh[some], expected, atol=1e-6)
    assert error.scan_to_mesh.mean() > 1.5


def test_the_true_face_is_off_by_the_noise_and_the_hole_counts_in_one_direction(
    model: MorphableModel, person: torch.Tensor
) -> None:
    noise, seven = 0.2, seven_of(model, person)
    skin = model.faces[model.region_masks["face"][model.faces].all(dim=1)]  # not the inside of the mouth
    error = scan_error(person, skin, seven, scan_of(model, person, noise))
    # The part of the noise along the surface moves a point by little: across, its mean is sigma sqrt(2 / pi).
    assert error.scan_to_mesh.mean() == pytest.approx(noise * (2 / np.pi) ** 0.5, rel=0.12)
    clean = scan_error(person, skin, seven, scan_of(model, person))
    assert clean.scan_to_mesh.max() < 1e-4
    assert 5.0 < clean.mesh_to_scan.max() < 15.5  # the hole's middle is 15 mm from its rim
    assert np.median(clean.mesh_to_scan) < 1e-4


def test_units_and_scales(model: MorphableModel, person: torch.Tensor) -> None:
    seven, scan = seven_of(model, model.mean.double()), scan_of(model, person)
    metres = scan_of(model, person, unit=1000.0)
    known = scan_error(model.mean, model.faces, seven, scan)
    np.testing.assert_allclose(
        scan_error(model.mean, model.faces, seven, metres, unit="m").scan_to_mesh, known.scan_to_mesh, atol=1e-6
    )
    free = scan_error(model.mean, model.faces, seven, scan, with_scale=True)
    pixels = scan_error(0.3 * model.mean, model.faces, 0.3 * seven, scan, with_scale=True)
    np.testing.assert_allclose(pixels.scan_to_mesh, free.scan_to_mesh, atol=1e-4)
    assert pixels.scale == pytest.approx(free.scale / 0.3)
    with pytest.raises(ConfigurationError, match=r"outer eye corners of a\.ply are 0\.0\d+ mm apart.*give the unit"):
        scan_error(model.mean, model.faces, seven, metres)
    with pytest.raises(
        ConfigurationError, match=r"predicted mesh are .* apart.*in millimetres, or compare with a free"
    ):
        scan_error(0.3 * model.mean, model.faces, 0.3 * seven, scan)
    with pytest.raises(ConfigurationError, match="unit 'inch' is not known: choose one of mm, cm, m"):
        scan_error(model.mean, model.faces, seven, scan, unit="inch")


def test_what_cannot_be_compared_is_named(model: MorphableModel, person: torch.Tensor) -> None:
    seven, scan = seven_of(model, person), scan_of(model, person)
    without = dataclasses.replace(
        scan, indices=scan.indices[[0, 1, 2, 3, 5]], landmarks=scan.landmarks[[0, 1, 2, 3, 5]]
    )
    with pytest.raises(DataError, match=r"a\.ply has no landmark 33, 54: its table needs all of 36, 39"):
        scan_error(person, model.faces, seven, without)
    with pytest.raises(DataError, match="mesh is empty: it has 0 vertices and 0 triangles"):
        scan_error(np.zeros((0, 3)), np.zeros((0, 3), dtype=int), seven, scan)
    with pytest.raises(DataError, match="vertices that are not finite"):
        scan_error(person * float("nan"), model.faces, seven, scan)
    with pytest.raises(DataError, match="name vertices outside 0 to 4279"):
        scan_error(person, model.faces + 1, seven, scan)
    with pytest.raises(ConfigurationError, match=r"shape \(5, 3\).* give 7 or 68"):
        scan_error(person, model.faces, seven[:5], scan)
    with pytest.raises(DataError, match=r"a\.ply has no triangles"):
        scan_error(person, model.faces, seven, dataclasses.replace(scan, faces=scan.faces[:0]))
    with pytest.raises(DataError, match=r"a\.ply has no vertex within \d+ mm of the face's middle"):
        scan_error(person, model.faces, seven, dataclasses.replace(scan, landmarks=scan.landmarks + 900.0))


def write_layout(path: Path, vertices: Floats, faces: Floats, seven: Floats) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_mesh(path, vertices, faces)
    with landmark_path(path).open("w", newline="") as file:
        csv.writer(file).writerows([("index", "x", "y", "z"), *((i, *map(float, p)) for i, p in zip(SEVEN, seven))])


def test_folders_of_predictions_and_scans(
    tmp_path: Path, model: MorphableModel, person: torch.Tensor, capsys: pytest.CaptureFixture[str]
) -> None:
    scan, faces = scan_of(model, person), model.faces.numpy()
    write_layout(tmp_path / "scans" / "anna.ply", scan.vertices, scan.faces, scan.landmarks)
    write_layout(tmp_path / "found" / "anna" / "1.obj", person.numpy(), faces, seven_of(model, person))
    mean = model.mean.double()
    write_layout(tmp_path / "found" / "anna" / "2.ply", mean.numpy(), faces, seven_of(model, mean))
    write_layout(tmp_path / "found" / "anna" / "3.ply", 0.01 * mean.numpy(), faces, 0.01 * seven_of(model, mean))
    out = tmp_path / "errors.csv"
    arguments = ["scan-error", str(tmp_path / "found"), str(tmp_path / "scans"), "--out", str(out)]
    main(arguments)
    with out.open(newline="") as file:
        rows = {row["prediction"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["anna/1.obj", "anna/2.ply", "anna/3.ply"]
    assert float(rows["anna/1.obj"]["mean_mm"]) < 1e-3
    expected = scan_error(mean, faces, seven_of(model, mean), read_scan(tmp_path / "scans" / "anna.ply"))
    assert float(rows["anna/2.ply"]["mean_mm"]) == pytest.approx(expected.scan_to_mesh.mean(), abs=1e-3)
    assert "in millimetres" in rows["anna/3.ply"]["reason"]
    assert "3 predictions, 1 not scored" in capsys.readouterr().out
    main([*arguments, "--scale-free"])
    with out.open(newline="") as file:
        free = {row["prediction"]: row for row in csv.DictReader(file)}
    assert free["anna/3.ply"]["mean_mm"] == free["anna/2.ply"]["mean_mm"] != rows["anna/2.ply"]["mean_mm"]
    write_layout(tmp_path / "found" / "bert.obj", person.numpy(), faces, seven_of(model, person))
    with pytest.raises(SystemExit):
        main(arguments)
    assert "bert.obj has no scan bert.obj or bert.ply" in capsys.readouterr().err
