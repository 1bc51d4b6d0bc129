"""Measurements: `python -m specnb.bench {quality,exactness} [--json FILE]`."""
