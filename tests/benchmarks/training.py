"""A network that a benchmark trains."""

import tempfile
from pathlib import Path

from course_utils.checkpoint import Checkpoint
from course_utils.data.pairs import Cohort
from course_utils.networks import NetworkSpec, RegistrationNetwork
from course_utils.objectives import Objective
from course_utils.training import TrainConfig, train_cohort


def after_its_last_step(
    cohort: Cohort, network: NetworkSpec, objective: Objective, config: TrainConfig
) -> RegistrationNetwork:
    """The network after its last step: not the best, which small validation sets choose by chance."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        result = train_cohort(cohort, out, network=network, objective=objective, config=config, hooks=[])
        return Checkpoint.load(result.last).model().eval()
