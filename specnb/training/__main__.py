"""Command line of the recipes; a killed run goes on from its last checkpoint."""

import os
from pathlib import Path

from specnb import arguments, paths
from specnb.paths import DATA

os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def main() -> None:
    parser = arguments.Parser(prog="python -m specnb.training", description=__doc__)
    parser.add_argument("what", choices=("tokenizer", "sets", "target", "drafter"))
    parser.add_argument(
        "--work", type=Path, default=Path("runs/training"), help="checkpoints, metrics"
    )
    parser.add_argument(
        "--out", type=Path, help="where finished models go (data/models of the repository)"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=0, help="0 = as torch chooses")
    options = parser.parse_args()
    if options.out is None or options.what in ("tokenizer", "sets"):  # these write into data/
        try:
            paths.need_checkout(options.what)
        except ValueError as error:
            parser.error(str(error))
    out = options.out or DATA / "models"

    import torch
    from transformers import AutoTokenizer

    if options.threads:
        torch.set_num_threads(options.threads)
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

        train_target(tokenizer, options.work / "target", out / "target", options.device)
    else:
        from specnb.training.drafter import train_drafter

        train_drafter(
            tokenizer,
            out / "target",
            options.work / "drafter",
            out / "drafter",
            options.device,
        )


if __name__ == "__main__":
    main()
