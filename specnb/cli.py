"""The command `specnb`: the workbook from anywhere, in a checkout or from an installed wheel."""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from specnb import arguments, paths
from specnb._version import __version__
from specnb.files import write_whole

# What `specnb.batch` and `specnb.doctor` do; they read the rest of the line themselves.
ELSEWHERE = {
    "doctor": "versions, data and one short speculative run",
    "run": "execute notebooks",
    "sweep": "execute a sweep file, or go on with it",
    "collect": "one table of all results, as Parquet and CSV",
    "report": "tables and plots of all results, as a page",
    "html": "offline pages of a run",
    "slides": "five slides for the first minutes of a workshop",
}


def copy_notebooks(folder: Path) -> list[str]:
    """Copies the notebooks into a folder, and says what became of each, a line per file.

    A file that is there already is left as it is: it may hold the reader's own work.
    """
    paths.need_share()
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"DIR {str(folder)!r}: this is a file; give a folder")
    lines = []
    for path in sorted(paths.NOTEBOOKS.rglob("*")):
        name = path.relative_to(paths.NOTEBOOKS)
        if not path.is_file() or ".ipynb_checkpoints" in name.parts:
            continue
        goal = folder / name
        if not goal.exists():
            write_whole(goal, path.read_bytes())
            lines.append(f"copied {goal}")
        elif not goal.is_file() or goal.read_bytes() != path.read_bytes():
            lines.append(f"kept {goal}, which is not as shipped: move it away to get a new copy")
    return lines


def lab(folder: Path, start: bool) -> int:
    """The notebooks in a folder of the reader's choice, and JupyterLab over it if `start`."""
    if start and importlib.util.find_spec("jupyterlab") is None:
        raise ValueError("jupyterlab is missing: pip install jupyterlab, or give --no-start")
    print(*copy_notebooks(folder), f"notebooks: {folder.resolve()}", sep="\n", flush=True)
    if not start:
        return 0
    command = [sys.executable, "-m", "jupyterlab", "--ip=127.0.0.1", f"--notebook-dir={folder}"]
    server = subprocess.Popen(command)
    while True:
        try:
            return server.wait()
        except KeyboardInterrupt:  # it asks whether it should end, and ends its kernels
            continue


def _smollm2() -> int:
    from specnb import smollm2

    print(f"{smollm2.make()}: ready; give it as target={smollm2.NAME!r}")
    return 0


def _elsewhere(argv: Sequence[str]) -> int:
    """Hands the line over; only now, because these modules take seconds to load."""
    if argv[0] == "doctor":
        from specnb import doctor

        return doctor.main(argv[1:], prog="specnb doctor")
    from specnb import batch

    return batch.main(argv, prog="specnb")


def _parser() -> argparse.ArgumentParser:
    parser = arguments.Parser(prog="specnb", description=__doc__)
    parser.add_argument("--version", action="version", version=f"specnb {__version__}")
    commands = parser.add_subparsers(required=True, dest="command", metavar="COMMAND")
    for name, words in ELSEWHERE.items():
        commands.add_parser(name, help=words, add_help=False)
    words = "copy the notebooks into a folder and open JupyterLab there"
    own = commands.add_parser("lab", help=words, description=words)
    own.add_argument(
        "folder",
        metavar="DIR",
        nargs="?",
        type=Path,
        default="specnb-notebooks",
        help="where the copies go (specnb-notebooks)",
    )
    own.add_argument("--no-start", action="store_true", help="only copy")
    words = "a first real model, SmolLM2-135M, for target=smollm2 (downloads 93 MB)"
    commands.add_parser("smollm2", help=words, description=words)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of a command; 2, and one line on stderr, where it could not be carried out."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        if argv and argv[0] in ELSEWHERE:
            return _elsewhere(argv)
        given = _parser().parse_args(argv)
        return _smollm2() if given.command == "smollm2" else lab(given.folder, not given.no_start)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"specnb: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
