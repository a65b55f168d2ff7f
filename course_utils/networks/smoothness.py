"""The weights of the smoothness that one network answers for, and the number that it is told in their place."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from course_utils.errors import CourseError
from course_utils.plain import number


@dataclass(frozen=True)
class SmoothnessRange:
    """From the smallest to the largest weight of the regulariser; what counts between them is the ratio.

    Attributes:
        low: The smallest weight, above 0.
        high: The largest, above `low`.

    Raises:
        CourseError: the two are not such weights.
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        if not 0 < self.low < self.high < math.inf:
            raise CourseError(
                f"a smoothness from {self.low:g} to {self.high:g} is no range of weights: give the smaller one, above "
                "0, and then the larger one"
            )

    @property
    def middle(self) -> float:
        """As many times the smallest weight as the largest is times this."""
        return self.weight(0.5)

    def weight(self, position: float) -> float:
        """The weight at a position: 0 is the smallest, 1 the largest, and equal steps between are equal ratios."""
        return min(self.high, self.low * (self.high / self.low) ** position)  # which rounding may have put above it

    def position(self, weight: float) -> float:
        """Where a weight is: what a network is told. Raises CourseError where it is outside."""
        if not self.low <= weight <= self.high:
            raise CourseError(
                f"smoothness {weight:g} is outside of what the network was trained for, {self}: choose one within"
            )
        return math.log(weight / self.low) / math.log(self.high / self.low)

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}"

    @classmethod
    def of_objective(cls, described: Mapping[str, Any]) -> "SmoothnessRange | None":
        """What a network was trained for, from `Objective.describe`; None where it was for one weight.

        Raises:
            CourseError: no two weights are told, or none that are a range.
            ValueError: a weight is no number.
        """
        told = described.get("smoothness")
        if told is None:
            return None
        if not isinstance(told, Mapping) or not {"low", "high"} <= set(told):
            raise CourseError("the objective of this network names no range of smoothness: train it again")
        return cls(number(told["low"], "smoothness.low"), number(told["high"], "smoothness.high"))
