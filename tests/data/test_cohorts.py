"""Registry, layouts, splits and pairs; files hold no voxels where none are read."""

import hashlib
import io
import json
import pickle
import tarfile
import threading
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from course_utils.data.card import DataCard
from course_utils.data.cohorts import data_root, fetch, load_cohort, load_slices
from course_utils.data.loading import load_subject
from course_utils.data.pairs import Cohort, Subject, split_subjects
from course_utils.data.recipe import Recipe
from course_utils.data.registry import DATASETS, dataset_info, fill_command, read_registry, terms
from course_utils.errors import CourseError
from notebooks.build import ROOT


def touch(path, content=b"x"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def volume(path, shape=(5, 6, 7), spacing=1.0, value=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.zeros(shape, np.uint8)
    array[2] = 0 if value is None else value
    nib.save(nib.Nifti1Image(array, np.diag([spacing] * 3 + [1])), path)


def subjects(n):
    return tuple(Subject(f"s{i:03d}", f"/nowhere/s{i:03d}.nii.gz") for i in range(n))


def cohort(n, **splits):
    everyone = subjects(n)
    return Cohort(DATASETS["hippocampus"], everyone, splits or {"train": everyone, "val": (), "test": ()})


def decathlon(root, n=20):
    for i in range(n):
        for folder in ("imagesTr", "labelsTr"):
            touch(root / "Task04_Hippocampus" / folder / f"hippocampus_{i:03d}.nii.gz")
    touch(root / "Task04_Hippocampus" / "imagesTr" / "._hippocampus_000.nii.gz")
    return root


# --- splits -----------------------------------------------------------------------------------------------------------


def test_splits_are_disjoint_and_complete():
    splits = split_subjects(subjects(200))
    assert {side: len(part) for side, part in splits.items()} == {"train": 150, "val": 10, "test": 40}
    assert sorted(s.name for part in splits.values() for s in part) == [s.name for s in subjects(200)]


def test_splits_follow_the_seed_and_nothing_else():
    assert split_subjects(subjects(50), 3) == split_subjects(subjects(50)[::-1], 3)
    assert split_subjects(subjects(50), 3) != split_subjects(subjects(50), 4)


def test_a_lost_subject_moves_at_most_the_subjects_at_the_borders():
    before = {s: side for side, part in split_subjects(subjects(100)).items() for s in part}
    after = {s: side for side, part in split_subjects(subjects(100)[1:]).items() for s in part}
    assert sum(before[s] != after[s] for s in after) <= 2


def test_every_side_can_be_paired_or_the_user_is_told():
    assert min(len(part) for part in split_subjects(subjects(6)).values()) == 2
    with pytest.raises(CourseError, match="5 subjects are too few"):
        split_subjects(subjects(5))
    assert len(split_subjects(subjects(3), fractions=(1, 0, 0))["train"]) == 3


@pytest.mark.parametrize("fractions", [(0.5, 0.5), (0.8, 0.3, -0.1), (0.5, 0.1, 0.1)])
def test_fractions_that_are_none(fractions):
    with pytest.raises(CourseError, match="three shares of 1"):
        split_subjects(subjects(50), fractions=fractions)


# --- how slices lie ---------------------------------------------------------------------------------------------------


def places(cohort, *parts):
    """Mean position, `(2,)`, of the structures of a few people whose names hold these parts."""
    values = [value for value, name in cohort.info.labels.items() if all(part in name.lower() for part in parts)]
    labels = [load_subject(subject, cohort.info.recipe)["label"][0] for subject in cohort.subjects[:3]]
    return np.mean([np.argwhere(np.isin(label, values)).mean(0) for label in labels], axis=0)


@pytest.fixture(params=["synthetic", "oasis2d"])
def slices(request, tmp_path):
    if request.param == "synthetic":
        return load_slices("synthetic", tmp_path)
    return load_slices("oasis2d", request.getfixturevalue("real_data"))


def test_where_the_axes_of_slices_lead_is_where_the_anatomy_lies(slices):
    """Left structures lie to the left, and the lateral ventricles above the cortex's middle."""
    across, up = (1 if code in "RS" else -1 for code in slices.info.view["orientation"])
    assert across * (places(slices, "right", "cort")[0] - places(slices, "left", "cort")[0]) > 10
    inferior = ("deep", "grey") if "synthetic" in slices.info.name else ("thalamus",)
    assert up * (places(slices, "lateral", "ventricle")[1] - places(slices, *inferior)[1]) > 3


# --- pairs ------------------------------------------------------------------------------------------------------------


def names(pairs):
    return [(p.fixed.name, p.moving.name) for p in pairs]


@pytest.mark.parametrize("n", [2, 3, 7, 12])
def test_random_pairs_visit_every_ordered_pair_once_a_round(n):
    pairs = names(cohort(n).pairs("train", "random", count=2 * n * (n - 1)))
    everything = {(f"s{i:03d}", f"s{j:03d}") for i in range(n) for j in range(n) if i != j}
    half = n * (n - 1)
    assert set(pairs[:half]) == set(pairs[half:]) == everything
    for start in range(0, 2 * half, n):
        block = pairs[start : start + n]
        assert len({fixed for fixed, _ in block}) == len({moving for _, moving in block}) == n


def test_random_pairs_are_random_by_seed():
    several = [tuple(names(cohort(20).pairs("train", "random", count=60, seed=seed))) for seed in (0, 0, 1)]
    assert several[0] == several[1] != several[2]
    rounds = names(cohort(5).pairs("train", "random", count=40))
    assert rounds[:20] != rounds[20:]


def test_partners_are_spread_evenly():
    # A list shifted by a constant would pair neighbours; within a block of 30 there must be no such habit.
    pairs = cohort(30).pairs("train", "random", count=30)
    distances = {(int(p.moving.name[1:]) - int(p.fixed.name[1:])) % 30 for p in pairs}
    assert len(distances) > 12


def test_a_billion_random_pairs_can_be_had_by_index():
    pairs = cohort(150).pairs("train", "random", count=10**9, seed=5)
    assert len(pairs) == 10**9
    assert pairs[987_654_321] == cohort(150).pairs("train", "random", count=987_654_322, seed=5)[-1]
    assert pairs[987_654_321].fixed != pairs[987_654_321].moving
    assert len(pickle.dumps(pairs)) < 20_000  # what a loader's worker process receives


def test_all_pairs_of_182_subjects():
    pairs = cohort(182).pairs("train", "all")
    assert len(pairs) == 32_942
    assert len(set(names(pairs))) == 32_942
    assert all(p.fixed != p.moving for p in pairs)
    assert len(pickle.dumps(pairs)) < 20_000


def test_consecutive_and_atlas_pairs():
    c = cohort(4)
    assert names(c.pairs("train", "consecutive")) == [("s000", "s001"), ("s001", "s002"), ("s002", "s003")]
    assert names(c.pairs("train", "atlas")) == [("s000", "s001"), ("s000", "s002"), ("s000", "s003")]
    assert names(c.pairs("train", "atlas", atlas="s002")) == [("s002", "s000"), ("s002", "s001"), ("s002", "s003")]


def test_the_atlas_of_every_split_is_a_training_subject():
    c = Cohort(DATASETS["hippocampus"], subjects(30), split_subjects(subjects(30)))
    assert {p.fixed for p in c.pairs("test", "atlas")} == {c.splits["train"][0]}
    assert len(c.pairs("test", "atlas")) == len(c.splits["test"])


def test_pairs_behave_as_a_sequence():
    pairs = cohort(5).pairs("train", "all")
    assert list(pairs) == pairs[:] == [pairs[i] for i in range(20)]
    assert pairs[-1] == pairs[19]
    assert pairs[0].name == "s001_to_s000"
    with pytest.raises(IndexError):
        pairs[20]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("train", "nearest"), "choose from random, consecutive, atlas, all, official"),
        (("training", "all"), "choose from train, val, test"),
        (("val", "all"), "has 0 subjects"),
        (("train", "official"), "no official pairs"),
        (("train", "all", 13), "ask for 1 to 12"),
        (("train", "random", 0), "ask for 1 or more"),
        (("train", "random", 5, -1), "negative"),
        (("train", "atlas", None, 0, "s9"), "no subject 's9'"),
    ],
)
def test_pairs_that_cannot_be_had(arguments, words):
    with pytest.raises(CourseError, match=words):
        cohort(4).pairs(*arguments)


def test_without_takes_subjects_out_of_every_place():
    everyone = subjects(8)
    whole = cohort(8, train=everyone[:4], val=everyone[4:6], test=everyone[6:])
    official = tuple(whole.pairs("val", "consecutive")) + tuple(whole.pairs("test", "consecutive"))
    rest = replace(whole, official={"val": official}).without(["s001", "s005"])
    assert [s.name for s in rest.splits["train"]] == ["s000", "s002", "s003"]
    assert len(rest.subjects) == 6
    assert names(rest.official["val"]) == [("s006", "s007")]


# --- folders ----------------------------------------------------------------------------------------------------------


def test_the_data_folder_is_monais(monkeypatch, tmp_path):
    monkeypatch.setenv("MONAI_DATA_DIRECTORY", str(tmp_path))
    assert data_root() == tmp_path
    monkeypatch.delenv("MONAI_DATA_DIRECTORY")
    monkeypatch.chdir(ROOT)
    assert str(data_root()) == "data"
    monkeypatch.chdir(ROOT / "notebooks")  # where JupyterLab starts a notebook's kernel
    assert data_root().resolve() == ROOT / "data"
    monkeypatch.chdir(tmp_path)
    assert data_root().resolve() == tmp_path / "data"


def test_hippocampus(tmp_path):
    c = load_cohort("hippocampus", decathlon(tmp_path), download=False)
    assert len(c.subjects) == 20  # and not the hidden companion
    first = c.subjects[0]
    assert first.name == "hippocampus_000" and first.label.parent.name == "labelsTr"
    assert c.info.labels == {1: "anterior", 2: "posterior"}
    assert c.info.recipe == Recipe((48, 64, 48), (1.0, 1.0, 1.0), aligned=False)


def test_an_unknown_name_lists_the_valid_ones():
    with pytest.raises(CourseError, match="synthetic, hippocampus, oasis2d, oasis, learn2reg"):
        load_cohort("hipocampus")


def test_a_missing_and_an_empty_folder_name_the_command(tmp_path):
    command = "python -m course_utils download hippocampus"
    with pytest.raises(CourseError, match=f"no hippocampus data in .*{command}"):
        load_cohort("hippocampus", tmp_path, download=False)
    (tmp_path / "Task04_Hippocampus").mkdir()
    with pytest.raises(CourseError, match=rf"holds no imagesTr.*{command}"):
        load_cohort("hippocampus", tmp_path)


def oasis(root, numbers, name="oasis", labels=None):
    for number in numbers:
        for file in ("aligned_norm", "aligned_seg35", "aligned_seg4", "slice_norm", "slice_seg24"):
            touch(root / name / f"OASIS_OAS1_{number:04d}_MR1" / f"{file}.nii.gz")
    if labels:
        touch(root / name / "seg35_labels.txt", labels.encode())
    return root


def test_oasis_keeps_the_challenges_validation_subjects_out_of_training(tmp_path):
    c = load_cohort("oasis", oasis(tmp_path, [*range(1, 41), *range(438, 458)]), download=False)
    assert [s.name for s in c.splits["val"]] == [f"OASIS_OAS1_{n:04d}_MR1" for n in range(438, 458)]
    assert len(c.splits["test"]) == 8 and len(c.splits["train"]) == 32
    pairs = c.pairs("val", "official")
    assert len(pairs) == 19
    assert pairs[0].name == "OASIS_OAS1_0439_MR1_to_OASIS_OAS1_0438_MR1"
    assert c.info.recipe == Recipe((160, 192, 224), (1.0, 1.0, 1.0), aligned=True)


def test_oasis_label_sets(tmp_path):
    table = "0 Unknown 0 0 0\n1 Left-Cerebral-White-Matter 245 245 245\n11\t3rd-Ventricle 1 2 3\n"
    oasis(tmp_path, range(1, 11), labels=table)
    c = load_cohort("oasis", tmp_path, download=False)
    assert c.subjects[0].label.name == "aligned_seg35.nii.gz"
    assert c.info.labels == {1: "Left-Cerebral-White-Matter", 11: "3rd-Ventricle"}
    c = load_cohort("oasis", tmp_path, download=False, label_set=4)
    assert c.subjects[0].label.name == "aligned_seg4.nii.gz"
    assert c.info.labels == {1: "cortex", 2: "subcortical grey matter", 3: "white matter", 4: "CSF"}
    oasis(tmp_path, range(1, 11), "oasis2d")
    c = load_cohort("oasis2d", tmp_path, download=False)
    assert c.subjects[0].label.name == "slice_seg24.nii.gz" and list(c.info.labels) == list(range(1, 25))
    with pytest.raises(CourseError, match="choose from 4, 35"):
        load_cohort("oasis", tmp_path, download=False, label_set=5)
    with pytest.raises(CourseError, match="leave it out"):
        load_cohort("hippocampus", tmp_path, download=False, label_set=4)


def test_the_built_in_cohort_describes_itself(tmp_path):
    for i in range(8):
        for folder in ("images", "labels", "velocities"):
            touch(tmp_path / "synthetic" / folder / f"synthetic_{i:03d}.nii.gz")
    facts = {"labels": {"1": "left cortex"}, "shape": [96, 96], "spacing": [1.75, 1.75]}
    touch(tmp_path / "synthetic" / "cohort.json", json.dumps(facts).encode())
    c = load_cohort("synthetic", tmp_path)
    assert (c.info.labels, c.info.shape, c.info.spacing) == ({1: "left cortex"}, (96, 96), (1.75, 1.75))
    assert c.subjects[0].velocity.name == "synthetic_000.nii.gz"
    touch(tmp_path / "synthetic" / "cohort.json", b'{"labels": {}}')
    with pytest.raises(CourseError, match="lacks labels, shape or spacing"):
        load_cohort("synthetic", tmp_path)


# --- Learn2Reg --------------------------------------------------------------------------------------------------------


def learn2reg(folder, n=14, val=((11, 12), (12, 13)), test=(), **facts):
    def entry(i):
        return f"./imagesTr/OASIS_{i:04d}_0000.nii.gz"

    for i in range(n):
        volume(folder / entry(i), spacing=2.0)
        volume(folder / entry(i).replace("images", "labels"), value=3)
    content = {
        "name": "OASIS",
        "tensorImageShape": {"0": [5, 6, 7]},
        "training": [{"image": entry(i), "label": entry(i).replace("images", "labels")} for i in range(n)],
        "registration_val": [{"fixed": entry(f), "moving": entry(m)} for f, m in val],
        "registration_test": [{"fixed": entry(f), "moving": entry(m)} for f, m in test],
    }
    touch(folder / "OASIS_dataset.json", json.dumps(content | facts).encode())
    return folder


@pytest.mark.parametrize("below", [False, True])
def test_learn2reg_pairs_and_splits_are_the_challenges(tmp_path, below):
    tmp_path /= "images"  # a word of the layout in the user's own path
    folder = learn2reg(tmp_path / "learn2reg")
    c = load_cohort("learn2reg", tmp_path if below else folder, download=False)
    official = c.pairs("val", "official")
    assert names(official)[0] == ("OASIS_0011_0000", "OASIS_0012_0000") and len(official) == 2
    assert [s.name for s in c.splits["val"]] == ["OASIS_0011_0000", "OASIS_0012_0000", "OASIS_0013_0000"]
    assert len(c.splits["train"]) == 9 and len(c.splits["test"]) == 2
    assert (c.info.shape, c.info.spacing, c.info.labels) == ((5, 6, 7), (2.0, 2.0, 2.0), {3: "label 3"})
    assert c.info.recipe.aligned  # the challenge measures in voxels as stored
    assert c.subjects[0].label.is_file()


def test_learn2reg_test_pairs_and_label_names(tmp_path):
    folder = learn2reg(
        tmp_path, test=[(0, 1), (97, 98)], labels={"0": {"0": "background", "1": "cortex", "2": "white matter"}}
    )
    with pytest.warns(UserWarning, match="1 pairs whose images are not in"):
        c = load_cohort("learn2reg", folder, download=False)
    assert names(c.pairs("test", "official")) == [("OASIS_0000_0000", "OASIS_0001_0000")]
    assert [len(c.splits[side]) for side in ("train", "val", "test")] == [9, 3, 2]
    assert c.info.labels == {1: "cortex", 2: "white matter"}


def test_learn2reg_validation_archive_alone(tmp_path):
    c = load_cohort("learn2reg", learn2reg(tmp_path, n=3, val=((0, 1), (1, 2))), download=False)
    assert [len(c.splits[side]) for side in ("train", "val", "test")] == [0, 3, 0]
    assert len(c.pairs("val", "official")) == 2
    with pytest.raises(CourseError, match="'test' of learn2reg has 0 subjects"):
        c.pairs("test", "random")


def test_learn2reg_of_2021_has_no_json(tmp_path):
    for number in range(438, 458):
        volume(tmp_path / "learn2reg" / f"img{number:04d}.nii.gz")
        volume(tmp_path / "learn2reg" / f"seg{number:04d}.nii.gz", value=35)
    c = load_cohort("learn2reg", tmp_path, download=False)
    pairs = c.pairs("val", "official")
    assert len(pairs) == 19 and pairs[0].name == "0439_to_0438"
    assert pairs[0].fixed.label.name == "seg0438.nii.gz"
    assert (c.splits["train"], c.info.shape, c.info.labels) == ((), (5, 6, 7), {35: "label 35"})


def test_learn2reg_faults(tmp_path):
    (tmp_path / "learn2reg").mkdir()
    with pytest.raises(CourseError, match=r"holds no NAME_dataset\.json"):
        load_cohort("learn2reg", tmp_path, download=False)
    learn2reg(tmp_path / "learn2reg" / "a")
    learn2reg(tmp_path / "learn2reg" / "b")
    with pytest.raises(CourseError, match="holds 2 files"):
        load_cohort("learn2reg", tmp_path, download=False)
    touch(tmp_path / "c" / "X_dataset.json", b"{half")
    with pytest.raises(CourseError, match="cannot be read as JSON"):
        load_cohort("learn2reg", tmp_path / "c", download=False)
    touch(tmp_path / "c" / "X_dataset.json", b'{"registration_val": [{"fixed": "a"}]}')
    with pytest.raises(CourseError, match="not in the Learn2Reg layout"):
        load_cohort("learn2reg", tmp_path / "c", download=False)
    touch(tmp_path / "c" / "X_dataset.json", b'{"training": ["imagesTr/a.nii.gz"]}')
    with pytest.raises(CourseError, match="none of the images"):
        load_cohort("learn2reg", tmp_path / "c", download=False)


# --- registry ---------------------------------------------------------------------------------------------------------

OWN = """
[hippocampus]
url = "http://mirror/Task04_Hippocampus.tar"

[lungs]
folder = "lungs"
shape = [32, 32, 32]
spacing = [2, 2, 2]
image = "{name}/{name}_ct.nii.gz"
label = "{name}/{name}_lobes.nii.gz"
labels = {1 = "left", 2 = "right"}
"""


def test_an_own_registry_adds_and_changes(tmp_path):
    path = tmp_path / "own.toml"
    path.write_text(OWN, encoding="utf-8")
    info = dataset_info("hippocampus", path)
    assert info.url.startswith("http://mirror") and info.checksum == DATASETS["hippocampus"].checksum
    for i in range(6):
        for file in ("ct", "lobes"):
            touch(tmp_path / "lungs" / f"p{i}" / f"p{i}_{file}.nii.gz")
    touch(tmp_path / "lungs" / "p1" / "p2_ct.nii.gz")  # is not subject p1's
    c = load_cohort("lungs", tmp_path, registry=path, download=False)
    assert [s.name for s in c.subjects] == [f"p{i}" for i in range(6)]
    assert c.subjects[3].label == tmp_path / "lungs" / "p3" / "p3_lobes.nii.gz"
    assert c.info.labels == {1: "left", 2: "right"}
    assert "lungs" not in DATASETS
    with pytest.raises(CourseError, match="lungs has no address"):
        fetch(replace(info, name="lungs", url="", folder="nothing"), tmp_path)


def test_json_registry(tmp_path):
    path = tmp_path / "own.json"
    path.write_text(
        json.dumps({"oasis": {"url": "http://mirror/oasis.tar", "labels": {"1": "brain"}}}), encoding="utf-8"
    )
    assert read_registry(path)["oasis"].labels == {1: "brain"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[half", "cannot be read"),
        ("[oasis]\nurll = 'x'", "no field called 'urll': choose from .*url"),
        ("[new]\nshape = [4, 4, 4]", "2 or 3 numbers each"),
        ("[new]\nimage = 'images/{name}.nii'", "shape and spacing need"),
        ("[new]\nshape = [4, 4, 4]\nspacing = [1, 1, 1]\nimage = 'images/*.nii'", "image needs {name}"),
        ("[oasis]\nfolder = '../elsewhere'", "not a path out of it"),
        ("[oasis]\nlabels = {one = 'cortex'}", "invalid literal"),
        ("oasis = 3", "oasis"),
    ],
)
def test_registry_faults(tmp_path, text, words):
    path = tmp_path / "own.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(CourseError, match=words) as caught:
        read_registry(path)
    assert str(path) in str(caught.value)


def test_a_missing_registry(tmp_path):
    with pytest.raises(CourseError, match="cannot be read"):
        read_registry(tmp_path / "none.toml")


def test_every_entry_says_where_it_comes_from_and_on_what_terms():
    for info in DATASETS.values():
        assert info.licence in terms(info) and info.citation in terms(info)
        assert info.licence and info.citation and fill_command(info).startswith("python -m course_utils ")


# --- download and load in one call ------------------------------------------------------------------------------------


def test_one_call_downloads_unpacks_and_finds(tmp_path):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in [f"{folder}/s{i}.nii.gz" for folder in ("imagesTr", "labelsTr", "imagesTs") for i in range(6)]:
            info = tarfile.TarInfo(f"Task04_Hippocampus/{name}")
            info.size = 3
            archive.addfile(info, io.BytesIO(b"abc"))
    touch(tmp_path / "served" / "a.tar", buffer.getvalue())
    handler = partial(SimpleHTTPRequestHandler, directory=tmp_path / "served")
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    registry = tmp_path / "own.json"
    own = {
        "url": f"http://127.0.0.1:{server.server_address[1]}/a.tar",
        "checksum": "md5:" + hashlib.md5(buffer.getvalue()).hexdigest(),
    }
    registry.write_text(json.dumps({"hippocampus": own}), encoding="utf-8")
    try:
        c = load_cohort("hippocampus", tmp_path / "data", registry=registry)
    finally:
        server.shutdown()
        server.server_close()
    assert len(c.subjects) == 6
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["Task04_Hippocampus"]
    assert not (tmp_path / "data" / "Task04_Hippocampus" / "imagesTs").exists()
    assert load_cohort("hippocampus", tmp_path / "data").subjects == c.subjects  # the server is gone, the data is there


@pytest.mark.parametrize(("count", "expected"), [(3, 3), (50, 12)])
def test_distinct_pairs_come_once(count, expected):
    people = tuple(Subject(f"s{i}", Path(f"s{i}.nii.gz")) for i in range(4))
    pairs = Cohort(DATASETS["hippocampus"], people, {"test": people}).distinct_pairs("test", count)
    assert len({pair.name for pair in pairs}) == len(pairs) == expected


def test_distinct_pairs_of_nobody_say_why():
    alone = (Subject("s0", Path("s0.nii.gz")),)
    with pytest.raises(CourseError, match="has 1 subject, and a pair needs 2"):
        Cohort(DATASETS["hippocampus"], alone, {"test": alone}).distinct_pairs("test", 5)


def test_a_card_says_what_a_network_must_carry_along():
    card = DATASETS["hippocampus"].card()
    assert DataCard.from_dict(json.loads(json.dumps(card.to_dict()))) == card
    assert card.labels == {1: "anterior", 2: "posterior"} and card.licence == "CC BY-SA 4.0"
