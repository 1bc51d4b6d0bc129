"""What every notebook needs around its lesson: set-up, parameters, prompts, a picture, a result.

This is the door for notebooks; the code stands in `specnb.lesson`. `python -m specnb.notebook`
writes the project's address into the notebooks.
"""

from __future__ import annotations

from specnb.lesson.address import write_address
from specnb.lesson.config import (
    DraftModelConfig,
    LongContextConfig,
    ReportConfig,
    RunConfig,
    StoppingConfig,
    TrainingConfig,
    TreeConfig,
    VerificationConfig,
)
from specnb.lesson.panel import panel
from specnb.lesson.prompts import Item, by_task, items
from specnb.lesson.results import measure, save_row
from specnb.lesson.setup import setup
from specnb.paths import ROOT

__all__ = [
    "ROOT",
    "DraftModelConfig",
    "Item",
    "LongContextConfig",
    "ReportConfig",
    "RunConfig",
    "StoppingConfig",
    "TrainingConfig",
    "TreeConfig",
    "VerificationConfig",
    "by_task",
    "items",
    "measure",
    "panel",
    "save_row",
    "setup",
    "write_address",
]

if __name__ == "__main__":
    from specnb import arguments
    from specnb.lesson.address import written

    words = (
        "Writes the address of pyproject.toml into README and the notebooks; see `make address`."
    )
    arguments.no_options("specnb.notebook", words)
    try:
        print(written())
    except ValueError as error:
        raise SystemExit(str(error)) from None
