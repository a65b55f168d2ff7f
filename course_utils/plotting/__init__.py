"""Every figure of the course: functions that take arrays or tensors and return a matplotlib figure.

Nothing here computes a measure, shows or saves anything, and pyplot knows of none of these figures: the last expression
of a cell is displayed once, whatever the backend.

What all of them share:

- Images, labels and determinants are `(*spatial)` with any leading batch and channel axes of size 1; displacements
  are `(N, *spatial)` or `(1, N, *spatial)` in voxels. 2-D and 3-D. A shape that does not fit raises ValueError.
- `axis` is the array axis that a slice is perpendicular to and `at` its index; `axis=1` is the coronal plane of a
  RAS volume, `at=None` the middle. 2-D images have no use for either.
- `spacing` is mm between voxels along each array axis, or one number for all; it sets the aspect.
- `orientation` says where the array axes lead, as nibabel's axis codes do: "RAS" (the default in 3-D) for a first
  axis that runs to the right of the patient, a second to the front and a third to the top. Right is drawn on the right,
  front on the right or top, and top on top. In 2-D, where there is no default, the first axis is drawn rightwards and
  the second upwards, so that a slice of a RAS volume lies as in the volume's own figure.
- The data coordinates of the axes are voxels, whatever the spacing.
- Colours of labels, methods and curves are those of Okabe and Ito (2002), which colour-blind readers can tell apart.
"""

from course_utils.plotting.curves import histograms, history
from course_utils.plotting.deformations import arrows, deformed_grid, folds, jacobian, registration
from course_utils.plotting.figure import Figure
from course_utils.plotting.images import checkerboard, difference, panel, slices
from course_utils.plotting.slider import Slider
from course_utils.plotting.tables import boxes, grades

__all__ = [
    "Figure",
    "Slider",
    "arrows",
    "boxes",
    "checkerboard",
    "deformed_grid",
    "difference",
    "folds",
    "grades",
    "histograms",
    "history",
    "jacobian",
    "panel",
    "registration",
    "slices",
]
