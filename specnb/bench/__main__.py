"""Command line of the measurements; every figure of README and cards comes from here."""

import argparse
import importlib
import json
import shlex
import sys
from pathlib import Path

SUBJECTS = ("speed", "quality", "exactness", "stopping", "trees", "live", "batch", "architectures")
SUBJECTS += ("first_model", "before", "drafters", "verification", "long_context")
TIMED = ("stopping", "trees", "drafters", "verification")  # the others are always timed, or never


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m specnb.bench", description=__doc__)
    parser.add_argument(
        "subject",
        choices=(*SUBJECTS, "results"),
        help="what to measure; results: RESULTS.md from what is stored, nothing is measured",
    )
    parser.add_argument("--json", type=Path, help="write the figures to this file as well")
    parser.add_argument("--store", action="store_true", help="keep them for RESULTS.md, too")
    parser.add_argument("--pictures", action="store_true", help="results: also draw speed.png")
    parser.add_argument("--target", default="", help="folder or hub id; default: the embedded one")
    parser.add_argument("--draft", default="")
    parser.add_argument("--n", type=int, default=0, help="items per task; default: the full size")
    parser.add_argument("--only", nargs="+", default=(), help="architectures: these families")
    parser.add_argument(
        "--seconds", action="store_true", help=f"{', '.join(TIMED)}: time them, too"
    )
    options = parser.parse_args()
    if options.only and options.subject != "architectures":
        parser.error("--only goes with architectures")
    if options.seconds and options.subject not in TIMED:
        parser.error(f"--seconds goes with {', '.join(TIMED)}")
    if options.pictures and options.subject != "results":
        parser.error("--pictures goes with results")
    from specnb.bench import results

    if options.subject == "results":
        results.main(options.pictures)
        return
    module = f"specnb.bench.{options.subject}"
    subject = importlib.import_module(module)
    more = {"only": options.only} if options.only else {}
    more |= {"seconds": True} if options.seconds else {}
    figures = subject.measure(target=options.target, draft=options.draft, n=options.n, **more)
    print(subject.table(figures))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    if options.store:
        words = [word for word in sys.argv[1:] if word != "--store"]
        command = shlex.join(["python", "-m", "specnb.bench", *words])
        print("kept in", results.store(options.subject, module, figures, command).name)
        results.main()
    if not figures.get("passed", True):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
