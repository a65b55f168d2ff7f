"""What a network must carry along of the data that it was trained on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from course_utils.data.recipe import Recipe
from course_utils.plain import items, settings, table, text, whole, words


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
        """The card that `to_dict` gave the values of.

        Raises:
            KeyError: one is missing.
            ValueError: one has a wrong type, or is an expression of a MONAI bundle; names of files and subjects may
                begin as they like.
            CourseError: the recipe is none.
        """
        return cls(
            text(values["dataset"], "dataset"),
            {_label(value): text(name, "labels") for value, name in table(values["labels"], "labels").items()},
            Recipe.from_dict(table(values["recipe"], "recipe")),
            text(values["licence"], "licence"),
            text(values["citation"], "citation"),
            settings(values["source"], "source", words),
            {
                text(split, "subjects"): items(names, f"subjects.{split}", words)
                for split, names in table(values["subjects"], "subjects").items()
            },
        )


def _label(value: Any) -> int:
    """A label's value, which JSON knows as a text only."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20:
        value = int(value)
    return whole(value, "labels")
