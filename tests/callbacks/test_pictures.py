from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from callbacks import ContactSheet, DenseSheet, MetricsCSV
from callbacks.dense_pictures import DenseFace, colours, scatter, tiles_of
from callbacks.pictures import MARGIN, PREDICTED_COLOUR, TRUE_COLOUR, Face, contact_sheet
from datamodules import SyntheticFaces
from lightning_faces.batch import FacePrediction
from lightning_faces.errors import ConfigurationError
from tests.callbacks.training import data, method, trainer


def test_points_are_drawn_where_they_are() -> None:
    # 5 points, so no lines; the image is 32 wide and shown at 192, so a pixel's centre c is at 6 c + 2.5.
    true, predicted = torch.zeros(5, 3), torch.zeros(5, 3)
    true[:, :2] = torch.tensor([[2.0, 3], [20, 3], [2, 20], [28, 28], [9, 9]])
    predicted[:, :2] = true[:, :2] + torch.tensor([1.0, 0])
    visible = torch.tensor([True, True, True, True, False])
    face = Face(torch.zeros(3, 32, 32), predicted, true, visible, "a")
    sheet = np.asarray(contact_sheet([face, face], tile=192, columns=2))
    assert sheet.shape == (192 + 2 * 14 + 3 * MARGIN, 2 * (192 + MARGIN) + MARGIN, 3)
    for column in range(2):
        corner = np.array([MARGIN + column * (192 + MARGIN), 2 * MARGIN + 14])
        for points, shown, colour in ((true, visible, TRUE_COLOUR), (predicted, visible | True, PREDICTED_COLOUR)):
            for (x, y), show in zip(points[:, :2].tolist(), shown.tolist()):
                at = np.round(corner + 6 * np.array([x, y]) + 2.5).astype(int)
                assert (tuple(sheet[at[1], at[0]]) == colour) == show


def test_sheets_at_their_epochs_and_at_the_end(tmp_path: Path) -> None:
    sheets = ContactSheet(every_n_epochs=2, num_faces=6)
    run = trainer(tmp_path, [sheets], max_epochs=4)
    run.fit(method(), data())
    run.test(method(), data(), verbose=False)
    pictures = {p.name for p in (tmp_path / "pictures").iterdir()}
    assert pictures == {"val-epoch0000.png", "val-epoch0002.png", "val-last.png", "test-NoiseFaces.png"}
    # 6 of the 7 faces, from two batches, four in a row.
    with Image.open(tmp_path / "pictures" / "val-last.png") as sheet:
        assert sheet.size == (4 * (192 + MARGIN) + MARGIN, 2 * (192 + 14 + MARGIN) + 14 + 2 * MARGIN)


def test_bad_options_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="num_faces is 0"):
        ContactSheet(num_faces=0)


def test_the_nearest_point_is_drawn_over_the_others() -> None:
    points = torch.tensor([[3.2, 5.0, 9.0], [3.0, 5.9, -2.0], [-1.0, 0.0, 0.0], [50.0, 1.0, 0.0]])
    colour = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 9, 9]], dtype=np.uint8)
    drawn = scatter(np.zeros((16, 16, 3), dtype=np.uint8), points, colour)
    assert (drawn[5:7, 3:5] == (255, 0, 0)).all()
    # Of the point at x = -1 the right half is inside; nothing else is drawn.
    assert (drawn[0:2, 0] == (0, 0, 255)).all()
    assert int((drawn.sum(axis=2) > 0).sum()) == 4 + 2
    assert colours(torch.tensor([0.0, 0.25, 1.0, 2.0])).tolist() == [
        [48, 18, 59],
        [41, 120, 235],
        [122, 5, 3],
        [122, 5, 3],
    ]


def test_the_error_of_a_surface_ignores_the_origin_of_depth() -> None:
    true = torch.rand(500, 3) * torch.tensor([20.0, 20.0, 10.0]) + 5
    predicted = true + torch.tensor([0.0, 2.0, 77.0])
    face = DenseFace(torch.zeros(3, 32, 32), predicted, true, 40.0, {"pncc": torch.rand(3, 32, 32)}, "a")
    tiles = tiles_of(face, 64)
    assert list(tiles) == ["image", "predicted depth", "true depth", "error, 0 to 10%", "pncc"]
    # 2 of 40 pixels are 5%, the middle of the scale.
    drawn = tiles["error, 0 to 10%"].reshape(-1, 3)
    middle = drawn[drawn.sum(axis=1) > 0]
    assert len(middle) > 100
    assert np.abs(middle.astype(int) - colours(torch.tensor(0.5)).astype(int)).max() <= 1


def test_dense_sheets_of_a_method_with_surfaces_and_of_one_without(tmp_path: Path) -> None:
    class Surfaces(type(method())):  # type: ignore[misc]
        def predict_faces(self, batch: Any) -> FacePrediction:
            found = super().predict_faces(batch)
            return FacePrediction(found.landmarks, vertices=found.landmarks.repeat(1, 2, 1))

    model = Surfaces(image_size=32, hidden=8, channels=(2, 2, 2, 2))
    trainer(tmp_path / "with", [DenseSheet(every_n_epochs=5)], max_epochs=1).fit(model, data())
    assert {p.name for p in (tmp_path / "with" / "pictures").iterdir()} == {
        "val-dense-epoch0000.png",
        "val-dense-last.png",
    }
    trainer(tmp_path / "without", [DenseSheet()], max_epochs=1).fit(method(), data())
    assert not (tmp_path / "without" / "pictures").exists()


class Board(MetricsCSV):
    """A logger that takes pictures as TensorBoard's does."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.pictures: dict[str, tuple[int, np.ndarray]] = {}

    @property
    def experiment(self) -> Board:
        return self

    def add_image(self, key: str, image: torch.Tensor, step: int, dataformats: str) -> None:
        assert dataformats == "HWC"
        self.pictures[key] = (step, image.numpy())


def test_dense_sheets_show_surfaces_errors_and_all_maps_to_any_logger(tmp_path: Path) -> None:
    class Off(type(method())):  # type: ignore[misc]
        """Vertices that are off by 5 % of the face's size."""

        requires = frozenset({"landmarks", "vertices", "position_map", "pncc", "offsets"})

        def predict_faces(self, batch: Any) -> FacePrediction:
            shift = 0.05 * batch["face_size"][:, None, None] * torch.tensor([1.0, 0.0, 0.0])
            return FacePrediction(batch["landmarks"], vertices=batch["vertices"] + shift)

    faces = SyntheticFaces(4, 2, 2, image_size=32, position_map_size=32, batch_size=4, num_workers=0)
    board = Board(tmp_path)
    sheets = [ContactSheet(), DenseSheet(num_faces=2)]
    run = trainer(tmp_path, sheets, board, max_epochs=1)
    run.fit(Off(image_size=32, hidden=8, channels=(2, 2, 2, 2)), faces)
    assert {key: step for key, (step, _) in board.pictures.items()} == {"val/faces": 0, "val/dense": 0}
    sheet = board.pictures["val/dense"][1]
    with Image.open(tmp_path / "pictures" / "val-dense-last.png") as stored:
        assert np.array_equal(np.asarray(stored), sheet)
    tile, line = 192, 14
    columns = ["image", "predicted", "true", "error", "position_map", "pncc", "offsets"]
    assert sheet.shape == (line + MARGIN + 2 * (tile + line + MARGIN), len(columns) * (tile + MARGIN) + MARGIN, 3)
    top, middle = line + MARGIN, colours(torch.tensor(0.5)).astype(int)
    tiles = {
        name: sheet[top : top + tile, MARGIN + k * (tile + MARGIN) : (k + 1) * (tile + MARGIN)].astype(int)
        for k, name in enumerate(columns)
    }
    # An error of 5 % is the middle of the scale; depths take all of it, and the photograph none in particular.
    at_middle = {name: (np.abs(drawn - middle).max(axis=2) <= 1).mean() for name, drawn in tiles.items()}
    assert at_middle["error"] > 0.1 > 10 * max(at_middle[name] for name in ("image", "predicted", "true"))
    for name in ("position_map", "pncc", "offsets"):
        # A map uses its whole range, and differs from every other tile.
        assert np.ptp(tiles[name]) > 200, name
        assert all(np.abs(tiles[name] - tiles[other]).mean() > 5 for other in columns if other != name), name
