"""Does a template that depends on age show age, and what makes it? Rulers that cannot leak, one factor at a time."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import pandas as pd
import torch
import typer
from torch import Tensor

from course_utils.checkpoint import Checkpoint
from course_utils.data.cohorts import data_root
from course_utils.data.loading import LoadedSubjects, load_subjects
from course_utils.data.pairs import Cohort, Subject
from course_utils.data.source import Source
from course_utils.errors import CourseError
from course_utils.objectives import TemplateObjective, pair_objective
from course_utils.templates import (
    Attributes,
    label_probabilities,
    mean_image,
    template_network,
    winning_labels,
)
from course_utils.templates.averaging import Register
from tests.benchmarks.templates import images_of, spaced, trained
from tests.benchmarks.training import chosen

YOUNG, OLD = 20.0, 90.0
"""Years between which growth is measured."""
RULED = 20
"""On so many people's own scans the votes are compared with the truth."""


@dataclass(frozen=True)
class Setting:
    """How a template that depends on age is learnt.

    Attributes:
        work: What the steps are multiplied with.
        rate: See `TemplateNetwork`.
        smoothness: Weight of the roughness of the velocity.
        anchor, centring: See `TemplateObjective`.
    """

    work: float = 1.0
    rate: float = 1.0
    smoothness: float = 1.0
    anchor: float = 1.0
    centring: float = 0.01

    def objective(self) -> TemplateObjective:
        """What is minimised."""
        pair = pair_objective("ncc", smoothness=self.smoothness, coarseness=2)
        return TemplateObjective(pair, self.centring, self.anchor)


SETTINGS = {
    "usual": Setting(),
    "anchor 10": Setting(anchor=10.0),
    "anchor 30": Setting(anchor=30.0),
    "twice the steps": Setting(work=2.0),
    "rate 4": Setting(rate=4.0),
    "smoothness 3": Setting(smoothness=3.0),
    "centring 0": Setting(centring=0.0),
    "centring 0.1": Setting(centring=0.1),
    "anchor 30, twice the steps": Setting(anchor=30.0, work=2.0),
}


@dataclass(frozen=True, eq=False)
class Darkness:
    """Counts the pixels of a picture that are as dark as a ventricle, where anybody's ventricles may lie.

    Attributes:
        region: Where, `(1, 1, *spatial)` bool.
        threshold: Intensity below which a pixel is dark.
    """

    region: Tensor
    threshold: float

    @classmethod
    def of(cls, images: Sequence[Tensor], ventricles: Sequence[Tensor], share: float = 0.05) -> "Darkness":
        """From people's images and where their ventricles are, `(1, 1, *spatial)` each.

        The region is where more than `share` of them have one, the threshold midway between the medians inside and
        around their ventricles.
        """
        region = torch.cat(list(ventricles)).float().mean(0, keepdim=True) > share
        pairs = list(zip(images, ventricles, strict=True))
        inside = torch.cat([image[ventricle] for image, ventricle in pairs]).median()
        around = torch.cat([image[region & ~ventricle] for image, ventricle in pairs]).median()
        return cls(region, ((inside + around) / 2).item())

    def __call__(self, picture: Tensor) -> int:
        """How many pixels of a picture `(1, 1, *spatial)`."""
        return int(((picture < self.threshold) & self.region).sum())


@torch.no_grad()
def voted(register: Register, template: Tensor, images: Sequence[Tensor], ventricles: Sequence[Tensor]) -> int:
    """Pixels of a template that are ventricle by the votes of these people, `(1, 1, *spatial)` each."""
    homes = (register(template, image).inverse() for image in images)
    shares = label_probabilities([ventricle.to(torch.int16) for ventricle in ventricles], homes, [1])
    return int(winning_labels(shares, [1])[0].sum())


def growth(young: float, old: float, ages: Sequence[float], sizes: Sequence[float]) -> float:
    """What grew from `YOUNG` to `OLD`, as a share of what people's sizes grow by along a straight line."""
    return (old - young) / (np.polyfit(ages, sizes, 1)[0] * (OLD - YOUNG))


def ages_of(cohort: Cohort) -> Attributes:
    """The ages of OASIS' people, in years, out of the table that lies beside their slices; CourseError without it."""
    path = data_root() / "oasis2d" / "oasis_cross-sectional.csv"
    if not path.is_file():
        raise CourseError(f"{path} is not there: put the table of OASIS-1 beside the slices, it has the ages")
    table = pd.read_csv(path).set_index("ID")["Age"]
    return Attributes(("age",), {s.name: (float(table[s.name.removeprefix("OASIS_")]),) for s in cohort.subjects})


def ventricles_of(cohort: Cohort, loaded: LoadedSubjects, subjects: Sequence[Subject]) -> list[Tensor]:
    """Where the lateral ventricles of each are, `(1, 1, *spatial)` bool."""
    values = [value for value, name in cohort.info.labels.items() if name.endswith("-Lateral-Ventricle")]
    return [torch.isin(loaded[s]["label"][None], torch.tensor(values, dtype=torch.int16)) for s in subjects]


def ages(
    steps: Annotated[int, typer.Option(help="Of training, 4 scans each.", min=1)] = 150,
    seeds: Annotated[int, typer.Option(help="How many.", min=1)] = 3,
    setting: Annotated[list[str] | None, typer.Option(help="Some of the settings; may be repeated.")] = None,
) -> None:
    """Growth of the ventricles in the template of 20 to that of 90 years, as a share of what people's grow by.

    By the votes of the test people, the same for every age, brought to the template by its own network and by the
    shipped one, which was trained on pairs of all ages; and by the template's own dark pixels. What the votes by the
    shipped network are worth is seen on people in the template's place.
    """
    torch.set_num_threads(1)
    wanted = chosen(setting, SETTINGS)
    cohort, _ = Source(dataset="oasis2d").load()
    loaded = load_subjects(cohort.subjects, cohort.info.recipe)
    train, test = cohort.splits["train"], cohort.splits["test"]
    known, shipped = ages_of(cohort), Checkpoint.load("oasis2d").model().eval()
    scans, ventricles = images_of(loaded, train), ventricles_of(cohort, loaded, train)
    unseen, theirs = images_of(loaded, test), ventricles_of(cohort, loaded, test)
    dark = Darkness.of(scans, ventricles)
    years = known.of(train)[:, 0].tolist()
    sizes, darks = [int(each.sum()) for each in ventricles], [dark(scan) for scan in scans]
    some = spaced(sorted(train, key=lambda subject: known.values[subject.name]), RULED)
    people = [voted(shipped, scan, unseen, theirs) for scan in images_of(loaded, some)]
    own = [int(each.sum()) for each in ventricles_of(cohort, loaded, some)]
    slope, correlation = np.polyfit(own, people, 1)[0], np.corrcoef(own, people)[0, 1]
    typer.echo(f"votes by the shipped network on {RULED} people's scans: {slope:.2f} of their own, r {correlation:.3f}")
    mean = mean_image(scans)
    rows = []
    for seed in range(seeds):
        for name in wanted:
            begun, how = time.process_time(), SETTINGS[name]
            model = template_network(mean, names=known.names, attributes=known.of(train), rate=how.rate, seed=seed)
            model = trained(model, how.objective(), cohort, loaded, round(steps * how.work), seed, known)
            with torch.no_grad():
                young, old = (model.template(torch.tensor([[age]])) for age in (YOUNG, OLD))
            spent = time.process_time() - begun
            rulers = {
                "votes": [voted(model, template, unseen, theirs) for template in (young, old)],
                "votes, shipped network": [voted(shipped, template, unseen, theirs) for template in (young, old)],
                "dark": [dark(template) for template in (young, old)],
            }
            grown = {n: growth(*both, years, darks if n == "dark" else sizes) for n, both in rulers.items()}
            counts = {f"{n} at {YOUNG:g}, {OLD:g}": f"{both[0]}, {both[1]}" for n, both in rulers.items()}
            rows.append({"setting": name, "seed": seed, **grown, **counts, "processor seconds": spent})
            typer.echo(pd.DataFrame(rows[-1:]).to_string(index=False, header=len(rows) == 1, float_format="%.3f"))
    overview = pd.DataFrame(rows).groupby("setting", sort=False)[["votes", "votes, shipped network", "dark"]]
    for what in ("mean", "min", "max"):
        typer.echo(f"{what} of the seeds\n{overview.agg(what).to_string(float_format='%.3f')}")
