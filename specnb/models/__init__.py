"""One contract for all models, and the bookkeeping that every kind of model shares."""

from specnb.models.base import Context, Model, Pair, Scores
from specnb.models.load import load_model, load_pair
from specnb.models.table import TableModel

__all__ = ["Context", "Model", "Pair", "Scores", "TableModel", "load_model", "load_pair"]
