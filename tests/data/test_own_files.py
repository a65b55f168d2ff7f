"""A cohort of a user's own files: subjects, splits, labels, atlas and grid, without a registry."""

import re

import numpy as np
import pytest

from course_utils.data.card import DataCard
from course_utils.data.loading import PairDataset, load_subjects
from course_utils.data.own_files import cohort_of_files
from course_utils.data.recipe import Recipe
from course_utils.data.source import Source
from course_utils.errors import CourseError, CourseWarning
from tests import phantoms

CODES = ("RAS", "LAS", "PIR")


@pytest.fixture
def folder(tmp_path):
    """Twelve scans of one object, bent, each on another grid, and label maps of all but the fourth."""
    rng = np.random.default_rng(0)
    for part in ("scans", "segs"):
        (tmp_path / part).mkdir()
    for n in range(12):
        grid = phantoms.grid(
            tuple(rng.integers(14, 20, 3)), (3.0, 3.2, 3.4), CODES[n % 3], centre=rng.uniform(-3, 3, 3)
        )
        points = phantoms.positions(grid)
        points = points + 2 * np.sin(points[[1, 2, 0]] / 9 + n)
        phantoms.save(tmp_path / f"scans/p{n:02d}_t1.nii.gz", phantoms.intensity(points), grid)
        structures = phantoms.structures(points)
        if n == 5:
            structures[structures == 1] = 7
        if n != 3:
            phantoms.save(tmp_path / f"segs/p{n:02d}_seg.nii.gz", structures, grid, np.uint8)
    return tmp_path


def test_twelve_unlabelled_scans_of_different_shapes_make_pairs(folder):
    cohort, grid = cohort_of_files(str(folder / "scans"))
    assert {side: len(part) for side, part in cohort.splits.items()} == {"train": 8, "val": 2, "test": 2}
    assert not any(set(a) & set(b) for a in cohort.splits.values() for b in cohort.splits.values() if a is not b)
    assert (cohort.info.name, dict(cohort.info.labels)) == ("scans", {})
    loaded = load_subjects(cohort.subjects, cohort.info.recipe, strict=True)
    item = PairDataset(loaded, cohort.training_pairs())[0]
    assert item["moving"].shape == item["fixed"].shape == (1, *grid.shape) and "fixed_label" not in item


def test_labels_are_the_union_and_a_subject_without_stays(folder):
    cohort, _ = cohort_of_files(str(folder / "scans"), str(folder / "segs"))
    assert list(cohort.info.labels) == [1, 2, 7]
    assert [subject.name for subject in cohort.subjects if subject.label is None] == ["p03_t1"]
    for subject in cohort.subjects:
        assert subject.label is None or subject.label.name[:3] == subject.image.name[:3]
    some, _ = cohort_of_files(str(folder / "scans"), str(folder / "segs"), structures=[2])
    assert list(some.info.labels) == [2]


def test_label_maps_of_nobody_are_named(folder):
    (folder / "segs/p03_seg.nii.gz").write_bytes((folder / "segs/p02_seg.nii.gz").read_bytes())
    (folder / "scans/p03_t1.nii.gz").unlink()
    with pytest.warns(CourseWarning, match="1 of 12 label maps fit no image, the first is .*p03_seg"):
        cohort_of_files(str(folder / "scans"), str(folder / "segs"))


def test_everything_goes_onto_the_atlas(folder):
    atlas = folder / "scans/p00_t1.nii.gz"
    cohort, _ = cohort_of_files(
        str(folder / "scans"), str(folder / "segs"), atlas=atlas, atlas_label=folder / "segs/p00_seg.nii.gz"
    )
    assert len(cohort.subjects) == 11 and all(subject.image != atlas for subject in cohort.subjects)
    pairs = cohort.training_pairs(seed=1)
    n = len(cohort.splits["train"])
    first = [pairs[index] for index in range(2 * n)]
    assert {pair.fixed.image for pair in first} == {atlas}
    for block in (first[:n], first[n:]):  # each subject once before any comes twice
        assert {pair.moving for pair in block} == set(cohort.splits["train"])
    held_out = cohort.distinct_pairs("test", 50)
    assert [pair.moving for pair in held_out] == list(cohort.splits["test"])
    assert held_out[0].fixed.label.name == "p00_seg.nii.gz"


def test_sessions_of_a_person_stay_together(tmp_path):
    array = phantoms.intensity(phantoms.positions(phantoms.PLACES["same"]))
    for person in range(8):
        for session in range(3):
            path = tmp_path / f"sub-{person:02d}" / f"ses-{session}" / f"sub-{person:02d}_ses-{session}_T1w.nii.gz"
            path.parent.mkdir(parents=True)
            phantoms.save(path, array, phantoms.PLACES["same"])
    for seed in range(5):
        cohort, _ = cohort_of_files(str(tmp_path), seed=seed, fractions=(0.5, 0.25, 0.25))
        sides = {split: {subject.person for subject in part} for split, part in cohort.splits.items()}
        assert {split: len(people) for split, people in sides.items()} == {"train": 4, "val": 2, "test": 2}
        assert len(set.union(*sides.values())) == 8
        assert all(len(part) == 3 * len(sides[split]) for split, part in cohort.splits.items())
    assert cohort_of_files(str(tmp_path), seed=1)[0].splits == cohort_of_files(str(tmp_path), seed=1)[0].splits
    assert cohort_of_files(str(tmp_path), seed=1)[0].splits != cohort_of_files(str(tmp_path), seed=2)[0].splits


def test_splits_that_are_given_are_kept(folder):
    sides = ["train"] * 6 + ["val"] * 3 + ["test"] * 3
    rows = [f"scans/p{n:02d}_t1.nii.gz,,{side}" for n, side in enumerate(sides)]
    (folder / "cohort.csv").write_text("\n".join(["image,subject,split", *rows]), encoding="utf-8")
    cohort, _ = cohort_of_files(str(folder / "cohort.csv"))
    assert [subject.name for subject in cohort.splits["val"]] == ["p06_t1", "p07_t1", "p08_t1"]
    (folder / "cohort.csv").write_text(
        "\n".join(["image,subject,split", *rows]).replace(",,", ",anna,"), encoding="utf-8"
    )
    with pytest.raises(CourseError, match="anna is on two sides of the split"):
        cohort_of_files(str(folder / "cohort.csv"))
    (folder / "cohort.csv").write_text("\n".join(["image,subject,split", *rows]).replace("val", ""), encoding="utf-8")
    with pytest.raises(CourseError, match="column split says nothing of p06_t1"):
        cohort_of_files(str(folder / "cohort.csv"))


def test_archives_hold_image_and_label(tmp_path):
    array, labels = (
        of(phantoms.positions(phantoms.PLACES["same"])) for of in (phantoms.intensity, phantoms.structures)
    )
    for n in range(7):
        np.savez_compressed(tmp_path / f"s{n}.npz", vol=array.astype(np.float32), seg=labels)
    cohort, grid = cohort_of_files(str(tmp_path), atlas=tmp_path / "s0.npz")
    assert (list(cohort.info.labels), grid.aligned) == ([1, 2], True)
    assert all(subject.label == subject.image for subject in cohort.everyone)
    loaded = load_subjects(cohort.everyone, cohort.info.recipe, strict=True)
    np.testing.assert_array_equal(loaded[cohort.atlas]["label"][0], labels)


def test_slices_of_different_sizes(tmp_path):
    for n in range(6):
        points = phantoms.positions(phantoms.grid((20 + n, 24, 22)))
        array = phantoms.intensity(points)[:, :, 11:12]
        phantoms.save(tmp_path / f"{n}.nii.gz", array, phantoms.grid((20 + n, 24, 1), (1.5, 1.5, 3.0)))
    cohort, grid = cohort_of_files(str(tmp_path))
    assert (grid.shape, grid.spacing) == ((25, 24), (1.5, 1.5))
    assert load_subjects(cohort.subjects, cohort.info.recipe, strict=True)[cohort.subjects[0]]["image"].shape == (
        1,
        25,
        24,
    )


def test_scans_larger_than_a_grid_that_was_asked_for_are_said_to_be_cut(folder):
    cohort, _ = cohort_of_files(str(folder / "scans"), shape=(8, 8, 8))
    with pytest.warns(CourseWarning, match="12 of 12 images are larger than the grid 8x8x8, the first is .*p00_t1"):
        load_subjects(cohort.subjects, cohort.info.recipe)


def test_what_cannot_be_a_cohort_is_said_in_one_line(folder):
    scans = str(folder / "scans")
    cases = {
        "names one image, and registration needs two": (scans + "/p00_t1.nii.gz", {}),
        "--shape 8 8 is not 3 numbers above 0": (scans, {"shape": (8, 8)}),
        "--spacing 0 1 1 is not 3 numbers above 0": (scans, {"spacing": (0, 1, 1)}),
        "no.nii.gz does not exist: correct the path of the atlas": (scans, {"atlas": "no.nii.gz"}),
        "3 subjects are too few for train, val and test of 2 each": (scans + "/p0[0-2]*.nii.gz", {}),
        "not three shares of 1": (scans, {"fractions": (0.5, 0.5, 0.5)}),
    }
    for message, (words, options) in cases.items():
        with pytest.raises(CourseError, match=re.escape(message)):
            cohort_of_files(words, **options)
    with pytest.raises(CourseError, match=r"is a slice and .* a volume"):
        phantoms.save(folder / "scans/slice.nii.gz", np.ones((9, 9, 1)), phantoms.grid((9, 9, 1)))
        cohort_of_files(scans)


def test_a_file_that_cannot_be_read_does_not_keep_the_others_from_being_one(folder):
    (folder / "scans/p03_t1.nii.gz").write_bytes(b"broken")
    cohort, _ = cohort_of_files(str(folder / "scans"))
    with pytest.warns(CourseWarning, match=r"left out: .*p03_t1.nii.gz cannot be read"):
        loaded = load_subjects(cohort.subjects, cohort.info.recipe)
    assert len(loaded) == 11


# --- a source ---------------------------------------------------------------------------------------------------------


def test_a_source_is_remembered_and_found_again_from_anywhere(folder, monkeypatch):
    monkeypatch.chdir(folder)
    source = Source(images="scans", labels="segs", shape=(20, 20, 20), spacing=(3.0, 3.0, 3.5), split_seed=4)
    cohort, line = source.load()
    assert "12 subjects (8 train, 2 val, 2 test), 11 with labels of 3 structures" in line
    assert "20x20x20 voxels of 3x3x3.5 mm" in line
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    again, _ = Source().or_that_of(cohort.card()).load()
    assert again.info.recipe == cohort.info.recipe and again.source == cohort.source
    assert {k: [s.name for s in v] for k, v in again.splits.items()} == {
        k: [s.name for s in v] for k, v in cohort.splits.items()
    }


def test_a_network_s_own_grid_is_taken_where_it_has_as_many_axes_and_nothing_else_is_said(folder):
    source = Source(images=str(folder / "scans"))
    like = Recipe((20, 24, 16), (3.5, 3.5, 4.0))
    cohort, line = source.load(like=like)
    assert (cohort.info.shape, cohort.info.spacing) == (like.shape, like.spacing)
    assert "20x24x16 voxels of 3.5x3.5x4 mm (that of the network to begin with)" in line
    again, line = Source.from_dict(cohort.source).load()  # whoever measures the network is told of the same grid
    assert (again.info.shape, again.info.spacing) == (like.shape, like.spacing)
    plain, _ = source.load()
    for other in (Recipe((20, 24), (1.0, 1.0), aligned=True), None):
        assert source.load(like=other)[0].info.shape == plain.info.shape
    spaced, _ = Source(images=str(folder / "scans"), spacing=(4.0, 4.0, 4.0)).load(like=like)
    assert spaced.info.spacing == (4.0, 4.0, 4.0)


def test_the_options_of_a_source_are_those_that_were_given():
    source = Source(images="my scans/*.nii", spacing=(1.0, 1.0, 2.5), fractions=(0.6, 0.2, 0.2))
    assert source.options() == [
        *("--images", "my scans/*.nii", "--spacing", "1,1,2.5", "--fractions", "0.6,0.2,0.2"),
    ]
    assert Source(dataset="oasis", data_root="data").options() == ["--dataset", "oasis", "--data-root", "data"]


def test_a_source_that_makes_no_sense():
    with pytest.raises(CourseError, match="--dataset and --images are two sources of data"):
        Source(dataset="oasis", images="scans")
    with pytest.raises(CourseError, match="--atlas-label belongs to --images"):
        Source(dataset="oasis", atlas_label="a.nii")
    with pytest.raises(
        CourseError, match=r"there is no data: name a data set, --dataset synthetic or .* --images FOLDER"
    ):
        Source().load()


def test_data_that_trained_is_split_as_it_was_there(folder, monkeypatch):
    monkeypatch.chdir(folder)
    trained = Source(images="scans", fractions=(0.5, 0.25, 0.25), split_seed=4)
    card = trained.load()[0].card()
    again, _ = Source(images=str(folder / "scans"), labels="segs").or_that_of(card).load()
    first = trained.load()[0]
    assert [s.name for s in again.splits["test"]] == [s.name for s in first.splits["test"]]
    assert all(subject.label is not None for subject in again.splits["test"] if subject.name != "p03_t1")
    other = Source(images="scans", split_seed=7).or_that_of(card)
    assert other.split_seed == 7 and other.fractions == (0.5, 0.25, 0.25)
    assert Source(dataset="oasis").or_that_of(card) == Source(dataset="oasis")


def test_a_data_set_is_found_where_it_was_in_training():
    recipe = Recipe((8, 8, 8), (1.0, 1.0, 1.0))
    card = DataCard("learn2reg", {}, recipe, source=Source(dataset="learn2reg", data_root="/task").to_dict())
    assert Source(dataset="learn2reg").or_that_of(card).data_root == "/task"
    assert Source().or_that_of(card).data_root == "/task"
    assert Source(dataset="learn2reg", data_root="/other").or_that_of(card).data_root == "/other"
    assert Source().or_that_of(DataCard("oasis2d", {}, recipe)) == Source(dataset="oasis2d")
