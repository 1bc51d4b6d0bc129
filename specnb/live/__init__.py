"""Widgets of the notebooks: the control panel and plain sliders.

They are ipywidgets' own, and views are HTML: that works in JupyterLab and on Colab alike. No Output
widget: nbclient answers one on the socket on which it awaits the end of the cell, and now and then
that wake-up is lost, so that a run by papermill never ends.
"""

from specnb.live.shown import VIEWS
from specnb.live.sliders import Sliders, sliders
from specnb.live.workbench import MODES, Workbench, workbench

__all__ = ["MODES", "VIEWS", "Sliders", "Workbench", "sliders", "workbench"]
