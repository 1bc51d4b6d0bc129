"""Pictures of a `Record`: `tokens` (HTML), `tree`, `trace`, `svg` (SVG), and plotly in `plots`.

`views.tokens` and `views.svg` are the functions, not the modules of the same names. plotly is
loaded with the first use of `views.plots`, so that the strip alone costs nothing.
"""

import importlib

from specnb.views.svg import Picture, svg
from specnb.views.tokens import TokenStrip, tokens
from specnb.views.trace import trace
from specnb.views.trees import tree

__all__ = ["Picture", "TokenStrip", "plots", "svg", "tokens", "trace", "tree"]


def __getattr__(name: str):
    if name == "plots":
        return importlib.import_module("specnb.views.plots")
    raise AttributeError(f"module 'specnb.views' has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *__all__])
