"""Pictures of a `Record`: `tokens`, `aligned`, `figures` (HTML), `tree`, `timeline`,
`distributions`, `trace`, `svg` (SVG), and plotly in `plots`.

`views.tokens`, `views.timeline` and others are the functions, not the modules of the same names.
plotly is loaded with the first use of `views.plots`, so that the strip alone costs nothing.
"""

import importlib

from specnb.views.canvas import Html, Picture
from specnb.views.compare import aligned, figures
from specnb.views.distributions import distributions
from specnb.views.svg import svg
from specnb.views.timeline import timeline
from specnb.views.tokens import tokens
from specnb.views.trace import trace
from specnb.views.trees import tree

__all__ = [
    "Html",
    "Picture",
    "aligned",
    "distributions",
    "figures",
    "plots",
    "svg",
    "timeline",
    "tokens",
    "trace",
    "tree",
]

laws = distributions  # its name in copies of lesson 01 from before


def __getattr__(name: str):
    if name == "plots":
        return importlib.import_module("specnb.views.plots")
    raise AttributeError(f"module 'specnb.views' has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *__all__])
