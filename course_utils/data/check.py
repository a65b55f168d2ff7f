"""Reading every volume of a data set as training would, to find the files that cannot be used."""

from course_utils.data.loading import load_subject
from course_utils.data.pairs import Cohort
from course_utils.errors import CourseError
from course_utils.progress import track


def check_subjects(cohort: Cohort, *, progress: bool = False) -> list[str]:
    """One line for each subject with a file that cannot be used: what is wrong with which file."""
    faults = []
    for subject in track(cohort.everyone, "checking", len(cohort.everyone), show=progress):
        try:
            load_subject(subject, cohort.info.recipe)
        except CourseError as fault:
            faults.append(str(fault))
    return faults
