"""What training and instance optimisation minimise."""

from course_utils.objectives.any_smoothness import AnySmoothness
from course_utils.objectives.base import Batch, Model, Objective, Outcome, Term
from course_utils.objectives.contrast import Contrast
from course_utils.objectives.cycle import Cycle, CycleMorph
from course_utils.objectives.painted import PaintedObjective, Painting, paint
from course_utils.objectives.pair import PairObjective, pair_objective
from course_utils.objectives.probabilistic import EvidenceBound
from course_utils.objectives.segmented import Segmented
from course_utils.objectives.synthesised import (
    Bending,
    Colours,
    LabelMaps,
    Shapes,
    Subjects,
    SynthesisedObjective,
    paint_labels,
)
from course_utils.objectives.template import TemplateObjective
from course_utils.objectives.terms import (
    MI,
    MIND,
    NCC,
    REGULARISERS,
    SIMILARITIES,
    SSD,
    Folding,
    Membership,
    Overlap,
    Regularisation,
    Similarity,
)
from course_utils.objectives.two_directions import CONSISTENCIES, BothOrders, Consistent, InverseToo, swapped

__all__ = [
    "CONSISTENCIES",
    "MI",
    "MIND",
    "NCC",
    "REGULARISERS",
    "SIMILARITIES",
    "SSD",
    "AnySmoothness",
    "Batch",
    "Bending",
    "BothOrders",
    "Colours",
    "Consistent",
    "Contrast",
    "Cycle",
    "CycleMorph",
    "EvidenceBound",
    "Folding",
    "InverseToo",
    "LabelMaps",
    "Membership",
    "Model",
    "Objective",
    "Outcome",
    "Overlap",
    "PaintedObjective",
    "Painting",
    "PairObjective",
    "Regularisation",
    "Segmented",
    "Shapes",
    "Similarity",
    "Subjects",
    "SynthesisedObjective",
    "TemplateObjective",
    "Term",
    "paint",
    "paint_labels",
    "pair_objective",
    "swapped",
]
