"""Drafters: frozen settings, and the drafting of one run that grows a `DraftTree` per block."""

from specnb.drafters.base import Drafter, Drafting, NoDraft, law_of, one_hot, start
from specnb.drafters.either import Either, EitherDrafting
from specnb.drafters.lookup import PromptLookup, PromptLookupDrafting
from specnb.drafters.trees import (
    Chain,
    GumbelTopK,
    IIDTree,
    StochasticBeam,
    TopKTree,
    TreeDrafting,
    conditioned,
    without_replacement_laws,
)

__all__ = [
    "Chain",
    "Drafter",
    "Drafting",
    "Either",
    "EitherDrafting",
    "GumbelTopK",
    "IIDTree",
    "NoDraft",
    "PromptLookup",
    "PromptLookupDrafting",
    "StochasticBeam",
    "TopKTree",
    "TreeDrafting",
    "conditioned",
    "law_of",
    "one_hot",
    "start",
    "without_replacement_laws",
]
