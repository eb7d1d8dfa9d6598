"""GLB files, read by trimesh and by a parser of their bytes that is written here from the specification."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from lightning_faces.batch import FacePrediction
from lightning_faces.errors import ConfigurationError
from lightning_faces.geometry import Camera
from lightning_faces.morphable import MorphableModel
from lightning_faces.morphable.face_mesh import FaceMesh
from lightning_faces.morphable.glb import write_glb

POSE = torch.tensor([[1.5, 0.1, 0.4, -0.2, 120.0, 90.0]])
DTYPES = {5121: np.uint8, 5123: np.uint16, 5125: np.uint32, 5126: np.float32}
WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4}


@pytest.fixture(scope="module")
def model() -> MorphableModel:
    return MorphableModel.load("embedded")


def prediction(model: MorphableModel, **changes: Any) -> FacePrediction:
    generator = torch.Generator().manual_seed(0)
    coefficients = torch.randn(1, model.num_coefficients, generator=generator)
    coefficients[:, model.num_identity :] = coefficients[:, model.num_identity :].abs().clamp(max=0.5)
    camera = Camera.from_pose(POSE)
    shape = model.vertices(*coefficients.split([model.num_identity, model.num_expression], dim=1))
    fields = {"vertices": camera.project(shape), "coefficients": coefficients, "camera": camera, **changes}
    return FacePrediction(torch.zeros(1, 68, 3), **fields)


class Glb:
    """The chunks of a file and its accessors, every rule on sizes and alignment checked."""

    def __init__(self, path: Path) -> None:
        data = path.read_bytes()
        magic, version, length = struct.unpack_from("<4sII", data)
        assert (magic, version, length) == (b"glTF", 2, len(data)) and length % 4 == 0
        size, kind = struct.unpack_from("<I4s", data, 12)
        assert kind == b"JSON" and size % 4 == 0
        self.json: dict[str, Any] = json.loads(data[20 : 20 + size])
        body_size, kind = struct.unpack_from("<I4s", data, 20 + size)
        assert kind == b"BIN\0" and 28 + size + body_size == len(data)
        self.body = data[28 + size :]
        assert 0 <= len(self.body) - self.json["buffers"][0]["byteLength"] < 4
        self.used: set[int] = set()

    def view(self, index: int) -> bytes:
        self.used.add(index)
        view = self.json["bufferViews"][index]
        assert view["byteOffset"] % 4 == 0 and view["byteOffset"] + view["byteLength"] <= len(self.body)
        return self.body[view["byteOffset"] : view["byteOffset"] + view["byteLength"]]

    def array(self, index: int) -> NDArray[Any]:
        about = self.json["accessors"][index]
        dtype, shape = DTYPES[about["componentType"]], (about["count"], WIDTHS[about["type"]])
        values = np.zeros(shape, dtype)
        if "bufferView" in about:
            values = np.frombuffer(self.view(about["bufferView"]), dtype).reshape(shape).copy()
        if "sparse" in about:
            sparse = about["sparse"]
            rows = np.frombuffer(self.view(sparse["indices"]["bufferView"]), DTYPES[sparse["indices"]["componentType"]])
            assert len(rows) == sparse["count"] > 0 and (np.diff(rows.astype(int)) > 0).all() and rows[-1] < shape[0]
            values[rows] = np.frombuffer(self.view(sparse["values"]["bufferView"]), dtype).reshape(-1, shape[1])
        if "min" in about:
            np.testing.assert_array_equal(np.float32(about["min"]), values.min(axis=0))
            np.testing.assert_array_equal(np.float32(about["max"]), values.max(axis=0))
        if values.dtype != np.float32 and about["type"] != "SCALAR":
            assert about["normalized"] and values.dtype.itemsize * shape[1] % 4 == 0
        return values

    def shape(self, weights: NDArray[Any] | None = None) -> list[tuple[NDArray[Any], NDArray[Any]]]:
        """Moved vertices and triangles of each primitive, as a viewer makes them."""
        mesh = self.json["meshes"][0]
        weights = np.array(mesh.get("weights", [])) if weights is None else weights
        shapes = []
        for primitive in mesh["primitives"]:
            points = self.array(primitive["attributes"]["POSITION"]).astype(np.float64)
            assert "min" in self.json["accessors"][primitive["attributes"]["POSITION"]]
            assert len(primitive.get("targets", [])) == len(weights)
            for weight, target in zip(weights, primitive.get("targets", [])):
                assert "min" in self.json["accessors"][target["POSITION"]]
                points = points + weight * self.array(target["POSITION"])
            triangles = self.array(primitive["indices"]).reshape(-1, 3)
            assert triangles.max() == len(points) - 1, "no vertex is there in vain"
            shapes.append((points, triangles.astype(int)))
        return shapes


def corners(shapes: list[tuple[NDArray[Any], NDArray[Any]]]) -> NDArray[Any]:
    return np.concatenate([points[triangles] for points, triangles in shapes])


def test_a_viewer_shows_the_predicted_face_and_moves_it_as_the_model_does(
    model: MorphableModel, tmp_path: Path
) -> None:
    faces = prediction(model)
    mesh = FaceMesh.of_prediction(faces, 0, model)
    glb = Glb(write_glb(tmp_path / "face.glb", mesh))
    assert glb.json["asset"]["version"] == "2.0"
    assert glb.json["meshes"][0]["extras"]["targetNames"] == list(model.expression_names)
    assert faces.coefficients is not None
    identity, expression = faces.coefficients.split([model.num_identity, model.num_expression], dim=1)
    np.testing.assert_allclose(glb.json["meshes"][0]["weights"], expression[0], atol=1e-6)
    triangles = model.faces.numpy()
    for other in (expression, torch.zeros_like(expression), torch.eye(51)[24:25]):
        expected = model.vertices(identity, other)[0].numpy()[triangles] / 1000
        np.testing.assert_allclose(corners(glb.shape(other[0].numpy())), expected, atol=1e-6)
    assert set(range(len(glb.json["bufferViews"]))) - glb.used == {1}, "all but the normals was looked at"
    normals = glb.array(1)
    np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(normals, model.vertex_normals(torch.tensor(mesh.vertices).float()[None])[0], atol=1e-4)
    assert (tmp_path / "face.glb").stat().st_size < 1_000_000, "actions that move a part of the face are sparse"


def test_left_and_right_are_the_subjects(model: MorphableModel, tmp_path: Path) -> None:
    mesh = FaceMesh.of_prediction(prediction(model), 0, model)
    glb = Glb(write_glb(tmp_path / "face.glb", mesh))
    names = glb.json["meshes"][0]["extras"]["targetNames"]
    still, _ = glb.shape(np.zeros(51))[0]
    for name in ("eyeBlinkLeft", "mouthSmileLeft", "browDownLeft"):
        moved, _ = glb.shape(np.eye(51)[names.index(name)])[0]
        distance = np.linalg.norm(moved - still, axis=1)
        # +x is the image right of a frontal face, where the subject has its left.
        assert (distance * still[:, 0]).sum() / distance.sum() > 0.01
    jaw, _ = glb.shape(np.eye(51)[names.index("jawOpen")])[0]
    assert (jaw - still)[:, 1].min() < -0.005 and (still[:, 2] * 1000).max() > 100, "y up, and the nose to the viewer"


@pytest.mark.parametrize("kind", ["weak_perspective", "affine", "perspective"])
def test_the_image_frame_is_that_of_the_picture(model: MorphableModel, tmp_path: Path, kind: Any) -> None:
    matrix = Camera.from_pose(POSE).matrix
    if kind == "affine":
        matrix = matrix * torch.tensor([1.1, 1.0, 1.0, 1.0])
    if kind == "perspective":
        matrix = matrix.clone()
        matrix[:, 2, :3] = torch.tensor([2e-4, 1e-4, -1e-3])
    faces = prediction(model)
    assert faces.coefficients is not None
    identity, expression = faces.coefficients.split([model.num_identity, model.num_expression], dim=1)
    faces.camera = Camera.from_matrix(kind, matrix)
    faces.vertices = None
    glb = Glb(write_glb(tmp_path / "face.glb", FaceMesh.of_prediction(faces, 0, model, "image")))
    flip = np.array([0.001, -0.001, 0.001])
    triangles = model.faces.numpy()
    placed = faces.camera.project(model.vertices(identity, expression))[0].numpy()
    np.testing.assert_allclose(corners(glb.shape()), placed[triangles] * flip, atol=1e-5)
    neutral = faces.camera.project(model.vertices(identity, expression * 0))[0].numpy()
    difference = corners(glb.shape(np.zeros(51))) - neutral[triangles] * flip
    if kind == "perspective":
        # Its picture is no sum of moves: of the way back from the expression a fifth may be wrong, at 1 m.
        assert np.abs(difference).mean() < 0.2 * np.abs((placed - neutral)[triangles]).mean() / 1000
    else:
        assert np.abs(difference).max() < 1e-5


def test_a_method_of_vertices_alone_gives_its_own_part_of_the_face(model: MorphableModel, tmp_path: Path) -> None:
    ids = torch.unique(model.faces[model.uv_face_ids])
    whole = prediction(model)
    assert whole.vertices is not None
    faces = prediction(model, vertices=whole.vertices[:, ids], vertex_ids=ids, coefficients=None)
    glb = Glb(write_glb(tmp_path / "face.glb", FaceMesh.of_prediction(faces, 0, model)))
    assert "extras" not in glb.json["meshes"][0] and "weights" not in glb.json["meshes"][0]
    # Triangles between vertices of the UV map; a few close holes in it.
    inside = torch.isin(model.faces, ids).all(dim=1)
    expected = FaceMesh.of_prediction(whole, 0, model).vertices[model.faces[inside]]
    np.testing.assert_allclose(corners(glb.shape()) * 1000, expected, atol=1e-3)


def test_a_texture_lies_where_the_uv_map_has_it(model: MorphableModel, tmp_path: Path) -> None:
    mesh = FaceMesh.of_prediction(prediction(model), 0, model)
    grid = (torch.arange(64) + 0.5) / 64
    ramps = torch.stack((grid.expand(64, 64), grid[:, None].expand(64, 64), torch.full((64, 64), 0.25)))
    glb = Glb(write_glb(tmp_path / "face.glb", mesh, texture=ramps))
    face, skin = glb.json["meshes"][0]["primitives"]
    materials = [glb.json["materials"][part["material"]] for part in (face, skin)]
    image = glb.json["images"][glb.json["textures"][0]["source"]]
    assert image["mimeType"] == "image/png" and materials[0]["pbrMetallicRoughness"]["baseColorTexture"] == {"index": 0}
    picture = cv2.imdecode(np.frombuffer(glb.view(image["bufferView"]), np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    np.testing.assert_allclose(picture / 255, ramps.permute(1, 2, 0), atol=0.5 / 255 + 1e-6)
    # The place in the texture of each corner, which its red and green show.
    places = glb.array(face["attributes"]["TEXCOORD_0"])[glb.array(face["indices"]).reshape(-1, 3)]
    assert model.uv is not None and model.uv_faces is not None and model.uv_face_ids is not None
    order = np.argsort(model.uv_face_ids.numpy())
    np.testing.assert_allclose(places, model.uv[model.uv_faces].numpy()[order], atol=1e-6)
    shown = corners(glb.shape())
    np.testing.assert_allclose(
        shown[: len(places)], mesh.vertices[model.faces[model.uv_face_ids]][order] / 1000, atol=1e-6
    )
    assert len(shown) == len(model.faces)
    mean = materials[1]["pbrMetallicRoughness"]["baseColorFactor"]
    assert mean[2] == pytest.approx(0.0512, abs=2e-3) and mean[3] == 1.0, "0.25 of sRGB is 5 % of the light"


def test_trimesh_reads_it_with_colours(model: MorphableModel, tmp_path: Path) -> None:
    trimesh = pytest.importorskip("trimesh")
    mesh = FaceMesh.of_prediction(prediction(model), 0, model)
    mesh.weights = [0.0] * 51
    colours = torch.rand(model.num_vertices, 3, generator=torch.Generator().manual_seed(0))
    scene = trimesh.load(write_glb(tmp_path / "face.glb", mesh, colours), process=False)
    (found,) = scene.geometry.values()
    np.testing.assert_allclose(found.vertices, mesh.vertices / 1000, atol=1e-6)
    np.testing.assert_array_equal(found.faces, mesh.faces)
    painted = found.visual.vertex_attributes["color"][:, :3] / 65535
    np.testing.assert_allclose(painted, colours.numpy() ** 2.2, atol=0.02)
    assert found.face_normals[model.uv_face_ids.numpy()][:, 2].mean() > 0.3, "the face looks at the viewer"


def test_a_mesh_of_many_vertices_has_wide_indices(tmp_path: Path) -> None:
    count = 70_000
    points = np.random.default_rng(0).normal(size=(count, 3))
    faces = np.arange(count - 1)[:, None] + np.array([0, 1, 0])
    move = np.zeros((count, 3))
    move[-1] = 1.0
    mesh = FaceMesh(points, faces, actions={"one": move, "none": move * 0}, weights=[1.0, 0.0])
    ((found, triangles),) = Glb(write_glb(tmp_path / "a.glb", mesh)).shape()
    np.testing.assert_array_equal(triangles, faces)
    np.testing.assert_allclose(found, points / 1000, atol=1e-6)


def test_what_cannot_be_written_is_named_and_leaves_no_file(model: MorphableModel, tmp_path: Path) -> None:
    points, faces = np.eye(3), np.array([[0, 1, 2]])
    plain, mapped = FaceMesh(points, faces), FaceMesh(points, faces, points, faces)
    cases: tuple[tuple[str, str, FaceMesh, dict[str, Any]], ...] = (
        (r"cannot be written as a mesh: use \.glb", "a.obj", plain, {}),
        ("not finite", "a.glb", FaceMesh(points, faces, actions={"a": points * np.nan}, weights=[1.0]), {}),
        ("no UV map", "a.glb", plain, {"texture": np.zeros((3, 4, 4))}),
        ("2 colours were given for the 3", "a.glb", plain, {"colours": np.zeros((2, 3))}),
        (r"texture .* shape \(4, 4, 3\)", "a.glb", mapped, {"texture": np.zeros((4, 4, 3))}),
    )
    for message, name, mesh, options in cases:
        with pytest.raises(ConfigurationError, match=message):
            write_glb(tmp_path / name, mesh, **options)
    assert list(tmp_path.iterdir()) == []
    landmarks = FacePrediction(torch.zeros(1, 68, 3))
    for frame in ("object", "image"):
        with pytest.raises(ConfigurationError, match=f"no mesh in the {frame} frame"):
            FaceMesh.of_prediction(landmarks, 0, model, frame)  # type: ignore[arg-type]
    lost = prediction(model, valid=torch.tensor([False]), reason=["too few pixels"])
    with pytest.raises(ConfigurationError, match=r"Face 0 .* not valid \(too few pixels\)"):
        FaceMesh.of_prediction(lost, 0, model)
