"""Drafters: frozen settings, and the drafting of one run that grows a `DraftTree` per block."""

from specnb.drafters.base import (
    Drafter,
    Drafting,
    NoDraft,
    draws_a_tree,
    law_of,
    not_lossless,
    one_hot,
    parameter_ratio,
    parts_of,
    start,
)
from specnb.drafters.bestfirst import BestFirst, BranchWhereUnsure
from specnb.drafters.either import Either, EitherDrafting
from specnb.drafters.hierarchy import Hierarchy, HierarchyDrafting
from specnb.drafters.lookup import PromptLookup, PromptLookupDrafting
from specnb.drafters.sparse import SparseDrafting, SparseSelf
from specnb.drafters.trees import (
    Chain,
    GumbelTopK,
    IIDTree,
    StaticTree,
    StochasticBeam,
    TopKTree,
    TreeDrafting,
    conditioned,
    without_replacement_laws,
)
from specnb.models.selectors import Chunks, LastVerification, Selector, SinkRecent, SparQ

__all__ = [
    "BestFirst",
    "BranchWhereUnsure",
    "Chain",
    "Chunks",
    "Drafter",
    "Drafting",
    "Either",
    "EitherDrafting",
    "GumbelTopK",
    "Hierarchy",
    "HierarchyDrafting",
    "IIDTree",
    "LastVerification",
    "NoDraft",
    "PromptLookup",
    "PromptLookupDrafting",
    "Selector",
    "SinkRecent",
    "SparQ",
    "SparseDrafting",
    "SparseSelf",
    "StaticTree",
    "StochasticBeam",
    "TopKTree",
    "TreeDrafting",
    "conditioned",
    "draws_a_tree",
    "law_of",
    "not_lossless",
    "one_hot",
    "parameter_ratio",
    "parts_of",
    "start",
    "without_replacement_laws",
]
