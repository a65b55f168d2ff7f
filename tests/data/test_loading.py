"""What reaches the network, and what bad files get."""

import math
import pickle
import warnings

import nibabel as nib
import numpy as np
import pytest
import torch

from course_utils.data.cohorts import load_cohort
from course_utils.data.loading import LoadedSubjects, PairDataset, load_subject, load_subjects, loader
from course_utils.data.pair_files import pairs_from_csv
from course_utils.data.pairs import Cohort, Pair, Subject
from course_utils.data.recipe import Recipe, normalise
from course_utils.data.synthetic import make_cohort, true_displacement
from course_utils.errors import CourseError

SHAPE = (10, 12, 8)
GRID = (12, 12, 10)


def save(path, array, affine=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.eye(4) if affine is None else affine), path)
    return path


def blocks(shape=SHAPE):
    """An image with a ramp, and a label with two blocks."""
    image = np.arange(math.prod(shape), dtype=np.float32).reshape(shape)
    label = np.zeros(shape, np.uint8)
    label[2:5, 3:6, 2:4] = 1
    label[5:8, 6:9, 4:6] = 2
    return image, label


def subject(folder, name="s0", image=None, label=None, affine=None, label_affine=None):
    ramp, two = blocks()
    return Subject(
        name,
        save(folder / f"images/{name}.nii.gz", ramp if image is None else image, affine),
        save(folder / f"labels/{name}.nii.gz", two if label is None else label, label_affine or affine),
    )


@pytest.fixture
def recipe():
    return Recipe(GRID, (1, 1, 1))


# --- one volume -------------------------------------------------------------------------------------------------------


def test_images_and_labels_come_to_the_grid_centred(tmp_path, recipe):
    volumes = load_subject(subject(tmp_path), recipe)
    image, label = volumes["image"], volumes["label"]
    assert (image.shape, image.dtype) == ((1, *GRID), torch.float32)
    assert (label.shape, label.dtype) == ((1, *GRID), torch.int16)
    assert type(image) is type(label) is torch.Tensor
    ramp, two = blocks()
    np.testing.assert_array_equal(label[0, 1:11, :, 1:9], two)
    assert label.sum() == two.sum()
    low, high = np.percentile(ramp, (0.5, 99.5))
    np.testing.assert_allclose(image[0, 1:11, :, 1:9], ((ramp - low) / (high - low)).clip(0, 1), atol=1e-6)
    assert image[0, 0].abs().max() == 0


def test_intensities_do_not_depend_on_the_scanners_unit():
    image = torch.rand(1, 9, 9, 9, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(normalise(image), normalise(4000 * image + 7), atol=1e-5, rtol=0)
    assert normalise(image).aminmax() == (0, 1)
    spike = image.clone()
    spike[0, 4, 4, 4] = 1e6  # a bright vessel, say: the tissue must not turn black for it
    others = spike < 1e6
    torch.testing.assert_close(normalise(spike)[others], normalise(image)[others], atol=0.02, rtol=0)


def test_orientation_and_spacing_follow_the_header(tmp_path):
    ramp, two = blocks()
    # The same anatomy, stored as left-posterior-superior: the first two axes run backwards.
    flipped = subject(tmp_path, "lps", ramp[::-1, ::-1], two[::-1, ::-1], np.diag([-1, -1, 1, 1]))
    straight = subject(tmp_path, "ras")
    recipe = Recipe(GRID, (1, 1, 1))
    torch.testing.assert_close(load_subject(flipped, recipe), load_subject(straight, recipe))
    coarse = load_subject(subject(tmp_path, "2mm", affine=np.diag([2, 2, 2, 1])), Recipe((22, 26, 18), (1, 1, 1)))
    assert coarse["label"].unique().tolist() == [0, 1, 2]
    assert (coarse["label"] > 0).sum() == pytest.approx(8 * (two > 0).sum(), rel=0.35)


def test_without_spacing_the_grid_is_taken_as_stored(tmp_path):
    ramp, two = blocks()
    odd = subject(tmp_path, affine=np.diag([-3, -1, 2, 1]), label_affine=np.eye(4).tolist())
    volumes = load_subject(odd, Recipe(SHAPE, (1, 1, 1), aligned=True))
    np.testing.assert_array_equal(volumes["label"][0], two)
    assert np.corrcoef(volumes["image"].ravel(), ramp.ravel())[0, 1] > 0.999


@pytest.mark.parametrize("stored", [(14, 16), (14, 16, 1), (14, 1, 16)])
def test_slices_are_two_dimensional(tmp_path, stored):
    image, label = blocks((14, 16, 8))
    one = subject(tmp_path, image=image[:, :, 3].reshape(stored), label=label[:, :, 3].reshape(stored))
    volumes = load_subject(one, Recipe((16, 16), (1, 1), aligned=True))
    assert volumes["image"].shape == volumes["label"].shape == (1, 16, 16)
    np.testing.assert_array_equal(volumes["label"][0, 1:15], label[:, :, 3])


def test_a_subject_without_a_label(tmp_path, recipe):
    whole = subject(tmp_path)
    assert set(load_subject(Subject("s0", whole.image), recipe)) == {"image"}


def test_the_recipe_rebuilds_the_transform(tmp_path, recipe):
    again = Recipe.from_dict(recipe.to_dict())
    one = subject(tmp_path)
    torch.testing.assert_close(load_subject(one, again), load_subject(one, recipe))
    assert pickle.loads(pickle.dumps(recipe)) == recipe == again


def test_a_normalisation_that_does_not_exist():
    with pytest.raises(CourseError, match="choose from percentile"):
        Recipe(GRID, (1, 1, 1), normalisation="zscore")


# --- files that cannot be used ----------------------------------------------------------------------------------------


def spoilt(kind, folder):
    ramp, two = blocks()
    if kind == "nan":
        ramp[3, 3, 3] = np.nan
    elif kind == "infinite":
        ramp[3, 3, 3] = np.inf
    elif kind == "constant":
        ramp[:] = 7
    elif kind == "nearly constant":
        ramp[:] = 0
        ramp[0, 0, 0] = 1
    elif kind == "4-D":
        ramp = np.stack([ramp, ramp], -1)
    elif kind == "2-D":
        ramp, two = ramp[:, :, 3], two[:, :, 3]
    elif kind == "shapes":
        two = two[:-1]
    elif kind == "fractions":
        two = two + np.float32(0.5)
    elif kind == "negative":
        two = -two.astype(np.int16)
    elif kind == "many":
        two = 20_000 * two.astype(np.int32)
    elif kind == "cropped":
        ramp, two = (np.pad(a, ((0, 20), (0, 0), (0, 0)), mode="reflect") for a in (ramp, two))
    one = subject(
        folder, "bad", ramp, two, label_affine=np.diag([1.0, 1, 2, 1]).tolist() if kind == "affines" else None
    )
    if kind == "truncated":
        content = one.image.read_bytes()
        one.image.write_bytes(content[: len(content) // 2])
    elif kind == "truncated label":
        content = one.label.read_bytes()
        one.label.write_bytes(content[: len(content) // 2])
    elif kind == "no NIfTI":
        one.image.write_text("<html>403</html>", encoding="utf-8")
    elif kind == "empty":
        one.image.write_bytes(b"")
    elif kind == "missing":
        one.image.unlink()
    elif kind == "missing label":
        one.label.unlink()
    return one


FAULTS = {
    "nan": ("images/bad", "1 NaN or infinite"),
    "infinite": ("images/bad", "1 NaN or infinite"),
    "constant": ("images/bad", "constant .7 everywhere"),
    "nearly constant": ("images/bad", "99 % of the voxels"),
    "4-D": ("images/bad", "is 4-D .10x12x8x2."),
    "2-D": ("images/bad", "10x12 voxels is not 3-D"),
    "shapes": ("labels/bad", "9x12x8 voxels and .* 10x12x8"),
    "affines": ("labels/bad", "different affines"),
    "fractions": ("labels/bad", "no labels"),
    "negative": ("labels/bad", "from -2 to 0"),
    "many": ("labels/bad", "up to 40000: renumber them to 0 .background. to 32767"),
    "cropped": ("images/bad", "loses .* labelled"),
    "truncated": ("images/bad", "cannot be read"),
    "truncated label": ("labels/bad", "cannot be read"),
    "no NIfTI": ("images/bad", "cannot be read"),
    "empty": ("images/bad", "cannot be read"),
    "missing": ("images/bad", "does not exist"),
    "missing label": ("labels/bad", "does not exist"),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_a_bad_file_is_named_in_one_line(tmp_path, recipe, kind):
    where, what = FAULTS[kind]
    with pytest.raises(CourseError, match=what) as caught:
        load_subject(spoilt(kind, tmp_path), recipe)
    assert str(tmp_path / where) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_uncompressed_truncated_file(tmp_path, recipe):
    path = save(tmp_path / "a.nii", blocks()[0])
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CourseError, match="cannot be read"):
        load_subject(Subject("a", path), recipe)


# --- caches -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def few(tmp_path):
    generator = np.random.default_rng(0)
    return tuple(subject(tmp_path, f"s{i}", generator.random(SHAPE, np.float32)) for i in range(4))


@pytest.fixture(params=["memory", "disk"])
def cache(request, tmp_path):
    return "memory" if request.param == "memory" else tmp_path / "cache"


def test_caches_return_what_the_files_hold(few, cache, recipe):
    loaded = load_subjects(few, recipe, cache)
    assert loaded.subjects == few and len(loaded) == 4 and not loaded.failed
    for one in few:
        torch.testing.assert_close(loaded[one], load_subject(one, recipe))
    for one in few:
        one.image.unlink()
    assert loaded[few[0]]["image"].shape == (1, *GRID)  # from the cache, not from the file


def test_a_bad_file_does_not_end_the_cohort(few, cache, recipe, tmp_path):
    bad = spoilt("nan", tmp_path)
    with pytest.warns(UserWarning, match="left out: .*bad.*NaN") as caught:
        loaded = load_subjects((*few[:2], bad, *few[2:]), recipe, cache)
    assert len(caught) == 1
    assert loaded.subjects == few and set(loaded.failed) == {"bad"}
    with pytest.raises(CourseError, match="NaN"):
        loaded[bad]
    cohort = Cohort(None, (*few, bad), {"train": (*few, bad)}).without(loaded.failed)
    pairs = PairDataset(loaded, cohort.pairs("train", "all"))
    assert len([item["name"] for item in pairs]) == 12


def test_a_bad_file_ends_what_must_not_go_on_without_it(few, cache, recipe, tmp_path):
    with pytest.raises(CourseError, match="constant"):
        load_subjects((*few, spoilt("constant", tmp_path)), recipe, cache, strict=True)
    with pytest.raises(CourseError, match="constant"):
        load_subjects([spoilt("constant", tmp_path)], recipe, cache)


def test_the_disk_cache_serves_a_second_run_and_notices_changes(few, tmp_path, recipe, monkeypatch):
    cache = tmp_path / "cache"
    load_subjects(few, recipe, cache)
    written = {path: path.stat().st_mtime_ns for path in cache.iterdir()}
    load_subjects(few, Recipe(GRID, (1, 1, 1)), cache)
    assert {path: path.stat().st_mtime_ns for path in cache.iterdir()} == written
    subject(tmp_path, "s0", np.flip(blocks()[0]))
    changed = load_subjects(few, recipe, cache)
    torch.testing.assert_close(changed[few[0]], load_subject(few[0], recipe))
    smaller = load_subjects(few, Recipe(SHAPE, (1, 1, 1)), cache)
    assert smaller[few[0]]["image"].shape == (1, *SHAPE)


def test_a_mended_file_is_read_again(tmp_path, recipe):
    bad = spoilt("nan", tmp_path)
    good = subject(tmp_path)
    with pytest.warns(UserWarning, match="left out"):
        load_subjects([bad, good], recipe, tmp_path / "cache")
    subject(tmp_path, "bad")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert not load_subjects([bad, good], recipe, tmp_path / "cache").failed


def test_a_cache_that_cannot_be_written(few, tmp_path, recipe):
    (tmp_path / "cache").write_text("a file where a folder should be", encoding="utf-8")
    with pytest.raises(CourseError, match=r"the cache .* cannot be used .*make room, or remove it"):
        load_subjects(few, recipe, tmp_path / "cache")


def test_a_damaged_cache_is_told(few, tmp_path, recipe):
    load_subjects(few, recipe, tmp_path / "cache")
    for path in (tmp_path / "cache").iterdir():
        path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CourseError, match="remove it and run again"):
        load_subjects(few, recipe, tmp_path / "cache")


# --- pairs ------------------------------------------------------------------------------------------------------------


def train(few):
    return Cohort(None, few, {"train": few})


def test_items_of_a_pair(few, recipe):
    loaded = load_subjects(few, recipe)
    item = PairDataset(loaded, [Pair(fixed=few[1], moving=few[2])])[0]
    assert set(item) == {"fixed", "moving", "fixed_label", "moving_label", "name"}
    assert item["name"] == "s2_to_s1"
    assert torch.equal(item["fixed"], loaded[few[1]]["image"])
    assert torch.equal(item["moving_label"], loaded[few[2]]["label"])


def test_labels_are_there_for_both_or_for_none(few, recipe):
    unlabelled = Subject("s9", few[0].image)
    loaded = load_subjects((unlabelled, few[1]), recipe)
    assert set(PairDataset(loaded, [Pair(few[1], unlabelled)])[0]) == {"fixed", "moving", "name"}


def test_a_batch_has_labels_where_all_its_pairs_have(few, recipe):
    unlabelled = Subject("s9", few[0].image)
    loaded = load_subjects((unlabelled, *few[1:3]), recipe)
    pairs = [Pair(few[1], few[2]), Pair(few[2], unlabelled), Pair(few[2], few[1])]
    mixed = [set(batch) for batch in loader(PairDataset(loaded, pairs), 2)]
    assert mixed == [{"fixed", "moving", "name"}, {"fixed", "moving", "fixed_label", "moving_label", "name"}]


def test_a_pair_of_somebody_who_was_not_loaded(few, recipe):
    loaded = load_subjects(few[:2], recipe)
    with pytest.raises(CourseError, match="'s3' was not loaded"):
        PairDataset(loaded, [Pair(few[0], few[3])])[0]


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_continue_at_any_pair(few, recipe, workers):
    pairs = train(few).pairs("train", "random", count=10**9, seed=3)
    dataset = PairDataset(load_subjects(few, recipe), pairs)
    whole = [name for batch in loader(dataset, 3, 999_990, 1_000_002) for name in batch["name"]]
    assert whole == [pair.name for pair in pairs[999_990:1_000_002]]
    rest = list(loader(dataset, 3, 999_996, 1_000_002, workers=workers))
    assert [name for batch in rest for name in batch["name"]] == whole[6:]
    assert rest[0]["fixed"].shape == (3, 1, *GRID)
    assert torch.equal(rest[0]["moving"][2], dataset[999_998]["moving"])


def test_loading_leaves_the_random_state_alone(few, recipe):
    dataset = PairDataset(load_subjects(few, recipe), train(few).pairs("train", "random"))
    before = torch.random.get_rng_state()
    list(loader(dataset, 2))
    assert torch.equal(before, torch.random.get_rng_state())


def test_the_truth_of_the_built_in_cohort(tmp_path):
    make_cohort(tmp_path / "synthetic", subjects=6, dimensions=2)
    cohort = load_cohort("synthetic", tmp_path)
    loaded = load_subjects(cohort.subjects, cohort.info.recipe)
    pair = cohort.pairs("test", "all")[0]
    item = PairDataset(loaded, [pair], truth=True)[0]
    assert item["true_displacement"].shape == (2, *cohort.info.shape)
    assert torch.equal(item["true_displacement"], true_displacement(pair.fixed, pair.moving))
    padded = load_subjects(
        cohort.subjects, Recipe([n + 8 for n in cohort.info.shape], cohort.info.spacing, aligned=True)
    )
    with pytest.raises(CourseError, match="use the cohort's own grid"):
        PairDataset(padded, [pair], truth=True)[0]


def test_a_truth_that_nobody_knows(few, recipe):
    with pytest.raises(CourseError, match="no known deformation"):
        PairDataset(load_subjects(few, recipe), [Pair(few[0], few[1])], truth=True)[0]


def test_real_hippocampus_volumes_fit_the_grid(real_data):
    cohort = load_cohort("hippocampus", real_data, download=False)
    some = cohort.splits["test"][:6]
    loaded = load_subjects(some, cohort.info.recipe, strict=True)
    for one in some:
        stored = np.asarray(nib.load(one.label).dataobj)
        assert torch.bincount(loaded[one]["label"].flatten(), minlength=3)[1:].tolist() == [
            (stored == 1).sum(),
            (stored == 2).sum(),
        ]
        assert 0.1 < loaded[one]["image"][loaded[one]["label"] > 0].median() < 0.95


# --- a table of pairs -------------------------------------------------------------------------------------------------

HEADER = "fixed_image,moving_image,fixed_label,moving_label\n"
ROW = "images/s0.nii.gz,images/s1.nii.gz,labels/s0.nii.gz,labels/s1.nii.gz\n"


def table(folder, text, encoding="utf-8"):
    (folder / "pairs.csv").write_text(text, encoding=encoding)
    return folder / "pairs.csv"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_pairs_from_a_table(few, tmp_path, monkeypatch, encoding, recipe):
    monkeypatch.chdir("/")  # paths are relative to the table, not to where one stands
    pairs = pairs_from_csv(table(tmp_path, HEADER + ROW + "\n" + ROW.replace("s0", "s2"), encoding))
    assert [pair.name for pair in pairs] == ["s1_to_s0", "s1_to_s2"]
    assert pairs[0].fixed.label == tmp_path / "labels/s0.nii.gz"
    loaded = load_subjects([s for p in pairs for s in (p.fixed, p.moving)], recipe, strict=True)
    assert isinstance(loaded, LoadedSubjects) and len(loaded) == 3


def test_files_of_one_name_are_told_apart(tmp_path):
    for patient in ("p1", "p2"):
        subject(tmp_path / patient, "t1")
    row = "{0}/images/t1.nii.gz,{1}/images/t1.nii.gz,{0}/labels/t1.nii.gz,{1}/labels/t1.nii.gz\n"
    pairs = pairs_from_csv(table(tmp_path, HEADER + row.format("p1", "p2")))
    assert pairs[0].name == "p2_images_t1_to_p1_images_t1"


def test_paths_out_of_the_tables_folder(tmp_path):
    one, two = subject(tmp_path / "a", "t1"), subject(tmp_path / "b", "t1")
    (tmp_path / "tables").mkdir()
    pairs = pairs_from_csv(
        table(tmp_path / "tables", HEADER + f"{one.image},../b/images/t1.nii.gz,{one.label},../b/labels/t1.nii.gz\n")
    )
    assert pairs[0].name == "b_images_t1_to_a_images_t1"
    assert pairs[0].moving.image.samefile(two.image)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no column fixed_image, moving_image"),
        ("fixed_image,fixed_label,moving_label\n", "no column moving_image"),
        (HEADER, "lists no pair"),
        (HEADER + ROW + ROW.replace("images/s1", "images/s9"), "line 3: moving_image .*s9.nii.gz does not exist"),
        (HEADER + "images/s0.nii.gz,,labels/s0.nii.gz,\n", "line 2: no moving_image"),
        (HEADER + ROW.replace("labels/s1", "labels/s9"), "line 2: moving_label .*s9.nii.gz does not exist"),
    ],
)
def test_tables_that_cannot_be_used(few, tmp_path, text, words):
    with pytest.raises(CourseError, match=words) as caught:
        pairs_from_csv(table(tmp_path, text))
    assert str(tmp_path / "pairs.csv") in str(caught.value)


@pytest.mark.parametrize(
    "text",
    ["fixed_image,moving_image\nimages/s0.nii.gz,images/s1.nii.gz\n", HEADER + "images/s0.nii.gz,images/s1.nii.gz,,\n"],
)
def test_pairs_without_labels(few, tmp_path, text):
    (pair,) = pairs_from_csv(table(tmp_path, text))
    assert (pair.fixed.label, pair.moving.label) == (None, None) and pair.name == "s1_to_s0"


def test_a_table_that_is_none(tmp_path):
    with pytest.raises(CourseError, match="cannot be read as CSV"):
        pairs_from_csv(tmp_path / "none.csv")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(CourseError, match="cannot be read as CSV"):
        pairs_from_csv(tmp_path / "binary.csv")
