"""The entry point: what every command says when it cannot go on, and the list of commands."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_faces.__main__ import COMMANDS, main, usage


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["import-model", "sfm", "absent", "--out", "o.npz"], "There is no file or folder 'absent'"),
        (["import-model", "sfm", "broken.bin", "--out", "o.npz"], "broken.bin ends too early"),
        (["import-model", "sfm", "broken.bin", "--out", "folder"], "--out folder is a folder"),
        (["build-model", "absent", "--out", "o.npz"], "absent holds 0 .obj or .ply meshes"),
        (["build-model", "folder", "--out", "folder"], "--out folder is a folder"),
        (["build-model", "folder", "--out", "o.npz", "--modes", "0"], "The number of modes is 0"),
        (["preview", "--count", "0"], "--count is 0"),
        (["preview", "--face-model", "broken.bin"], "broken.bin is not a face model of this platform"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(
    args: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("folder").mkdir()
    Path("broken.bin").write_bytes(b"\x01")
    with pytest.raises(SystemExit) as error:
        main(args)
    assert error.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"lightning-faces: {said}")
    assert sorted(p.name for p in Path().rglob("*")) == ["broken.bin", "folder"]


def test_errors_of_the_program_itself_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(args: list[str]) -> int:
        raise ValueError("a mistake in the code")

    monkeypatch.setattr("lightning_faces.commands.build_model.main", broken)
    with pytest.raises(ValueError, match="a mistake in the code"):
        main(["build-model"])


def test_help_says_what_each_command_does(capsys: pytest.CaptureFixture[str]) -> None:
    shown = usage().splitlines()
    for command, (_, text) in COMMANDS.items():
        assert sum(line.split()[:1] == [command] and line.endswith(text) for line in shown) == 1
    assert COMMANDS["build-model"][1] == "make a face model by PCA from registered meshes"
    with pytest.raises(SystemExit) as leave:
        main(["build-model", "--help"])
    assert leave.value.code == 0
    assert "Make a face model by PCA from registered meshes" in " ".join(capsys.readouterr().out.split())
