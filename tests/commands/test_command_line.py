"""The commands train and evaluate as a user runs them: what they write and print, and the one line that bad input gets.

Most runs are in this process, through the function that the command runs; importing torch takes seconds.
"""

import csv
import importlib
import inspect
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import ndimage

import course_utils
from course_utils.checkpoint import Checkpoint
from course_utils.commands import app
from course_utils.data.cohorts import load_cohort
from course_utils.data.synthetic import make_cohort
from course_utils.errors import CourseWarning
from course_utils.evaluation import readable, summarise
from tests.checkpoints import SLICES
from tests.checkpoints import checkpoint as checkpoint_of

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
COLUMNS = [
    *("pair", "structure", "dice_before", "dice_after", "hd_mm_before", "hd_mm_after"),
    *("hd95_mm_before", "hd95_mm_after", "folding_percent", "ndv_percent", "sdlogj", "seconds"),
]
SANITY = ["swap_voxels", "self_voxels"]
GRID = (32, 16, 16)
PAIRS = ("fixed_image", "moving_image", "fixed_label", "moving_label")


def start(*arguments):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "course_utils", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


@pytest.fixture
def run(monkeypatch, capsys):
    """`run("train", ...)`: the exit code, stdout and stderr of a command."""

    def command(*arguments):
        monkeypatch.setattr(sys, "argv", ["course_utils", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            app.main()
        return end.value.code, *capsys.readouterr()

    return command


@pytest.fixture
def refused(run):
    """`refused("train", ...)`: the one line of a command that must end in exit code 2, without `error: `."""

    def command(*arguments):
        code, _, err = run(*arguments)
        assert code == 2
        return the_error(err)

    return command


def the_error(err):
    """The line is the last, and the only one of its kind; bars and warnings may stand before it."""
    lines = re.split(r"[\r\n]+", err.rstrip("\n"))
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:], err
    assert "Traceback" not in err
    return lines[-1].removeprefix("error: ")


def volume(path, shape, seed):
    """Two nested balls in noise, and their label: PATH/images/NAME and PATH/labels/NAME."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.indices(shape))
    centre = np.array(shape).reshape(-1, 1, 1, 1) / 2 + rng.uniform(-1, 1, (3, 1, 1, 1))
    distance = np.linalg.norm(grid - centre, axis=0)
    radius = rng.uniform(3.5, 4.5)
    label = (distance < radius).astype(np.uint8) + (distance < radius / 2)
    image = 100 * ndimage.gaussian_filter(label.astype(np.float32), 0.7) + rng.normal(0, 2, shape)
    for kind, array in (("images", image.astype(np.float32)), ("labels", label)):
        (path / kind).mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(array, np.eye(4)), path / kind / f"case_{seed:02d}.nii.gz")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A cohort of eight subjects, of various shapes as hippocampus volumes are, and a registry that knows it."""
    root = tmp_path_factory.mktemp("made")
    for seed in range(8):
        volume(root / "balls", (28 + seed % 3, 16, 15 - seed % 2), seed)
    table = {
        "title": "Two nested balls",
        "folder": "balls",
        "image": "images/{name}.nii.gz",
        "label": "labels/{name}.nii.gz",
        "labels": {"1": "shell", "2": "core"},
        "shape": list(GRID),
        "spacing": [1.0, 1.0, 1.0],
    }
    no_host = {**table, "folder": "elsewhere", "url": "http://127.0.0.1:9/balls.tar"}
    (root / "registry.json").write_text(json.dumps({"balls": table, "elsewhere": no_host}), encoding="utf-8")
    return root


@pytest.fixture
def balls(made, tmp_path):
    """A copy of the cohort that a test may spoil."""
    shutil.copytree(made, tmp_path / "data")
    return tmp_path / "data"


def on(root, dataset="balls"):
    return ("--dataset", dataset, "--data-root", root, "--registry", root / "registry.json", "--device", "cpu")


@pytest.fixture(scope="module")
def trained(made, tmp_path_factory):
    """A folder with a run, and what training it printed: the one run by a user's own command line."""
    out = tmp_path_factory.mktemp("trained") / "not" / "there"
    process = start("train", *on(made), "--epochs", 2, "--batch-size", 2, "--dice-weight", 0.5, "--out", out)
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    return out, stdout, stderr


def write_pairs(path, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([PAIRS, *rows])
    return path


def row(fixed, moving):
    return [f"balls/{kind}/case_{n:02d}.nii.gz" for kind in ("images", "labels") for n in (fixed, moving)]


# --- what they do -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", app.COMMANDS)
def test_help_mentions_every_option_its_default_and_an_example(run, command):
    code, out, _ = run(command, "--help")
    assert code == 0
    options = re.findall(r"^  (?:-h, )?--([a-z-]+)", out, re.MULTILINE)
    module = importlib.import_module(app.COMMANDS[command])
    signature = inspect.signature(getattr(module, command.replace("-", "_")))
    arguments = {name for name, it in signature.parameters.items() if "ArgumentInfo" in str(it.annotation)}
    expected = {name.replace("_", "-") for name in signature.parameters.keys() - arguments}
    assert set(options) == expected | {"help"}
    for name in expected:
        described = re.search(rf"\n  --{name}\b.*?(?=\n  -|\Z)", out, re.DOTALL)[0]
        default = signature.parameters[name.replace("-", "_")].default
        if default not in (None, False, "", inspect.Parameter.empty):
            assert "[default:" in described, name
    example = re.search(rf"^ +python -m course_utils {command}\b.*$", out, re.MULTILINE)
    assert example and max(map(len, out.splitlines())) <= 100
    assert set(re.findall(r"--([a-z-]+)", example[0])) <= expected


def test_help_lists_the_commands(run):
    code, out, _ = run("--help")
    assert code == 0
    assert re.search(r"^  train +Train a registration network on a data set, or on", out, re.MULTILINE)
    assert re.search(r"^  evaluate +Measure .*\.$", out, re.MULTILINE)
    assert re.search(r"^  export +Write a trained network for others", out, re.MULTILINE)
    assert re.search(r"^  learn2reg +Write a Learn2Reg submission, or measure", out, re.MULTILINE)


def test_train_writes_what_it_says_and_says_what_comes_next(trained, made):
    out, stdout, stderr = trained
    files = ["README.md", "best.pt", "history.csv", "last.pt", "model.json", "tensorboard"]
    assert sorted(path.name for path in out.iterdir()) == files
    history = pd.read_csv(out / "history.csv")
    assert len(history) == 4  # two epochs of the four training subjects, two pairs a step
    assert {"similarity", "regularisation", "overlap", "validation_dice"} <= set(history.columns)
    assert re.match(r"4 steps in \d+\.\d minutes, loss 0\.\d+; measure it:\npython -m course_utils evaluate", stdout)
    assert f"--model {out / 'best.pt'} --dataset balls" in stdout
    assert "%|" not in stderr  # bars are for terminals
    assert re.search(r"^training 100%, step 4, loss 0\.\d+, validation dice 0\.\d+$", stderr, re.MULTILINE)
    state = torch.load(out / "best.pt", weights_only=True)
    assert state["card"]["labels"] == {1: "shell", 2: "core"}
    assert state["card"]["recipe"]["shape"] == list(GRID)


def test_evaluate_pairs_of_different_shapes(trained, balls, run, tmp_path):
    pairs = write_pairs(balls / "pairs.csv", [row(0, 1), row(2, 0), row(1, 2)])
    shapes = {nib.load(balls / "balls" / "images" / f"case_{n:02d}.nii.gz").shape for n in range(3)}
    assert len(shapes) == 3
    code, out, _ = run("evaluate", "--model", trained[0] / "best.pt", "--pairs", pairs, "--out", tmp_path / "m.csv")
    assert code == 0
    table = pd.read_csv(tmp_path / "m.csv")
    assert list(table.columns) == [*COLUMNS, *SANITY]
    names = ["case_01_to_case_00", "case_00_to_case_02", "case_02_to_case_01"]
    assert table["pair"].tolist() == [name for name in names for _ in range(2)]
    assert table["structure"].tolist() == ["shell", "core"] * 3
    # The Dice before is that of the two files, centred on one grid.
    labels = []
    for case in (0, 1):
        label = np.asarray(nib.load(balls / "balls" / "labels" / f"case_{case:02d}.nii.gz").dataobj)
        pad = [((n - size) // 2, n - size - (n - size) // 2) for n, size in zip(GRID, label.shape, strict=True)]
        labels.append(np.pad(label, pad) == 1)
    dice = 2 * (labels[0] & labels[1]).sum() / (labels[0].sum() + labels[1].sum())
    assert table["dice_before"][0] == pytest.approx(dice, abs=1e-6)
    # The printed table: mean and spread, before and after, of each structure and overall.
    assert out.startswith("mean ± standard deviation over 3 pairs\n")
    header = out.splitlines()[1].split()
    assert header == [f"{m}_{side}" for m in ("dice", "hd_mm", "hd95_mm") for side in ("before", "after")]
    assert [line.split()[0] for line in out.splitlines()[2:5]] == ["shell", "core", "overall"]
    core = table[table["structure"] == "core"]
    for column in header:
        assert f"{core[column].mean():.3f} ± {core[column].std():.3f}" in out.splitlines()[3]
    by_pair = table.groupby("pair")["dice_after"].mean()
    assert f"{by_pair.mean():.3f} ± {by_pair.std():.3f}" in out.splitlines()[4]
    assert re.search(r"^folding_percent: \d+\.\d{3} ± \d+\.\d{3}$", out, re.MULTILINE)


def test_a_vanished_structure_is_counted_in_the_printed_table():
    table = pd.DataFrame(
        [["a", "core", 0.5, 0.6, 2.0, 1.0], ["b", "core", 0.5, 0.0, 2.0, np.inf], ["c", "core", 0.5, 0.6, 4.0, 2.0]],
        columns=COLUMNS[:6],
    )
    lines = readable(summarise(table)).splitlines()
    assert "3.000 ± 1.414  1.500 ± 0.707, 1 lost" in lines[2]


def test_the_built_in_cohort_has_its_target_registration_error(run, tmp_path):
    make_cohort(tmp_path / "synthetic", subjects=8, spacing=6, dimensions=2)
    where = ("--dataset", "synthetic", "--data-root", tmp_path, "--device", "cpu")
    assert run("train", *where, "--epochs", "0.5", "--loss", "ssd", "--out", tmp_path / "run")[0] == 0
    code, out, _ = run("evaluate", *where, "--model", tmp_path / "run" / "best.pt", "--out", tmp_path / "m.csv")
    assert code == 0
    table = pd.read_csv(tmp_path / "m.csv")
    assert list(table.columns) == [*COLUMNS, "tre_mm_before", "tre_mm_after", *SANITY]
    assert table["pair"].nunique() == 2  # of two test subjects there are no more
    assert "tre_mm_after: " in out


def test_ctrl_c_ends_in_one_line_and_resume_goes_on(made, run, tmp_path):
    out = tmp_path / "run"
    arguments = ("train", *on(made), "--minutes", 30, "--out", out)
    process = start(*arguments)
    deadline = time.monotonic() + 240
    while not (out / "best.pt").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=240)
    assert process.returncode == 2, err
    step = int(re.fullmatch(r"stopped by Ctrl-C.* step (\d+): .*resume.*", the_error(err))[1])
    state = torch.load(out / "last.pt", weights_only=True)
    assert state["step"] == len(state["run"]["history"]) == step
    assert not list(out.glob(".*"))
    # A budget of which a millisecond is left: enough for one more step, whatever the machine.
    state["run"]["seconds"] = 30 * 60 - 0.001
    torch.save(state, out / "last.pt")
    code, _, err = run(*arguments, "--resume")
    assert code == 0, err
    assert pd.read_csv(out / "history.csv")["step"].tolist() == list(range(1, step + 2))


def test_a_subject_that_cannot_be_read_is_left_out(balls, run, tmp_path):
    # Two of each of val and test are needed, so a subject of train it is.
    name = load_cohort("balls", balls, registry=balls / "registry.json").splits["train"][0].name
    (balls / "balls" / "images" / f"{name}.nii.gz").write_bytes(b"broken")
    code, _, err = run("train", *on(balls), "--epochs", 1, "--batch-size", 1, "--out", tmp_path / "run")
    assert code == 0 and re.search(rf"^warning: left out: .*{name}.* cannot be read", err, re.MULTILINE)


def test_a_trained_folder_describes_itself_and_is_exported(trained, run, tmp_path):
    described = json.loads((trained[0] / "model.json").read_text(encoding="utf-8"))
    history = pd.read_csv(trained[0] / "history.csv").set_index("step")
    kept = history.loc[described["validation"]["step"], "validation_dice"]
    assert described["validation"]["dice"] == kept == history["validation_dice"].max()
    assert (described["data_set"], described["labels"]) == ("balls", {"1": "shell", "2": "core"})
    assert "Deformable registration, trained on balls" in (trained[0] / "README.md").read_text(encoding="utf-8")
    code, out, _ = run("export", "--model", trained[0] / "best.pt", "--out", tmp_path / "bundle")
    assert code == 0 and out == f"{tmp_path / 'bundle'} written\n"
    assert (
        json.loads((tmp_path / "bundle" / "configs" / "metadata.json").read_text(encoding="utf-8"))["data_source"]
        == "balls"
    )


@pytest.fixture
def challenge(tmp_path):
    """A Learn2Reg folder: two nested balls in the challenge's layout, cases 7 and 8 for its validation."""
    folder = tmp_path / "NestedBalls"
    for case in range(1, 9):
        volume(tmp_path / "all", GRID, case)
        for part in ("images", "labels"):
            (folder / f"{part}Tr").mkdir(parents=True, exist_ok=True)
            source = tmp_path / "all" / part / f"case_{case:02d}.nii.gz"
            source.rename(folder / f"{part}Tr" / f"NestedBalls_{case:04d}_0000.nii.gz")
    shutil.rmtree(tmp_path / "all")
    images = [f"./imagesTr/NestedBalls_{case:04d}_0000.nii.gz" for case in range(1, 9)]
    content = {
        "name": "NestedBalls",
        "labels": {"0": {"0": "background", "1": "shell", "2": "core"}},
        "tensorImageShape": {"0": GRID},
        "training": [{"image": image, "label": image.replace("images", "labels")} for image in images],
        "registration_val": [
            {"fixed": images[6], "moving": images[7]},
            {"fixed": images[7], "moving": images[6]},
        ],
    }
    (folder / "NestedBalls_dataset.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def test_a_challenge_folder_trains_and_its_submission_is_measured(challenge, run, refused, tmp_path):
    data = ("--dataset", "learn2reg", "--data-root", challenge, "--device", "cpu")
    assert run("train", *data, "--epochs", 1, "--batch-size", 1, "--dice-weight", 1, "--out", tmp_path / "run")[0] == 0
    model, archive = tmp_path / "run" / "best.pt", tmp_path / "submission.zip"
    code, out, err = run("learn2reg", "--data-root", challenge, "--model", model, "--out", archive)
    assert code == 0, err
    assert out.startswith("2 fields, disp_0007_0000_0008_0000.nii.gz the first, in ")
    measured = ("evaluate", "--model", model, "--dataset", "learn2reg", "--device", "cpu")
    assert run(*measured, "--out", tmp_path / "m.csv")[0] == 0  # the folder that was trained on is remembered
    (tmp_path / "m.csv").unlink()
    command = out.splitlines()[1].removeprefix("python -m course_utils ").split()  # what it says comes next
    code, out, _ = run(*command)
    assert code == 0
    table = pd.read_csv(tmp_path / "submission.csv")
    assert table["structure"].tolist() == ["shell", "core"] * 2
    assert list(table.columns) == [
        *("pair", "structure", "dice_before", "hd95_voxels_before", "dice_after", "hd95_voxels_after"),
        *("sdlogj_learn2reg", "folding_percent"),
    ]
    assert out.startswith("mean ± standard deviation over 2 pairs\n")
    overall = table.groupby("pair")["dice_after"].mean()
    assert f"{overall.mean():.3f} ± {overall.std():.3f}" in out.splitlines()[4]
    assert "sdlogj_learn2reg: " in out and "folding_percent: " in out
    # Neither both nor none; places that cannot be written; nothing but what is asked for.
    either = "either --model FILE-OR-NAME or --evaluate SUBMISSION.zip"
    assert either in refused("learn2reg", "--data-root", challenge, "--out", archive)
    both = ("--model", model, "--evaluate", archive)
    assert either in refused("learn2reg", "--data-root", challenge, *both, "--out", archive)
    assert "none is not a folder" in refused(
        "learn2reg", "--data-root", challenge, *both[:2], "--out", tmp_path / "none/s.zip"
    )
    assert "is a folder: name a file in it, such as" in refused(
        "learn2reg", "--data-root", challenge, *both[:2], "--out", tmp_path
    )
    assert "no learn2reg data in" in refused("learn2reg", "--data-root", tmp_path / "none", *both[:2], "--out", archive)
    line = refused("learn2reg", "--data-root", challenge, *both[:2], "--split", "test", "--out", archive)
    assert "lists no pairs registration_test" in line
    names = ["NestedBalls", "run", "submission.csv", "submission.zip"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names


# --- what bad input gets ----------------------------------------------------------------------------------------------


def test_two_budgets(made, refused, tmp_path):
    line = refused("train", *on(made), "--epochs", 1, "--minutes", 1, "--out", tmp_path / "run")
    assert "--minutes and --epochs" in line and "give one" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("epochs", ["0", "-1", "nan", "inf"])
def test_epochs_of_nothing(made, refused, tmp_path, epochs):
    assert f"--epochs {epochs}" in refused("train", *on(made), "--epochs", epochs, "--out", tmp_path / "run")


def test_an_unknown_data_set_lists_the_valid_ones(made, refused, tmp_path):
    line = refused("train", *on(made, "hypocampus"), "--out", tmp_path / "run")
    assert "no data set called 'hypocampus': choose from synthetic, hippocampus, oasis2d, " in line and "balls" in line


@pytest.mark.parametrize("device", ["cuda:99", "gpu", "meta", "hpu", ""])
def test_an_unknown_device(made, refused, tmp_path, device):
    arguments = (*on(made)[:-1], device)
    assert f"device '{device}' cannot be used" in refused("train", *arguments, "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "arguments", [("--loss", "mse"), ("--minutes", "soon"), ("--seed", "-1"), ("--regularizer", "bending"), ()]
)
def test_a_wrong_option_is_named_and_exits_with_2(made, run, tmp_path, arguments):
    code, _, err = run("train", *on(made), *arguments, *(("--out", tmp_path / "run") if arguments else ()))
    assert code == 2
    assert (arguments[0] if arguments else "--out") in err.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--minutes", "0"), "minutes=0.0 is not above 0"),
        (("--learning-rate", "-1"), "learning_rate=-1.0 is not above 0"),
        (("--amp", "fp16"), "amp=fp16 needs a CUDA device"),
        (("--bidirectional", "icon", "--antisymmetric"), "take --one-way (without --init), or --bidirectional"),
        (("--consistency-weight", "1"), "--consistency-weight belongs to --bidirectional icon, gradicon, cyclem"),
        (("--bidirectional", "inverse", "--consistency-weight", "1"), "--consistency-weight belongs to"),
        (("--bidirectional", "cycle", "--consistency-weight", "1"), "--consistency-weight belongs to"),
        (("--bidirectional", "cyclemorph", "--antisymmetric"), "take --one-way (without --init)"),
        (("--refine",), "--refine corrects a network that is trained: name it with --init"),
        (("--image-sigma", "0.1"), "--image-sigma and --prior-precision belong to --architecture probabilistic"),
        (("--architecture", "probabilistic", "--image-sigma", "0"), "image_sigma=0.0 is not a number above 0"),
        *(
            (("--architecture", "probabilistic", *option), f"in which {option[0]} has no part: leave it out")
            for option in (
                ("--loss", "ncc"),
                ("--smoothness", "0"),
                ("--regulariser", "bending"),
                ("--bidirectional", "icon"),
                ("--antisymmetric",),
            )
        ),
        (
            ("--architecture", "swin", "--features", "4,8"),
            "'swin' cannot be built (a transformer needs three to 6",
        ),
        (("--architecture", "swin", "--features", "4,7,8"), "features[1]=7 is no multiple of heads=2"),
        (("--architecture", "hypernetwork"), "is told the weight of the smoothness: add --smoothness-range LOW,HIGH"),
        (("--architecture", "inception", "--features", "2,4"), "4 kernels need as many channels or more"),
        (("--architecture", "swin", "--image-sigma", "0.1"), "belong to --architecture probabilistic"),
        *(
            (("--bidirectional", "inverse", "--painted", how), "--painted and --bidirectional are two ways to train")
            for how in ("images", "labels", "shapes")
        ),
        *(
            (("--painted", how, "--loss", "ssd"), f"--painted {how} compares label maps, in which --loss has no part")
            for how in ("labels", "shapes")
        ),
        (("--painted", "shapes", "--augment", "0.5"), "--augment changes images that --painted shapes does not look"),
        (
            ("--painted", "labels", "--architecture", "probabilistic"),
            "in which --painted has no part: leave it out",
        ),
        (("--architecture", "joint", "--antisymmetric"), "joint has no antisymmetric form: leave --antisymmetric out"),
        *(
            (("--architecture", "joint", "--painted", how), f"joint segments images, and --painted {how} has none")
            for how in ("labels", "shapes")
        ),
        (("--segmentation-weight", "1"), "--segmentation-weight belongs to --architecture joint: add it, or leave"),
        (("--resume",), "holds no run to resume"),
    ],
)
def test_what_cannot_be_trained_leaves_nothing_behind(made, refused, tmp_path, arguments, message):
    assert message in refused("train", *on(made), *arguments, "--out", tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_a_run_is_kept(made, trained, refused):
    before = (trained[0] / "last.pt").read_bytes()
    assert "holds a run already: resume it" in refused("train", *on(made), "--out", trained[0])
    assert (trained[0] / "last.pt").read_bytes() == before


def test_resuming_with_other_options_names_them(made, trained, refused):
    options = ("--epochs", 2, "--batch-size", 2, "--loss", "ssd")
    line = refused("train", *on(made), *options, "--resume", "--out", trained[0])
    assert "begun with" in line and "similarity={'term': 'NCC'" in line and "overlap={'term': 'Overlap'" in line


def test_no_network(made, refused, tmp_path):
    line = refused("train", *on(made, "elsewhere"), "--out", tmp_path / "run")
    assert "no connection to 127.0.0.1" in line
    assert not (made / "elsewhere").exists() and not (tmp_path / "run").exists()


def test_an_empty_folder_and_too_few_subjects(balls, refused, tmp_path):
    for part in ("images", "labels"):
        for n in range(3, 8):
            (balls / "balls" / part / f"case_{n:02d}.nii.gz").unlink()
    assert "3 subjects are too few" in refused("train", *on(balls), "--out", tmp_path / "run")
    shutil.rmtree(balls / "balls")
    (balls / "balls").mkdir()
    assert "holds no images/*.nii.gz" in refused("train", *on(balls), "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def resave(path, change=lambda array: array, affine=None):
    image = nib.load(path)
    array = change(np.asarray(image.dataobj).copy())
    nib.save(nib.Nifti1Image(array, image.affine if affine is None else affine), path)


def spoil_nan(array):
    array[2, 3, 4] = np.nan
    return array


FAULTS = {
    "missing image": ("images", lambda path: path.unlink(), r"line 2: fixed_image .* does not exist"),
    "truncated image": ("images", lambda path: os.truncate(path, 600), r"cannot be read as an image"),
    "truncated label": ("labels", lambda path: os.truncate(path, 60), r"cannot be read as an image"),
    "no NIfTI": ("images", lambda path: path.write_bytes(b"<html>"), r"cannot be read as an image"),
    "another shape": ("labels", lambda path: resave(path, lambda a: a[1:]), r"voxels and .*: resample the label"),
    "another affine": (
        "labels",
        lambda path: resave(path, affine=np.diag([2.0, 1, 1, 1])),
        r"different affines: resample the label",
    ),
    "NaN": ("images", lambda path: resave(path, spoil_nan), r"1 NaN or infinite voxels: repair it"),
    "constant": ("images", lambda path: resave(path, np.ones_like), r"is constant \(1 everywhere\)"),
    "fractions": ("labels", lambda path: resave(path, lambda a: a * 0.5), r"no labels .*nearest neighbour"),
    "none of the labels": ("labels", lambda path: resave(path, np.zeros_like), r"none of the labels 1, 2"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_volume_is_named(balls, trained, refused, tmp_path, fault):
    part, spoil, message = FAULTS[fault]
    path = balls / "balls" / part / "case_00.nii.gz"
    other = balls / "balls" / part / "case_01.nii.gz"
    spoil(path)
    if fault == "none of the labels":  # a structure that one of the two has is lost, not absent
        spoil(other)
    pairs = write_pairs(balls / "pairs.csv", [row(0, 1)])
    line = refused("evaluate", "--model", trained[0] / "best.pt", "--pairs", pairs, "--out", tmp_path / "metrics.csv")
    assert re.search(message, line), line
    assert "case_00" in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read as CSV"),
        ("", "has no column fixed_image, moving_image"),
        ("fixed_image,fixed_label\na.nii,b.nii\n", "no column moving_image"),
        (",".join(PAIRS) + "\n", "lists no pair"),
        (
            ",".join(PAIRS) + "\n" + ",".join([row(0, 1)[0], "", *row(0, 1)[2:]]),
            "line 2: no moving_image; a pair needs both",
        ),
        (",".join(PAIRS) + "\n" + "\n".join([",".join(row(0, 1))] * 2), "case_01_to_case_00 comes twice"),
    ],
)
def test_a_bad_list_of_pairs_is_named(balls, trained, refused, tmp_path, text, message):
    pairs = balls / "pairs.csv"
    if text is not None:
        pairs.write_text(text, encoding="utf-8")
    line = refused("evaluate", "--model", trained[0] / "best.pt", "--pairs", pairs, "--out", tmp_path / "metrics.csv")
    assert message in line
    assert not (tmp_path / "metrics.csv").exists()


def test_a_data_set_without_labels_is_measured_without(balls, trained, run, refused, tmp_path):
    table = json.loads((balls / "registry.json").read_text(encoding="utf-8"))
    table["balls"] |= {"label": "", "labels": {}}
    (balls / "registry.json").write_text(json.dumps(table), encoding="utf-8")
    code, out, _ = run(
        "evaluate", *on(balls), "--model", trained[0] / "best.pt", "--out", tmp_path / "metrics.csv", "--count", 2
    )
    assert code == 0 and "inverse_error_mm: " in out and "dice" not in out
    assert list(pd.read_csv(tmp_path / "metrics.csv").columns) == [
        *("pair", "structure", "ncc_before", "ncc_after", "inverse_error_mm", "folding_percent", "ndv_percent"),
        *("sdlogj", "seconds"),
        *SANITY,
    ]
    line = refused("train", *on(balls), "--dice-weight", 1, "--epochs", 1, "--out", tmp_path / "run")
    assert "dice_weight needs labels" in line
    for how in ("images", "labels"):
        line = refused("train", *on(balls), "--painted", how, "--epochs", 1, "--out", tmp_path / "run")
        assert f"--painted {how} needs label maps" in line
    line = refused("train", *on(balls), "--architecture", "joint", "--epochs", 1, "--out", tmp_path / "run")
    assert "--architecture joint needs label maps" in line
    assert not (tmp_path / "run").exists()
    # Shapes are drawn, so they need none.
    shapes = ("--painted", "shapes", "--epochs", 1, "--batch-size", 2, "--out", tmp_path / "shapes")
    assert run("train", *on(balls), *shapes)[0] == 0
    checkpoint = Checkpoint.load(tmp_path / "shapes" / "best.pt")
    assert checkpoint.objective["label_maps"]["term"] == "Shapes" and not checkpoint.knows_labels


ASKED = {
    "inverse": {"term": "InverseToo"},
    "both": {"term": "BothOrders"},
    "icon": {"term": "Consistent", "consistency": "icon", "weight": 0.5},
    "gradicon": {"term": "Consistent", "consistency": "gradicon", "weight": 0.5},
    "cycle": {"term": "Cycle"},
    "cyclemorph": {"term": "CycleMorph", "cycle_weight": 0.5, "identity_weight": 0.5},
}


@pytest.mark.parametrize("how", ASKED)
def test_both_directions_are_trained_and_told_of(balls, run, tmp_path, how):
    out = tmp_path / "run"
    weight = ("--consistency-weight", 0.5) if len(ASKED[how]) > 1 else ()
    options = ("--bidirectional", how, *weight, "--epochs", 1, "--batch-size", 2)
    assert run("train", *on(balls), *options, "--out", out)[0] == 0
    checkpoint = Checkpoint.load(out / "best.pt")
    # What is asked of a network by its loss is not built into it.
    assert bool(checkpoint.network.arguments["antisymmetric"]) == (how == "inverse")
    assert checkpoint.objective["two_directions"] == ASKED[how]
    code, said, _ = run("evaluate", "--model", out / "best.pt", *on(balls), "--out", tmp_path / "m.csv", "--count", 2)
    assert code == 0 and "swap_voxels: " in said and "self_voxels: " in said


def test_a_network_that_segments_is_trained_gone_on_with_and_used(balls, run, refused, tmp_path):
    first, again = tmp_path / "first", tmp_path / "again"
    quick = ("--epochs", 1, "--batch-size", 2)
    joint = ("--architecture", "joint", "--bidirectional", "both", "--segmentation-weight", 2)
    assert run("train", *on(balls), *quick, *joint, "--out", first)[0] == 0
    checkpoint = Checkpoint.load(first / "best.pt")
    assert checkpoint.objective["segmentation"] == {"term": "Segmented", "weight": 2.0} and checkpoint.knows_labels
    structures = len(checkpoint.card.labels)
    assert checkpoint.network.arguments["structures"] == structures
    assert checkpoint.metrics["segmentation"] > 0
    assert run("train", *on(balls), *quick, "--init", first / "best.pt", "--out", again)[0] == 0
    assert Checkpoint.load(again / "best.pt").objective["segmentation"]["weight"] == 0.5
    table = json.loads((balls / "registry.json").read_text(encoding="utf-8"))
    table["balls"]["labels"] |= {"99": "one more"}
    (balls / "registry.json").write_text(json.dumps(table), encoding="utf-8")
    line = refused("train", *on(balls), *quick, "--init", first / "best.pt", "--out", tmp_path / "no")
    assert f"tells {structures} structures apart and the labels {structures + 1}" in line
    code, said, _ = run("evaluate", *on(balls), "--model", first / "best.pt", "--out", tmp_path / "m.csv", "--count", 2)
    assert code == 0 and "dice" in said
    code, _, err = run("export", "--model", first / "best.pt", "--out", tmp_path / "net.onnx", "--format", "onnx")
    assert code == 0, err


def test_a_trained_network_is_refined_used_and_gone_on_with(balls, run, refused, tmp_path):
    first, refined, on_again = (tmp_path / name for name in ("first", "refined", "again"))
    quick = ("--epochs", 1, "--batch-size", 2)
    assert run("train", *on(balls), *quick, "--out", first)[0] == 0
    assert run("train", *on(balls), *quick, "--init", first / "best.pt", "--refine", "--out", refined)[0] == 0
    before, after = (Checkpoint.load(out / "best.pt") for out in (first, refined))
    assert after.network.arguments["inner"] == before.network.architecture
    assert all(torch.equal(after.weights[f"inner.{name}"], weight) for name, weight in before.weights.items())
    assert after.weights["module.2.weight"].abs().max() > 0
    assert run("train", *on(balls), *quick, "--init", refined / "best.pt", "--out", on_again)[0] == 0
    found = Checkpoint.load(on_again / "best.pt")
    assert torch.equal(found.weights["inner.velocity.0.weight"], before.weights["velocity.0.weight"])
    line = refused("train", *on(balls), *quick, "--init", refined / "best.pt", "--refine", "--out", tmp_path / "no")
    assert "the network is refined already" in line and not (tmp_path / "no").exists()
    code, said, _ = run(
        "evaluate", *on(balls), "--model", refined / "best.pt", "--out", tmp_path / "m.csv", "--count", 2
    )
    assert code == 0 and "swap_voxels: " in said


@pytest.mark.parametrize("how", ["images", "labels"])
def test_a_network_for_any_contrast_is_trained_measured_and_used_by_a_line_each(balls, run, tmp_path, how):
    out = tmp_path / "run"
    painted = ("--painted", how, "--edges")
    code, _, err = run("train", *on(balls), *painted, "--epochs", 1, "--batch-size", 2, "--out", out)
    assert code == 0, err
    checkpoint = Checkpoint.load(out / "best.pt")
    assert checkpoint.network.arguments["edges"] and checkpoint.knows_labels
    told = checkpoint.objective[{"images": "painting", "labels": "label_maps"}[how]]
    assert told["term"] == {"images": "Painting", "labels": "Subjects"}[how]
    code, said, _ = run("evaluate", *on(balls), "--model", out / "best.pt", "--out", tmp_path / "m.csv", "--count", 2)
    assert code == 0 and "dice" in said


def test_a_model_that_is_none(balls, trained, refused, tmp_path):
    pairs = write_pairs(balls / "pairs.csv", [row(0, 1)])
    rest = ("--pairs", pairs, "--out", tmp_path / "metrics.csv")
    assert "none.pt does not exist" in refused("evaluate", "--model", tmp_path / "none.pt", *rest)
    model = tmp_path / "model.pt"
    state = torch.load(trained[0] / "best.pt", weights_only=True)
    torch.save(state | {"arguments": state["arguments"] | {"features": [8, 8]}}, model)
    assert "not those of a network 'pyramid'" in refused("evaluate", "--model", model, *rest)
    model.write_bytes((trained[0] / "best.pt").read_bytes()[:1000])
    assert "damaged" in refused("evaluate", "--model", model, *rest)
    checkpoint_of(SLICES).save(model)
    assert "is not 2-D" in refused("evaluate", "--model", model, *rest)
    assert not (tmp_path / "metrics.csv").exists()


def test_evaluate_needs_pairs_and_a_place_for_its_table(balls, trained, refused, tmp_path):
    model = ("evaluate", "--model", trained[0] / "best.pt")
    pairs = ("--pairs", write_pairs(balls / "pairs.csv", [row(0, 1)]))
    assert "name pairs in three ways" in refused(*model, *pairs, "--dataset", "balls", "--out", tmp_path / "m.csv")
    assert "two sources of data" in refused(*model, "--images", balls, "--dataset", "x", "--out", tmp_path / "m.csv")
    assert "none is not a folder: make it" in refused(*model, *pairs, "--out", tmp_path / "none" / "m.csv")
    assert "is a folder: name a file in it" in refused(*model, *pairs, "--out", tmp_path)
    assert "device 'gpu'" in refused(*model, *pairs, "--device", "gpu", "--out", tmp_path / "m.csv")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


def test_a_full_disk_while_writing_the_table(balls, trained, refused, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8k", "none", disk]).returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        (disk / "m.csv").write_text("the table before\n", encoding="utf-8")
        (disk / "filler").write_bytes(bytes(4096))
        pairs = write_pairs(balls / "pairs.csv", [row(0, 1)])
        line = refused("evaluate", "--model", trained[0] / "best.pt", "--pairs", pairs, "--out", disk / "m.csv")
        assert "m.csv was not written (the disk is full" in line and "make room" in line
        assert (disk / "m.csv").read_text(encoding="utf-8") == "the table before\n"
        assert sorted(path.name for path in disk.iterdir()) == ["filler", "m.csv"]
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


@pytest.mark.parametrize("options", [(), ("--format", "onnx")])
def test_export_names_what_it_cannot_do_and_leaves_nothing(trained, refused, tmp_path, options):
    model = ("--model", trained[0] / "best.pt")
    assert "none is not a folder" in refused("export", *model, *options, "--out", tmp_path / "none" / "x")
    (tmp_path / "there").mkdir()
    line = refused("export", *model, *options, "--out", tmp_path / "there")
    assert "there is a folder: name a file" in line or "there exists: remove it" in line
    (tmp_path / "code.pt").write_bytes(pickle.dumps(print, protocol=2))
    line = refused("export", "--model", tmp_path / "code.pt", *options, "--out", tmp_path / "x")
    assert "code.pt is damaged or no checkpoint of plain tensors" in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["code.pt", "there"]


# --- options of all commands ------------------------------------------------------------------------------------------


def test_the_version(run):
    assert run("--version") == (0, f"course_utils {course_utils.__version__}\n", "")


def test_quiet_tells_only_results_and_verbose_where_an_error_arose(made, run, caplog, tmp_path):
    arguments = ("train", *on(made), "--epochs", 1, "--batch-size", 2)
    code, out, err = run("--quiet", *arguments, "--out", tmp_path / "run")
    assert (code, err) == (0, "") and out.startswith("2 steps in ")
    code, _, err = run(*arguments, "--out", tmp_path / "run")
    assert code == 2 and "Traceback" not in err
    code, _, err = run("--verbose", *arguments, "--out", tmp_path / "run")
    assert code == 2 and "Traceback" in err and err.splitlines()[-1].startswith("error: ")
    assert "4 training and 2 validation subjects" in caplog.text


def test_a_fault_of_the_program_is_one_line_too_and_says_how_to_see_more(run, monkeypatch, tmp_path):
    def fail(*_, **__):
        raise ZeroDivisionError("division\nby zero")

    monkeypatch.setattr("course_utils.scans.export.export", fail)
    arguments = ("export", "--model", "x.pt", "--out", tmp_path / "x")
    code, out, err = run(*arguments)
    assert (code, out) == (1, "")
    told = "division by zero (a fault of this program; --verbose before the command shows where)"
    assert err == f"error: ZeroDivisionError: {told}\n"
    code, _, err = run("--verbose", *arguments)
    assert code == 1 and "Traceback" in err and err.splitlines()[-1].startswith("error: ZeroDivisionError")


def test_warnings_are_a_line_each_and_those_of_other_packages_silent(run, monkeypatch, tmp_path):
    def warn(*_, **__):
        warnings.warn("something\nodd", CourseWarning, stacklevel=1)
        warnings.warn("argument of a library", FutureWarning, stacklevel=1)

    monkeypatch.setattr("course_utils.scans.export.export", warn)
    arguments = ("export", "--model", "x.pt", "--out", tmp_path / "x")
    assert run(*arguments)[2] == "warning: something odd\n"
    assert run("--quiet", *arguments)[2] == ""
    assert "FutureWarning: argument of a library" in run("--verbose", *arguments)[2]


def test_a_command_that_does_not_exist(run):
    code, _, err = run("tarin")
    assert code == 2 and "No such command 'tarin'" in err


def test_a_command_loads_only_what_it_needs():
    """Registering waits neither for TensorBoard nor for MONAI."""
    code = """
import sys
from course_utils.commands import app
sys.argv = ["course_utils", "register", "--moving", "nothing.nii", "--fixed", "nothing.nii", "--moved", "out.nii"]
try:
    app.main()
except SystemExit:
    print({"torch", "monai", "matplotlib", "tensorboard", "course_utils.training"} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == "{'torch'}", done.stderr
