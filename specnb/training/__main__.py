"""Command line of the recipes; a killed run goes on from its last checkpoint."""

import argparse
import os
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

DATA = Path(__file__).resolve().parents[2] / "data"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m specnb.training", description=__doc__)
    parser.add_argument("what", choices=("tokenizer", "sets", "target", "drafter"))
    parser.add_argument(
        "--work", type=Path, default=Path("runs/training"), help="checkpoints, metrics"
    )
    parser.add_argument(
        "--out", type=Path, default=DATA / "models", help="where finished models go"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=0, help="0 = as torch chooses")
    options = parser.parse_args()

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

        train_target(tokenizer, options.work / "target", options.out / "target", options.device)
    else:
        from specnb.training.drafter import train_drafter

        train_drafter(
            tokenizer,
            options.out / "target",
            options.work / "drafter",
            options.out / "drafter",
            options.device,
        )


if __name__ == "__main__":
    main()
