"""What benchmarks train: those of their methods that were asked for, and a network."""

import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path

from course_utils.checkpoint import Checkpoint
from course_utils.data.pairs import Cohort
from course_utils.errors import CourseError
from course_utils.networks import NetworkSpec, RegistrationNetwork
from course_utils.objectives import Objective
from course_utils.training import TrainConfig, train_cohort


def chosen(names: Sequence[str] | None, known: Collection[str]) -> Collection[str]:
    """The names that were given, or all; raise CourseError where one is not known."""
    if unknown := [name for name in names or () if name not in known]:
        raise CourseError(f"there is no '{unknown[0]}': choose from {'; '.join(known)}")
    return names or known


def after_its_last_step(
    cohort: Cohort, network: NetworkSpec, objective: Objective, config: TrainConfig
) -> RegistrationNetwork:
    """The network after its last step: not the best, which small validation sets choose by chance."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        result = train_cohort(cohort, out, network=network, objective=objective, config=config, hooks=[])
        return Checkpoint.load(result.last).model().eval()
