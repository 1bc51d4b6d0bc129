"""Measurements: `python -m specnb.bench SUBJECT [--json FILE]`; see `--help`."""

from pathlib import Path

KEPT = Path("runs/bench")  # rows of measurements that may be stopped and go on
