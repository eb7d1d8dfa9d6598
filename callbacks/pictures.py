"""Pictures of what a method finds, drawn beside the training and never inside a step."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger
from PIL import Image, ImageDraw
from torch import Tensor

from lightning_faces.batch import FaceBatch, FacePrediction
from lightning_faces.errors import ConfigurationError
from lightning_faces.files import write_atomic
from lightning_faces.rendering.drawing import caption_text, draw_landmarks

TRUE_COLOUR, PREDICTED_COLOUR = (40, 220, 80), (255, 60, 50)
MARGIN = 4


@dataclass
class Face:
    """A face to draw: image ``[3, H, W]`` in [0, 1] and landmarks ``[L, 3]`` in the image frame."""

    image: Tensor
    predicted: Tensor
    true: Tensor | None
    visible: Tensor
    caption: str


def faces_of_batch(batch: FaceBatch, prediction: FacePrediction, most: int) -> list[Face]:
    """The first ``most`` faces of a batch, copied to the CPU; of a face that is not valid, the true landmarks only."""
    faces = []
    for i in range(min(most, len(batch["index"]))):
        predicted = prediction.landmarks[i].detach().float().cpu()
        true, caption = None, batch["sample_id"][i]
        visible = torch.ones(len(predicted), dtype=torch.bool)
        if _has(batch, "landmarks", i):
            true = batch["landmarks"][i].float().cpu()
            visible = torch.ones(len(true), dtype=torch.bool)
            if _has(batch, "landmark_mask", i):
                visible = batch["landmark_mask"][i, :, :2].all(dim=-1).cpu()
        if prediction.valid is not None and not bool(prediction.valid[i]):
            predicted, caption = predicted[:0], f"not valid  {caption}"
        elif true is not None and _has(batch, "face_size", i) and len(true) == len(predicted) and bool(visible.any()):
            error = (predicted - true)[:, :2].norm(dim=-1)[visible].mean() / float(batch["face_size"][i])
            caption = f"{caption}  {100 * float(error):.1f}%"
        faces.append(Face(batch["image"][i].float().cpu(), predicted, true, visible, caption))
    return faces


def _has(batch: FaceBatch, key: str, place: int) -> bool:
    return key in batch["has"] and bool(batch["has"][key][place])


def contact_sheet(faces: list[Face], tile: int = 192, columns: int = 4) -> Image.Image:
    """Draw faces side by side, true landmarks in green and predicted ones in red.

    Args:
        faces: What to draw.
        tile: Side of a face on the sheet, pixels.
        columns: Faces in a row.

    Returns:
        An RGB image.
    """
    columns = max(1, min(columns, len(faces)))
    rows = -(-len(faces) // columns)
    line = 14
    step_x, step_y = tile + MARGIN, tile + line + MARGIN
    sheet = Image.new("RGB", (columns * step_x + MARGIN, rows * step_y + line + 2 * MARGIN), (24, 24, 28))
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, MARGIN), "true", fill=TRUE_COLOUR)
    draw.text((MARGIN + 30, MARGIN), "predicted", fill=PREDICTED_COLOUR)
    draw.text((MARGIN + 94, MARGIN), "(percent: mean distance over face size)", fill=(170, 170, 170))
    for number, face in enumerate(faces):
        height, width = face.image.shape[-2:]
        pixels = face.image.clamp(0, 1).mul(255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        picture = Image.fromarray(pixels).resize((tile, tile), Image.Resampling.BICUBIC)
        # Pixel centres are at integers, so the scaling is about -0.5.
        scale = torch.tensor([tile / width, tile / height])
        canvas = ImageDraw.Draw(picture)
        if face.true is not None:
            draw_landmarks(canvas, (face.true[:, :2] + 0.5) * scale - 0.5, face.visible, TRUE_COLOUR)
        everything = torch.ones(len(face.predicted), dtype=torch.bool)
        draw_landmarks(canvas, (face.predicted[:, :2] + 0.5) * scale - 0.5, everything, PREDICTED_COLOUR)
        x = MARGIN + number % columns * step_x
        y = 2 * MARGIN + line + number // columns * step_y
        sheet.paste(picture, (x, y))
        draw.text((x, y + tile + 1), caption_text(face.caption, tile // 6), fill=(210, 210, 210))
    return sheet


def log_picture(trainer: Trainer, key: str, picture: Image.Image, path: Path) -> None:
    """Save a picture below the run folder and give it to each logger that takes pictures.

    Args:
        trainer: Whose loggers and step are meant.
        key: Name for the loggers, e.g. "val/faces".
        picture: RGB image.
        path: PNG file.
    """
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    write_atomic(path, buffer.getvalue())
    # Lightning logs the values of the last step under this number.
    step = max(trainer.global_step - 1, 0)
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            logger.log_image(key, [picture], step=step)
        elif (add_image := getattr(getattr(logger, "experiment", None), "add_image", None)) is not None:  # TensorBoard
            array = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
            image = array.view(picture.height, picture.width, 3)
            add_image(key, image, step, dataformats="HWC")


class ContactSheet(Callback):
    """Draws the same validation faces every few epochs and at the end, and test faces once.

    Files: ``pictures/val-epoch0007.png``, ``pictures/val-last.png`` and ``pictures/test-<data>.png`` below the
    trainer's root folder; of each prediction of a method with several, ``pictures/val-last.<prediction>.png``.

    Args:
        every_n_epochs: Epochs between two sheets.
        num_faces: Faces on a sheet: the first of the split.
    """

    kind = ""
    """Goes into the names of files and pictures."""

    def __init__(self, every_n_epochs: int = 10, num_faces: int = 16) -> None:
        super().__init__()
        for name, value in (("every_n_epochs", every_n_epochs), ("num_faces", num_faces)):
            if value < 1:
                raise ConfigurationError(f"{type(self).__name__} option {name} is {value}; it must be at least 1.")
        self.every_n_epochs, self.num_faces = every_n_epochs, num_faces
        self._faces: dict[str, list[Any]] = {}

    def _collect(self, trainer: Trainer, outputs: Any, batch: FaceBatch, dataloader_idx: int) -> None:
        predictions = outputs.get("predictions", {}) if isinstance(outputs, dict) else {}
        if not trainer.is_global_zero or dataloader_idx != 0:
            return
        for name, prediction in predictions.items():
            faces = self._faces.setdefault(name, [])
            if len(faces) < self.num_faces:
                faces += self.take(batch, prediction, self.num_faces - len(faces))

    def take(self, batch: FaceBatch, prediction: FacePrediction, most: int) -> list[Any]:
        """What is drawn of the first faces of a batch, copied to the CPU."""
        return faces_of_batch(batch, prediction, most)

    def draw(self, faces: list[Any]) -> Image.Image:
        """The sheet of all that was taken."""
        return contact_sheet(faces)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start a new sheet."""
        self._faces = {}

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Take the faces of a batch."""
        self._collect(trainer, outputs, batch, dataloader_idx)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw, where this epoch's turn has come."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        if trainer.current_epoch % self.every_n_epochs == 0:
            self._draw(trainer, "val", f"epoch{trainer.current_epoch:04d}")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the last validation."""
        self._draw(trainer, "val", "last")

    on_test_epoch_start = on_validation_epoch_start
    on_test_batch_end = on_validation_batch_end

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the test faces."""
        self._draw(trainer, "test", getattr(trainer.datamodule, "name", None) or "data")  # type: ignore[attr-defined]

    def _draw(self, trainer: Trainer, split: str, name: str) -> None:
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        # A data set's name is free text, and a dot begins a prediction's name.
        file = "-".join(filter(None, (split, self.kind, re.sub(r"[^\w-]+", "-", name))))
        for prediction, faces in self._faces.items():
            if faces:
                path = Path(trainer.default_root_dir) / "pictures" / f"{'.'.join(filter(None, (file, prediction)))}.png"
                key = "/".join(filter(None, (split, self.kind or "faces", prediction)))
                log_picture(trainer, key, self.draw(faces), path)
