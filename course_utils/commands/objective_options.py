"""What the options of `train` say that is minimised."""

from collections.abc import Mapping, Sequence
from enum import StrEnum

from course_utils.checkpoint import Checkpoint
from course_utils.commands.data_options import numbers
from course_utils.errors import CourseError
from course_utils.networks import SmoothnessRange
from course_utils.objectives import (
    CONSISTENCIES,
    REGULARISERS,
    SIMILARITIES,
    AnySmoothness,
    BothOrders,
    Consistent,
    Cycle,
    CycleMorph,
    EvidenceBound,
    InverseToo,
    LabelMaps,
    Objective,
    PaintedObjective,
    PairObjective,
    Segmented,
    Shapes,
    Subjects,
    SynthesisedObjective,
)

Loss = StrEnum("Loss", list(SIMILARITIES))
LOSS = Loss["ncc"]
Regulariser = StrEnum("Regulariser", list(REGULARISERS))
Bidirectional = StrEnum(
    "Bidirectional", {name: name for name in ("inverse", "both", *CONSISTENCIES, "cycle", "cyclemorph")}
)
WEIGHTS = {**{name: weight for name, (_, weight) in CONSISTENCIES.items()}, "cyclemorph": CycleMorph.cycle_weight}
"""Of what a network is asked for that contradicts itself, where the user gives no weight."""
Painted = StrEnum("Painted", {name: name for name in ("images", "labels", "shapes")})
MAPS: dict[str, LabelMaps] = {"labels": Subjects(), "shapes": Shapes()}
"""What --painted makes of label maps alone."""


def evidence_bound(
    no_part: Mapping[str, object], image_sigma: float | None, prior_precision: float | None, coarseness: int
) -> EvidenceBound:
    """What a probabilistic network is trained by; `no_part` are options of other losses, by name, true where given."""
    for option, given in no_part.items():
        if given:
            raise CourseError(
                f"a probabilistic network has a loss of its own, in which {option} has no part: leave it out"
            )
    chosen = {"image_sigma": image_sigma, "prior_precision": prior_precision}
    return EvidenceBound(**{name: value for name, value in chosen.items() if value is not None}, coarseness=coarseness)


def any_smoothness(given: str | None, smoothness: float | None, start: Checkpoint | None) -> SmoothnessRange | None:
    """The weights that the network shall answer for: those of --smoothness-range, or of the network of --init."""
    if given is not None and smoothness is not None:
        raise CourseError("--smoothness is one weight and --smoothness-range many: give one of them")
    ends = numbers("--smoothness-range", given)
    if ends is not None and len(ends) != 2:
        raise CourseError(f"--smoothness-range {given} is not two numbers: write it as in --smoothness-range 0.1,10")
    weights = None if ends is None else SmoothnessRange(*ends)
    if start is None:
        return weights
    its = start.smoothness_range
    if weights not in (None, its) or (its is not None and smoothness is not None):
        known = "one weight of the smoothness" if its is None else f"weights of the smoothness from {its}"
        raise CourseError(f"the network of --init answers for {known}: leave out the option that asks for another")
    return its


def whole_objective(
    pair: PairObjective,
    painted: Painted | None,
    bidirectional: Bidirectional | None,
    weight: float | None,
    weights: SmoothnessRange | None,
) -> Objective:
    """What is minimised, around the objective of one direction of a pair."""
    if weights is not None:
        return AnySmoothness(whole_objective(pair, painted, bidirectional, weight, None), weights)
    if painted is not None:
        return SynthesisedObjective(pair, MAPS[painted]) if painted in MAPS else PaintedObjective(pair)
    if bidirectional is None:
        return pair
    if bidirectional not in WEIGHTS:
        return {"inverse": InverseToo, "both": BothOrders, "cycle": Cycle}[bidirectional](pair)
    weight = WEIGHTS[bidirectional] if weight is None else weight
    if bidirectional == Bidirectional.cyclemorph:
        return CycleMorph(pair, weight)
    return Consistent(pair, bidirectional.value, weight)


def segmented(judge: Objective, labels: Sequence[int], weight: float | None, start: Checkpoint | None) -> Segmented:
    """What a network that segments is trained by, around what judges its registration."""
    if not labels:
        raise CourseError(
            "--architecture joint needs label maps, which it learns from: give --labels, or choose another"
        )
    known = len(labels) if start is None else start.network.arguments["structures"]
    if known != len(labels):
        raise CourseError(
            f"the network of --init tells {known} structures apart and the labels {len(labels)}: take labels as its own"
        )
    return Segmented(judge, tuple(labels), Segmented.weight if weight is None else weight)
