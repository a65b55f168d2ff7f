"""From a data set to a network: what is refused before its volumes are read."""

import pytest

from course_utils.data.cohorts import load_cohort
from course_utils.errors import CourseError
from course_utils.networks import ARCHITECTURES, NetworkSpec
from course_utils.objectives import pair_objective
from course_utils.training import TrainConfig, train_cohort

GRID = '[cubes]\nfolder = "cubes"\nimage = "{name}.nii.gz"\nshape = [16, 16, 16]\nspacing = [1, 1, 1]\n'


@pytest.mark.parametrize("architecture", ["voxelmorph", "pyramid"])
def test_a_grid_that_is_too_small_for_the_network(tmp_path, architecture):
    """The files hold no volumes: they are not even opened."""
    assert architecture in ARCHITECTURES
    (tmp_path / "cubes").mkdir()
    for number in range(20):
        (tmp_path / "cubes" / f"{number}.nii.gz").touch()
    (tmp_path / "mine.toml").write_text(GRID)
    cohort = load_cohort("cubes", tmp_path, registry=tmp_path / "mine.toml")
    network = NetworkSpec(architecture, {"spatial_dims": 3})
    options = {"network": network, "objective": pair_objective("ncc"), "config": TrainConfig(steps=1)}
    with pytest.raises(CourseError, match=r"images of 16x16x16 voxels .* a shape of 17 voxels or more along one"):
        train_cohort(cohort, tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()
