"""Checkpoints from anyone: what they hold is data."""

from __future__ import annotations

import functools
import io
import os
import pickle
import sys
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import nn

from lightning_faces.__main__ import main
from lightning_faces.errors import ConfigurationError, DataError, LightningFacesError
from lightning_faces.methods import MeanLandmarks, PRNet, Zhao2016
from lightning_faces.methods.base import FaceMethod
from lightning_faces.methods.checkpoint import load_method, read_checkpoint
from lightning_faces.methods.torch_file import read_torch_file
from tests.callbacks.training import method, trainer

SMALL = {"image_size": 32, "hidden": 8, "channels": [2, 2, 2, 2]}
TEST = ["--data", "NoiseFaces", "--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu"]


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def save(model: FaceMethod, path: str = "m.ckpt") -> Path:
    saver = trainer(Path(), [])
    saver.strategy.connect(model)
    saver.save_checkpoint(path)
    return Path(path)


def forge(path: str = "m.ckpt", model: FaceMethod | None = None, **arguments: Any) -> Path:
    """A checkpoint whose hyper-parameters say something else than its method's."""
    save(model or method(), path)
    content = torch.load(path, weights_only=True)
    content["hyper_parameters"].update(arguments)
    torch.save(content, path)
    return Path(path)


def test_a_method_comes_back_with_its_weights() -> None:
    model = method()
    loaded = load_method(save(model))
    assert type(loaded) is Zhao2016
    assert not loaded.training
    assert loaded.hparams["channels"] == (2, 2, 2, 2)
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())


def test_the_reader_gives_what_torch_gives() -> None:
    tied = torch.arange(6.0)
    content = {
        "state_dict": {"a": tied.view(2, 3), "b": tied.view(2, 3).T, "half": tied[:3].half(), "bool": tied > 2},
        "types": [
            torch.float32,
            torch.Size([2, 3]),
            {"x": (1, -5, 2**40, 0.5, None, True, "é", b"\x00\xff", set("a"))},
        ],
        "empty": torch.empty(0, 4, dtype=torch.int64),
    }
    torch.save(content, "x.pt")
    read, expected = read_torch_file(Path("x.pt")), torch.load("x.pt", weights_only=True)
    for name, value in expected["state_dict"].items():
        assert torch.equal(read["state_dict"][name], value)
        assert read["state_dict"][name].dtype == value.dtype
    assert read["types"] == expected["types"]
    assert read["empty"].shape == (0, 4)
    # Tensors that shared their values still do.
    assert read["state_dict"]["a"].data_ptr() == read["state_dict"]["b"].data_ptr()


def harm(name: str) -> dict[str, Any]:
    return {"class_path": "os.system", "init_args": {"command": f"touch {name}"}}


@pytest.mark.parametrize("command", ["test", "validate", "predict"])
@pytest.mark.parametrize(
    "arguments",
    [
        {"optimizer": harm("harmed")},
        {"lr_scheduler": harm("harmed")},
        {"optimizer": {"class_path": "harmful_module.X"}},
        {"encoder": {"class_path": "os.system", "init_args": {"command": "touch harmed"}}},
        {"encoder_args": harm("harmed")},
        {"_class_path": "harmful_module.Method"},
        {"_class_path": "os.system"},
        {"_instantiator": "os.system"},
    ],
    ids=lambda arguments: "-".join(f"{key}={str(value)[:14]}" for key, value in arguments.items()),
)
def test_nothing_in_a_checkpoint_runs_or_is_imported(command: str, arguments: dict[str, Any]) -> None:
    Path("harmful_module.py").write_text("open('harmed', 'w').close()\n")
    sys.path.insert(0, str(Path().absolute()))
    try:
        # What is not needed is left out; what is needed is refused.
        with suppress(SystemExit):
            path = str(forge(**arguments))
            Path("photo.png").touch()
            predict = ["photo.png", "--checkpoint", path]
            main([command, *(predict if command == "predict" else ["--ckpt_path", path, *TEST])])
    finally:
        sys.path.pop(0)
    assert not Path("harmed").exists()
    assert "harmful_module" not in sys.modules


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"hidden": "8"}, "'8' for the option 'hidden' of Zhao2016, which does not fit"),
        ({"hidden": True}, "'hidden'"),
        ({"channels": [2, 2]}, "'channels'"),
        ({"channels": 7}, "'channels'"),
        ({"stage": "other"}, "'other' for the option 'stage'"),
        ({"gone": 3}, "saved with the option 'gone', which Zhao2016 does not have: use the version"),
        ({"encoder": "hf-hub:someone/model"}, "the address 'hf-hub:someone/model': a checkpoint fetches nothing"),
        ({"encoder": "hf_hub:someone/model"}, "the address"),
        ({"encoder": "local-dir:elsewhere"}, "the address"),
        ({"encoder": "https://host/x.bin"}, "the address"),
        ({"encoder": "../../x.npz"}, "the file '../../x.npz': a checkpoint opens no file"),
        ({"encoder": "resnet18", "encoder_args": {"checkpoint_path": "/etc/passwd"}}, "'checkpoint_path'"),
        ({"encoder": "resnet18", "encoder_args": {"pretrained_cfg": {"url": "http://x"}}}, "'pretrained_cfg'"),
        ({"encoder": "resnet18", "encoder_args": {"a": {"b": "/etc/passwd"}}}, "the file '/etc/passwd'"),
        ({"hidden": 10**9}, "far larger than its weights"),
        ({"image_size": 10**6}, "far larger than its weights"),
        ({"_class_path": "lightning_faces.methods.Gone"}, "holds the method Gone, which this version does not have"),
        ({"_class_path": "mine.Method"}, "holds a mine.Method, which is no method of this platform"),
        ({"error_exponent": 0.5}, "cannot be made: Zhao2016 option error_exponent is 0.5"),
    ],
)  # fmt: skip
def test_arguments_are_read_against_the_signature(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError) as error:
        load_method(forge(**arguments))
    assert said in str(error.value)
    assert str(error.value).startswith("m.ckpt ")


def test_deep_and_wide_arguments_end_quickly() -> None:
    wide: Any = [0]
    for _ in range(60):
        wide = [wide, wide]
    with pytest.raises(DataError, match="more values"):
        load_method(forge(encoder_args={"x": wide}))


def test_weights_are_never_fetched_nor_files_opened_again(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[dict[str, Any]] = []
    original = Zhao2016.__init__

    def watch(self: Zhao2016, **arguments: Any) -> None:
        made.append(arguments)
        original(self, **arguments)

    path = forge(encoder_args={"pretrained": True}, start_from="other.ckpt")
    functools.update_wrapper(watch, original)
    monkeypatch.setattr(Zhao2016, "__init__", watch)
    with pytest.raises(DataError, match="cannot be made"):
        load_method(path)
    assert made[0]["encoder_args"] == {"pretrained": False}
    assert "start_from" not in made[0]


def test_a_face_model_of_ones_own_is_named_by_the_user() -> None:
    path = forge(model=PRNet(image_size=32, width=1), face_model="own.npz")
    with pytest.raises(
        DataError, match=r"the file 'own.npz': .* name it yourself: --model PRNet --model.face_model FILE"
    ):
        load_method(path)
    assert load_method(path, face_model="embedded").hparams["face_model"] == "embedded"


class WithFactory(FaceMethod):
    """Saves no hyper-parameters itself, needs an optimizer, and hands options on."""

    def __init__(self, width: int, optimizer: OptimizerCallable, names: tuple[str, ...] = (), **options: Any) -> None:
        super().__init__(optimizer, **options)
        self.layer = nn.Linear(width, 1)
        self.names = names

    def predict_faces(self, batch: Any) -> Any:
        raise NotImplementedError


def test_the_base_class_saves_the_arguments() -> None:
    model = WithFactory(3, functools.partial(torch.optim.SGD, lr=0.1), ("a",), lr_scheduler_interval="step")
    path = save(model)
    saved = torch.load(path, weights_only=True)["hyper_parameters"]
    assert saved == {
        "_class_path": f"{__name__}.WithFactory", "width": 3, "names": ("a",), "lr_scheduler_interval": "step",
    }  # fmt: skip
    loaded = load_method(path)
    assert isinstance(loaded, WithFactory)
    assert (loaded.layer.in_features, loaded.names, loaded.lr_scheduler_interval) == (3, ("a",), "step")
    with pytest.raises(ConfigurationError, match="An optimizer is not taken from a checkpoint"):
        loaded.configure_optimizers()


class Runs:
    def __reduce__(self) -> Any:
        return os.system, ("touch harmed",)


def archive(pickled: bytes, path: str = "m.ckpt", **parts: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", pickled)
        for name, part in parts.items():
            file.writestr(f"archive/data/{name[1:]}", part)
    return Path(path)


def tensor_pickle(kind: str, count: int, size: str, stride: str = "(I1\nt") -> bytes:
    storage = f"(S'storage'\nctorch\n{kind}\nS'0'\nS'cpu'\nI{count}\nt"
    return f"\x80\x02(S'x'\nctorch._utils\n_rebuild_tensor_v2\n({storage}QI0\n{size}{stride}I00\nNtRd.".encode()


@pytest.mark.parametrize(
    ("pickled", "said"),
    [
        (pickle.dumps(Runs(), 2), "posix.system"),
        (pickle.dumps(Runs(), 4), "posix.system"),
        (b"\x80\x02c__builtin__\nbytearray\nJ\xff\xff\xff\x7f\x85R.", "__builtin__.bytearray"),
        (b"\x80\x02ctorch\nload\n.", "'torch.load'"),
        (b"\x80\x02cmymodule\nX\n.", "'mymodule.X'"),
        (b"\x80\x02}r\xff\xff\xff\x7f.", "no state_dict"),
        (b"\x80\x02]q\x00h\x00a.", "no state_dict"),
        (b"\x80\x02(lp0\n.", "damaged"),
        (b"\x80\x02X\xff\xff\xff\x7fab.", "damaged"),
        (b"", "damaged"),
        (b"\x80\x02N.", "no state_dict"),
    ],
)
def test_pickles_are_read_as_data(pickled: bytes, said: str) -> None:
    with pytest.raises(DataError) as error:
        read_checkpoint(archive(pickled))
    assert said in str(error.value) or "instruction" in str(error.value)
    assert "m.ckpt" in str(error.value)
    assert not Path("harmed").exists()


def test_sizes_are_those_of_the_file() -> None:
    huge = pickle.dumps(0, 2)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", b"\0" * 10**6)
    Path("m.ckpt").write_bytes(buffer.getvalue())
    with pytest.raises(DataError, match="parts are compressed"):
        read_checkpoint("m.ckpt")
    # A tensor of 10^10 values over one, and one that claims more than its part has.
    content = {"state_dict": {"x": torch.zeros(1).expand(10**10)}, "pytorch-lightning_version": "2.6.6"}
    torch.save(content, "m.ckpt")
    with pytest.raises(DataError, match="larger than its values"):
        read_checkpoint("m.ckpt")
    assert huge


def test_what_is_no_checkpoint_is_named() -> None:
    files = {
        "board.html": (b"<!DOCTYPE html><title>b</title>", "is no checkpoint but a web page: give a .ckpt file"),
        "record.json": (b'{"schema": 1}', "a JSON file"),
        "config.yaml": (b"model: X\n", "a YAML file"),
        "empty.ckpt": (b"", "an empty file"),
        "old.ckpt": (pickle.dumps({"a": 1}, 2), "a pickle, which is not read as it can run code"),
        "face.png": (b"\x89PNG\r\n\x1a\n" + b"\0" * 50, "a PNG picture"),
    }
    for name, (data, said) in files.items():
        Path(name).write_bytes(data)
        with pytest.raises(DataError) as error:
            read_checkpoint(name)
        assert said in str(error.value)
        assert str(error.value).startswith(name)
    with pytest.raises(DataError, match="a folder"):
        read_checkpoint(".")
    with pytest.raises(ConfigurationError, match="There is no checkpoint absent"):
        read_checkpoint("absent.ckpt")
    with zipfile.ZipFile("x.npz", "w") as file:
        file.writestr("a.npy", b"x")
    with pytest.raises(DataError, match="a NumPy archive"):
        read_checkpoint("x.npz")


def test_any_damage_is_named() -> None:
    whole = save(method()).read_bytes()
    for position in range(0, len(whole), 997):
        Path("m.ckpt").write_bytes(whole[:position] + bytes([whole[position] ^ 0x5A]) + whole[position + 1 :])
        try:
            load_method("m.ckpt")
        except LightningFacesError as error:
            assert "m.ckpt" in str(error)
    for length in range(0, len(whole), 4999):
        Path("m.ckpt").write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"m\.ckpt"):
            load_method("m.ckpt")


def test_another_release_of_lightning_and_a_method_without_a_name() -> None:
    path = save(MeanLandmarks())
    content = torch.load(path, weights_only=True)
    del content["hyper_parameters"]["_class_path"]
    torch.save(content, path)
    with pytest.raises(DataError, match="does not say which method it holds"):
        load_method(path)
    assert isinstance(load_method(path, method=MeanLandmarks), MeanLandmarks)
    with pytest.raises(DataError, match="holds a MeanLandmarks that cannot be made"):
        load_method(path, method=MeanLandmarks, landmark_scheme="67")
    content["pytorch-lightning_version"] = "0.7.1"
    torch.save(content, path)
    with pytest.raises(DataError, match="does not say that Lightning"):
        load_method(path, method=MeanLandmarks)
