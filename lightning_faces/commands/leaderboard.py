"""``lightning-faces leaderboard``: the records of all runs below some folders, as one table per data set."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from lightning_faces.errors import ConfigurationError
from lightning_faces.files import write_atomic
from lightning_faces.files.plain_text import printable
from lightning_faces.leaderboard.collect import collect, download
from lightning_faces.leaderboard.page import to_html
from lightning_faces.leaderboard.rank import Board, boards
from lightning_faces.leaderboard.text import CSV_COLUMNS, PIPED_WIDTH, long_rows, print_boards, to_csv, to_markdown


def main(arguments: Sequence[str]) -> int:
    """Run the command.

    Args:
        arguments: Those after the command's name.

    Returns:
        0.

    Raises:
        ConfigurationError: If an argument is wrong or there is nothing to show.
    """
    options = _parser().parse_args(arguments)
    complain = Console(stderr=True, style="bold red", highlight=False, soft_wrap=True)
    with tempfile.TemporaryDirectory() as temporary:
        folders = list(options.runs)
        if options.wandb:
            download(options.wandb, Path(temporary))
            folders.append(Path(temporary))
        entries, problems = collect(folders)
    for problem in problems:
        complain.print(Text(printable(f"left out: {problem}")))
    if not entries:
        where = ", ".join(map(str, options.runs))
        raise ConfigurationError(f"There is no usable record below {where}: run lightning-faces test first.")
    found = boards(entries, options.dataset, options.metric)
    piped = not sys.stdout.isatty()
    print_boards(Console(width=PIPED_WIDTH if piped else None), found, piped)
    _write("--csv", options.csv, lambda: to_csv(found, options.metric))
    _write("--markdown", options.markdown, lambda: to_markdown(found, problems))
    _write("--html", options.html, lambda: to_html(found, problems))
    if options.wandb_table:
        log_to_wandb(options.wandb_table, found)
    if problems:
        complain.print(f"{len(problems)} record(s) left out, see above.")
    return 0


def log_to_wandb(project: str, found: Sequence[Board]) -> None:
    """Put the table into a W&B project, as a run of its own."""
    import wandb

    entity, _, name = project.rpartition("/")
    run = wandb.init(project=name, entity=entity or None, job_type="leaderboard", settings=wandb.Settings(silent=True))
    rows = [line for board in found for row in board.rows for line in long_rows(row, None)]
    run.log({"leaderboard": wandb.Table(columns=list(CSV_COLUMNS), data=rows)})
    run.finish()


def _write(option: str, path: Path | None, make: Callable[[], str]) -> None:
    if path is None:
        return
    try:
        write_atomic(path, make().encode())
    except OSError as error:
        raise ConfigurationError(f"{option} {path} cannot be written ({error.strerror}): give another file.") from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lightning-faces leaderboard",
        description="Compare the evaluation records of all runs below some folders.",
        allow_abbrev=False,
    )
    parser.add_argument("runs", nargs="*", type=Path, default=[Path("runs")], help="folders (default: runs)")
    parser.add_argument("--dataset", help="only this data set")
    parser.add_argument("--metric", action="append", help="show this metric (again for more); the first one ranks")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the measured rows as CSV (errors as fractions)")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables as Markdown")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write one page with tables, curves and faces")
    parser.add_argument("--wandb", metavar="ENTITY/PROJECT", help="add the records of a W&B project")
    parser.add_argument("--wandb-table", metavar="ENTITY/PROJECT", help="log the table to a W&B project")
    return parser
