"""``lightning-faces preview``: what a configuration's training sees, with points where the face has them."""

from __future__ import annotations

import inspect
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from datamodules.synthetic import SyntheticFaces
from lightning_faces.commands.preview import main
from lightning_faces.errors import ConfigurationError, DataError
from lightning_faces.morphable import MorphableModel
from lightning_faces.rendering import FaceSynthesizer, SynthesisOptions
from lightning_faces.rendering.preview import (
    HIDDEN,
    MAPS,
    SEEN,
    PreviewOptions,
    contact_sheet,
    draw_points,
    read_config,
)

CONFIGS = sorted(Path(__file__).parents[2].glob("configs/**/*.yaml"))
PREVIEW_ARGS = ("synthesis", "face_model", "image_size", "canvas")


def sheet_of(path: Path) -> np.ndarray:
    with Image.open(path) as sheet:
        return np.array(sheet)


def tiles_of(sheet: np.ndarray, side: int) -> list[np.ndarray]:
    """Tiles of a sheet in reading order."""
    rows, columns = sheet.shape[0] // side, sheet.shape[1] // side
    return [sheet[r * side : (r + 1) * side, c * side : (c + 1) * side] for r in range(rows) for c in range(columns)]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_shipped_configuration_is_drawn_or_refused_in_a_sentence(path: Path, tmp_path: Path) -> None:
    out = tmp_path / "sheet.png"
    args = ["--config", str(path), "--count", "1", "--out", str(out)]
    data = yaml.safe_load(path.read_text()).get("data")
    if data is None or data["class_path"] != "SyntheticFaces":
        said = "names no data" if data is None else f"is {data['class_path']}, but preview draws SyntheticFaces"
        with pytest.raises(ConfigurationError, match=f"{path.name} {said}"):
            main(args)
        assert not out.exists()
        return
    given = {key: value for key, value in data["init_args"].items() if key not in ("augmentation", "cache_dir")}
    module = SyntheticFaces(**given)
    config = read_config([str(path)])
    assert (config.size, config.synthesis) == (module.canvas_size, module.synthesis)
    assert config.face_model == module.model.name == "embedded"
    main(args)
    assert sheet_of(out).shape == (2 * module.canvas_size, 4 * module.canvas_size, 3)


def test_there_are_configurations_of_both_kinds() -> None:
    data = [yaml.safe_load(path.read_text()).get("data") for path in CONFIGS]
    drawn = [entry is not None and entry["class_path"] == "SyntheticFaces" for entry in data]
    assert sum(drawn) >= 6
    assert len(drawn) - sum(drawn) >= 6


def test_names_and_defaults_are_those_of_the_data_module() -> None:
    parameters = inspect.signature(SyntheticFaces).parameters
    defaults = PreviewOptions()
    assert {name: getattr(defaults, name) for name in PREVIEW_ARGS} == {
        name: parameters[name].default for name in PREVIEW_ARGS
    }


@pytest.fixture(scope="module")
def synthesizer(embedded: MorphableModel) -> FaceSynthesizer:
    return FaceSynthesizer(embedded, 48, position_map_size=48)


def test_the_faces_are_those_that_training_sees(tmp_path: Path) -> None:
    """Pixel by pixel, with the options and sizes of the configuration; the first sample has the first seed."""
    init_args = {"image_size": 40, "canvas": 1.2}
    data = {"class_path": "datamodules.SyntheticFaces", "init_args": {**init_args, "synthesis": {"hair": False}}}
    config, out = tmp_path / "config.yaml", tmp_path / "sheet.PNG"
    config.write_text(yaml.safe_dump({"seed_everything": 3, "data": data, "model": {"class_path": "PRNet"}}))
    main(["--config", str(config), "--count", "2", "--seed", "5", "--out", str(out)])
    module = SyntheticFaces(**init_args, synthesis=SynthesisOptions(hair=False))
    module.setup("fit")
    expected = module.datasets["train"].render([5, 6])["image"]
    tiles = tiles_of(sheet_of(out), 2 * 48)
    for index in range(2):
        assert np.array_equal(tiles[2 * index][::2, ::2], expected[index]), index


def test_size_and_face_model_of_the_command_line_come_first(tmp_path: Path) -> None:
    config, out = tmp_path / "config.yaml", tmp_path / "sheet.png"
    config.write_text("data: {class_path: SyntheticFaces, init_args: {face_model: nowhere.npz}}")
    args = ["--config", str(config), "--count", "1", "--size", "32", "--out", str(out)]
    with pytest.raises(DataError, match=r"nowhere\.npz"):
        main(args)
    main([*args, "--face-model", "embedded"])
    assert sheet_of(out).shape == (64, 2 * 64, 3)


def test_a_later_configuration_goes_over_an_earlier_one(tmp_path: Path) -> None:
    first, second, plain = tmp_path / "first.yaml", tmp_path / "second.yaml", tmp_path / "plain.yaml"
    first.write_text("data: {class_path: SyntheticFaces, init_args: {image_size: 64, synthesis: {hair: false}}}\n")
    second.write_text("data: {init_args: {canvas: 1.25, synthesis: {glasses: 1}}}\n")
    plain.write_text("dark: 0.0\nglasses: 0.5\n")
    config = read_config([str(first), str(second), str(plain)])
    assert config == PreviewOptions(SynthesisOptions(hair=False, glasses=0.5, dark=0.0), image_size=64, canvas=1.25)
    root = Path(__file__).parents[2]
    assert read_config([str(root / "configs/quickstart.yaml"), str(root / "configs/data/synthetic_64.yaml")]).size == 96
    first.write_text("data: SyntheticFaces\n")
    assert read_config([str(first)]) == PreviewOptions()
    # PyYAML reads 1e-1 as text, the command line does not; and runs write class_path and init_args.
    first.write_text("data: {init_args: {synthesis: {class_path: SynthesisOptions, init_args: {blur: 1e-1}}}}\n")
    assert read_config([str(first)]) == PreviewOptions(SynthesisOptions(blur=0.1))


def test_marks_are_where_the_landmarks_are(synthesizer: FaceSynthesizer, tmp_path: Path) -> None:
    """Green where a point is seen, red where it is hidden, within a pixel; the points mirrored would be elsewhere."""
    size, out = synthesizer.image_size, tmp_path / "sheet.png"
    main(["--count", "3", "--size", str(size), "--seed", "20", "--out", str(out)])
    tiles = tiles_of(sheet_of(out), 2 * size)
    with torch.no_grad():
        rendered = synthesizer.render(synthesizer.sample([20, 21, 22]))
    for index in range(3):
        plain, marked = tiles[2 * index : 2 * index + 2]
        image = (rendered["image"][index] * 255).round().byte().permute(1, 2, 0).numpy()
        # Drawn alone and together, a few colours may differ by one step.
        assert np.abs(plain[::2, ::2].astype(int) - image).max() <= 1
        assert not any((plain == colour).all(-1).any() for colour in (SEEN, HIDDEN))
        points, seen = rendered["landmarks"][index, :, :2] * 2 + 0.5, rendered["visible"][index]  # pixels of the tile
        y, x = np.nonzero((plain != marked).any(-1))
        marks = torch.from_numpy(np.stack((x, y), axis=1)).float()
        colours = marked[y, x]
        distance = torch.cdist(points, marks)
        assert distance.amin(0).max() < 1.5  # every mark belongs to a point ...
        for colour, chosen in ((SEEN, seen), (HIDDEN, ~seen)):
            assert int(chosen.sum()) > 3
            own = torch.from_numpy((colours == colour).all(-1))
            # A mark of the other colour may cover one next to it.
            free = torch.cdist(points[chosen], points[~chosen]).amin(1) > 3.0
            assert distance[chosen][free][:, own].amin(1).max() < 1.2, colour  # ... and every point has its own
        mirrored = torch.stack((2.0 * size - 1.0 - points[:, 0], points[:, 1]), dim=1)
        assert (torch.cdist(mirrored, marks).amin(1) < 1.2).float().mean() < 0.5


def test_a_mark_covers_the_pixel_of_its_point() -> None:
    image = np.zeros((8, 12, 3), np.uint8)
    draw_points(image, torch.tensor([[4.0, 1.0, 0.0], [1.0, 2.0, 5.0], [90.0, 1.0, 0.0]]), torch.tensor([1, 0, 1]), 2)
    expected = np.zeros_like(image)
    expected[2:4, 8:10], expected[4:6, 2:4] = SEEN, HIDDEN
    assert np.array_equal(image, expected)


def test_maps_stand_beside_each_face(
    synthesizer: FaceSynthesizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "folder" / "sheet.png"
    main(["--count", "2", "--size", "48", "--maps", "--out", str(out)])
    assert "2 faces of 48 pixels" in capsys.readouterr().out
    sheet = sheet_of(out)
    assert sheet.shape == (2 * 96, 7 * 96, 3)
    with torch.no_grad():
        rendered = synthesizer.render(synthesizer.sample([0, 1]), ("face_mask", "normals"))
    tiles = tiles_of(sheet, 96)
    for index in range(2):
        for name in ("face_mask", "normals"):
            shown = tiles[7 * index + 2 + MAPS.index(name)][::2, ::2]
            values = rendered[name][index].expand(3, -1, -1) * (0.5 if name == "normals" else 1.0)
            expected = ((values + 0.5 if name == "normals" else values) * 255).round().permute(1, 2, 0).numpy()
            assert np.array_equal(shown, expected), name


def test_tiles_go_row_by_row() -> None:
    tiles = [np.full((2, 3, 3), value, np.uint8) for value in (10, 20, 30)]
    sheet = contact_sheet(tiles, 2)[..., 0]
    assert sheet.tolist() == [[10] * 3 + [20] * 3] * 2 + [[30] * 3 + [0] * 3] * 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hairs: false", "sets hairs, which synthetic faces do not have: choose from yaw_range"),
        ("glasses: 2.0", "glasses is 2.0; it must be a number between 0 and 1"),
        ("data: {class_path: SyntheticFaces, init_args: {image_size: 64.5}}", "sets image_size to 64.5; it must be a"),
        ("data: {class_path: SyntheticFaces, init_args: {canvas: 0.5}}", "sets canvas to 0.5; it must be a number of"),
        ("data: {class_path: SyntheticFaces, init_args: {face_model: 3}}", "sets face_model to 3; it must be a name"),
        ("data: {class_path: SyntheticFaces, init_args: {synthesis: [1]}}", r"\[1\] in the place of options"),
        ("data: {class_path: datamodules.Mixed}", "is datamodules.Mixed, but preview draws SyntheticFaces"),
        ("data: AFLW20003D", "is AFLW20003D, but preview draws SyntheticFaces"),
        ("- 1", r"holds \[1\]; a configuration is a mapping"),
        ("a: [", "Cannot read the configuration"),
        ("trainer: {max_epochs: 3}", "names no data: add a configuration"),
    ],
)
def test_wrong_configurations_are_one_sentence(text: str, message: str, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(text)
    with pytest.raises(ConfigurationError, match=message) as caught:
        main(["--config", str(config), "--out", str(tmp_path / "sheet.png")])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--count", "0"], "--count is 0; it must be at least 1"),
        (["--seed", "-1"], "--seed is -1; it must be at least 0"),
        (["--out", "sheet.jpg"], "--out is sheet.jpg; it must be the name of a file that ends in .png"),
        (["--out", "folder.png"], "--out is folder.png; it must be the name of a file"),
        (["--config", "missing.yaml"], "Cannot read the configuration missing.yaml"),
        (["--size", "8"], "too small"),
    ],
)
def test_wrong_arguments_are_refused_before_any_work(
    args: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder.png").mkdir()
    monkeypatch.setattr(FaceSynthesizer, "sample", lambda *_: pytest.fail("a face was drawn"))
    with pytest.raises(ConfigurationError, match=message):
        main(args)
    assert [path.name for path in tmp_path.iterdir()] == ["folder.png"]
