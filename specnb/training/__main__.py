"""Command line of the recipes; a killed run goes on from its last checkpoint."""

import json
import os
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

from specnb import arguments, paths
from specnb.paths import DATA

os.environ.setdefault("OMP_WAIT_POLICY", "passive")


SUBJECTS = {
    "tokenizer": "the byte-level BPE in data/tokenizer, from texts of the picture world",
    "sets": "evaluation items in data/eval, and the pictures of the lessons",
    "target": "the embedded target, by its fixed recipe",
    "drafter": "the embedded drafter, by its fixed recipe, from the answers of its target",
    "align": "a drafter for a target, from what the target says",
    "head": "an acceptance head for a drafter of the embedded target",
}


def _parser() -> arguments.Parser:
    parser = arguments.Parser(prog="python -m specnb.training", description=__doc__)
    commands = parser.add_subparsers(required=True, dest="what", metavar="SUBJECT")
    of = {name: commands.add_parser(name, help=w, description=w) for name, w in SUBJECTS.items()}
    for name in ("target", "drafter", "align", "head"):
        work = {"align": "runs/align", "head": "runs/head"}.get(name, "runs/training")
        kept = "answers, checkpoints and metrics; the same call goes on from there"
        of[name].add_argument(
            "--work", type=Path, default=Path(work), metavar="DIR", help=f"{kept} ({work})"
        )
        of[name].add_argument("--threads", type=int, default=0, help="0 = as torch chooses")
    for name in ("target", "drafter"):
        of[name].add_argument(
            "--out",
            type=Path,
            metavar="DIR",
            help=f"the model goes to DIR/{name} (data/models of the repository)",
        )
        of[name].add_argument("--device", default="cpu", help="where it trains (cpu)")
    for name in ("align", "head"):
        of[name].add_argument("--n", type=int, default=3072, help="prompts of its world (3072)")
    of["head"].add_argument(
        "--draft",
        type=Path,
        default=DATA / "models" / "drafter",
        metavar="DIR",
        help="folder of the drafter, where the head goes, too; default: the embedded drafter",
    )
    _add_align(of["align"])
    return parser


def _add_align(one: arguments.Parser) -> None:
    one.add_argument("--out", type=Path, metavar="DIR", help="the drafter (WORK/drafter)")
    one.add_argument("--target", default="", help="folder or hub id; default: the embedded one")
    one.add_argument("--draft", default="", help="start from this folder; default: a new model")
    one.add_argument("--inherit", type=int, default=0, help="start from so many target blocks")
    for name in ("width", "heads", "intermediate"):
        one.add_argument(f"--{name}", type=int, help=f"with --inherit: {name} (the target's)")
    one.add_argument("--grow", type=int, default=0, help="add blocks to the start, up to so many")
    one.add_argument("--prompts", type=Path, metavar="FILE", help="lines of JSON, a prompt each")
    one.add_argument("--loss", default="kl", help="a name, or a sum as in '0.1 ce + 0.9 tv' (kl)")
    one.add_argument("--steps", type=int, default=1400, help="with that loss (1400)")
    one.add_argument("--lr", type=float, default=4e-3, help="highest learning rate (0.004)")
    one.add_argument("--then", default="", help="the loss of the last steps; default: the same")
    one.add_argument("--then-steps", type=int, default=600, help="the last steps (600)")
    one.add_argument("--then-lr", type=float, default=1e-3, help="theirs (0.001)")
    one.add_argument("--batch", type=int, default=64, help="answers per step (64)")
    one.add_argument("--seed", type=int, default=0, help="of weights and order (0)")
    one.add_argument("--sees", action="store_true", help="an adapter on the target's features")


def main(argv: Sequence[str] | None = None) -> None:
    """Trains what the command line names; exit code 2 and one line where it is wrong."""
    parser = _parser()
    options = parser.parse_args(argv)
    try:
        _check(options)
        if getattr(options, "threads", 0):
            import torch

            torch.set_num_threads(options.threads)
        said = {"align": _align, "head": _head}.get(options.what, _embedded)(options)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    if said:
        print(said)


def _check(options: Namespace) -> None:
    """Refuses what would be dropped in silence, or written where nothing can be written."""
    if options.what == "align":
        for name in ("width", "heads", "intermediate"):
            value = getattr(options, name)
            if value is not None and not options.inherit:
                raise ValueError(f"--{name} {value}: it goes with --inherit; give both, or neither")
        if options.grow and not (options.inherit or options.draft):
            raise ValueError(f"--grow {options.grow}: there is no start; add --draft or --inherit")
    own = options.what in ("target", "drafter") and options.out is None
    if own or options.what in ("tokenizer", "sets"):  # these write into data/
        paths.need_checkout(options.what)


def _embedded(options: Namespace) -> str:
    """What the repository ships: the tokenizer, the sets, the target, its drafter."""
    tokenizer_folder = DATA / "tokenizer"
    if options.what == "tokenizer":
        from specnb.training.data import train_tokenizer

        return f"{len(train_tokenizer(tokenizer_folder))} entries"
    if options.what == "sets":
        from specnb.training.sets import write_sets

        write_sets(DATA)
        return ""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    work, out = options.work, options.out or DATA / "models"
    if options.what == "target":
        from specnb.training.target import train_target

        train_target(tokenizer, work / "target", out / "target", options.device)
    else:
        from specnb.training.drafter import train_drafter

        train_drafter(tokenizer, out / "target", work / "drafter", out / "drafter", options.device)
    return ""


def _head(options: Namespace) -> str:
    """Fits the acceptance head of --draft, and gives its figures in words."""
    from specnb.training.head import train_head

    figures = train_head(options.draft, options.work, options.n)
    told = ", ".join(f"{name} {value:.4f}" for name, value in figures.items())
    return f"{options.draft}: held-out cross-entropy in nats: {told}"


def _align(options: Namespace) -> Path:
    """The folder of the drafter that the options ask for."""
    from specnb.models.load import EMBEDDED, load_model
    from specnb.training.align import Recipe, align
    from specnb.training.inherit import grown, inherit

    draft = options.draft
    narrow = options.width, options.heads, options.intermediate
    if options.inherit:
        if draft:
            raise ValueError(
                "--inherit: it starts from the target, --draft from a folder; give one"
            )
        name = options.target or str(EMBEDDED / "target")
        kind = {"dtype": "float32", "device": "cpu", "runtime": "transformers"}
        draft = inherit(load_model(name, certify=False, **kind), options.inherit, *narrow)
    if options.grow:
        if isinstance(draft, str):
            from transformers import AutoModelForCausalLM

            draft = AutoModelForCausalLM.from_pretrained(draft, dtype="float32")
        draft = grown(draft, options.grow)
    prompts = None
    if options.prompts:
        lines = options.prompts.read_text(encoding="utf-8").splitlines()
        prompts = [SimpleNamespace(**json.loads(line)) for line in lines if line.strip()]
    return align(
        options.target,
        draft,
        prompts,
        work=options.work,
        out=options.out or "",
        recipe=Recipe(
            options.loss,
            options.steps,
            options.lr,
            options.then,
            options.then_steps,
            options.then_lr,
            options.batch,
            seed=options.seed,
        ),
        n=options.n,
        sees=options.sees,
    )


if __name__ == "__main__":
    main()
