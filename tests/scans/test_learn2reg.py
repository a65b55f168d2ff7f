"""Learn2Reg: what is submitted, and that it is measured as the challenge measures it."""

import gzip
import io
import json
import os
import zipfile
from dataclasses import replace

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import surface_distance
import torch
from scipy.ndimage import correlate, gaussian_filter, map_coordinates
from torch import nn

from course_utils.data.cohorts import load_cohort
from course_utils.data.recipe import Recipe
from course_utils.errors import CourseError
from course_utils.evaluation import summarise
from course_utils.networks import Registration, RegistrationNetwork, architecture
from course_utils.scans import learn2reg, learn2reg_evaluation
from tests.checkpoints import checkpoint

pytestmark = pytest.mark.slow

SHAPE = (24, 20, 16)


def image_name(case, folder="imagesTr"):
    return f"./{folder}/Blobs_{case:04d}_0000.nii.gz"


def save(array, path, affine=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.eye(4) if affine is None else affine), path)


def blobs(seed, shape=SHAPE):
    """An image of noise with structure, and labels 0, 1, 2 that follow it and touch the border."""
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=shape), 2.5)
    noise /= noise.std()
    label = (noise > 0.7).astype(np.uint8) + (noise > 1.4)
    return noise.astype(np.float32), label


def smooth_field(seed, size, shape=SHAPE):
    """Smooth noise of a standard deviation in voxels, as float32 `(*shape, 3)`."""
    noise = np.random.default_rng(seed).normal(size=(3, *shape))
    field = np.stack([gaussian_filter(n, 2.5) for n in noise], axis=-1)
    return (field / field.std() * size).astype(np.float32)


def write_task(folder, images, pairs, **facts):
    """`images`: case number to (image, label). The layout of the challenge's archives."""
    for case, (image, label) in images.items():
        save(image, folder / image_name(case), facts.get("affine"))
        save(label, folder / image_name(case, "labelsTr"), facts.get("affine"))
    content = {
        "name": "Blobs",
        "labels": {"0": {"0": "background", "1": "shell", "2": "core"}},
        "tensorImageShape": {"0": list(next(iter(images.values()))[0].shape)},
        "training": [{"image": image_name(c), "label": image_name(c, "labelsTr")} for c in images],
        "registration_val": [{"fixed": image_name(f), "moving": image_name(m)} for f, m in pairs],
    }
    (folder / "Blobs_dataset.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


@pytest.fixture
def task(tmp_path):
    return write_task(tmp_path / "task", {c: blobs(c) for c in range(1, 8)}, [(5, 6), (6, 7), (7, 5)])


@architecture("shift")
class Shift(RegistrationNetwork):
    """Registers by a constant shift, in voxels of whatever grid it is given."""

    def __init__(self, shift):
        super().__init__()
        self.shift = nn.Parameter(torch.tensor(shift, dtype=torch.float32))

    def forward(self, moving, fixed, condition=None):
        self.seen = tuple(moving.shape[2:])
        field = self.shift.view(1, -1, 1, 1, 1).expand(1, 3, *moving.shape[2:])
        return Registration(moving, field)


def trained(model=None, shape=SHAPE, spacing=None):
    """A network with weights that move things, or `model`; for aligned volumes unless it has a spacing."""
    recipe = Recipe(shape, spacing or (1.0,) * len(shape), aligned=spacing is None)
    if model is None:
        return checkpoint(recipe, features=[8, 8], instance_norm=False)
    return replace(checkpoint(recipe), network=model.spec, weights=model.state_dict())


def cohort_of(folder):
    return load_cohort("learn2reg", folder, download=False)


def unpack(archive):
    """The fields of a submission by name, read as the official evaluator reads them."""
    with zipfile.ZipFile(archive) as file:
        content = {name: file.read(name) for name in file.namelist()}
    return {
        name: np.load(io.BytesIO(data))["arr_0"]
        if name.endswith(".npz")
        else nib.Nifti1Image.from_bytes(gzip.decompress(data)).get_fdata()
        for name, data in content.items()
    }


# --- the submission ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({}, "disp_0005_0000_0006_0000.nii.gz"),
        ({"file_format": "npz"}, "disp_0005_0000_0006_0000.npz"),
        ({"short_names": True}, "disp_0005_0006.nii.gz"),
    ],
)
def test_a_submission_is_the_network_s_own_fields(task, tmp_path, options, name):
    network = trained()
    names = learn2reg.write_submission(network, cohort_of(task), tmp_path / "s.zip", **options)
    fields = unpack(tmp_path / "s.zip")
    assert list(fields) == names and names[0] == name and len(names) == 3

    def normalised(case):
        image = torch.from_numpy(nib.load(task / image_name(case)).get_fdata(dtype=np.float32))
        low, high = np.percentile(image, (0.5, 99.5))
        return ((image - low) / (high - low)).clip(0, 1)[None, None]

    with torch.inference_mode():
        registration = network.model()(normalised(6), normalised(5))
    assert fields[name].shape == (*SHAPE, 3)
    np.testing.assert_allclose(fields[name], registration.displacement[0].movedim(0, -1), atol=1e-5)
    assert np.abs(fields[name]).max() > 0.5
    # Applied as the challenge applies it, the field gives the network's moved image.
    moved = map_coordinates(normalised(6)[0, 0], np.indices(SHAPE) + fields[name].transpose(3, 0, 1, 2), order=1)
    inside = (slice(3, -3),) * 3
    np.testing.assert_allclose(moved[inside], registration.moved[0, 0][inside], atol=1e-4)


def test_a_submission_is_the_same_bytes_twice(task, tmp_path):
    for name in ("a.zip", "b.zip"):
        learn2reg.write_submission(trained(), cohort_of(task), tmp_path / name)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def test_short_names_that_mean_two_pairs_are_refused(task, tmp_path):
    (task / "imagesTr" / "Blobs_0006_0001.nii.gz").write_bytes((task / image_name(6)).read_bytes())
    content = json.loads((task / "Blobs_dataset.json").read_text(encoding="utf-8"))
    content["registration_val"].append({"fixed": image_name(5), "moving": "./imagesTr/Blobs_0006_0001.nii.gz"})
    (task / "Blobs_dataset.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(CourseError, match="two pairs would be called disp_0005_0006"):
        learn2reg.write_submission(trained(), cohort_of(task), tmp_path / "s.zip", short_names=True)
    assert learn2reg.write_submission(trained(), cohort_of(task), tmp_path / "s.zip")[-1] == (
        "disp_0005_0000_0006_0001.nii.gz"
    )


@pytest.mark.parametrize("axcodes", ["LPS", "LIA", "PSR"])
def test_a_network_of_ras_volumes_registers_any_orientation_alike(task, tmp_path, axcodes):
    turn = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(np.eye(4)), nib.orientations.axcodes2ornt(axcodes)
    )
    turned = tmp_path / "turned"
    for path in sorted(task.rglob("*.nii.gz")):
        image = nib.load(path).as_reoriented(turn)
        (turned / path.relative_to(task)).parent.mkdir(parents=True, exist_ok=True)
        nib.save(image, turned / path.relative_to(task))
    content = json.loads((task / "Blobs_dataset.json").read_text(encoding="utf-8"))
    content["tensorImageShape"] = {"0": list(image.shape)}
    (turned / "Blobs_dataset.json").write_text(json.dumps(content), encoding="utf-8")
    network = trained(spacing=(1.0, 1.0, 1.0), shape=(16, 16, 16))
    moved = []
    for folder in (task, turned):
        cohort = cohort_of(folder)
        pair = cohort.official["val"][0]
        field = learn2reg.predict(network.model(), network.card.recipe, pair, cohort.info.shape)
        moving = nib.load(pair.moving.image).get_fdata()
        moved.append(map_coordinates(moving, np.indices(moving.shape) + field.transpose(3, 0, 1, 2), order=1))
    assert np.abs(moved[0] - nib.load(task / image_name(6)).get_fdata()).max() > 0.5  # something moved
    np.testing.assert_allclose(nib.apply_orientation(moved[0], turn), moved[1], atol=1e-3)


def test_another_spacing_is_resampled_and_the_field_is_in_the_task_s_voxels(tmp_path):
    folder = write_task(
        tmp_path, {c: blobs(c) for c in range(1, 8)}, [(5, 6), (6, 7)], affine=np.diag([2.0, 1.0, -3.0, 1.0])
    )
    cohort = cohort_of(folder)
    model = Shift([4.0, -1.0, 1.5])  # mm, the network's voxels being 1 mm
    recipe = Recipe(SHAPE, (1.0, 1.0, 1.0))
    field = learn2reg.predict(model, recipe, cohort.official["val"][0], cohort.info.shape)
    assert model.seen == (48, 20, 48)
    assert field.shape == (*SHAPE, 3)
    np.testing.assert_allclose(field - [2.0, -1.0, -0.5], 0, atol=1e-5)  # the third axis runs from S to I


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ({"shape": (24, 20)}, "the model is 2-D and the task is 3-D: train one on this folder"),
        ({"shape": (24, 24, 16)}, r"aligned volumes of 24x24x16 voxels of 1x1x1 mm, the task has 24x20x16 voxels of"),
    ],
)
def test_a_network_for_something_else_is_refused(task, tmp_path, network, message):
    with pytest.raises(CourseError, match=message):
        learn2reg.write_submission(trained(**network), cohort_of(task), tmp_path / "s.zip")
    other = trained()
    other = replace(other, card=replace(other.card, recipe=Recipe(SHAPE, (2.0, 2.0, 2.0), aligned=True)))
    with pytest.raises(CourseError, match="of 2x2x2 mm, the task has 24x20x16 voxels of 1x1x1 mm"):
        learn2reg.write_submission(other, cohort_of(task), tmp_path / "s.zip")
    assert not (tmp_path / "s.zip").exists()


FAULTS = {
    "no pairs": (lambda folder: forget(folder, "registration_val"), "lists no pairs registration_val"),
    "a case is missing": (
        lambda folder: (folder / image_name(6)).unlink(),
        r"1 of the images .* are missing, the first is .*Blobs_0006_0000\.nii\.gz",
    ),
    "truncated": (lambda folder: os.truncate(folder / image_name(7), 400), "Blobs_0007_0000.nii.gz cannot be read"),
    "another shape": (
        lambda folder: save(np.ones((24, 20, 17), np.float32), folder / image_name(7)),
        r"Blobs_0007_0000.nii.gz has shape \(24, 20, 17\) and the task \(24, 20, 16\)",
    ),
    "4-D": (
        lambda folder: save(np.ones((*SHAPE, 2), np.float32), folder / image_name(7)),
        r"has shape \(24, 20, 16, 2\)",
    ),
    "constant": (lambda folder: save(np.ones(SHAPE, np.float32), folder / image_name(7)), "is constant"),
    "a name without numbers": (lambda folder: rename(folder), "four digits of a case"),
}


def forget(folder, key):
    path = folder / "Blobs_dataset.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({k: v for k, v in content.items() if k != key}), encoding="utf-8")


def rename(folder):
    path = folder / "Blobs_dataset.json"
    path.write_text(
        path.read_text(encoding="utf-8").replace("imagesTr/Blobs_0007_0000", "imagesTr/Blobs_seven"), encoding="utf-8"
    )
    (folder / image_name(7)).rename(folder / "imagesTr" / "Blobs_seven.nii.gz")


@pytest.mark.filterwarnings("ignore:.*pairs whose images are not in")
@pytest.mark.parametrize("fault", FAULTS)
def test_nothing_is_left_behind_when_a_pair_cannot_be_registered(task, tmp_path, fault):
    spoil, message = FAULTS[fault]
    spoil(task)
    out = tmp_path / "out"
    out.mkdir()
    (out / "s.zip").write_text("the submission before", encoding="utf-8")
    with pytest.raises(CourseError, match=message):
        learn2reg.write_submission(trained(), cohort_of(task), out / "s.zip")
    assert [path.name for path in out.iterdir()] == ["s.zip"]
    assert (out / "s.zip").read_text(encoding="utf-8") == "the submission before"


def test_a_network_that_diverged_or_fails_writes_nothing(task, tmp_path):
    with pytest.raises(CourseError, match="0006_0000_to_Blobs_0005_0000: the field holds NaN"):
        learn2reg.write_submission(trained(Shift([torch.nan, 0, 0])), cohort_of(task), tmp_path / "s.zip")

    @architecture("full")
    class Full(RegistrationNetwork):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def forward(self, moving, fixed, condition=None):
            raise torch.OutOfMemoryError("out of memory")

    with pytest.raises(CourseError, match=r"cannot register 24x20x16 voxels .out of memory.: use a device with more"):
        learn2reg.write_submission(trained(Full()), cohort_of(task), tmp_path / "s.zip")
    assert not list(tmp_path.glob("*s.zip*"))


def test_training_images_may_be_listed_by_modality(task):
    path = task / "Blobs_dataset.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["training"] = {"0": content["training"][:3], "1": content["training"][3:]}
    path.write_text(json.dumps(content), encoding="utf-8")
    assert [len(cohort_of(task).splits[side]) for side in ("train", "val")] == [4, 3]


# --- the evaluation ---------------------------------------------------------------------------------------------------


def official(fixed, moving, field, labels):
    """The challenge's definitions, written down from FACTS and not from the package: Dice, HD95, SDlogJ."""
    field = np.asarray(field, dtype=np.float64)
    identity = np.stack(np.meshgrid(*map(np.arange, fixed.shape), indexing="ij")).astype(np.float64)
    moved = map_coordinates(moving.astype(np.float64), identity + field.transpose(3, 0, 1, 2), order=0)
    dice, hd95 = [], []
    for value in labels:
        a, b = fixed == value, moved == value
        if not a.any() or not (moving == value).any():
            dice.append(np.nan)
            hd95.append(np.nan)
            continue
        dice.append(2 * (a & b).sum() / (a.sum() + b.sum()))
        surfaces = surface_distance.compute_surface_distances(a, b, np.ones(3))
        hd95.append(surface_distance.compute_robust_hausdorff(surfaces, 95.0))
    gradient = np.empty((*fixed.shape, 3, 3))
    for axis in range(3):
        kernel = np.array([-0.5, 0, 0.5]).reshape([3 if i == axis else 1 for i in range(3)])
        for component in range(3):
            gradient[..., component, axis] = correlate(field[..., component], kernel, mode="constant")
    determinant = np.linalg.det(gradient + np.eye(3))[2:-2, 2:-2, 2:-2]
    return dice, hd95, np.std(np.log(np.clip(determinant + 3, 1e-9, 1e9))), determinant


def check_against_the_official(folder, fields, labels, tmp_path):
    """Submit `fields` (one a pair, as the files hold them) and compare every number with the reference."""
    cohort = cohort_of(folder)
    pairs = cohort.official["val"]
    (tmp_path / "fields").mkdir()
    for pair, field in zip(pairs, fields, strict=True):
        save(field, tmp_path / "fields" / f"{learn2reg.field_name(pair)}.nii.gz")
    table = learn2reg_evaluation.evaluate_submission(tmp_path / "fields", cohort)
    expected = []
    for pair, field in zip(pairs, fields, strict=True):
        fixed, moving = (np.asarray(nib.load(s.label).dataobj) for s in (pair.fixed, pair.moving))
        dice, hd95, sdlogj, _ = official(fixed, moving, field, labels)
        before, hd95_before, *_ = official(fixed, moving, np.zeros_like(field), labels)
        rows = table[table["pair"] == pair.name]
        np.testing.assert_allclose(rows["dice_after"], dice, atol=1e-4)
        np.testing.assert_allclose(rows["hd95_voxels_after"], hd95, atol=1e-4)
        np.testing.assert_allclose(rows["dice_before"], before, atol=1e-4)
        np.testing.assert_allclose(rows["hd95_voxels_before"], hd95_before, atol=1e-4)
        np.testing.assert_allclose(rows["sdlogj_learn2reg"], sdlogj, atol=1e-4)
        expected.append((np.nanmean(dice), np.nanmean(hd95), sdlogj))
    summary = summarise(table).loc["overall"]
    published = [summary[m, "mean"] for m in ("dice_after", "hd95_voxels_after", "sdlogj_learn2reg")]
    np.testing.assert_allclose(published, np.mean(expected, axis=0), atol=1e-4)
    return table


def test_every_number_is_the_official_one(task, tmp_path):
    # Mild; beyond the borders; exactly between two voxels, where rounding decides.
    fields = [smooth_field(0, 1.0), smooth_field(1, 4.0), np.full((*SHAPE, 3), 0.5, np.float32)]
    table = check_against_the_official(task, fields, [1, 2], tmp_path)
    folding = table.groupby("pair", sort=False)["folding_percent"].first().to_numpy()
    assert folding[1] > 1 and folding[2] == 0  # the official count is 0 for all of them


def test_hippocampus_in_the_challenge_s_layout_is_measured_as_officially(real_data, tmp_path):
    cases = {}
    names = sorted((real_data / "Task04_Hippocampus" / "imagesTr").glob("hippo*.nii.gz"))[:5]
    for case, path in enumerate(names, 201):
        volumes = [np.asarray(nib.load(str(path).replace("imagesTr", f)).dataobj) for f in ("imagesTr", "labelsTr")]
        margins = [((64 - n) // 2, 64 - n - (64 - n) // 2) for n in volumes[0].shape]
        cases[case] = tuple(np.pad(volume, margins) for volume in volumes)
    folder = write_task(tmp_path / "HippocampusMR", cases, [(201, 205), (202, 204)])
    fields = [smooth_field(seed, 2.0, (64, 64, 64)) for seed in (0, 1)]
    table = check_against_the_official(folder, fields, [1, 2], tmp_path)
    assert table["dice_before"].between(0.2, 0.9).all()


def test_a_structure_that_one_image_lacks_is_not_measured_and_one_that_vanishes_is(tmp_path):
    images = {case: blobs(case) for case in (1, 2, 3, 4)}
    images[2] = (images[2][0], np.minimum(images[2][1], 1))  # no core
    folder = write_task(tmp_path / "task", images, [(1, 2), (3, 4)])
    away = np.full((*SHAPE, 3), 100, np.float32)
    (tmp_path / "fields").mkdir()
    for name in ("disp_0001_0000_0002_0000", "disp_0003_0000_0004_0000"):
        save(away, tmp_path / "fields" / f"{name}.nii.gz")
    table = learn2reg_evaluation.evaluate_submission(tmp_path / "fields", cohort_of(folder)).set_index(
        ["pair", "structure"]
    )
    first, second = table.loc["Blobs_0002_0000_to_Blobs_0001_0000"], table.loc["Blobs_0004_0000_to_Blobs_0003_0000"]
    measured = ["dice_before", "dice_after", "hd95_voxels_before", "hd95_voxels_after"]
    assert first.loc["core", measured].isna().all()
    assert (first.loc["shell", "dice_after"], first.loc["shell", "hd95_voxels_after"]) == (0, np.inf)
    assert (second["dice_after"] == 0).all() and np.isinf(second["hd95_voxels_after"]).all()


def test_labels_that_the_json_does_not_name_are_measured(task, tmp_path):
    content = json.loads((task / "Blobs_dataset.json").read_text(encoding="utf-8")) | {"labels": {"0": {"1": "shell"}}}
    (task / "Blobs_dataset.json").write_text(json.dumps(content), encoding="utf-8")
    learn2reg.write_submission(trained(), cohort_of(task), tmp_path / "s.zip")
    table = learn2reg_evaluation.evaluate_submission(tmp_path / "s.zip", cohort_of(task))
    assert table["structure"].tolist() == ["shell", "label 2"] * 3


def test_hd95_of_two_plates_is_their_distance():
    a, b = np.zeros((2, 12, 12, 12), bool)
    a[2], b[7] = True, True
    assert learn2reg_evaluation.hd95_learn2reg(a, b) == 5
    assert np.isinf(learn2reg_evaluation.hd95_learn2reg(a, np.zeros_like(a)))
    assert np.isnan(learn2reg_evaluation.hd95_learn2reg(np.zeros_like(a), np.zeros_like(a)))


@pytest.mark.parametrize("layout", ["full", "short", "npz", "in a folder of the archive", "unpacked"])
def test_a_submission_is_read_in_every_form_that_is_submitted(task, tmp_path, layout):
    cohort, out = cohort_of(task), tmp_path / "s.zip"
    options = {"short": {"short_names": True}, "npz": {"file_format": "npz"}}.get(layout, {})
    learn2reg.write_submission(trained(), cohort, out, **options)
    if layout == "in a folder of the archive":
        with zipfile.ZipFile(out) as file, zipfile.ZipFile(tmp_path / "t.zip", "w") as other:
            for name in file.namelist():
                other.writestr(f"submission/{name}", file.read(name))
        out = tmp_path / "t.zip"
    if layout == "unpacked":
        with zipfile.ZipFile(out) as file:
            file.extractall(tmp_path / "unpacked")
        out = tmp_path / "unpacked"
    table = learn2reg_evaluation.evaluate_submission(out, cohort)
    learn2reg.write_submission(trained(), cohort, tmp_path / "full.zip")
    pd.testing.assert_frame_equal(table, learn2reg_evaluation.evaluate_submission(tmp_path / "full.zip", cohort))


def repack(path, change):
    with zipfile.ZipFile(path) as file:
        content = {name: file.read(name) for name in file.namelist()}
    with zipfile.ZipFile(path, "w") as file:
        for name, data in change(content).items():
            file.writestr(name, data)


def encoded(array):
    return gzip.compress(nib.Nifti1Image(array.astype(np.float32), np.eye(4)).to_bytes())


SECOND = "disp_0006_0000_0007_0000.nii.gz"
BROKEN = {
    "missing": (lambda c: {k: v for k, v in c.items() if k != SECOND}, f"holds no {SECOND}: write a field"),
    "half resolution": (lambda c: c | {SECOND: encoded(np.zeros((12, 10, 8, 3)))}, r"has shape \(12, 10, 8, 3\), not"),
    "channel first": (lambda c: c | {SECOND: encoded(np.zeros((3, *SHAPE)))}, r"has shape \(3, 24, 20, 16\), not"),
    "NaN": (lambda c: c | {SECOND: encoded(np.full((*SHAPE, 3), np.nan))}, "holds NaN or infinity"),
    "no NIfTI": (lambda c: c | {SECOND: b"<html>"}, f"{SECOND} cannot be read"),
    "truncated": (lambda c: c | {SECOND: c[SECOND][:500]}, f"{SECOND} cannot be read"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_field_is_named(task, tmp_path, fault):
    change, message = BROKEN[fault]
    learn2reg.write_submission(trained(), cohort_of(task), tmp_path / "s.zip")
    repack(tmp_path / "s.zip", change)
    with pytest.raises(CourseError, match=message):
        learn2reg_evaluation.evaluate_submission(tmp_path / "s.zip", cohort_of(task))


def test_a_submission_that_is_none_and_pairs_without_labels(task, tmp_path):
    with pytest.raises(CourseError, match=r"none\.zip does not exist"):
        learn2reg_evaluation.evaluate_submission(tmp_path / "none.zip", cohort_of(task))
    (tmp_path / "text.zip").write_text("no ZIP", encoding="utf-8")
    with pytest.raises(CourseError, match=r"text.zip cannot be read as ZIP"):
        learn2reg_evaluation.evaluate_submission(tmp_path / "text.zip", cohort_of(task))
    learn2reg.write_submission(trained(), cohort_of(task), tmp_path / "s.zip")
    save(np.zeros((3, 3, 3), np.uint8), task / image_name(6, "labelsTr"))
    with pytest.raises(CourseError, match=r"labelsTr/Blobs_0006_0000.nii.gz has shape \(3, 3, 3\)"):
        learn2reg_evaluation.evaluate_submission(tmp_path / "s.zip", cohort_of(task))
    (task / image_name(6, "labelsTr")).unlink()
    with pytest.raises(CourseError, match=r"Blobs_0006_0000.nii.gz has no label"):
        learn2reg_evaluation.evaluate_submission(tmp_path / "s.zip", cohort_of(task))


def test_pickled_arrays_are_not_loaded(task, tmp_path):
    learn2reg.write_submission(trained(), cohort_of(task), tmp_path / "s.zip", file_format="npz")
    buffer = io.BytesIO()
    np.savez(buffer, np.array([{"code": "here"}], dtype=object))
    repack(tmp_path / "s.zip", lambda c: c | {SECOND.replace("nii.gz", "npz"): buffer.getvalue()})
    with pytest.raises(CourseError, match=r"disp_0006_0000_0007_0000\.npz cannot be read"):
        learn2reg_evaluation.evaluate_submission(tmp_path / "s.zip", cohort_of(task))
