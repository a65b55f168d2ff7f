"""The files that a user's words mean, and which label map belongs to which image."""

from pathlib import Path

import pytest

from course_utils.data.file_lists import list_entries, match_labels, names_of
from course_utils.errors import CourseError


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Empty files in the working folder, by their paths."""
    monkeypatch.chdir(tmp_path)

    def files(*names):
        for name in names:
            path = Path(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()

    return files


def images(words, **options):
    return [str(entry.image) for entry in list_entries(words, **options)]


def test_a_folder_is_its_images_and_nothing_else(make):
    make("scans/b.nii.gz", "scans/A.MGZ", "scans/._b.nii.gz", "scans/notes.txt", "scans/deep/c.nii")
    assert images("scans") == ["scans/A.MGZ", "scans/b.nii.gz"]


def test_a_folder_without_images_of_its_own_is_those_below_it(make):
    make("scans/s2/t1.nii", "scans/s1/t1.nrrd", "scans/list.csv")
    assert images("scans") == ["scans/s1/t1.nrrd", "scans/s2/t1.nii"]


def test_a_glob(make, tmp_path):
    make("scans/s2/t1.nii", "scans/s1/t1.nii", "scans/s1/t2.nii")
    assert images("scans/*/t1.nii") == ["scans/s1/t1.nii", "scans/s2/t1.nii"]
    assert images(f"{tmp_path}/scans/**/*.nii") == [
        f"{tmp_path}/scans/{name}" for name in ("s1/t1.nii", "s1/t2.nii", "s2/t1.nii")
    ]


def test_a_list_with_prefix_and_suffix_as_voxelmorph_has_it(make):
    make("lists/train.txt", "data/s1/vol.npz", "data/s2/vol.npz")
    Path("lists/train.txt").write_text("# two\ns1\n\ns2\n", encoding="utf-8")
    assert images("lists/train.txt", prefix="data/", suffix="/vol.npz") == ["data/s1/vol.npz", "data/s2/vol.npz"]
    with pytest.raises(CourseError, match=r"train.txt, line 2: lists/s1 does not exist"):
        images("lists/train.txt")
    with pytest.raises(CourseError, match="--prefix and --suffix are for lines of a text file, and data is none"):
        images("data", prefix="x")


def test_a_csv_file_names_labels_people_and_splits(make):
    make("a/x.nii", "a/y.nii", "a/seg.nii")
    Path("a/cohort.csv").write_text(
        "image,label,subject,split\nx.nii,seg.nii,anna,train\ny.nii,,anna,train\n", encoding="utf-8"
    )
    first, second = list_entries("a/cohort.csv")
    assert (first.label, first.person, first.split) == (Path("a/seg.nii"), "anna", "train")
    assert second.label is None


@pytest.mark.parametrize(
    ("words", "content", "message"),
    [
        ("none", None, "none does not exist: name a folder, a glob"),
        ("*.nii", None, "nothing fits"),
        ("empty.txt", "\n", "lists no file"),
        ("a.csv", "file\nx.nii\n", "has no column image"),
        ("a.csv", "image,split\nx.nii,training\n", "line 2: no split called 'training'; choose from train, val, test"),
        ("a.csv", "image\nz.nii\n", r"line 2: z.nii does not exist"),
        ("a.csv", "image,label\nx.nii,z.nii\n", r"line 2: z.nii does not exist"),
        ("a.csv", "image,label\n,\n", "line 2: no image"),
        ("a.csv", "image\n", "lists no image"),
    ],
)
def test_what_names_nothing_is_said_in_one_line(make, words, content, message):
    make("x.nii.gz", "x.nii" if content else "x.nii.gz")
    if content is not None:
        Path(words).write_text(content, encoding="utf-8")
    with pytest.raises(CourseError, match=message) as caught:
        list_entries(words)
    assert "\n" not in str(caught.value)


def test_an_empty_folder_says_what_would_be_an_image(tmp_path):
    with pytest.raises(CourseError, match=r"holds no image \(.nii, .nii.gz, .mgz"):
        list_entries(str(tmp_path))


def paths(*names):
    return [Path(name) for name in names]


@pytest.mark.parametrize(
    ("images", "labels", "expected"),
    [
        (("i/s1.nii.gz", "i/s2.nii.gz"), ("l/s2.nii.gz", "l/s1.nii.gz"), {0: 1, 1: 0}),
        (("i/s1.nii.gz", "i/s2.nii.gz", "i/s3.mgz"), ("l/s3.nii.gz",), {2: 0}),
        (("i/case_1.nii", "i/case_10.nii"), ("l/case_10_seg.nii",), {1: 0}),
        (
            ("i/siteA_01.nii", "i/siteA_02.nii", "i/siteB_01.nii"),
            ("l/siteA_02_seg.nii", "l/siteA_01_seg.nii"),
            {0: 1, 1: 0},
        ),
        (("i/p07_t1.nii", "i/p08_t1.nii"), ("l/p08_seg.nii", "l/p07_seg.nii"), {0: 1, 1: 0}),
        (("i/img0007.nii", "i/img0010.nii", "i/img0011.nii"), ("i/seg0010.nii", "i/seg0011.nii"), {1: 0, 2: 1}),
        (
            ("d/OAS1_0007/norm.nii", "d/OAS1_0012/norm.nii"),
            ("d/OAS1_0012/seg.nii", "d/OAS1_0007/seg.nii"),
            {0: 1, 1: 0},
        ),
        (("d/anna/t1.nii", "d/anton/t1.nii"), ("d/anton/seg.nii", "d/anna/seg.nii"), {0: 1, 1: 0}),
    ],
)
def test_labels_find_their_images_by_name(images, labels, expected):
    images, labels = paths(*images), paths(*labels)
    matched = match_labels(images, labels, by_order=False)
    assert matched == {images[i]: labels[j] for i, j in expected.items()}


def test_two_lists_belong_together_line_by_line():
    assert match_labels(paths("b", "a"), paths("x", "y"), by_order=True) == {Path("b"): Path("x"), Path("a"): Path("y")}
    with pytest.raises(CourseError, match="name 2 images and 1 label maps"):
        match_labels(paths("b", "a"), paths("x"), by_order=True)


@pytest.mark.parametrize("labels", [("l/x.nii", "l/y.nii"), ("l/s1_a.nii", "l/s1_b.nii")])
def test_labels_of_nobody_are_refused_rather_than_guessed(labels):
    with pytest.raises(CourseError, match=r"no label map fits an image by its name: .* CSV file"):
        match_labels(paths("i/s1.nii", "i/s2.nii"), paths(*labels), by_order=False)


def test_names():
    assert names_of(paths("a/x.nii.gz", "b/y.mgz")) == {Path("a/x.nii.gz"): "x", Path("b/y.mgz"): "y"}
    assert names_of(paths("a/x.nii.gz", "b/x.nii.gz")) == {Path("a/x.nii.gz"): "a_x", Path("b/x.nii.gz"): "b_x"}
