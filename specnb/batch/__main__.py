"""`python -m specnb.batch`; spawned workers import it under another name, and must not start it."""

import sys

from specnb.batch import main

if __name__ == "__main__":
    sys.exit(main())
