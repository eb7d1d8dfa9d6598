"""Menpo 3D face tracking: videos with landmarks on every frame (pix2face, section 4.1)."""

from __future__ import annotations

from datamodules.components.tables import TableFaceDataModule


class Menpo3D(TableFaceDataModule):
    """The Menpo 3D tracking videos in this platform's import layout (``datamodules/table.py``).

    The table has one row per frame: file is the video (or the frame's picture), with the columns sequence and frame,
    and the 68 points. Frames stay in order, and in evaluation a whole sequence stays on one rank, so that a method may
    look at the frames before. The column split says which videos are used for what; without it all are
    for testing (the labels of the challenge's 30 test videos were not published).

    Args:
        root: The folder, or a parent of ``Menpo3D``; None takes the environment's ``LIGHTNING_FACES_DATA``.
        val_fraction: Share of the training subjects (or files) held out for validation, where the table has none.
        on_error: What to do at a bad file: "raise", or "skip" the sample with a warning and count it.
        image_size: Side of the square crop in pixels.
        batch_size: Samples per step and rank.
        num_workers: Loader processes per rank.
        margin: Side of the crop over the longer side of the box.
        augmentation: Random changes of training samples.
        seed: Seed of sample order and augmentation.
    """

    folders = ("Menpo3D", "Menpo-3D", "menpo3d")
    source = (
        "Ask the iBUG group of Imperial College for the data of the first 3D face tracking in-the-wild competition, "
        "then bring it into the import layout."
    )
    scheme = "68"
    whole_sequences = True
