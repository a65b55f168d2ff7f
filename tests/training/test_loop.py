"""Training: runs that are killed, stopped and resumed, that diverge or run out of disk; schedules and losses by hand.

The pairs are discs computed from their index, the networks tiny, the clock a counter: a run takes half a second.
"""

import errno
import io
import itertools
import math
import multiprocessing
import os
import pickle
import signal
import subprocess
import time
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from course_utils import fields
from course_utils.checkpoint import Checkpoint
from course_utils.data.card import DataCard
from course_utils.data.recipe import Recipe
from course_utils.errors import CourseError
from course_utils.networks import NetworkSpec
from course_utils.objectives import Objective, Outcome, pair_objective
from course_utils.training import TrainConfig, fit, loop, precision
from course_utils.training import run as running

STEPS = 30
CONFIG = TrainConfig(steps=STEPS, batch_size=2, validations=3, amp="off")
OBJECTIVE = {"similarity": "ncc", "dice_weight": 0.1, "labels": (1,)}
CARD = DataCard("discs", {1: "disc"}, Recipe((20, 18), (1.0, 1.0), aligned=True))


class Discs:
    """Pairs of discs, by index. `on` maps an index to what happens when its pair is asked for."""

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


def network(dims=2, seed=0, features=(4, 8), **arguments):
    return NetworkSpec("voxelmorph", {"spatial_dims": dims, "features": features, **arguments}).build(seed)


def train(out, config=CONFIG, *, on=None, resume=False, card=CARD, pairs=None, model=None, **objective):
    """A run of the tiny network on discs; `objective` changes what is minimised, `config` how."""
    pairs = pairs or Discs(on=on)
    validation = Discs(3, pairs.shape, pairs.labels)
    minimised = pair_objective(**{**OBJECTIVE, **objective})
    model = network(len(pairs.shape)) if model is None else model
    return fit(model, minimised, pairs, validation, out, config, card=card, resume=resume)


def history_of(path):
    return pd.DataFrame(torch.load(path / "last.pt", weights_only=True)["run"]["history"]).drop(columns="seconds")


def files(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """Every look at the clock is 5 seconds after the last: checkpoints fall due after a few steps."""
    ticks = itertools.count(0, 5)
    for module in (loop, running):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: next(ticks)))


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As in the processes that are killed: with two threads sums are rounded otherwise."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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
    whole = Path.write_bytes

    def half(path, content):
        whole(path, bytes(content)[: len(content) // 2])
        die(None)

    Path.write_bytes = half


def _child(out, index, happening, resume):
    torch.set_num_threads(1)
    ticks = itertools.count(0, 5)
    loop.time = running.time = SimpleNamespace(monotonic=lambda: next(ticks))
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
        for key in ("step", "score", "metrics"):
            assert a[key] == b[key], (name, key)
        for key in ("best_score", "next_validation", "excess") if name == "last.pt" else ():
            assert a["run"][key] == b["run"][key], (name, key)
        for key, value in b["weights"].items():
            assert torch.equal(a["weights"][key], value), (name, key)
    assert files(out) == ["best.pt", "history.csv", "last.pt", "tensorboard"]
    torch.testing.assert_close(
        list(Checkpoint.load(out / "best.pt").model().parameters()), list(result.model.parameters()), rtol=0, atol=0
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
    before = Checkpoint.load(tmp_path / "last.pt").step
    assert 0 < before <= 16
    train(tmp_path, resume=True)
    assert_same_run(tmp_path, uninterrupted)


def test_ctrl_c_finishes_the_step_and_saves_it(tmp_path, uninterrupted):
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match=r"step 12: .*resume"):
        train(tmp_path, on={2 * 11: lambda _: os.kill(os.getpid(), signal.SIGINT)})
    assert signal.getsignal(signal.SIGINT) is handler
    assert history_of(tmp_path)["step"].tolist() == list(range(1, 13))
    assert Checkpoint.load(tmp_path / "last.pt").step == 12
    train(tmp_path, resume=True)
    assert_same_run(tmp_path, uninterrupted)


def test_a_second_ctrl_c_ends_at_once(tmp_path):
    def twice(_):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, on={2 * 11: twice})
    assert Checkpoint.load(tmp_path / "last.pt").step < 11
    assert not list(tmp_path.glob(".*"))


def test_a_finished_run_resumes_to_itself(tmp_path):
    config = replace(CONFIG, steps=3)
    first = train(tmp_path, config)
    again = train(tmp_path, config, resume=True, on=dict.fromkeys(range(1, 100), die))
    pd.testing.assert_frame_equal(first.history, again.history)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"config": replace(CONFIG, learning_rate=1e-3)}, "learning_rate=0.002"),
        (
            {"similarity": "ssd", "smoothness": 2.0},
            "similarity={'term': 'NCC', 'window': 9, 'edges': 0.0, 'weight': 1.0}",
        ),
        ({"dice_weight": 0.0}, r"overlap={'term': 'Overlap', 'labels': \[1\], 'weight': 0.1}"),
        ({"model": network(features=(4, 8, 8))}, r"features=\[4, 8\]"),
        ({"config": replace(CONFIG, seed=1, steps=40)}, "steps=30, seed=0"),
    ],
)
def test_resuming_with_another_configuration_names_the_difference(uninterrupted, changes, named):
    _, whole = uninterrupted
    with pytest.raises(CourseError, match=f"begun with {named}: resume it with that"):
        train(whole, resume=True, **changes)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("dataset", "squares"),
        ("labels", {1: "disc", 2: "rim"}),
        ("recipe", Recipe((20, 18), (2.0, 2.0), aligned=True)),
    ],
)
def test_resuming_on_other_data_is_refused(uninterrupted, name, value):
    _, whole = uninterrupted
    with pytest.raises(CourseError, match=f"begun with {name}="):
        train(whole, resume=True, card=replace(CARD, **{name: value}))


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
    config = replace(CONFIG, steps=60, learning_rate=1e-2, validations=4)
    history = train(tmp_path, config, pairs=Repeated(shape=shape), similarity="ssd", smoothness=0.001).history
    scores = history["validation_dice"].dropna().tolist()
    assert len(scores) == 5  # the first step, the four quarters
    assert scores[-1] > scores[0] + 0.03


def test_the_best_network_is_the_one_with_the_best_validation(uninterrupted):
    result, whole = uninterrupted
    validated = result.history.dropna(subset="validation_dice")
    assert validated["step"].tolist() == [1, 10, 20, 30]
    best = validated.loc[validated["validation_dice"].idxmax()]
    trained = Checkpoint.load(whole / "best.pt")
    assert (trained.step, trained.score) == (best["step"], best["validation_dice"])
    assert Checkpoint.load(whole / "last.pt").score == validated["validation_dice"].iloc[-1]
    assert not trained.model().training
    assert trained.config == asdict(CONFIG) and trained.card == CARD
    assert trained.network == network().spec
    assert trained.objective == pair_objective(**OBJECTIVE).describe()
    assert trained.metrics["dice"] == trained.score


def test_an_early_best_is_kept(tmp_path):
    """Validation by a clock that is wrong: scores fall, best.pt stays with the first, last.pt goes on."""
    scores = iter([0.9, 0.5, 0.7])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running.metrics, "dice", lambda *_: torch.full((1, 1), score[0]))
        score = [0.0]
        validate = running.TrainingRun.validate

        def scored(run, *arguments):
            score[0] = next(scores)
            return validate(run, *arguments)

        patch.setattr(running.TrainingRun, "validate", scored)
        result = train(tmp_path, replace(CONFIG, steps=4, validations=2))
    assert Checkpoint.load(result.best).step == 1 and Checkpoint.load(result.last).step == 4
    torch.testing.assert_close(
        result.model.state_dict(), Checkpoint.load(result.best).model().state_dict(), rtol=0, atol=0
    )


def test_without_labels_the_best_has_the_lowest_similarity_loss(tmp_path):
    config = replace(CONFIG, steps=30, learning_rate=1e-2)
    loss = {"dice_weight": 0.0, "similarity": "ssd", "smoothness": 0.01}
    history = train(tmp_path, config, pairs=Discs(labels=False), **loss).history
    assert "validation_dice" not in history and "overlap" not in history
    trained = Checkpoint.load(tmp_path / "best.pt")
    assert trained.score == -history["validation_similarity"].min()
    assert trained.step == history.loc[history["validation_similarity"].idxmin(), "step"]


def test_labels_that_no_validation_pair_has_leave_the_similarity_to_judge(tmp_path):
    history = train(
        tmp_path, replace(CONFIG, steps=2), card=replace(CARD, labels={7: "absent"}), dice_weight=0.0
    ).history
    assert Checkpoint.load(tmp_path / "best.pt").score == -history["validation_similarity"].min()


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
    spent = torch.load(tmp_path / "last.pt", weights_only=True)["run"]["seconds"]
    seconds = train(tmp_path, config, resume=True).history["seconds"]
    assert seconds.is_monotonic_increasing
    assert seconds[12] - spent <= 10 and 180 <= seconds.iloc[-1] <= 200


def test_minutes_for_which_there_are_too_few_pairs(tmp_path):
    with pytest.raises(CourseError, match="9 training pairs ended before the minutes"):
        train(tmp_path, replace(CONFIG, steps=None, minutes=60), pairs=Discs(9))
    assert Checkpoint.load(tmp_path / "last.pt").step == 5


def test_too_few_pairs_for_the_steps_are_noticed_before_anything_is_written(tmp_path):
    with pytest.raises(CourseError, match="30 steps of 2 need 60 training pairs, not 59"):
        train(tmp_path / "run", pairs=Discs(59))
    assert files(tmp_path) == []


@pytest.mark.parametrize("architecture", ["voxelmorph", "pyramid"])
def test_images_too_small_for_the_network_are_noticed_before_anything_is_written(tmp_path, architecture):
    model = NetworkSpec(architecture, {"spatial_dims": 2, "features": (4, 8)}).build()
    with pytest.raises(CourseError, match=r"images of 4x4 voxels .* take a shape of 5 voxels or more along one axis"):
        train(tmp_path / "run", pairs=Discs(shape=(4, 4)), model=model)
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


def test_tensorboard_s_pictures_are_large_and_one_for_each_validation(uninterrupted):
    history = uninterrupted[0].history
    _, events = scalars(uninterrupted[1])
    pictures = events.Images("validation/pair")
    assert [picture.step for picture in pictures] == history.dropna(subset="validation_dice").step.tolist()
    for event in pictures:
        picture = plt.imread(io.BytesIO(event.encoded_image_string))
        assert picture.shape[:2] == (event.height, event.width)
        # Three panels side by side and two upon each other, of 20 x 18 pixels of a disc: enough for 160 voxels.
        assert event.width > 3 * 3 * 160 and event.height > 2 * 3 * 160
        assert len({tuple(colour) for colour in picture[::7, ::7, :3].reshape(-1, 3).round(2)}) > 20
        assert picture[..., :3].max() == 1 and picture[..., :3].min() < 0.1


def test_tensorboard_s_table_says_what_decides_the_run_and_what_it_achieves(uninterrupted):
    result, folder = uninterrupted
    logged, events = scalars(folder)
    content = {
        tag.removeprefix("_hparams_/"): HParamsPluginData.FromString(data)
        for tag, data in events.PluginTagToContent("hparams").items()
    }
    assert set(content) == {"experiment", "session_start_info", "session_end_info"}
    given = content["session_start_info"].session_start_info.hparams
    values = {name: value.string_value or value.number_value for name, value in given.items()}
    assert values["network"] == "voxelmorph" and values["features"] == "[4, 8]"
    assert values["half_resolution"] == 1 and values["integration_steps"] == 7
    assert (values["similarity term"], values["similarity window"], values["overlap weight"]) == ("NCC", 9, 0.1)
    assert (values["steps"], values["batch_size"], values["learning_rate"]) == (STEPS, 2, CONFIG.learning_rate)
    assert "minutes" not in values  # of two budgets the one that was given
    assert (values["data set"], values["grid"], values["structures"]) == ("discs", "20x18", 1)
    measures = [metric.name.tag for metric in content["experiment"].experiment.metric_infos]
    assert set(measures) == {tag for tag in logged if tag.startswith("validation/")} >= {"validation/dice"}
    best = result.history.validation_dice.dropna().iloc[-1]
    assert logged["validation/dice"][-1][1] == pytest.approx(best)  # the last value is what the table shows


# --- runs that go wrong -----------------------------------------------------------------------------------------------


def test_a_nan_stops_the_run_and_names_the_step(tmp_path):
    with pytest.raises(CourseError) as failure:
        train(tmp_path, on={2 * 13: lambda item: item["fixed"].fill_(math.nan)})
    message = str(failure.value)
    assert "step 14: the loss is not finite" in message and "\n" not in message
    for advice in ("lower the learning rate (0.002)", "smoothness", "check the images for NaN", "best.pt"):
        assert advice in message
    for name, steps in (("best.pt", (1, 10)), ("last.pt", range(14))):
        trained = Checkpoint.load(tmp_path / name)
        assert trained.step in steps
        assert all(parameter.isfinite().all() for parameter in trained.model().parameters())


def test_weights_that_are_not_finite_are_never_saved(tmp_path, monkeypatch):
    step = torch.optim.Adam.step

    def spoil(optimizer, *arguments, **options):
        step(optimizer, *arguments, **options)
        spoil.steps += 1
        if spoil.steps == 10:  # a validation, which may be the best yet, follows
            optimizer.param_groups[0]["params"][0].data.fill_(math.inf)

    spoil.steps = 0
    monkeypatch.setattr(torch.optim.Adam, "step", spoil)
    monkeypatch.setattr(running.metrics, "dice", lambda *_: torch.full((1, 1), float(spoil.steps)))
    with pytest.raises(CourseError, match="step 10: the weights are no longer finite"):
        train(tmp_path)
    assert Checkpoint.load(tmp_path / "best.pt").step == 1
    assert all(p.isfinite().all() for p in Checkpoint.load(tmp_path / "last.pt").model().parameters())


@pytest.mark.parametrize("similarity", ["ncc", "ssd", "mi"])
def test_a_diverging_run_stops(tmp_path, similarity):
    with pytest.raises(CourseError, match=r"step \d+: the (run diverges|loss is not finite).*learning rate \(100\)"):
        train(tmp_path, replace(CONFIG, learning_rate=100.0), similarity=similarity)
    assert all(p.isfinite().all() for p in Checkpoint.load(tmp_path / "last.pt").model().parameters())


def test_a_run_that_loses_its_way_late_stops(tmp_path, monkeypatch):
    """All is well for 30 steps; then every image is pushed 6 voxels aside, and stays there."""
    step = running.TrainingRun.train_step

    def spoil(run, batch):
        if run.step == 30:
            run.model.velocity.bias.data.fill_(6.0)
            monkeypatch.setattr(run, "learning_rate", lambda: 0.0)
        return step(run, batch)

    monkeypatch.setattr(running.TrainingRun, "train_step", spoil)
    with pytest.raises(CourseError, match=r"step (40|50|60|70|80): the run diverges"):
        train(tmp_path, replace(CONFIG, steps=400))


def test_healthy_runs_of_single_pairs_are_not_called_diverging(tmp_path):
    """The SSD of single pairs varies many times over."""
    config = replace(CONFIG, steps=80, batch_size=1)
    history = train(tmp_path, config, similarity="ssd", smoothness=0.02, dice_weight=0.0).history
    assert history["similarity"].max() > 5 * history["similarity"].min()


def test_a_loss_below_zero_is_no_reason_to_stop(tmp_path):
    """A quarter more than minus the information of doing nothing would be less than that."""
    config = replace(CONFIG, steps=40, batch_size=4)
    history = train(tmp_path, config, similarity="mi", dice_weight=0.0).history["similarity"].dropna()
    assert len(history) == 40 and (history < 0).all()


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
            assert Checkpoint.load(disk / "run" / name).step >= 0
    assert "Traceback" not in capfd.readouterr().err


def failing_from_step(monkeypatch, step, error):
    """Writing a checkpoint of this step or a later one fails half way."""
    save = running.Checkpoint.save
    write = Path.write_bytes

    def half(path, content):
        write(path, b"half")
        raise error

    def failing(checkpoint, path, **run):
        with pytest.MonkeyPatch.context() as patch:
            if checkpoint.step >= step:
                patch.setattr(Path, "write_bytes", half)
            save(checkpoint, path, **run)

    monkeypatch.setattr(running.Checkpoint, "save", failing)


def test_a_failed_write_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    failing_from_step(monkeypatch, 13, OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(CourseError, match=r"last\.pt was not written .the disk is full.*make room"):
        train(tmp_path)
    assert 0 < Checkpoint.load(tmp_path / "last.pt").step <= 12
    assert not list(tmp_path.glob(".*"))


def test_only_a_failing_write_is_blamed_on_the_disk(tmp_path, monkeypatch):
    failing_from_step(monkeypatch, 13, torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
        train(tmp_path)
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
    state = {"format": "course_utils 2", "weights": Code(marker)}
    if writer == "torch":
        torch.save(state, path)
    else:
        path.write_bytes(pickle.dumps(state, protocol=2))
    with pytest.raises(CourseError, match="damaged or no checkpoint of plain tensors"):
        Checkpoint.load(path)
    assert not marker.exists()


def test_damaged_foreign_and_missing_checkpoints(tmp_path, uninterrupted):
    whole = (uninterrupted[1] / "best.pt").read_bytes()
    path = tmp_path / "model.pt"
    for content in (whole[: len(whole) // 2], b"", b"not a checkpoint"):
        path.write_bytes(content)
        with pytest.raises(CourseError, match="damaged"):
            Checkpoint.load(path)
    for foreign in ({"state_dict": {}}, [1, 2], torch.zeros(3)):
        torch.save(foreign, path)
        with pytest.raises(CourseError, match="not a checkpoint of this version of the course"):
            Checkpoint.load(path)
    with pytest.raises(CourseError, match="does not exist"):
        Checkpoint.load(tmp_path / "none.pt")


def test_a_checkpoint_of_another_architecture(tmp_path, uninterrupted):
    state = torch.load(uninterrupted[1] / "best.pt", weights_only=True)
    for change, message in (
        (
            {"arguments": state["arguments"] | {"spatial_dims": 3}},
            "not those of a network 'voxelmorph': train it again",
        ),
        ({"arguments": state["arguments"] | {"features": [4, 8, 8]}}, "not those of a network 'voxelmorph'"),
        ({"weights": {"encoder.weight": torch.zeros(1)}}, "not those of a network 'voxelmorph'"),
        ({"arguments": state["arguments"] | {"attention": True}}, "'voxelmorph' cannot be built .*attention"),
        ({"architecture": "resnet"}, "architecture='resnet' is not one of .*pyramid"),
    ):
        torch.save(state | change, tmp_path / "other.pt")
        with pytest.raises(CourseError, match=message):
            Checkpoint.load(tmp_path / "other.pt").model()
    for missing in ("card", "arguments", "step"):
        torch.save({key: value for key, value in state.items() if key != missing}, tmp_path / "other.pt")
        with pytest.raises(CourseError, match=f"other.pt lacks a part of a checkpoint .'{missing}'.: train it again"):
            Checkpoint.load(tmp_path / "other.pt")


def test_a_checkpoint_is_what_it_was(tmp_path, uninterrupted):
    checkpoint = Checkpoint.load(uninterrupted[1] / "best.pt")
    checkpoint.save(tmp_path / "again.pt")
    again = Checkpoint.load(tmp_path / "again.pt")
    assert {**again.to_dict(), "weights": 0} == {**checkpoint.to_dict(), "weights": 0}
    assert all(torch.equal(again.weights[name], value) for name, value in checkpoint.weights.items())


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
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert precision("auto", torch.device("cpu")) is dtype


def test_auto_is_float32_where_pytorch_cannot_tell_what_the_processor_has(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)  # before 2.11
    assert precision("auto", torch.device("cpu")) is None


def test_bfloat16_agrees_with_float32_for_a_few_steps(tmp_path):
    config = replace(CONFIG, steps=10)
    full = train(tmp_path / "fp32", config).history
    half = train(tmp_path / "bf16", replace(config, amp="bf16")).history
    torch.testing.assert_close(torch.tensor(half["loss"]), torch.tensor(full["loss"]), rtol=0, atol=2e-3)
    assert not half["loss"].equals(full["loss"])
    weights = torch.load(tmp_path / "bf16" / "last.pt", weights_only=True)["weights"]
    assert {value.dtype for value in weights.values()} == {torch.float32}


def test_float16_scales_its_gradients_and_resumes_its_scale(tmp_path, monkeypatch):
    """PyTorch has the loss scaler on the CPU too, so its path can be walked without a GPU."""
    monkeypatch.setattr(running, "precision", lambda *_: torch.float16)
    config = replace(CONFIG, steps=24)
    whole = train(tmp_path / "whole", config).history
    assert torch.load(tmp_path / "whole" / "last.pt", weights_only=True)["run"]["scaler"]["scale"] > 1
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", config, on={2 * 11: lambda _: os.kill(os.getpid(), signal.SIGINT)})
    state = torch.load(tmp_path / "cut" / "last.pt", weights_only=True)
    state["run"]["scaler"]["scale"] = 2.0**30  # the gradients overflow: the step is skipped, the scale halved
    torch.save(state, tmp_path / "cut" / "last.pt")
    again = train(tmp_path / "cut", config, resume=True).history
    scale = torch.load(tmp_path / "cut" / "last.pt", weights_only=True)["run"]["scaler"]["scale"]
    assert 2.0**16 < scale < 2.0**30
    assert again["loss"][:13].tolist() == whole["loss"][:13].tolist()
    assert all(p.isfinite().all() for p in Checkpoint.load(tmp_path / "cut" / "last.pt").model().parameters())


def test_a_run_begun_without_a_scaler_resumes_with_one(tmp_path, monkeypatch):
    config = replace(CONFIG, steps=4, amp="auto")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, config, on={2: lambda _: os.kill(os.getpid(), signal.SIGINT)})
    monkeypatch.setattr(running, "precision", lambda *_: torch.float16)
    assert len(train(tmp_path, config, resume=True).history) == 4


# --- what a run asks for ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "message"), [((), "dice_weight needs labels"), ((1,), "needs fixed_label, moving_")]
)
def test_an_overlap_without_labels_is_refused_before_anything_is_written(tmp_path, labels, message):
    with pytest.raises(CourseError, match=message):
        train(tmp_path / "run", pairs=Discs(labels=False), labels=labels)
    assert files(tmp_path) == []


def test_a_pair_without_labels_among_others_is_named(tmp_path):
    def unlabelled(item):
        del item["fixed_label"], item["moving_label"]

    with pytest.raises(CourseError, match=r"^not all of pair 4, pair 5 have labels"):
        train(tmp_path / "run", on={5: unlabelled})
    assert (tmp_path / "run" / "best.pt").exists()
    objective = pair_objective(**OBJECTIVE)
    with pytest.raises(CourseError, match=r"^not all of pair 0 have labels"):  # of the validation pairs
        fit(network(), objective, Discs(), Discs(3, labels=False), tmp_path / "other", CONFIG, card=CARD)


@pytest.mark.parametrize(
    "wrong", [{"steps": 0}, {"learning_rate": 0.0}, {"batch_size": 0}, {"validations": 0}, {"amp": "fp8"}]
)
def test_a_wrong_setting_is_named(wrong):
    name, value = next(iter(wrong.items()))
    with pytest.raises(CourseError, match=f"^{name}={value!r} is not .*: change it$"):
        replace(CONFIG, **wrong)


@pytest.mark.parametrize("budget", [{}, {"steps": 10, "minutes": 1.0}])
def test_a_run_has_one_budget(budget):
    with pytest.raises(CourseError, match="either steps or minutes"):
        TrainConfig(**budget)


def test_a_network_that_no_checkpoint_could_name_is_refused_before_anything_is_written(tmp_path):
    class Nameless(torch.nn.Module):
        pass

    with pytest.raises(CourseError, match="Nameless has no name that a checkpoint could hold: decorate"):
        train(tmp_path / "run", model=Nameless())
    assert files(tmp_path) == []


class Drawing(Objective):
    """Writes down what it draws at random, and leaves the pairs alone."""

    def __init__(self):
        self.drawn = []

    def __call__(self, model, batch):
        self.drawn.append(torch.rand(1).item())
        registration = model(batch["moving"], batch["fixed"])
        return Outcome(registration.displacement.square().mean(), {}, registration)

    def describe(self):
        return {}


def test_what_an_objective_draws_follows_from_the_step(tmp_path):
    """A run that was stopped and resumed draws what one that was not does; the global state is left alone."""
    config = replace(CONFIG, steps=8, validations=1)
    state = torch.random.get_rng_state()
    whole = Drawing()
    fit(network(), whole, Discs(), Discs(2), tmp_path / "whole", config, card=CARD)
    assert torch.equal(state, torch.random.get_rng_state())
    parts = [Drawing(), Drawing()]
    stop = Discs(on={2 * 4: lambda _: os.kill(os.getpid(), signal.SIGINT)})
    with pytest.raises(KeyboardInterrupt):
        fit(network(), parts[0], stop, Discs(2), tmp_path / "cut", config, card=CARD)
    fit(network(), parts[1], Discs(), Discs(2), tmp_path / "cut", config, card=CARD, resume=True)
    assert parts[0].drawn + parts[1].drawn == whole.drawn
    # Steps and validation pairs each have a number of their own; the comparison with doing nothing draws its step's.
    assert len(set(whole.drawn)) == 8 + 2


def test_the_loss_is_computed_outside_autocast(tmp_path):
    """Under it a product of matrices, as the local correlation is made of, would be of half precision."""
    seen = []

    class Watching(Objective):
        def __call__(self, model, batch):
            found = model(batch["moving"], batch["fixed"])
            seen.append(torch.is_autocast_enabled("cpu"))
            return Outcome(found.displacement.square().mean(), {}, found)

        def describe(self):
            return {}

    fit(network(), Watching(), Discs(), Discs(2), tmp_path, replace(CONFIG, steps=2, amp="bf16"), card=CARD)
    assert set(seen) == {False}
