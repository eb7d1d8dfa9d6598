from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from callbacks import ContactSheet
from callbacks.pictures import MARGIN, PREDICTED_COLOUR, TRUE_COLOUR, Face, contact_sheet
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
