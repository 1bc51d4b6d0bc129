"""specnb: speculative decoding that one can read, prove, watch and time.

`import specnb` loads neither torch nor transformers; every name loads its module when it is first
used (PEP 562). The names stand in `__init__.pyi` alone, for this file as for editors and type
checkers.
"""

import os

import lazy_loader

from specnb._version import __version__  # noqa: F401

# Spinning OpenMP threads stall each other 10-100 times on a shared machine. It must be set
# before torch is imported, so this is the place.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
