"""Templates of a cohort: learnt with a network or averaged, with labels, and measured.

A template moves to each scan: `model(template, scan)`. Its displacement lies on the scan's grid and brings there what
belongs to the template; its inverse lies on the template's grid and brings the scan home.
"""

from course_utils.templates.attributes import AttributedPairs, Attributes, read_attributes
from course_utils.templates.averaging import Mean, Round, average, groupwise, mean_displacement, mean_image, sharpness
from course_utils.templates.files import Result, write_results
from course_utils.templates.labels import label_probabilities, leave_one_out, overlap, winning_labels
from course_utils.templates.learning import learn_template, template_network
from course_utils.templates.making import Conditions, averaged, learnt

__all__ = [
    "AttributedPairs",
    "Attributes",
    "Conditions",
    "Mean",
    "Result",
    "Round",
    "average",
    "averaged",
    "groupwise",
    "label_probabilities",
    "learn_template",
    "learnt",
    "leave_one_out",
    "mean_displacement",
    "mean_image",
    "overlap",
    "read_attributes",
    "sharpness",
    "template_network",
    "winning_labels",
    "write_results",
]
