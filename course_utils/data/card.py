"""What a network must carry along of the data that it was trained on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from course_utils.data.recipe import Recipe


@dataclass(frozen=True)
class DataCard:
    """A data set, as far as a network trained on it is concerned.

    Attributes:
        dataset: Its name.
        labels: Values of the structures in its label maps, with their names; empty where there are no labels.
        recipe: How its images were prepared.
        licence: Of the data.
        citation: What to cite.
        source: Plain values from which the data can be had again, see `course_utils.data.source`; empty where nobody
            noted them.
        subjects: Names of those that its training and validation saw, by split: nobody may be measured on them.
    """

    dataset: str
    labels: Mapping[int, str]
    recipe: Recipe
    licence: str = "unknown"
    citation: str = "unknown"
    source: Mapping[str, Any] = field(default_factory=dict)
    subjects: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for checkpoints and JSON."""
        return {
            "dataset": self.dataset,
            "labels": dict(self.labels),
            "recipe": self.recipe.to_dict(),
            "licence": self.licence,
            "citation": self.citation,
            "source": dict(self.source),
            "subjects": {split: list(names) for split, names in self.subjects.items()},
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "DataCard":
        """The card that `to_dict` gave the values of."""
        return cls(
            str(values["dataset"]),
            {int(value): str(name) for value, name in values["labels"].items()},
            Recipe.from_dict(values["recipe"]),
            str(values["licence"]),
            str(values["citation"]),
            dict(values["source"]),
            {str(split): list(names) for split, names in values["subjects"].items()},
        )
