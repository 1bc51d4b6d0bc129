"""Command line of the recipes; a killed run goes on from its last checkpoint."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

from specnb import arguments, paths
from specnb.paths import DATA

os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def main() -> None:
    parser = arguments.Parser(prog="python -m specnb.training", description=__doc__)
    parser.add_argument("what", choices=("tokenizer", "sets", "target", "drafter", "align", "head"))
    parser.add_argument(
        "--work", type=Path, help="checkpoints, metrics (runs/training, runs/align)"
    )
    parser.add_argument(
        "--out", type=Path, help="where finished models go (data/models of the repository)"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=0, help="0 = as torch chooses")
    ours = parser.add_argument_group("align: a drafter for a target, from what the target says")
    ours.add_argument("--target", default="", help="folder or hub id; default: the embedded one")
    ours.add_argument(
        "--draft",
        default="",
        help="start from this folder; default: a new model (head: its folder)",
    )
    ours.add_argument("--inherit", type=int, default=0, help="start from so many target blocks")
    for name in ("width", "heads", "intermediate"):
        ours.add_argument(f"--{name}", type=int, help="inherit: so much of it; default: all")
    ours.add_argument("--grow", type=int, default=0, help="add blocks to the start, up to so many")
    ours.add_argument("--prompts", type=Path, help="lines of JSON with a prompt each")
    ours.add_argument("--n", type=int, default=3072, help="prompts of the embedded world")
    ours.add_argument("--loss", default="kl", help="a name, or a sum as in '0.1 ce + 0.9 tv'")
    ours.add_argument("--steps", type=int, default=1400)
    ours.add_argument("--lr", type=float, default=4e-3)
    ours.add_argument("--then", default="", help="the loss of the last steps; default: the same")
    ours.add_argument("--then-steps", type=int, default=600)
    ours.add_argument("--then-lr", type=float, default=1e-3)
    ours.add_argument("--batch", type=int, default=64, help="answers per step")
    ours.add_argument("--seed", type=int, default=0)
    ours.add_argument("--sees", action="store_true", help="an adapter on the target's features")
    options = parser.parse_args()
    import torch

    if options.threads:
        torch.set_num_threads(options.threads)
    if options.what in ("align", "head"):
        try:
            print(_align(options) if options.what == "align" else _head(options))
        except ValueError as error:
            parser.error(str(error))
        return
    if options.out is None or options.what in ("tokenizer", "sets"):  # these write into data/
        try:
            paths.need_checkout(options.what)
        except ValueError as error:
            parser.error(str(error))
    work = options.work or Path("runs/training")
    out = options.out or DATA / "models"

    from transformers import AutoTokenizer

    tokenizer_folder = DATA / "tokenizer"
    if options.what == "tokenizer":
        from specnb.training.data import train_tokenizer

        print(len(train_tokenizer(tokenizer_folder)), "entries")
        return
    if options.what == "sets":
        from specnb.training.sets import write_sets

        write_sets(DATA)
        return
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    if options.what == "target":
        from specnb.training.target import train_target

        train_target(tokenizer, work / "target", out / "target", options.device)
    else:
        from specnb.training.drafter import train_drafter

        train_drafter(tokenizer, out / "target", work / "drafter", out / "drafter", options.device)


def _head(options) -> str:
    """Fits the acceptance head of --draft, and gives its figures in words."""
    from specnb.training.head import train_head

    if options.target:
        raise ValueError(
            "--target: a head is fitted to drafters of the embedded target; for "
            "another one `align` trains drafter and head"
        )
    draft = options.draft or DATA / "models" / "drafter"
    figures = train_head(draft, options.work or Path("runs/head"), options.n)
    told = ", ".join(f"{name} {value:.4f}" for name, value in figures.items())
    return f"{draft}: held-out cross-entropy in nats: {told}"


def _align(options) -> Path:
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
        work=options.work or Path("runs/align"),
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
