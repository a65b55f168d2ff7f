"""What training and instance optimisation minimise."""

from course_utils.objectives.base import Batch, Model, Objective, Outcome, Term
from course_utils.objectives.pair import PairObjective, pair_objective
from course_utils.objectives.terms import (
    NCC,
    REGULARISERS,
    SIMILARITIES,
    SSD,
    Folding,
    Overlap,
    Regularisation,
    Similarity,
)

__all__ = [
    "NCC",
    "REGULARISERS",
    "SIMILARITIES",
    "SSD",
    "Batch",
    "Folding",
    "Model",
    "Objective",
    "Outcome",
    "Overlap",
    "PairObjective",
    "Regularisation",
    "Similarity",
    "Term",
    "pair_objective",
]
