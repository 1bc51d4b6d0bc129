"""The set-up call of a notebook: threads, number format, renderer, and a line that says so."""

from __future__ import annotations

import importlib.metadata
import os
import platform

from specnb import arguments
from specnb._version import __version__
from specnb.models import calibration, settings

DTYPES = ("auto", "float32", "bfloat16", "float16")
MOST_THREADS = 1024


def setup(renderer: str = "auto", threads: int | str = "auto", dtype: str = "auto") -> None:
    """The only set-up call of a notebook; prints one line that says what runs here.

    `renderer` is plotly's; "auto" takes PLOTLY_RENDERER where it is set, "colab" on Colab and
    "plotly_mimetype" elsewhere. `threads` for torch, and `dtype` for models that are loaded with
    dtype="auto"; on a CPU "auto" takes what is fastest on this machine, which is measured once (2
    seconds) and remembered; never more threads than OMP_NUM_THREADS says or the process may use.
    With a GPU, "auto" is the format that models were saved in. May be called again at any time.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r}: choose one of {', '.join(DTYPES)}")
    if not (isinstance(threads, str) and threads == "auto"):
        threads = arguments.whole("threads", threads, 1, MOST_THREADS, note=", or 'auto'")
    import plotly.io
    import torch

    on_colab = _on_colab()
    if renderer == "auto":
        # A figure in plotly's own mix of renderers stalls papermill, so it is always one of them.
        usual = "colab" if on_colab else "plotly_mimetype"
        renderer = os.environ.get("PLOTLY_RENDERER") or usual
    plotly.io.renderers.default = renderer
    gpu = torch.cuda.is_available()
    fastest = calibration.choice() if "auto" in (threads, dtype) and not gpu else None
    automatic = fastest.threads_for(dtype) if fastest else calibration.cores()
    torch.set_num_threads(automatic if threads == "auto" else int(threads))
    if gpu:
        settings.set_dtype(dtype, "cuda")
    else:
        settings.set_dtype(fastest.dtype if fastest and dtype == "auto" else dtype)
    versions = {"specnb": _version("specnb"), "Python": platform.python_version()}
    versions |= {name: _version(name) for name in ("torch", "transformers")}
    n = torch.get_num_threads()
    words = [" ".join(pair) for pair in versions.items()]
    kind = settings.dtype("cuda") if gpu else settings.words(settings.dtype())
    kind = "as saved" if kind == "auto" else kind
    words += [f"device {'cuda' if gpu else 'cpu'}, {kind}"]
    print(" · ".join([*words, f"{n} thread{'s' if n > 1 else ''}"]))


def _version(package: str) -> str:
    if package == "specnb":
        return __version__
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def _on_colab() -> bool:
    """Whether this is Colab; if so, its switch for widgets is turned on where it has one."""
    try:
        from google.colab import output
    except ImportError:
        return False
    enable = getattr(output, "enable_custom_widget_manager", None)
    if enable is not None:  # some builds lack it; core widgets work without
        enable()
    return True
