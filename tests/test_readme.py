"""Every command that the documents show exists, and its options parse.

`.ci/run` runs `make test` and `make quickstart` themselves, from a fresh clone.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from lightning_faces.__main__ import COMMANDS

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def shown_commands() -> list[tuple[str, str]]:
    """Each line of a bash block, continued lines joined, with its document."""
    found = []
    for document in DOCUMENTS:
        for block in re.findall(r"```bash\n(.*?)```", document.read_text(), re.S):
            for line in block.replace("\\\n", " ").splitlines():
                line = line.split(" #")[0].strip()
                if line and not line.startswith("#"):
                    found.append((document.name, line))
    return found


COMMANDS_SHOWN = shown_commands()
MAKE = [line for _, line in COMMANDS_SHOWN if re.search(r"(^|\s)make ", line)]
OURS = [line for _, line in COMMANDS_SHOWN if re.search(r"(^|\s)lightning-faces ", line)]


def test_the_documents_show_commands() -> None:
    assert any("quickstart" in line for line in MAKE)
    assert any(" fit " in line for line in OURS)


@pytest.mark.parametrize("line", MAKE)
def test_make_targets_exist(line: str) -> None:
    target = shlex.split(line.split("make ", 1)[1])[0]
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
    assert target in targets


@pytest.mark.parametrize("line", OURS)
def test_commands_parse(line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    arguments = shlex.split(line.split("lightning-faces ", 1)[1])
    command = arguments[0]
    if command.startswith("--"):
        return
    assert command in COMMANDS, f"{line}: no such command"
    if command not in ("fit", "validate", "test", "predict"):
        return
    from lightning_faces.cli import main

    # A checkpoint that a reader will have made is not there yet.
    if "--ckpt_path" in arguments:
        position = arguments.index("--ckpt_path")
        del arguments[position : position + 2]
    with pytest.raises(SystemExit) as stopped:
        main([*arguments, "--print_config"])
    assert stopped.value.code in (0, None), capsys.readouterr().err


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_and_paths_lead_somewhere(document: Path) -> None:
    text = document.read_text()
    links = [link for link in re.findall(r"\]\(([^)#\s]+)", text) if not re.match(r"[a-z]+:", link)]
    code = re.findall(r"`((?:configs|docs|benchmarks|tests|sweeps)/[\w./-]+\.\w+)`", text)
    missing = [link for link in links if not (document.parent / link).exists()]
    missing += [path for path in code if not (ROOT / path).exists()]
    assert missing == []
