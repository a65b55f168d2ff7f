"""Training: runs that are killed, stopped and resumed, that diverge or run out of disk; schedules and losses by hand.

The pairs are discs computed from their index, the networks tiny, the clock a counter: a run takes half a second.
"""

import errno
import itertools
import math
import multiprocessing
import os
import pickle
import signal
import subprocess
import time
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from course_utils import fields, losses, training
from course_utils.errors import CourseError
from course_utils.networks import Registration
from course_utils.training import TrainConfig, fit, load_model, precision, registration_loss

STEPS = 30
CONFIG = TrainConfig(steps=STEPS, batch_size=2, validations=3, features=(4, 8), dice_weight=0.1, amp="off")
ABOUT = {
    "dataset": "discs",
    "labels": {1: "disc"},
    "spacing": [1.0, 1.0],
    "recipe": {"shape": [20, 18], "spacing": None, "normalisation": "percentile"},
}


class Discs:
    """Pairs of discs, by index. ``on`` maps an index to what happens when its pair is asked for."""

    def __init__(self, count=10**6, shape=(20, 18), labels=True, on=None):
        self.count, self.shape, self.labels, self.on = count, shape, labels, on or {}

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if index >= self.count:
            raise IndexError(index)
        generator = torch.Generator().manual_seed(index)
        grid = fields.identity_grid(self.shape)[0]
        item = {"name": f"pair {index}"}
        for role in ("fixed", "moving"):
            centre = torch.tensor(self.shape).float() / 2 + 2 * torch.rand(len(self.shape), generator=generator) - 1
            radius = 3 + 2 * torch.rand(1, generator=generator)
            distance = (grid - centre.view(-1, *[1] * len(self.shape))).norm(dim=0, keepdim=True)
            item[role] = torch.sigmoid(radius - distance)
            if self.labels:
                item[f"{role}_label"] = (distance < radius).to(torch.uint8)
        if index in self.on:
            self.on[index](item)
        return item


class Repeated(Discs):
    def __getitem__(self, index):
        return super().__getitem__(index % 3)


def train(out, config=CONFIG, *, on=None, resume=False, about=ABOUT, pairs=None):
    pairs = pairs or Discs(on=on)
    validation = Discs(3, pairs.shape, pairs.labels)
    return fit(config, pairs, validation, out, about=about, resume=resume, progress=False)


def history_of(path):
    return pd.DataFrame(torch.load(path / "last.pt", weights_only=True)["history"]).drop(columns="seconds")


def files(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """Every look at the clock is 5 seconds after the last: checkpoints fall due after a few steps."""
    ticks = itertools.count(0, 5)
    monkeypatch.setattr(training, "time", SimpleNamespace(monotonic=lambda: next(ticks)))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """A run of 30 steps: (result, folder)."""
    out = tmp_path_factory.mktemp("uninterrupted")
    return train(out), out


# --- killed, stopped, resumed -----------------------------------------------------------------------------------------


def die(_item):
    os.kill(os.getpid(), signal.SIGKILL)


def die_while_saving(_item):
    """The next checkpoint is cut short in the middle of its file."""
    whole = torch.save

    def half(state, path):
        whole(state, path)
        os.truncate(path, path.stat().st_size // 2)
        die(None)

    torch.save = half


def _child(out, index, happening, resume):
    torch.set_num_threads(1)
    ticks = itertools.count(0, 5)
    training.time = SimpleNamespace(monotonic=lambda: next(ticks))
    train(out, on={index: happening}, resume=resume)


@pytest.fixture(scope="module")
def killed():
    """A function that trains in another process until it is killed. One server imports torch once for all of them."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["course_utils.training"])

    def run(out, index, happening=die, resume=False):
        process = context.Process(target=_child, args=(out, index, happening, resume))
        process.start()
        process.join(120)
        assert process.exitcode == -signal.SIGKILL
        time.sleep(1.1)  # TensorBoard puts the files of a folder in order by the second in which they were begun

    return run


def assert_same_run(out, uninterrupted):
    """The same curve and the same networks, to the last bit."""
    result, whole = uninterrupted
    again = pd.read_csv(out / "history.csv")
    pd.testing.assert_frame_equal(
        again.drop(columns="seconds"), pd.read_csv(whole / "history.csv").drop(columns="seconds"), check_exact=True
    )
    assert again["step"].tolist() == list(range(1, STEPS + 1))
    for name in ("best.pt", "last.pt"):
        a, b = (torch.load(folder / name, weights_only=True) for folder in (out, whole))
        for key in ("step", "score", "best_score", "next_validation", "excess"):
            assert a[key] == b[key], (name, key)
        for key, value in b["model"].items():
            assert torch.equal(a["model"][key], value), (name, key)
    assert files(out) == ["best.pt", "history.csv", "last.pt", "tensorboard"]
    torch.testing.assert_close(
        list(load_model(out / "best.pt").model.parameters()), list(result.model.parameters()), rtol=0, atol=0
    )


def test_a_killed_run_resumes_as_if_it_had_not_been(tmp_path, killed, uninterrupted):
    killed(tmp_path, index=2 * 17 + 1)
    lost = 17 - torch.load(tmp_path / "last.pt", weights_only=True)["step"]
    assert 0 < lost < 17  # neither saved at each step nor begun anew: there is something to do again
    killed(tmp_path, index=2 * 25, resume=True)
    assert len(history_of(tmp_path)) > 16
    train(tmp_path, resume=True)
    assert_same_run(tmp_path, uninterrupted)
    check_tensorboard(tmp_path)


def test_a_run_killed_while_saving_keeps_the_checkpoint_before(tmp_path, killed, uninterrupted):
    killed(tmp_path, index=2 * 16, happening=die_while_saving)
    assert any(name.endswith(".partial") for name in files(tmp_path))
    before = load_model(tmp_path / "last.pt").step
    assert 0 < before <= 16
    train(tmp_path, resume=True)
    assert_same_run(tmp_path, uninterrupted)


def test_ctrl_c_finishes_the_step_and_saves_it(tmp_path, uninterrupted):
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match=r"step 12: .*resume"):
        train(tmp_path, on={2 * 11: lambda _: os.kill(os.getpid(), signal.SIGINT)})
    assert signal.getsignal(signal.SIGINT) is handler
    assert history_of(tmp_path)["step"].tolist() == list(range(1, 13))
    assert load_model(tmp_path / "last.pt").step == 12
    train(tmp_path, resume=True)
    assert_same_run(tmp_path, uninterrupted)


def test_a_second_ctrl_c_ends_at_once(tmp_path):
    def twice(_):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, on={2 * 11: twice})
    assert load_model(tmp_path / "last.pt").step < 11
    assert not list(tmp_path.glob(".*"))


def test_a_finished_run_resumes_to_itself(tmp_path):
    config = replace(CONFIG, steps=3)
    first = train(tmp_path, config)
    again = train(tmp_path, config, resume=True, on=dict.fromkeys(range(1, 100), die))
    pd.testing.assert_frame_equal(first.history, again.history)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"learning_rate": 1e-3}, "learning_rate=0.002"),
        ({"similarity": "ssd", "smoothness": CONFIG.smoothness}, "similarity='ncc'"),
        ({"features": (4, 8, 8)}, r"features=\[4, 8\]"),
        ({"seed": 1, "steps": 40}, "steps=30, seed=0"),
    ],
)
def test_resuming_with_another_configuration_names_the_difference(uninterrupted, changes, named):
    _, whole = uninterrupted
    with pytest.raises(CourseError, match=f"begun with {named}: resume it with that"):
        train(whole, replace(CONFIG, **changes), resume=True)


@pytest.mark.parametrize("about", [{"dataset": "squares"}, {"labels": {1: "disc", 2: "rim"}}, {"spacing": [2.0, 2.0]}])
def test_resuming_on_other_data_is_refused(uninterrupted, about):
    _, whole = uninterrupted
    with pytest.raises(CourseError, match=f"begun with {next(iter(about))}="):
        train(whole, resume=True, about=ABOUT | about)


def test_a_folder_that_holds_a_run_is_not_overwritten(uninterrupted):
    _, whole = uninterrupted
    before = (whole / "last.pt").read_bytes()
    with pytest.raises(CourseError, match="holds a run already: resume it, or choose another folder"):
        train(whole)
    assert (whole / "last.pt").read_bytes() == before


def test_there_must_be_a_run_to_resume(tmp_path):
    with pytest.raises(CourseError, match="holds no run to resume"):
        train(tmp_path / "none", resume=True)
    assert files(tmp_path) == []


# --- what training does -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(20, 18), (12, 10, 11)])
def test_training_registers(tmp_path, shape):
    """On three pairs again and again, which even a tiny network learns."""
    config = replace(CONFIG, steps=60, similarity="ssd", smoothness=0.001, learning_rate=1e-2, validations=4)
    history = train(tmp_path, config, pairs=Repeated(shape=shape)).history
    scores = history["validation_dice"].dropna().tolist()
    assert len(scores) == 5  # the first step, the four quarters
    assert scores[-1] > scores[0] + 0.03


def test_the_best_network_is_the_one_with_the_best_validation(uninterrupted):
    result, whole = uninterrupted
    validated = result.history.dropna(subset="validation_dice")
    assert validated["step"].tolist() == [1, 10, 20, 30]
    best = validated.loc[validated["validation_dice"].idxmax()]
    trained = load_model(whole / "best.pt")
    assert (trained.step, trained.score) == (best["step"], best["validation_dice"])
    assert load_model(whole / "last.pt").score == validated["validation_dice"].iloc[-1]
    assert not trained.model.training
    assert trained.config == CONFIG and trained.about == ABOUT


def test_an_early_best_is_kept(tmp_path):
    """Validation by a clock that is wrong: scores fall, best.pt stays with the first, last.pt goes on."""
    scores = iter([0.9, 0.5, 0.7])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.metrics, "dice", lambda *_: torch.full((1, 1), score[0]))
        score = [0.0]
        validate = training._Run.validate

        def scored(run, *arguments):
            score[0] = next(scores)
            return validate(run, *arguments)

        patch.setattr(training._Run, "validate", scored)
        result = train(tmp_path, replace(CONFIG, steps=4, validations=2))
    assert load_model(result.best).step == 1 and load_model(result.last).step == 4
    torch.testing.assert_close(result.model.state_dict(), load_model(result.best).model.state_dict(), rtol=0, atol=0)


def test_without_labels_the_best_has_the_lowest_similarity_loss(tmp_path):
    config = replace(CONFIG, steps=30, dice_weight=0.0, similarity="ssd", smoothness=0.01, learning_rate=1e-2)
    history = train(tmp_path, config, pairs=Discs(labels=False)).history
    assert "validation_dice" not in history and "overlap" not in history
    trained = load_model(tmp_path / "best.pt")
    assert trained.score == -history["validation_similarity"].min()
    assert trained.step == history.loc[history["validation_similarity"].idxmin(), "step"]


def test_labels_that_no_validation_pair_has_leave_the_similarity_to_judge(tmp_path):
    config = replace(CONFIG, steps=2, dice_weight=0.0)
    history = train(tmp_path, config, about=ABOUT | {"labels": {7: "absent"}}).history
    assert load_model(tmp_path / "best.pt").score == -history["validation_similarity"].min()


def test_the_learning_rate_warms_up_and_falls_on_a_half_cosine(uninterrupted):
    rates = uninterrupted[0].history["learning_rate"]
    for step in range(STEPS):
        cosine = 0.5 * (1 + math.cos(math.pi * step / STEPS))
        assert rates[step] == pytest.approx(2e-3 * min(1, (step + 1) / 20) * cosine, rel=1e-12)
    assert rates[0] == pytest.approx(1e-4)
    assert rates.iloc[-1] < 0.003 * 2e-3


def test_the_minutes_are_kept_to_one_step(tmp_path):
    result = train(tmp_path, replace(CONFIG, steps=None, minutes=2))
    seconds = result.history["seconds"]
    step = seconds.diff().max()
    assert 120 <= seconds.iloc[-1] <= 120 + step
    assert seconds.iloc[-2] < 120
    # The schedule follows the same clock.
    progress = seconds.iloc[-2] / 120
    warm_up = min(1, len(seconds) / 20)
    expected = 2e-3 * warm_up * 0.5 * (1 + math.cos(math.pi * progress))
    assert result.history["learning_rate"].iloc[-1] == pytest.approx(expected)
    assert math.isfinite(result.history["validation_dice"].iloc[-1])


def test_minutes_already_spent_count_after_resuming(tmp_path):
    config = replace(CONFIG, steps=None, minutes=3)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, config, on={2 * 11: lambda _: os.kill(os.getpid(), signal.SIGINT)})
    spent = torch.load(tmp_path / "last.pt", weights_only=True)["seconds"]
    seconds = train(tmp_path, config, resume=True).history["seconds"]
    assert seconds.is_monotonic_increasing
    assert seconds[12] - spent <= 10 and 180 <= seconds.iloc[-1] <= 200


def test_minutes_for_which_there_are_too_few_pairs(tmp_path):
    with pytest.raises(CourseError, match="9 training pairs ended before the minutes"):
        train(tmp_path, replace(CONFIG, steps=None, minutes=60), pairs=Discs(9))
    assert load_model(tmp_path / "last.pt").step == 5


def test_too_few_pairs_for_the_steps_are_noticed_before_anything_is_written(tmp_path):
    with pytest.raises(CourseError, match="30 steps of 2 need 60 training pairs, not 59"):
        train(tmp_path / "run", pairs=Discs(59))
    assert files(tmp_path) == []


def scalars(folder):
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    tags = events.Tags()["scalars"]
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}, events


def check_tensorboard(folder):
    history = pd.read_csv(folder / "history.csv")
    logged, events = scalars(folder)
    assert set(logged) == {name.replace("validation_", "validation/") for name in history.columns} - {"step"}
    for name in history.columns.drop(["step", "seconds"]):
        rows = history[["step", name]].dropna()
        steps, values = zip(*logged[name.replace("validation_", "validation/")], strict=True)
        assert list(steps) == rows["step"].tolist(), name
        assert values == pytest.approx(rows[name].tolist(), rel=1e-6), name
    assert events.Tags()["images"] == ["validation/pair"]


def test_tensorboard_shows_the_history(uninterrupted):
    check_tensorboard(uninterrupted[1])


# --- runs that go wrong -----------------------------------------------------------------------------------------------


def test_a_nan_stops_the_run_and_names_the_step(tmp_path):
    with pytest.raises(CourseError) as failure:
        train(tmp_path, on={2 * 13: lambda item: item["fixed"].fill_(math.nan)})
    message = str(failure.value)
    assert "step 14: the loss is not finite" in message and "\n" not in message
    for advice in ("lower the learning rate (0.002)", "smoothness", "check the images for NaN", "best.pt"):
        assert advice in message
    for name, steps in (("best.pt", (1, 10)), ("last.pt", range(14))):
        trained = load_model(tmp_path / name)
        assert trained.step in steps
        assert all(parameter.isfinite().all() for parameter in trained.model.parameters())


def test_weights_that_are_not_finite_are_never_saved(tmp_path, monkeypatch):
    step = training.torch.optim.Adam.step

    def spoil(optimizer, *arguments, **options):
        step(optimizer, *arguments, **options)
        spoil.steps += 1
        if spoil.steps == 10:  # a validation, which may be the best yet, follows
            optimizer.param_groups[0]["params"][0].data.fill_(math.inf)

    spoil.steps = 0
    monkeypatch.setattr(training.torch.optim.Adam, "step", spoil)
    monkeypatch.setattr(training.metrics, "dice", lambda *_: torch.full((1, 1), float(spoil.steps)))
    with pytest.raises(CourseError, match="step 10: the weights are no longer finite"):
        train(tmp_path)
    assert load_model(tmp_path / "best.pt").step == 1
    assert all(p.isfinite().all() for p in load_model(tmp_path / "last.pt").model.parameters())


@pytest.mark.parametrize("similarity", ["ncc", "ssd"])
def test_a_diverging_run_stops(tmp_path, similarity):
    config = replace(CONFIG, similarity=similarity, learning_rate=100.0)
    with pytest.raises(CourseError, match=r"step \d+: the (run diverges|loss is not finite).*learning rate \(100\)"):
        train(tmp_path, config)
    assert all(p.isfinite().all() for p in load_model(tmp_path / "last.pt").model.parameters())


def test_a_run_that_loses_its_way_late_stops(tmp_path, monkeypatch):
    """All is well for 30 steps; then every image is pushed 6 voxels aside, and stays there."""
    step = training._Run.train_step

    def spoil(run, batch):
        if run.step == 30:
            run.model.velocity.bias.data.fill_(6.0)
            monkeypatch.setattr(run, "learning_rate", lambda: 0.0)
        return step(run, batch)

    monkeypatch.setattr(training._Run, "train_step", spoil)
    with pytest.raises(CourseError, match=r"step (40|50|60|70|80): the run diverges"):
        train(tmp_path, replace(CONFIG, steps=400))


def test_healthy_runs_of_single_pairs_are_not_called_diverging(tmp_path):
    """The SSD of single pairs varies many times over."""
    config = replace(CONFIG, steps=80, similarity="ssd", smoothness=0.02, dice_weight=0.0, batch_size=1)
    history = train(tmp_path, config).history
    assert history["similarity"].max() > 5 * history["similarity"].min()


@contextmanager
def small_disk(folder, size):
    """A real file system of few bytes, where the user may mount one."""
    folder.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", folder]).returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")  # TensorBoard's thread stays quiet
@pytest.mark.parametrize("kilobytes", [4, 64, 100, 160])
def test_a_full_disk_ends_in_one_line_and_the_last_checkpoint_stays(tmp_path, capfd, kilobytes):
    """Full for the first checkpoint, for TensorBoard's file, or for a later checkpoint."""
    with small_disk(tmp_path / "disk", f"{kilobytes}k") as disk:
        with pytest.raises(CourseError, match=r"disk is full.*make room") as failure:
            train(disk / "run", replace(CONFIG, steps=4000, validations=4000))
        assert "\n" not in str(failure.value)
        names = files(disk / "run")
        assert not [name for name in names if name.startswith(".")]
        assert ("last.pt" in names) == (kilobytes > 4)
        for name in {"best.pt", "last.pt"} & set(names):
            assert load_model(disk / "run" / name).step >= 0
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("file write failed")])
def test_a_failed_write_leaves_the_checkpoint_before(tmp_path, monkeypatch, error):
    save = torch.save

    def failing(state, path):
        path.write_bytes(b"half")
        if state["step"] > 12:
            raise error
        save(state, path)

    monkeypatch.setattr(torch, "save", failing)
    with pytest.raises(CourseError, match=r"last\.pt was not written .the disk is full.*make room"):
        train(tmp_path)
    assert 0 < load_model(tmp_path / "last.pt").step <= 12
    assert not list(tmp_path.glob(".*"))


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CourseError, match="cannot be made"):
        train(tmp_path / "file" / "run")


# --- checkpoints that are none ----------------------------------------------------------------------------------------


class Code:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_a_checkpoint_with_code_in_it_is_refused_and_not_run(tmp_path, writer):
    path, marker = tmp_path / "evil.pt", tmp_path / "ran"
    state = {"format": "course_utils 1", "model": Code(marker)}
    if writer == "torch":
        torch.save(state, path)
    else:
        path.write_bytes(pickle.dumps(state, protocol=2))
    with pytest.raises(CourseError, match="damaged or no checkpoint of plain tensors"):
        load_model(path)
    assert not marker.exists()


def test_damaged_foreign_and_missing_checkpoints(tmp_path, uninterrupted):
    whole = (uninterrupted[1] / "best.pt").read_bytes()
    path = tmp_path / "model.pt"
    for content in (whole[: len(whole) // 2], b"", b"not a checkpoint"):
        path.write_bytes(content)
        with pytest.raises(CourseError, match="damaged"):
            load_model(path)
    for foreign in ({"state_dict": {}}, [1, 2], torch.zeros(3)):
        torch.save(foreign, path)
        with pytest.raises(CourseError, match="not a checkpoint of this course"):
            load_model(path)
    with pytest.raises(CourseError, match="does not exist"):
        load_model(tmp_path / "none.pt")


def test_a_checkpoint_of_another_architecture(tmp_path, uninterrupted):
    state = torch.load(uninterrupted[1] / "best.pt", weights_only=True)
    for change in (
        {"spatial_dims": 3},
        {"config": state["config"] | {"features": [4, 8, 8]}},
        {"config": state["config"] | {"attention": True}},
        {"model": {"encoder.weight": torch.zeros(1)}},
    ):
        torch.save(state | change, tmp_path / "other.pt")
        with pytest.raises(CourseError, match="another architecture: train it again"):
            load_model(tmp_path / "other.pt")


# --- precision --------------------------------------------------------------------------------------------------------


def test_half_precision_needs_a_gpu(tmp_path):
    with pytest.raises(CourseError, match="amp=fp16 needs a CUDA device, not cpu"):
        train(tmp_path / "run", replace(CONFIG, amp="fp16"))
    assert files(tmp_path) == []


@pytest.mark.parametrize(("native", "dtype"), [(True, torch.bfloat16), (False, torch.float16)])
def test_auto_is_float16_on_a_gpu_without_bfloat16(monkeypatch, native, dtype):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: native or including_emulation)
    assert precision("auto", torch.device("cuda")) is dtype


@pytest.mark.parametrize(
    ("capabilities", "dtype"),
    [({"avx2": True}, None), ({"avx512_bf16": True}, torch.bfloat16), ({"amx_bf16": True}, torch.bfloat16)],
)
def test_auto_is_bfloat16_on_a_processor_that_has_it(monkeypatch, capabilities, dtype):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert precision("auto", torch.device("cpu")) is dtype


def test_bfloat16_agrees_with_float32_for_a_few_steps(tmp_path):
    config = replace(CONFIG, steps=10)
    full = train(tmp_path / "fp32", config).history
    half = train(tmp_path / "bf16", replace(config, amp="bf16")).history
    torch.testing.assert_close(torch.tensor(half["loss"]), torch.tensor(full["loss"]), rtol=0, atol=2e-3)
    assert not half["loss"].equals(full["loss"])
    weights = torch.load(tmp_path / "bf16" / "last.pt", weights_only=True)["model"]
    assert {value.dtype for value in weights.values()} == {torch.float32}


def test_float16_scales_its_gradients_and_resumes_its_scale(tmp_path, monkeypatch):
    """PyTorch has the loss scaler on the CPU too, so its path can be walked without a GPU."""
    monkeypatch.setattr(training, "precision", lambda *_: torch.float16)
    config = replace(CONFIG, steps=24)
    whole = train(tmp_path / "whole", config).history
    assert torch.load(tmp_path / "whole" / "last.pt", weights_only=True)["scaler"]["scale"] > 1
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", config, on={2 * 11: lambda _: os.kill(os.getpid(), signal.SIGINT)})
    state = torch.load(tmp_path / "cut" / "last.pt", weights_only=True)
    state["scaler"]["scale"] = 2.0**30  # the gradients overflow: the step is skipped, the scale halved
    torch.save(state, tmp_path / "cut" / "last.pt")
    again = train(tmp_path / "cut", config, resume=True).history
    scale = torch.load(tmp_path / "cut" / "last.pt", weights_only=True)["scaler"]["scale"]
    assert 2.0**16 < scale < 2.0**30
    assert again["loss"][:13].tolist() == whole["loss"][:13].tolist()
    assert all(p.isfinite().all() for p in load_model(tmp_path / "cut" / "last.pt").model.parameters())


def test_a_run_begun_without_a_scaler_resumes_with_one(tmp_path, monkeypatch):
    config = replace(CONFIG, steps=4, amp="auto")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, config, on={2: lambda _: os.kill(os.getpid(), signal.SIGINT)})
    monkeypatch.setattr(training, "precision", lambda *_: torch.float16)
    assert len(train(tmp_path, config, resume=True).history) == 4


# --- the loss ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(12, 14), (9, 10, 8)])
@pytest.mark.parametrize("similarity", ["ncc", "ssd"])
@pytest.mark.parametrize("regulariser", ["diffusion", "bending"])
def test_the_loss_is_the_weighted_sum_of_its_terms(shape, similarity, regulariser):
    config = replace(
        CONFIG,
        similarity=similarity,
        regulariser=regulariser,
        ncc_window=5,
        smoothness=0.3,
        dice_weight=0.7,
        jacobian_weight=1.9,
    )
    generator = torch.Generator().manual_seed(0)
    batch = torch.utils.data.default_collate([Discs(shape=shape)[index] for index in range(2)])
    velocity = torch.randn(2, len(shape), *shape, generator=generator)
    displacement = 2 * torch.randn(2, len(shape), *shape, generator=generator)
    moved = fields.warp(batch["moving"], displacement)
    terms = registration_loss(config, Registration(moved, displacement, velocity), batch, {1: "disc"})
    by_hand = {
        "similarity": losses.ncc_loss(moved, batch["fixed"], 5)
        if similarity == "ncc"
        else (moved - batch["fixed"]).square().mean(),
        "regularisation": {"diffusion": losses.diffusion_loss, "bending": losses.bending_loss}[regulariser](velocity),
        "overlap": losses.soft_dice_loss(
            fields.warp((batch["moving_label"] == 1).float(), displacement), (batch["fixed_label"] == 1).float()
        ),
        "folding": (-fields.jacobian_determinant(displacement)).clamp(min=0).mean(),
    }
    assert set(terms) == {"loss", *by_hand}
    for name, value in by_hand.items():
        assert value > 0
        torch.testing.assert_close(terms[name], value)
    total = by_hand["similarity"] + 0.3 * by_hand["regularisation"] + 0.7 * by_hand["overlap"]
    torch.testing.assert_close(terms["loss"], total + 1.9 * by_hand["folding"])


def test_terms_without_weight_are_not_computed():
    config = replace(CONFIG, dice_weight=0.0, jacobian_weight=0.0)
    batch = torch.utils.data.default_collate([Discs(labels=False)[0]])
    nothing = torch.zeros(1, 2, 20, 18)
    terms = registration_loss(config, Registration(batch["moving"], nothing, nothing), batch, {})
    assert set(terms) == {"loss", "similarity", "regularisation"}


@pytest.mark.parametrize(("labels", "names"), [(False, {1: "disc"}), (True, {})])
def test_an_overlap_without_labels_is_refused_before_anything_is_written(tmp_path, labels, names):
    with pytest.raises(CourseError, match="dice_weight needs labels"):
        train(tmp_path / "run", pairs=Discs(labels=labels), about=ABOUT | {"labels": names})
    assert files(tmp_path) == []


def test_a_pair_without_labels_among_others_is_named(tmp_path):
    def unlabelled(item):
        del item["fixed_label"], item["moving_label"]

    with pytest.raises(CourseError, match="step 3: not all of pair 4, pair 5 have labels"):
        train(tmp_path / "run", on={5: unlabelled})
    assert (tmp_path / "run" / "best.pt").exists()


@pytest.mark.parametrize(
    "wrong",
    [
        {"similarity": "mse"},
        {"architecture": "resnet"},
        {"regulariser": "elastic"},
        {"ncc_window": 4},
        {"smoothness": -1.0},
        {"dice_weight": math.nan},
        {"steps": 0},
        {"learning_rate": 0.0},
        {"batch_size": 0},
        {"validations": 0},
        {"amp": "fp8"},
    ],
)
def test_a_wrong_setting_is_named(wrong):
    name, value = next(iter(wrong.items()))
    with pytest.raises(CourseError, match=f"^{name}={value!r} is not .*: change it$"):
        replace(CONFIG, **wrong)


@pytest.mark.parametrize("budget", [{}, {"steps": 10, "minutes": 1.0}])
def test_a_run_has_one_budget(budget):
    with pytest.raises(CourseError, match="either steps or minutes"):
        TrainConfig(**budget)


def test_the_same_seed_gives_the_same_first_weights_and_leaves_the_global_state_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    a, b, other = (replace(CONFIG, seed=seed).network(2).state_dict() for seed in (3, 3, 4))
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert any(not torch.equal(a[key], other[key]) for key in a)
