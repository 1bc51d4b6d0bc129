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
    try:
        print(f"address and version written into {write_address()} notebooks and README.md")
        print("badges lead to the version's tag: push it, and attach the wheel to its release")
    except ValueError as error:
        raise SystemExit(str(error)) from None
