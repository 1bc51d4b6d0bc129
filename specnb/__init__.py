"""specnb: speculative decoding that one can read, prove, watch and time.

`import specnb` loads neither torch nor transformers; every name below loads its module when it is
first used (PEP 562).
"""

import importlib
import os
from typing import TYPE_CHECKING

from specnb._version import __version__  # noqa: F401

# Spinning OpenMP threads stall each other 10-100 times on a shared machine. It must be set
# before torch is imported, so this is the place.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

_HOME = {
    "Sampling": "specnb.sampling",
    "Draws": "specnb.sampling",
    "DraftTree": "specnb.tree",
    "Record": "specnb.record",
    "Chain": "specnb.drafters",
    "GumbelTopK": "specnb.drafters",
    "StochasticBeam": "specnb.drafters",
    "IIDTree": "specnb.drafters",
    "TopKTree": "specnb.drafters",
    "PromptLookup": "specnb.drafters",
    "FixedLength": "specnb.stopping",
    "MaxConfidence": "specnb.stopping",
    "AdaEDL": "specnb.stopping",
    "speculative": "specnb.decode",
    "autoregressive": "specnb.decode",
    "tune": "specnb.tuning",
    "Pair": "specnb.models",
    "load_pair": "specnb.models",
    "load_model": "specnb.models",
    "setup": "specnb.notebook",
    "RunConfig": "specnb.notebook",
}
_MODULES = (
    "checks",
    "decode",
    "exact",
    "laws",
    "live",
    "models",
    "notebook",
    "record",
    "sampling",
    "scenes",
    "theory",
    "views",
)
__all__ = [*_HOME, *_MODULES]

if TYPE_CHECKING:
    from specnb import exact, models, scenes, theory, views  # noqa: F401
    from specnb.decode import autoregressive, speculative  # noqa: F401
    from specnb.drafters import (  # noqa: F401
        Chain,
        GumbelTopK,
        IIDTree,
        PromptLookup,
        StochasticBeam,
        TopKTree,
    )
    from specnb.models import Pair, load_model, load_pair  # noqa: F401
    from specnb.notebook import RunConfig, setup  # noqa: F401
    from specnb.record import Record  # noqa: F401
    from specnb.sampling import Draws, Sampling  # noqa: F401
    from specnb.stopping import AdaEDL, FixedLength, MaxConfidence  # noqa: F401
    from specnb.tree import DraftTree  # noqa: F401
    from specnb.tuning import tune  # noqa: F401


def __getattr__(name: str):
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    if name in _MODULES:
        return importlib.import_module(f"specnb.{name}")
    raise AttributeError(f"module 'specnb' has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *__all__])
