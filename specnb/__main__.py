"""`python -m specnb`: the command `specnb`, also where its script is not on the PATH."""

import sys

from specnb.cli import main

if __name__ == "__main__":
    sys.exit(main())
