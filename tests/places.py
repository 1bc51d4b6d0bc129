"""Where things lie in a checkout."""

from pathlib import Path

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
REAL = ROOT.parent / "shared" / "real"  # small models that nobody here trained; not of this project
