"""Several processes that train one network: two of them, by gloo, on the discs of `test_loop`.

What one process does is the reference: two that share its pairs must do the same.
"""

import errno
import json
import math
import multiprocessing
import os
import signal
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from torch import nn

from course_utils.checkpoint import Checkpoint
from course_utils.networks import NetworkSpec, VoxelMorph, architecture
from course_utils.objectives import BothOrders, Objective, Outcome, Segmented, TemplateObjective, pair_objective
from course_utils.seeds import seed_of
from course_utils.templates import template_network
from course_utils.training import fit, loop
from course_utils.training import run as running
from course_utils.training.ranks import Ranks, joined
from tests.training.test_loop import CARD, CONFIG, OBJECTIVE, Discs, Drawing, die, files, history_of, network

pytestmark = pytest.mark.slow

TWENTY = replace(CONFIG, steps=20)
LINES = 1e-5
"""How far two curves may lie apart that would be one, were sums of other orders not rounded otherwise."""


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def train(out, config=TWENTY, *, pairs=None, on=None, resume=False, model=None, hooks=()):
    """A run as that of `test_loop`, but without TensorBoard, whose pictures take most of the time."""
    objective, model = pair_objective(**OBJECTIVE), model or network()
    pairs = pairs or Discs(on=on)
    return fit(model, objective, pairs, Discs(3), out, config, card=CARD, resume=resume, hooks=hooks)


# --- two processes ----------------------------------------------------------------------------------------------------


def _rank(rank, port, told, work, arguments):
    torch.set_num_threads(1)
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ.update({"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", **address})
    os.environ.update({"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"})
    said = {}
    try:
        with joined():
            said["result"] = work(*arguments)
    except (Exception, KeyboardInterrupt) as error:
        said |= {"error": type(error).__name__, "message": str(error)}
    told.write_text(json.dumps(said), encoding="utf-8")


@pytest.fixture(scope="module")
def two():
    """A function that does some work in two processes at once, and says what each returned or raised."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.training.test_ranks"])

    def both(folder, work, *arguments):
        # As torchrun does, keep what all of them see outside of them.
        store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        told = [folder / f"rank{rank}.json" for rank in range(2)]
        for path in told:
            path.unlink(missing_ok=True)
        started = [context.Process(target=_rank, args=(r, store.port, told[r], work, arguments)) for r in range(2)]
        for process in started:
            process.start()
        for process in started:
            process.join(120)
            assert process.exitcode is not None, "a process waits for one that is gone"
        return [json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"died": True} for path in told]

    return both


def train_discs(out, config=TWENTY, on=(), resume=False, hooks=()):
    """A run of the tiny network in one of two processes; `on` are the number of a pair and what happens at it."""
    result = train(out, config, on=dict([on] if on else []), resume=resume, hooks=hooks)
    weights = sum(parameter.double().abs().sum().item() for parameter in result.model.parameters())
    return {"loss": result.history["loss"].tolist(), "weights": weights}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one process does in 20 steps of 2 pairs: its folder."""
    out = tmp_path_factory.mktemp("alone")
    train(out, hooks=None)
    return out


@pytest.fixture(scope="module")
def together(tmp_path_factory, two):
    """The same by two processes of 1 pair each: what they returned, and the folder."""
    folder = tmp_path_factory.mktemp("together")
    return two(folder, train_discs, folder / "run", TWENTY, (), False, None), folder / "run"


def assert_same_curve(out, other, atol=LINES):
    a, b = history_of(out), history_of(other)
    assert a["step"].tolist() == list(range(1, TWENTY.steps + 1))
    pd.testing.assert_frame_equal(a, b, rtol=0, atol=atol)


def test_two_processes_of_one_pair_learn_what_one_of_two_pairs_does(alone, together):
    said, out = together
    assert_same_curve(out, alone)
    assert len(history_of(out).dropna()) == 4  # validated at the first step and three times, by three pairs for two
    assert files(out) == files(alone) == ["best.pt", "history.csv", "last.pt", "tensorboard"]
    assert len(list((out / "tensorboard").iterdir())) == 1
    for name in ("best.pt", "last.pt"):
        mine, its = (Checkpoint.load(folder / name) for folder in (out, alone))
        assert (mine.step, mine.config) == (its.step, its.config)
        # The bias of a convolution before a norm has no gradient but rounding, which Adam makes as large as any: the
        # weights tell less than the answers.
        pair = {side: image[None] for side, image in Discs()[0].items() if side in ("moving", "fixed")}
        with torch.inference_mode():
            answers = [one.model()(**pair).displacement for one in (mine, its)]
        assert answers[1].abs().max() > 100 * LINES
        torch.testing.assert_close(*answers, rtol=0, atol=LINES)
    assert said[0] == said[1] and said[0]["result"]["loss"] == history_of(out)["loss"].tolist()


class Noted(Discs):
    """Discs that write down which pair this process was asked for."""

    def __init__(self, folder):
        super().__init__()
        self.folder = folder

    def __getitem__(self, index):
        with (self.folder / f"pairs{Ranks.here().rank}.txt").open("a") as file:
            file.write(f"{index}\n")
        return super().__getitem__(index)


def train_noted(folder):
    train(folder / "run", replace(CONFIG, steps=5, batch_size=4), pairs=Noted(folder))


def test_together_they_see_each_pair_once(tmp_path, two):
    assert two(tmp_path, train_noted, tmp_path) == [{"result": None}] * 2
    seen = [
        [int(line) for line in (tmp_path / f"pairs{rank}.txt").read_text(encoding="utf-8").split()] for rank in range(2)
    ]
    # Each has looked at the first pair twice before, to see what pairs hold and what a step leaves out.
    assert seen == [[0, 0, *range(rank, 20, 2)] for rank in range(2)]


# --- random numbers ---------------------------------------------------------------------------------------------------


def drawn(out):
    objective = Drawing()
    config = replace(CONFIG, steps=4, validations=1)
    fit(network(), objective, Discs(), Discs(2), out, config, card=CARD, hooks=[])
    return objective.drawn


def test_a_process_draws_its_own_numbers_for_its_pairs_and_those_of_one_for_validation(tmp_path, two):
    """Of one process: 4 steps, the first of them validated on 2 pairs, as is the last."""
    steps, pairs = (lambda d: [d[0], *d[3:6]]), (lambda d: d[1:3])
    whole = drawn(tmp_path / "alone")
    first, second = (one["result"][1:] for one in two(tmp_path, drawn, tmp_path / "two"))  # without the rehearsal
    # Of two: one validation pair each.
    assert [first[0], *first[2:5]] == steps(whole)
    assert not {second[0], *second[2:5]} & set(whole) and len({second[0], *second[2:5]}) == 4
    assert [first[1], second[1]] == pairs(whole)


def test_the_seeds_of_one_process_are_those_of_rank_0():
    assert seed_of(3, 5, 0) == seed_of(3, 5)
    assert len({seed_of(seed, step, rank) for seed in range(3) for step in range(3) for rank in range(3)}) == 27


# --- ends -------------------------------------------------------------------------------------------------------------


def nan(item):
    item["fixed"].fill_(math.nan)


def unlabelled(item):
    del item["fixed_label"], item["moving_label"]


def interrupt(_item):
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGINT)  # as a launcher does, which hands on what its processes have had already


def terminate(_item):
    os.kill(os.getpid(), signal.SIGTERM)


def full(_item):
    """From now on the disk is full."""

    def fail(path, content):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    Path.write_bytes = fail


def told(said):
    """The line of a run that ended in error: one process has it, and the other is silent."""
    assert sorted(one["error"] == "Told" for one in said) == [False, True]
    (line,) = [one["message"] for one in said if one["error"] != "Told"]
    assert "\n" not in line
    return line


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_ends_the_other_and_both_resume(tmp_path, two, together, alone, rank):
    out = tmp_path / "run"
    said = two(tmp_path, train_saving_often, out, TWENTY, (2 * 12 + rank, die))
    assert said[rank] == {"died": True}
    assert said[1 - rank]["error"] == "CourseError"
    assert said[1 - rank]["message"].startswith("another process of this run has ended, or does not answer: ")
    assert 0 < Checkpoint.load(out / "last.pt").step <= 12
    if rank:
        two(tmp_path, train_discs, out, TWENTY, (), True)
        assert_same_curve(out, together[1], atol=0)
    else:
        train(out, resume=True)
        assert_same_curve(out, alone)


def train_saving_often(out, config, on):
    loop.CHECKPOINT_SECONDS = 0
    return train_discs(out, config, on)


@pytest.mark.parametrize("signalled", [interrupt, terminate])
def test_a_signal_to_one_process_stops_both_after_the_same_step(tmp_path, two, together, alone, signalled):
    """Begun by two and gone on with by one; the other way round below."""
    out = tmp_path / "run"
    line = told(two(tmp_path, train_discs, out, TWENTY, (2 * 11 + 1, signalled)))
    assert line.startswith("stopped by a signal and saved at step 12: go on with --resume")
    assert Checkpoint.load(out / "last.pt").step == 12
    train(out, resume=True)
    assert_same_curve(out, alone)


class Ended(Objective):
    """A launcher ends the second process in its sixth step, and all that it has started."""

    def __init__(self):
        self.pair, self.steps = pair_objective(**OBJECTIVE), 0

    def __call__(self, model, batch):
        self.steps += torch.is_grad_enabled()
        if self.steps == 1 + 6 and Ranks.here().rank == 1:  # one is the rehearsal
            os.killpg(os.getpgid(0), signal.SIGTERM)
        return self.pair(model, batch)

    def describe(self):
        return self.pair.describe()


def train_ended(out):
    os.setsid()  # as torchrun does
    fit(network(), Ended(), Discs(), Discs(3), out, TWENTY, card=CARD, workers=1, hooks=[])


def test_a_signal_to_all_that_a_process_has_started_leaves_those_who_load_pairs(tmp_path, two):
    line = told(two(tmp_path, train_ended, tmp_path / "run"))
    assert line.startswith("stopped by a signal and saved at step ")
    assert Checkpoint.load(tmp_path / "run" / "last.pt").step in (6, 7)


def test_what_one_process_has_begun_two_go_on_with(tmp_path, two, alone):
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(out, on={2 * 8: lambda _: os.kill(os.getpid(), signal.SIGINT)})
    said = two(tmp_path, train_discs, out, TWENTY, (), True)
    assert said[0] == said[1]
    assert_same_curve(out, alone)


@pytest.mark.parametrize(
    ("happening", "line"),
    [
        (nan, "step 13: the loss is not finite; lower the learning rate"),
        (unlabelled, "not all of pair 25 have labels: leave out subjects without"),
    ],
)
def test_what_one_process_finds_ends_both_in_one_line(tmp_path, two, happening, line):
    said = two(tmp_path, train_discs, tmp_path / "run", TWENTY, (2 * 12 + 1, happening))
    assert told(said).startswith(line)
    assert Checkpoint.load(tmp_path / "run" / "last.pt").step < 13


def test_a_full_disk_ends_both_and_the_last_checkpoint_stays(tmp_path, two):
    said = two(tmp_path, train_saving_often, tmp_path / "run", TWENTY, (2 * 12, full))
    assert "last.pt was not written (the disk is full): make room" in told(said) and said[1]["error"] == "Told"
    assert Checkpoint.load(tmp_path / "run" / "last.pt").step == 12


def test_a_folder_without_a_run_to_resume(tmp_path, two):
    said = two(tmp_path, train_discs, tmp_path / "run", TWENTY, (), True)
    assert "holds no run to resume" in told(said)
    assert not (tmp_path / "run").exists()


def test_a_batch_that_they_cannot_share(tmp_path, two):
    said = two(tmp_path, train_discs, tmp_path / "run", replace(TWENTY, batch_size=3))
    assert told(said) == (
        "a step of 3 pairs cannot be shared by 2 processes: take a batch size that is a multiple of 2, such as 4"
    )
    assert not (tmp_path / "run").exists()


def train_by_rank(out):
    rank = Ranks.here().rank
    return train_discs(out, replace(TWENTY, learning_rate=1e-3 * (1 + rank), seed=rank))


def test_processes_of_two_runs(tmp_path, two):
    line = told(two(tmp_path, train_by_rank, tmp_path / "run"))
    assert line.startswith("process 1 has not the same learning_rate, seed as process 0: give all of them one command")


def train_minutes(out):
    """For two minutes, by clocks of which the second is fast."""
    pace = 5 + 4 * Ranks.here().rank
    now = [0.0]

    def monotonic():
        now[0] += pace
        return now[0]

    loop.time = running.time = SimpleNamespace(monotonic=monotonic)
    return train(out, replace(TWENTY, steps=None, minutes=2)).history.to_dict("list")


def test_the_minutes_are_those_of_the_first_process(tmp_path, two):
    first, second = two(tmp_path, train_minutes, tmp_path / "run")
    # Times too: NaN is not itself, but it is written in the same words.
    assert json.dumps(first) == json.dumps(second)
    assert first["result"]["seconds"][-2] < 120 <= first["result"]["seconds"][-1]


# --- precision, parameters, buffers -----------------------------------------------------------------------------------


class Spiked(Discs):
    """Discs, one of which comes with an enormous weight."""

    def __getitem__(self, index):
        return super().__getitem__(index) | {"spike": torch.tensor(1e36 if index == 2 * 6 + 1 else 0.0)}


@dataclass(frozen=True)
class Spike(Objective):
    """Has a loss that is finite where its scaled gradient is not."""

    def __call__(self, model, batch):
        registration = model(batch["moving"], batch["fixed"])
        field = registration.displacement
        return Outcome((1 - field.mean()).square() + (field.sum() * batch["spike"].mean()) * 1e-30, {}, registration)

    def describe(self):
        return {}


def train_spiked(out):
    running.precision = lambda *_: torch.float16  # whose scaler PyTorch has on the CPU too
    scales = []
    update = torch.amp.GradScaler.update

    def noted(scaler):
        update(scaler)
        scales.append(scaler.get_scale())

    torch.amp.GradScaler.update = noted
    model = network()
    fit(model, Spike(), Spiked(), Spiked(2), out, replace(TWENTY, steps=9), card=CARD, hooks=[])
    return {"scales": scales, "weights": [parameter.double().sum().item() for parameter in model.parameters()]}


def test_where_one_process_s_gradient_overflows_both_skip_the_step(tmp_path, two):
    first, second = two(tmp_path, train_spiked, tmp_path / "run")
    assert first == second
    scales = first["result"]["scales"]
    assert scales[5] == 2 * scales[6] and scales[5] == scales[4] and scales[6] == scales[8]  # halved at step 7 alone


@architecture("spare")
class Spare(VoxelMorph):
    """With a parameter that takes no part."""

    def __init__(self, spatial_dims=2, *, features=(4, 8)):
        super().__init__(spatial_dims, features=features)
        self.spare = nn.Parameter(torch.ones(3))


def train_spare(out):
    model = NetworkSpec("spare", {"features": [4, 8]}).build()
    result = train(out, replace(TWENTY, steps=3), model=model)
    return {"spare": model.spare.tolist(), "loss": result.history["loss"].tolist()}


def test_a_parameter_that_takes_no_part_is_left_alone(tmp_path, two):
    first, second = two(tmp_path, train_spare, tmp_path / "run")
    assert first == second and first["result"]["spare"] == [1.0] * 3
    assert first["result"]["loss"] == pytest.approx(train_spare(tmp_path / "alone")["loss"], abs=LINES)


def learn_to_segment(out):
    """Both orders are one call of the network, and so are its segmentations, which no registration follows from."""
    model = NetworkSpec("joint", {"spatial_dims": 2, "structures": 1, "features": [4, 8]}).build()
    objective = Segmented(BothOrders(pair_objective(**OBJECTIVE)), OBJECTIVE["labels"])
    fit(model, objective, Discs(), Discs(2), out, TWENTY, card=CARD, hooks=[])


def test_what_is_called_in_both_orders_and_segments_learns_the_same(tmp_path, two):
    assert two(tmp_path, learn_to_segment, tmp_path / "run") == [{"result": None}] * 2
    learn_to_segment(tmp_path / "alone")
    assert_same_curve(tmp_path / "run", tmp_path / "alone")
    assert "segmentation" in history_of(tmp_path / "run")


def learn_template(out):
    model = template_network(torch.rand(1, 1, 20, 18), network="voxelmorph", options={"features": [4, 8]})
    objective = TemplateObjective(pair_objective(**OBJECTIVE | {"dice_weight": 0.0}))
    fit(model, objective, Discs(), Discs(2), out, replace(TWENTY, steps=3), card=CARD, hooks=[])


def test_a_template_whose_running_mean_nobody_shares_is_refused(tmp_path, two):
    line = told(two(tmp_path, learn_template, tmp_path / "run"))
    assert line == (
        "the network keeps running numbers (off_centre, seen), which several processes do not share: train it with one "
        "process"
    )
    assert not (tmp_path / "run" / "last.pt").exists()
