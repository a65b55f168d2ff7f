"""Training a registration network: one loop for every network and every objective."""

from course_utils.training.cohort import train_cohort
from course_utils.training.config import TrainConfig, precision
from course_utils.training.hooks import Hook, ProgressBar, ProgressLines, TensorBoard
from course_utils.training.loop import Result, fit

__all__ = [
    "Hook",
    "ProgressBar",
    "ProgressLines",
    "Result",
    "TensorBoard",
    "TrainConfig",
    "fit",
    "precision",
    "train_cohort",
]
