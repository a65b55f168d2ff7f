"""The command register as a user runs it: what it writes, checked by other tools; and the line that bad input gets."""

import functools
import os
import pickle
import re
import resource
import subprocess
import sys
from dataclasses import replace

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from scipy.ndimage import map_coordinates

from course_utils.checkpoint import Checkpoint
from course_utils.commands.app import main
from course_utils.data.recipe import Recipe
from course_utils.data.volumes import read_image
from course_utils.scans import mapping, registration
from course_utils.scans.mapping import FURTHER_ITERATIONS
from tests import phantoms
from tests.checkpoints import SLICES
from tests.checkpoints import checkpoint as checkpoint_of
from tests.data.test_volumes import FAULTS, spoil
from tests.scans.test_writing import by_ants, by_simpleitk

pytestmark = pytest.mark.slow

FIXED = phantoms.grid((24, 26, 22), (2.4, 2.5, 2.6), "LAS", degrees=10)
MOVING = phantoms.grid((28, 25, 16), (2.1, 2.3, 3.6), "PIR", centre=(2, -1, 2))


def bent(points):
    """A smooth deformation of mm."""
    return points + 2.5 * np.sin(points[[1, 2, 0]] / 9)


@pytest.fixture
def scans(tmp_path):
    """Two scans of one object, the moving one bent, turned and shifted, and its label map, in a folder."""
    turned = phantoms.grid((1, 1, 1), (1.05, 0.97, 1.0), degrees=8).affine
    turned[:3, 3] = 3, -2, 4
    points = bent(phantoms.apply(np.linalg.inv(turned), phantoms.positions(MOVING)))
    noise = np.random.default_rng(0).normal(0, 8, MOVING.shape)
    phantoms.save(tmp_path / "moving.nii.gz", phantoms.intensity(points) + noise, MOVING, np.int16)
    phantoms.save(tmp_path / "label.nii.gz", phantoms.structures(points), MOVING, np.uint8)
    points = phantoms.positions(FIXED)
    phantoms.save(tmp_path / "fixed.nii.gz", phantoms.intensity(points), FIXED, sform=2, qform=2)
    phantoms.save(tmp_path / "fixed_label.nii.gz", phantoms.structures(points), FIXED, np.uint8)
    return tmp_path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A network that moves next to nothing, for volumes smaller and coarser than the scans."""
    path = tmp_path_factory.mktemp("net") / "best.pt"
    checkpoint_of(Recipe((16, 20, 18), (3.0, 3.0, 3.0)), "pyramid", strength=0).save(path)
    return path


@pytest.fixture
def register(monkeypatch, capsys, scans):
    """`register("--no-model", fixed=..., warp=...)`: exit code, stdout, stderr; files have default names."""

    def command(*flags, quiet=True, **files):
        names = {"moving": "moving.nii.gz", "fixed": "fixed.nii.gz", "moved": "moved.nii.gz"} | files
        names = {name: file for name, file in names.items() if file is not None}
        options = [part for name, file in names.items() for part in (f"--{name.replace('_', '-')}", str(scans / file))]
        told = ["--quiet"] if quiet else []
        argv = ["course_utils", *told, "register", *options, "--device", "cpu", *map(str, flags)]
        monkeypatch.setattr(sys, "argv", argv)
        with pytest.raises(SystemExit) as end:
            main()
        return end.value.code, *capsys.readouterr()

    return command


@pytest.fixture
def refused(register, scans):
    """The one line of a command that must end in exit code 2 and write nothing."""

    def command(*flags, **files):
        before = sorted(path.name for path in scans.iterdir())
        code, out, err = register(*flags, **files)
        assert (code, out) == (2, "") and re.fullmatch(r"error: [^\n]*\n", err), err
        assert sorted(path.name for path in scans.iterdir()) == before
        return err

    return command


def load(path):
    return nib.load(path).get_fdata()


def overlap(a, b):
    return [2 * ((a == k) & (b == k)).sum() / ((a == k).sum() + (b == k).sum()) for k in (1, 2)]


# --- what it makes ----------------------------------------------------------------------------------------------------


def test_two_scans_are_registered_and_everything_is_written(scans, register):
    code, out, err = register(
        "--no-model",
        "--affine",
        warp="warp.nii.gz",
        inverse_warp="inverse.nii",
        moving_label="label.nii.gz",
        moved_label="moved_label.nii.gz",
    )
    assert (code, err) == (0, "")
    line = (
        r"aligned first \(as you say\); NCC ([\d.]+) -> ([\d.]+), folding 0\.000 %, [\d.]+ s, peak memory [\d.]+ GB\n"
    )
    before, after = map(float, re.fullmatch(line, out).groups())
    assert after > before + 0.2

    moved, label = nib.load(scans / "moved.nii.gz"), nib.load(scans / "moved_label.nii.gz")
    for image in (moved, label, nib.load(scans / "warp.nii.gz")):
        assert image.shape[:3] == FIXED.shape
        np.testing.assert_allclose(image.affine, FIXED.affine, atol=1e-4)
        assert int(image.header["sform_code"]) == int(image.header["qform_code"]) == 2
    assert (moved.get_data_dtype(), label.get_data_dtype()) == (np.int16, np.uint8)
    assert nib.load(scans / "inverse.nii").shape == (*MOVING.shape, 1, 3)

    fixed = load(scans / "fixed.nii.gz")
    still = by_simpleitk(scans / "moving.nii.gz", scans / "fixed.nii.gz", zero_field(scans))
    assert np.abs(moved.get_fdata() - fixed).mean() < 0.4 * np.abs(still - fixed).mean()
    truth = load(scans / "fixed_label.nii.gz")
    assert min(overlap(label.get_fdata(), truth)) > 0.82  # the moving label's slices are 3.6 mm thick
    assert set(np.unique(label.get_fdata())) == {0, 1, 2}


def zero_field(folder):
    image = nib.Nifti1Image(np.zeros((*FIXED.shape, 1, 3), np.float32), FIXED.affine)
    image.header.set_intent("vector")
    nib.save(image, folder / "zero.nii.gz")
    return folder / "zero.nii.gz"


@pytest.mark.parametrize("apply", [by_simpleitk, by_ants])
def test_other_tools_make_our_moved_image_from_the_field_alone(scans, register, apply):
    """Affine and deformation in one field; the bound of 0.5 % of the range is 5."""
    assert register("--no-model", "--affine", "--iterations", 20, warp="w.nii.gz", inverse_warp="v.nii.gz")[0] == 0
    ours = load(scans / "moved.nii.gz")
    theirs = apply(scans / "moving.nii.gz", scans / "fixed.nii.gz", scans / "w.nii.gz")
    inside = theirs != 0  # beyond the moving image they write 0, and we its lowest intensity, which noise made negative
    assert inside.mean() > 0.7 and np.abs(theirs - ours)[inside].mean() < 1
    back = apply(scans / "moved.nii.gz", scans / "moving.nii.gz", scans / "v.nii.gz")
    points = phantoms.positions(MOVING)
    core = np.linalg.norm(points, axis=0) < 15
    moving = load(scans / "moving.nii.gz")
    assert np.abs(back - moving)[core].mean() < 35 < np.abs(moving - moving.mean())[core].mean()


def test_the_learn2reg_layout(scans, register, refused):
    assert "Learn2Reg's fields are for pairs of one shape" in refused("--no-model", "--layout", "learn2reg")
    points = bent(phantoms.positions(FIXED))
    phantoms.save(scans / "moving.nii.gz", phantoms.intensity(points), FIXED, np.float32)
    assert register("--no-model", "--layout", "learn2reg", "--iterations", 20, warp="w.nii.gz")[0] == 0
    field = load(scans / "w.nii.gz").transpose(3, 0, 1, 2)
    theirs = map_coordinates(load(scans / "moving.nii.gz"), np.indices(FIXED.shape) + field, order=1)
    assert np.abs(field).max() > 0.5
    inside = theirs != 0
    np.testing.assert_allclose(load(scans / "moved.nii.gz")[inside], theirs[inside], atol=2)


def test_a_network_starts_what_the_iterations_finish(scans, register, checkpoint):
    """Its grid is coarser and smaller than the scans: the common grid takes its spacing and the scans' extent."""
    fixed = read_image(scans / "fixed.nii.gz").grid
    grid = mapping.common_recipe(fixed, Checkpoint.load(checkpoint)).grid(fixed, whole=True)
    np.testing.assert_allclose(grid.spacing, 3.0)
    assert nib.aff2axcodes(grid.affine) == ("R", "A", "S") and all(n >= 19 for n in grid.shape)
    lines = {n: register("--model", checkpoint, "--iterations", n, "--no-affine")[1] for n in (0, 60)}
    after = {n: float(re.search(r"-> ([\d.]+)", line)[1]) for n, line in lines.items()}
    assert after[60] > after[0] + 0.1


@pytest.mark.parametrize(
    "objective",
    [{"overlap": {"term": "Overlap", "labels": [1], "weight": 0.5}}, {"painting": {"term": "Painting", "real": 0.5}}],
    ids=["labels", "any contrast"],
)
def test_a_network_trained_with_labels_is_not_refined_unless_asked(scans, register, checkpoint, tmp_path, objective):
    replace(Checkpoint.load(checkpoint), objective=objective).save(tmp_path / "labels.pt")

    def ncc(*options):
        return re.search(r"NCC \S+ -> \S+", register("--model", *options)[1])[0]

    assert ncc(tmp_path / "labels.pt") == ncc(checkpoint, "--iterations", 0)
    assert (
        ncc(tmp_path / "labels.pt", "--iterations", FURTHER_ITERATIONS)
        == ncc(checkpoint)
        != ncc(checkpoint, "--iterations", 0)
    )


def test_scans_of_two_contrasts_are_refined_by_what_was_chosen(scans, register):
    points = phantoms.positions(FIXED)
    other = np.interp(phantoms.intensity(points), [0, 100, 450, 1000], [0, 900, 650, 100])
    phantoms.save(scans / "fixed.nii.gz", other, FIXED)
    labels = {"moving_label": "label.nii.gz", "moved_label": "moved_label.nii.gz"}
    found = {}
    for name in ("ssd", "mi", "mind"):
        options = ("--affine", "--affine-similarity", "mi", "--similarity", name, "--iterations", 30)
        assert register("--no-model", *options, **labels)[0] == 0
        found[name] = np.mean(overlap(load(scans / "moved_label.nii.gz"), load(scans / "fixed_label.nii.gz")))
    assert min(found["mi"], found["mind"]) > found["ssd"] + 0.05


def test_scans_apart_are_refused_or_aligned(scans, register, refused):
    image = nib.load(scans / "moving.nii.gz")
    affine = image.affine.copy()
    affine[:3, 3] += 400
    moved = nib.Nifti1Image(np.asarray(image.dataobj), affine)
    nib.save(moved, scans / "moving.nii.gz")
    assert "do not overlap, as their affines have it: leave out --no-affine" in refused("--no-model", "--no-affine")
    code, out, _ = register("--no-model")
    assert code == 0 and float(re.search(r"-> ([\d.]+)", out)[1]) > 0.3
    assert out.startswith("aligned first (they share 0% of the fixed field of view); NCC ")
    assert register("--no-model", "--affine")[1].startswith("aligned first (as you say); NCC ")


# --- what it refuses --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["moving", "fixed"])
@pytest.mark.parametrize("what", FAULTS)
def test_a_scan_that_cannot_be_used(scans, refused, what, role):
    on = {"moving": MOVING, "fixed": FIXED}[role]
    nib.save(spoil(phantoms.intensity(phantoms.positions(on)), on, what), scans / f"{role}.nii.gz")
    line = refused("--no-model")
    assert f"{role}.nii.gz" in line and re.search(FAULTS[what].replace("24x26x1", r"\d+x\d+x1"), line)


def test_swapped_and_contradictory_arguments(scans, refused, checkpoint):
    swapped = {"moving": "label.nii.gz", "moving_label": "moving.nii.gz", "moved_label": "ml.nii.gz"}
    assert "label.nii.gz looks like a label map" in refused("--no-model", **swapped)
    line = refused("--no-model", moving_label="moving.nii.gz", moved_label="ml.nii.gz")
    assert "moving.nii.gz" in line and ("no labels" in line or "looks like an image" in line)
    line = refused("--no-model", moving_label="fixed_label.nii.gz", moved_label="ml.nii.gz")
    assert "24x26x22 voxels" in line and "resample the label" in line
    assert "are one file" in refused("--no-model", moving="fixed.nii.gz")
    assert "belong together" in refused("--no-model", moving_label="label.nii.gz")
    assert "belong together" in refused("--no-model", moved_label="ml.nii.gz")
    assert "either --model FILE-OR-NAME or --no-model" in refused()
    assert "either --model FILE-OR-NAME or --no-model" in refused("--no-model", "--model", checkpoint)
    assert "nothing to do" in refused("--no-model", "--iterations", 0)
    assert "there are none: give --iterations" in refused(
        "--model", checkpoint, "--iterations", 0, "--similarity", "mi"
    )


def test_the_spread_is_what_the_network_says_in_millimetres(scans, register, tmp_path):
    options = {"strength": 0, "half_resolution": False, "integration_steps": 0}
    network = checkpoint_of(Recipe((16, 20, 18), (3.0, 3.0, 3.0)), "probabilistic", **options)
    network.weights["log_variance.bias"].fill_(np.log(0.25))  # half a voxel along each axis, everywhere
    network.save(tmp_path / "net.pt")
    said = 0.5 * 3 * np.sqrt(3)
    for name in ("spread.nii.gz", "again.nii.gz"):
        code, _, err = register("--model", tmp_path / "net.pt", "--iterations", 0, "--no-affine", spread=name)
        assert code == 0, err
    image = nib.load(scans / "spread.nii.gz")
    assert image.shape == FIXED.shape and image.get_data_dtype() == np.float32
    np.testing.assert_allclose(image.affine, FIXED.affine, atol=1e-4)
    values = image.get_fdata()[2:-2, 2:-2, 2:-2]
    assert values.mean() == pytest.approx(said, rel=0.03)
    assert values.std() < 0.2 * said  # of 20 answers with 3 components each: 1 / sqrt(2 * 3 * 19)
    np.testing.assert_array_equal(image.get_fdata(), load(scans / "again.nii.gz"))


def test_a_spread_is_refused_where_there_is_none(scans, refused, checkpoint, tmp_path):
    assert "answers with a distribution" in refused("--no-model", spread="s.nii.gz")
    assert "answers with a distribution" in refused("--model", checkpoint, "--iterations", 0, spread="s.nii.gz")
    checkpoint_of(Recipe((16, 20, 18), (3.0, 3.0, 3.0)), "probabilistic").save(tmp_path / "net.pt")
    assert "add --iterations 0" in refused("--model", tmp_path / "net.pt", spread="s.nii.gz")


def test_outputs_that_cannot_be_written_are_found_before_any_work(scans, refused, monkeypatch):
    monkeypatch.setattr(registration, "register", None)
    (scans / "folder.nii").mkdir()
    cases = {
        "none is not a folder: make it": "none/moved.nii.gz",
        "is not the name of an image that can be written": "moved.png",
        "is a folder: name a file in it": "folder.nii",
        "--moved and --fixed name one file": "fixed.nii.gz",
    }
    for match, name in cases.items():
        assert match in refused("--no-model", moved=name)
    assert "--warp and --moved name one file" in refused("--no-model", warp="moved.nii.gz")
    if os.path.isdir("/proc/1"):
        assert "/proc cannot be written" in refused("--no-model", moved="/proc/moved.nii.gz")


class Code:
    def __reduce__(self):
        return os.system, ("touch executed",)


def test_a_model_with_code_in_it_is_not_run(scans, refused, monkeypatch):
    monkeypatch.chdir(scans)
    with open(scans / "evil.pt", "wb") as file:
        pickle.dump({"format": "course_utils 1", "model": Code()}, file)
    assert "evil.pt is damaged or no checkpoint" in refused("--model", scans / "evil.pt")
    assert not (scans / "executed").exists()
    assert "none.pt does not exist" in refused("--model", scans / "none.pt")
    assert "moving.nii.gz is damaged or no checkpoint" in refused("--model", scans / "moving.nii.gz")


def test_a_2_d_model_is_refused(scans, refused, tmp_path_factory):
    best = tmp_path_factory.mktemp("flat") / "best.pt"
    checkpoint_of(SLICES).save(best)
    assert "is a 2-D network and the scans are volumes" in refused("--model", best)


@pytest.mark.parametrize(
    ("limit", "said"),
    [
        (3_000, r"error: \S+ cannot be written \(File too large\): choose another folder for --moved\n"),
        (80_000, r"error: \S+warp.nii.gz was not written \(File too large\): choose another place[^\n]*\n"),
    ],
)
def test_a_full_disk_leaves_all_files_or_none(scans, limit, said):
    """A limit on files stands for the disk: it is full before the work, or behind the first file is no room."""
    (scans / "moved.nii.gz").write_bytes(b"from before")
    before = sorted(path.name for path in scans.iterdir())
    files = {"moving": "moving.nii.gz", "fixed": "fixed.nii.gz", "moved": "moved.nii.gz", "warp": "warp.nii.gz"}
    options = [part for name, file in files.items() for part in (f"--{name}", scans / file)]
    done = subprocess.run(
        [sys.executable, "-m", "course_utils", "--quiet", "register", *options, "--no-model", "--iterations", "1"],
        preexec_fn=functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, (limit, limit)),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert re.fullmatch(said, done.stderr), done.stderr
    assert sorted(path.name for path in scans.iterdir()) == before
    assert (scans / "moved.nii.gz").read_bytes() == b"from before"


# --- masks, warnings, many pairs --------------------------------------------------------------------------------------


def test_a_mask_keeps_what_only_one_scan_shows_from_pulling_at_the_rest(scans, register):
    """A bright block in the moving scan, which the fixed one lacks; errors are those of the voxels around it."""
    image = nib.load(scans / "moving.nii.gz")
    array, mask = np.asarray(image.dataobj).copy(), np.ones(image.shape, np.uint8)
    block = (slice(16, 22), slice(12, 18), slice(6, 10))
    array[block], mask[block] = 3000, 0
    nib.save(nib.Nifti1Image(array, image.affine, image.header), scans / "spoiled.nii.gz")
    nib.save(nib.Nifti1Image(mask, image.affine), scans / "mask.nii.gz")
    points = phantoms.positions(FIXED)
    straight = points.copy()
    for _ in range(60):  # the bend undone, by fixed-point iteration
        straight = points - (bent(straight) - straight)
    turned = phantoms.grid((1, 1, 1), (1.05, 0.97, 1.0), degrees=8).affine
    turned[:3, 3] = 3, -2, 4
    belongs = phantoms.apply(turned, straight)
    voxels = phantoms.apply(np.linalg.inv(MOVING.affine), belongs)
    near = np.all([(v > b.start - 2) & (v < b.stop + 1) for v, b in zip(voxels, block, strict=True)], axis=0)
    counts = (np.linalg.norm(points, axis=0) < 20) & ~near
    errors = {}
    for name, options in (("without", {}), ("with", {"moving_mask": "mask.nii.gz"})):
        files = {"moving": "spoiled.nii.gz", "warp": "w.nii.gz", **options}
        assert register("--no-model", "--affine", **files)[0] == 0
        field = np.asarray(nib.load(scans / "w.nii.gz").dataobj)[:, :, :, 0] * [-1, -1, 1]
        errors[name] = np.linalg.norm(points + np.moveaxis(field, -1, 0) - belongs, axis=0)[counts].mean()
    assert errors["with"] < 3 and errors["without"] > 5  # mm


def test_a_mask_must_fit_and_leave_something(scans, refused, register):
    assert "mask.nii.gz does not exist" in refused("--no-model", fixed_mask="mask.nii.gz")
    phantoms.save(scans / "empty.nii.gz", np.zeros(FIXED.shape), FIXED, np.uint8)
    assert "empty.nii.gz is 0 everywhere" in refused("--no-model", fixed_mask="empty.nii.gz")
    assert "resample the label to its image" in refused("--no-model", moving_mask="empty.nii.gz")


def test_what_is_done_is_told_and_what_is_odd_is_warned_of(scans, register):
    code, _, err = register("--no-model", "--iterations", 1, quiet=False)
    assert code == 0 and re.fullmatch(r"registering \S+moving.nii.gz to \S+fixed.nii.gz\n", err)
    # Far apart: what is left of the overlap is little.
    image = nib.load(scans / "moving.nii.gz")
    affine = image.affine.copy()
    affine[0, 3] += 50
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), affine), scans / "far.nii.gz")
    _, out, err = register("--no-model", "--no-affine", "--iterations", 1, quiet=False, moving="far.nii.gz")
    line = r"^warning: \S+far.nii.gz and \S+ do not lie on each other, they share \d+% .*: leave out --no-affine"
    assert re.search(line, err, re.M) and out.startswith("NCC ")
    # A tilted gantry: what ITK cannot place.
    image = nib.load(scans / "fixed.nii.gz")
    affine = image.affine.copy()
    affine[1, 2] += 0.7
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), affine), scans / "tilted.nii.gz")
    _, _, err = register("--no-model", "--iterations", 1, quiet=False, fixed="tilted.nii.gz")
    assert re.search(r"^warning: the axes of \S+tilted.nii.gz are not at right angles .* resample it first", err, re.M)


def test_a_structure_too_small_for_the_grid_is_named(scans, register):
    points = np.zeros(MOVING.shape, np.uint8)
    points[10, 12, 8] = 9
    phantoms.save(scans / "point.nii.gz", points, MOVING, np.uint8)
    coarse = phantoms.grid((10, 10, 10), (6.0, 6.0, 6.0))
    phantoms.save(scans / "coarse.nii.gz", phantoms.intensity(phantoms.positions(coarse)), coarse)
    files = {"moving_label": "point.nii.gz", "moved_label": "moved_point.nii.gz", "fixed": "coarse.nii.gz"}
    shifts = []
    for shift in range(3):  # at one of them no voxel's centre is near enough
        points = np.roll(points, shift, 0)
        phantoms.save(scans / "point.nii.gz", points, MOVING, np.uint8)
        code, _, err = register("--no-model", "--iterations", 1, quiet=False, **files)
        kept = 9 in np.asarray(nib.load(scans / "moved_point.nii.gz").dataobj)
        assert code == 0 and kept != ("point.nii.gz: the structures 9 are not in the moved label map" in err)
        shifts.append(kept)
    assert not all(shifts)


def test_a_label_of_64_bits_comes_back_as_it_was(scans, register):
    image = nib.load(scans / "label.nii.gz")
    values = np.array([0, 2**24 + 1, 2**40 + 1])[np.asarray(image.dataobj)]
    nib.save(nib.Nifti1Image(values, image.affine, dtype=np.int64), scans / "long.nii.gz")
    code, _, err = register("--no-model", "--iterations", 1, moving_label="long.nii.gz", moved_label="l.nii.gz")
    assert code == 0, err
    moved = nib.load(scans / "l.nii.gz")
    assert moved.get_data_dtype() == np.int64
    assert set(np.unique(np.asarray(moved.dataobj))) == {0, 2**24 + 1, 2**40 + 1}


@pytest.fixture
def many(scans, monkeypatch, capsys):
    """`many(rows, ...)`: the command register --pairs on these rows: exit code, stdout, stderr."""

    def command(rows, *flags, folder="out"):
        lines = ["fixed_image,moving_image,moving_label", *rows]
        (scans / "pairs.csv").write_text("\n".join(lines), encoding="utf-8")
        options = ["--pairs", str(scans / "pairs.csv"), "--out-folder", str(scans / folder), "--device", "cpu"]
        argv = ["course_utils", "register", "--no-model", "--iterations", "2", *options, *map(str, flags)]
        monkeypatch.setattr(sys, "argv", argv)
        with pytest.raises(SystemExit) as end:
            main()
        return end.value.code, *capsys.readouterr()

    return command


def test_many_pairs_come_out_as_each_by_itself(scans, register, many):
    rows = ["fixed.nii.gz,moving.nii.gz,label.nii.gz", "moving.nii.gz,fixed.nii.gz,"]
    code, out, err = many(rows, "--write", "moved,warp,moved_label")
    assert code == 0, err
    assert out.startswith("2 pairs registered in ")
    names = sorted(path.name for path in (scans / "out").iterdir())
    assert names == [
        *("fixed_to_moving_moved.nii.gz", "fixed_to_moving_warp.nii.gz", "moving_to_fixed_moved.nii.gz"),
        *("moving_to_fixed_moved_label.nii.gz", "moving_to_fixed_warp.nii.gz", "registrations.csv"),
    ]
    assert register("--no-model", "--iterations", 2)[0] == 0
    alone = load(scans / "moved.nii.gz")
    np.testing.assert_array_equal(load(scans / "out/moving_to_fixed_moved.nii.gz"), alone)
    table = pd.read_csv(scans / "out/registrations.csv")
    assert table["pair"].tolist() == ["moving_to_fixed", "fixed_to_moving"]
    assert (table["ncc_after"] > table["ncc_before"]).all()


def test_a_pair_that_cannot_be_registered_is_named_and_the_others_go_on(scans, many):
    (scans / "broken.nii.gz").write_bytes(b"broken")
    code, out, err = many(["fixed.nii.gz,broken.nii.gz,", "fixed.nii.gz,moving.nii.gz,"])
    assert code == 2 and out.startswith("1 pairs registered in ")
    assert "pair broken_to_fixed: " in err and "cannot be read as an image" in err
    assert err.splitlines()[-1] == "error: 1 of 2 pairs could not be registered: they are named above"
    assert (scans / "out/moving_to_fixed_moved.nii.gz").is_file()
    code, _, err = many(["fixed.nii.gz,moving.nii.gz,"])  # again: nothing is overwritten
    assert code == 2 and "is not an empty folder" in err
    code, _, err = many(["fixed.nii.gz,broken.nii.gz,"], folder="none")
    assert code == 2 and "none of 1 pairs could be registered" in err and not (scans / "none").exists()
    code, _, err = many(["fixed.nii.gz,moving.nii.gz,"], "--write", "moved,picture", folder="none")
    assert code == 2 and "no result called 'picture'" in err
    code, _, err = many(["fixed.nii.gz,moving.nii.gz,"], "--moved", "x.nii.gz", folder="none")
    assert code == 2 and "--pairs goes with --out-folder, and without the files of one pair" in err


def test_a_pair_needs_its_files(register, refused, scans):
    line = refused("--no-model", moved=None)
    assert "register needs --moving, --fixed and --moved (--moved missing), or --pairs and --out-folder" in line
