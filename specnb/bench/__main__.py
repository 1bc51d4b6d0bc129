"""Command line of the measurements; every figure of README and cards comes from here."""

import argparse
import importlib
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from specnb import arguments

SUBJECTS = ("speed", "quality", "exactness", "stopping", "trees", "live", "batch", "architectures")
SUBJECTS += ("first_model", "before", "drafters", "rivals", "verification", "prices")
SUBJECTS += ("long_context",)
TIMED = ("stopping", "trees", "drafters", "verification")  # the others are always timed, or never
TRAINED = ("drafters", "rivals")


N = (
    "a smaller measurement: so many prompts or items per task, and that much less of the rest; "
    "architectures: sampled runs, batch: kills, live: key presses; default: the full size"
)


def _parser() -> arguments.Parser:
    from specnb.bench import results

    told = "\n".join(f"  {name:14} {results.ABOUT[name][0]}" for name in SUBJECTS)
    told += "\n  results        RESULTS.md from what is stored; nothing is measured"
    parser = arguments.Parser(
        prog="python -m specnb.bench",
        description=__doc__,
        epilog=f"subjects, and what each answers:\n{told}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "subject", choices=(*SUBJECTS, "results"), metavar="SUBJECT", help="what to measure: below"
    )
    parser.add_argument("--json", type=Path, help="write the figures to this file as well")
    parser.add_argument("--store", action="store_true", help="keep them for RESULTS.md, too")
    parser.add_argument("--pictures", action="store_true", help="results: also draw speed.png")
    parser.add_argument("--target", default="", help="folder or hub id; default: the embedded one")
    parser.add_argument(
        "--draft", default="", help="the same of the drafter; drafters: several, with commas"
    )
    parser.add_argument("--n", type=int, help=N)
    parser.add_argument("--only", nargs="+", default=(), help="architectures: these families")
    parser.add_argument(
        "--seeds", type=int, default=1, help="drafters, rivals: so many trainings of each (1)"
    )
    parser.add_argument(
        "--seconds", action="store_true", help=f"{', '.join(TIMED)}: time them, too"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Measures what the line names. Exit code 1: a bar is missed; 2: it could not be measured."""
    parser = _parser()
    words = list(sys.argv[1:] if argv is None else argv)
    options = parser.parse_args(words)
    if options.only and options.subject != "architectures":
        parser.error("--only goes with architectures")
    if options.seconds and options.subject not in TIMED:
        parser.error(f"--seconds goes with {', '.join(TIMED)}")
    if options.seeds != 1 and options.subject not in TRAINED:
        parser.error(f"--seeds goes with {', '.join(TRAINED)}")
    if options.pictures and options.subject != "results":
        parser.error("--pictures goes with results")
    try:
        if options.n is not None:
            arguments.whole("--n", options.n, 1)
        arguments.whole("--seeds", options.seeds, 1)
        passed = _carry_out(options, words)
    except (ValueError, RuntimeError) as error:
        parser.error(str(error))
    if not passed:
        raise SystemExit(1)


def _carry_out(options: argparse.Namespace, words: Sequence[str]) -> bool:
    """Measures, prints, stores; whether the bars hold."""
    from specnb.bench import results

    if options.subject == "results":
        results.main(options.pictures)
        return True
    module = f"specnb.bench.{options.subject}"
    subject = importlib.import_module(module)
    more = {"only": options.only} if options.only else {}
    more |= {"seconds": True} if options.seconds else {}
    more |= {"seeds": options.seeds} if options.seeds > 1 else {}
    figures = subject.measure(target=options.target, draft=options.draft, n=options.n or 0, **more)
    print(subject.table(figures))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    if options.store:
        kept = [word for word in words if word != "--store"]
        command = " ".join(
            [*results.kept_to(), shlex.join(["python", "-m", "specnb.bench", *kept])]
        )
        name = getattr(subject, "stored_as", lambda: options.subject)()
        print("kept in", results.store(name, module, figures, command).name)
        results.main()
    return bool(figures.get("passed", True))


if __name__ == "__main__":
    main()
