"""From a data set to a network: what is refused before its volumes are read."""

from types import SimpleNamespace

import pytest

from course_utils.checkpoint import Checkpoint
from course_utils.data.cohorts import load_cohort
from course_utils.data.synthetic import make_cohort
from course_utils.errors import CourseError
from course_utils.networks import ARCHITECTURES, NetworkSpec
from course_utils.objectives import pair_objective
from course_utils.training import TrainConfig, train_cohort
from course_utils.training.cohort import LARGEST_IN_MEMORY, cache_of
from course_utils.training.ranks import Ranks

GRID = '[cubes]\nfolder = "cubes"\nimage = "{name}.nii.gz"\nshape = [16, 16, 16]\nspacing = [1, 1, 1]\n'


@pytest.mark.parametrize("architecture", ["voxelmorph", "pyramid"])
def test_a_grid_that_is_too_small_for_the_network(tmp_path, architecture):
    """The files hold no volumes: they are not even opened."""
    assert architecture in ARCHITECTURES
    (tmp_path / "cubes").mkdir()
    for number in range(20):
        (tmp_path / "cubes" / f"{number}.nii.gz").touch()
    (tmp_path / "mine.toml").write_text(GRID, encoding="utf-8")
    cohort = load_cohort("cubes", tmp_path, registry=tmp_path / "mine.toml")
    network = NetworkSpec(architecture, {"spatial_dims": 3})
    options = {"network": network, "objective": pair_objective("ncc"), "config": TrainConfig(steps=1)}
    with pytest.raises(CourseError, match=r"images of 16x16x16 voxels .* a shape of 17 voxels or more along one"):
        train_cohort(cohort, tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_what_the_processes_of_a_machine_hold_together_decides_where_a_cohort_is_kept(tmp_path, monkeypatch):
    def kept(voxels, size, of_this_machine):
        monkeypatch.setattr(Ranks, "here", lambda: Ranks(0, size))
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(of_this_machine))
        info = SimpleNamespace(shape=(voxels, 1, 1), name="cubes")
        return cache_of(SimpleNamespace(subjects=range(10), info=info), tmp_path)

    fits = int(LARGEST_IN_MEMORY) // 60 - 1
    assert kept(fits, 1, 8) == "memory"  # whatever a launcher of something else may have said
    assert kept(fits, 8, 2) == tmp_path / "cache" / "cubes"
    assert kept(fits // 2, 8, 2) == "memory"
    assert kept(fits // 2, 8, 8) == tmp_path / "cache" / "cubes"


@pytest.mark.slow
def test_a_network_remembers_all_whom_it_has_seen(tmp_path):
    """Trained on one split and further on another, it has learnt from the subjects of both."""
    make_cohort(tmp_path / "synthetic", subjects=12, spacing=6.0)
    options = {"objective": pair_objective("ssd"), "config": TrainConfig(steps=1), "hooks": []}
    network = NetworkSpec("voxelmorph", {"spatial_dims": 3, "features": [4, 4]})
    cohorts = [load_cohort("synthetic", tmp_path, seed=seed) for seed in (0, 1)]
    first = train_cohort(cohorts[0], tmp_path / "first", network=network, **options)
    trained = Checkpoint.load(first.best)
    names = [{s: {subject.name for subject in c.splits[s]} for s in ("train", "val")} for c in cohorts]
    assert {s: set(seen) for s, seen in trained.card.subjects.items()} == names[0]
    further = train_cohort(cohorts[1], tmp_path / "further", network=network, start=trained, **options)
    both = Checkpoint.load(further.best).card.subjects
    assert {s: set(seen) for s, seen in both.items()} == {s: names[0][s] | names[1][s] for s in both}
    assert names[0] != names[1]
