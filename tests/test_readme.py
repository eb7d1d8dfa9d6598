"""Every command that the documents show exists, and its options parse.

`.ci/run` runs `make test` and `make quickstart` themselves, from a fresh clone.
"""

from __future__ import annotations

import argparse
import re
import shlex
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from lightning_faces.__main__ import COMMANDS, TRAINING, main

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
OURS = [line for _, line in COMMANDS_SHOWN if re.search(r"(^|\s)(lightning-faces|-m lightning_faces) ", line)]
PYTHON = [line for _, line in COMMANDS_SHOWN if re.match(r"python (-m )?[\w./]+", line)]


def test_the_documents_show_commands() -> None:
    assert any("quickstart" in line for line in MAKE)
    assert any(" fit " in line for line in OURS)


@pytest.mark.parametrize("line", MAKE)
def test_make_targets_exist(line: str) -> None:
    target = shlex.split(line.split("make ", 1)[1])[0]
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
    assert target in targets


@pytest.mark.parametrize("line", PYTHON)
def test_programs_exist(line: str) -> None:
    words = shlex.split(line)
    if words[1] == "-m":
        assert find_spec(words[2]) is not None
    else:
        assert (ROOT / words[1]).is_file()


class ParsedError(Exception):
    """A command has taken its options."""


@pytest.mark.parametrize("line", OURS)
def test_commands_take_their_options(
    line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    words = shlex.split(re.split(r"(?:lightning-faces|-m lightning_faces) ", line, maxsplit=1)[1])
    command = words[0]
    if command in ("--help", "--version"):
        main(words)
        return
    assert command in COMMANDS, f"{line}: no such command"
    if command in TRAINING and (len(words) == 1 or words[1].startswith("-")):
        # A checkpoint that a reader will have made is not there yet.
        if "--ckpt_path" in words:
            position = words.index("--ckpt_path")
            del words[position : position + 2]
        with pytest.raises(SystemExit) as stopped:
            main([*words, "--print_config"])
        assert stopped.value.code in (0, None), capsys.readouterr().err
        return
    parse = argparse.ArgumentParser.parse_args

    def parse_and_stop(self: argparse.ArgumentParser, *args: Any) -> None:
        parse(self, *args)
        raise ParsedError

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
    # A wrong option would end it with the exit code 2.
    with pytest.raises(ParsedError):
        main(words)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_and_paths_lead_somewhere(document: Path) -> None:
    text = document.read_text()
    links = [link for link in re.findall(r"\]\(([^)#\s]+)", text) if not re.match(r"[a-z]+:", link)]
    code = re.findall(r"`((?:configs|docs|benchmarks|tests|sweeps)/[\w./-]+\.\w+)`", text)
    missing = [link for link in links if not (document.parent / link).exists()]
    missing += [path for path in code if not (ROOT / path).exists()]
    assert missing == []
