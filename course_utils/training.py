"""Training a registration network: one loop for the notebooks and the command line.

Everything that happens at a step follows from the configuration and the step's number (the pairs come by index, the
learning rate by progress), so a run that was killed and resumed gives the numbers of one that was not.
"""

import contextlib
import dataclasses
import errno
import math
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm.auto import tqdm

from course_utils import losses, metrics, plotting
from course_utils.errors import CourseError
from course_utils.fields import warp
from course_utils.loading import PairDataset, loader
from course_utils.networks import ARCHITECTURES, Registration, RegistrationNetwork

SIMILARITIES = ("ncc", "ssd")
REGULARISERS = {"diffusion": losses.diffusion_loss, "bending": losses.bending_loss}
AMP = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}

# Weight of the regulariser where the user gives none. It depends on the scale of the similarity and, all terms being
# means over voxels, on nothing else.
SMOOTHNESS = {
    ("ncc", "diffusion"): 2.0,
    ("ncc", "bending"): 2.0,
    ("ssd", "diffusion"): 0.25,
    ("ssd", "bending"): 0.25,
}

CHECKPOINT_SECONDS = 30
"""At most this much work is lost when a run is killed."""
COMPARED = 10
"""Every so many steps a batch's loss is compared with that of doing nothing, to tell a run that diverges."""


@dataclass(frozen=True)
class TrainConfig:
    """All that decides a run, apart from its data.

    Attributes:
        similarity: ``"ncc"`` or ``"ssd"``.
        ncc_window: side of the NCC's window, voxels.
        regulariser: ``"diffusion"`` or ``"bending"``, of the velocity.
        smoothness: weight of the regulariser; None takes the default of the similarity (:data:`SMOOTHNESS`).
        dice_weight: weight of the soft Dice of the labels; 0 trains without labels.
        jacobian_weight: weight of the penalty on folding.
        steps, minutes: the budget, one of the two. With ``minutes`` the learning rate follows the clock, so two such
            runs differ in their numbers; with ``steps`` they agree.
        batch_size: pairs a step.
        learning_rate: Adam's, at its highest: it rises over the first 20 steps and falls to 0 on a half cosine.
        validations: how often to validate, evenly over the run; the last time is at its end.
        amp: ``"auto"`` (bf16 where the device computes with it natively, fp16 on older GPUs), ``"off"``, ``"bf16"``,
            ``"fp16"`` (CUDA only, with a loss scaler).
        seed: of the network's first weights.
        architecture: ``"voxelmorph"`` or ``"pyramid"``, the coarse-to-fine network.
        features, half_resolution, integration_steps, instance_norm: of
            :class:`course_utils.networks.RegistrationNetwork`.
    """

    similarity: str = "ncc"
    ncc_window: int = 9
    regulariser: str = "diffusion"
    smoothness: float | None = None
    dice_weight: float = 0.0
    jacobian_weight: float = 0.0
    steps: int | None = None
    minutes: float | None = None
    batch_size: int = 2
    learning_rate: float = 2e-3
    validations: int = 10
    amp: str = "auto"
    seed: int = 0
    architecture: str = "voxelmorph"
    features: tuple[int, ...] = (16, 32, 32, 32)
    half_resolution: bool = True
    integration_steps: int = 7
    instance_norm: bool = True

    def __post_init__(self) -> None:
        def require(condition: bool, name: str, what: str) -> None:
            if not condition:
                raise CourseError(f"{name}={getattr(self, name)!r} is not {what}: change it")

        require(self.similarity in SIMILARITIES, "similarity", f"one of {', '.join(SIMILARITIES)}")
        require(self.regulariser in REGULARISERS, "regulariser", f"one of {', '.join(REGULARISERS)}")
        require(self.architecture in ARCHITECTURES, "architecture", f"one of {', '.join(ARCHITECTURES)}")
        require(self.amp in ("auto", *AMP), "amp", f"one of auto, {', '.join(AMP)}")
        require(self.ncc_window >= 3 and self.ncc_window % 2 == 1, "ncc_window", "odd and 3 or more")
        for name in ("smoothness", "dice_weight", "jacobian_weight"):
            require((getattr(self, name) or 0) >= 0, name, "0 or more")
        for name in ("batch_size", "validations"):
            require(getattr(self, name) >= 1, name, "1 or more")
        require(self.learning_rate > 0, "learning_rate", "above 0")
        if (self.steps is None) == (self.minutes is None):
            raise CourseError("a run needs one budget: give it either steps or minutes")
        for name in ("steps", "minutes"):
            require(getattr(self, name) is None or getattr(self, name) > 0, name, "above 0")
        if self.smoothness is None:
            object.__setattr__(self, "smoothness", SMOOTHNESS[self.similarity, self.regulariser])
        object.__setattr__(self, "features", tuple(self.features))

    def network(self, spatial_dims: int) -> RegistrationNetwork:
        """The untrained network; the same seed gives the same weights."""
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            return ARCHITECTURES[self.architecture](
                spatial_dims,
                features=self.features,
                half_resolution=self.half_resolution,
                integration_steps=self.integration_steps,
                instance_norm=self.instance_norm,
            )


class Trained(NamedTuple):
    """A trained network and what one must know to use it.

    Attributes:
        model: in evaluation mode, on the CPU.
        config: what it was trained with.
        about: plain values: ``dataset``, ``labels`` (value to name), ``spacing`` (mm), ``recipe`` (arguments of
            :func:`course_utils.loading.preprocessing`).
        step: how many steps it has seen.
        score: its validation score, mean Dice where there are labels.
    """

    model: RegistrationNetwork
    config: TrainConfig
    about: dict[str, Any]
    step: int
    score: float


class Result(NamedTuple):
    """What :func:`fit` returns: the best network, the history (a row a step) and the two checkpoints."""

    model: RegistrationNetwork
    history: pd.DataFrame
    best: Path
    last: Path


def fit(
    config: TrainConfig,
    train: PairDataset,
    validation: PairDataset,
    out: str | Path,
    *,
    about: Mapping[str, Any],
    device: torch.device | str = "cpu",
    workers: int = 0,
    resume: bool = False,
    progress: bool = True,
) -> Result:
    """Train a registration network and keep the best of it.

    Args:
        config: see :class:`TrainConfig`.
        train: the training pairs, taken in their order; as many as the budget may need (pairs are lazy, so
            ``cohort.pairs("train", count=10**9)`` costs nothing).
        validation: a few pairs of other subjects. The network with the highest mean Dice on them is the best; without
            labels, the one with the lowest similarity loss.
        out: folder for ``best.pt``, ``last.pt``, ``history.csv`` and TensorBoard's files.
        about: stored beside the weights: ``dataset``, ``labels``, ``spacing``, ``recipe``; see :class:`Trained`.
        workers: processes that load pairs.
        resume: go on from ``out/last.pt``.
        progress: show a bar.

    Raises:
        CourseError: ``out`` holds a run already, or none to resume, or one of another configuration; the loss is not
            finite, or climbs; the disk is full; there are no labels for the Dice. The checkpoints written until then
            stay.
        KeyboardInterrupt: Ctrl-C, after the current step has been finished and ``last.pt`` written.
    """
    stop = len(train) if config.steps is None else config.steps * config.batch_size
    if stop > len(train):
        raise CourseError(
            f"{config.steps} steps of {config.batch_size} need {stop} training pairs, not {len(train)}: ask for more"
        )
    if config.dice_weight and not (about["labels"] and "fixed_label" in train[0]):
        raise CourseError("dice_weight needs labels and the training pairs have none: add labels or set it to 0")
    run = _Run(config, Path(out), dict(about), torch.device(device), spatial_dims=train[0]["fixed"].ndim - 1)
    run.resume() if resume else run.begin()
    bar = tqdm(total=100, initial=round(100 * run.progress), desc="training", unit="%", disable=not progress)
    with _scalars(run.out / "tensorboard", run.step) as writer, bar, _ctrl_c() as interrupted:
        # Within _ctrl_c, so that processes that load pairs leave Ctrl-C to this one.
        batches = iter(loader(train, config.batch_size, run.step * config.batch_size, stop, workers))
        while run.progress < 1:
            batch = next(batches, None)
            if batch is None:
                run.save("last.pt")
                raise CourseError(f"the {len(train)} training pairs ended before the minutes did: give more pairs")
            row = run.train_step(batch)
            done = run.progress
            if run.step == 1 or done >= run.next_validation:
                row |= run.validate(validation, writer)
                run.next_validation = min(1.0, (math.floor(done * config.validations + 1e-9) + 1) / config.validations)
            for name, value in row.items():
                if name != "step":
                    writer.add_scalar(name.replace("validation_", "validation/"), value, run.step)
            run.history.append(row)
            if done >= 1 or interrupted.is_set() or time.monotonic() - run.saved_at > CHECKPOINT_SECONDS:
                writer.flush()  # what the checkpoint counts as done must not be lost from the curves
                run.save("last.pt")
            if interrupted.is_set():
                raise KeyboardInterrupt(
                    f"stopped by Ctrl-C and saved at step {run.step}: go on with --resume, or resume=True"
                )
            bar.set_postfix_str(
                f"step {run.step}, loss {row['loss']:.4f}, validation {run.best_score:.3f}", refresh=False
            )
            bar.update(round(100 * done) - bar.n)
    run.save_history()
    best = load_model(run.out / "best.pt")
    return Result(best.model.to(run.device), pd.DataFrame(run.history), run.out / "best.pt", run.out / "last.pt")


def registration_loss(
    config: TrainConfig, registration: Registration, batch: Mapping[str, Tensor], labels: Mapping[int, str]
) -> dict[str, Tensor]:
    """The terms of the loss on a batch of pairs, and ``loss``, their weighted sum.

    ``similarity`` and ``regularisation`` are always there; ``overlap`` (soft Dice loss) and ``folding`` where their
    weight is above 0.
    """
    if config.similarity == "ncc":
        similarity = losses.ncc_loss(registration.moved, batch["fixed"], config.ncc_window)
    else:
        similarity = losses.ssd_loss(registration.moved, batch["fixed"])
    terms = {"similarity": similarity, "regularisation": REGULARISERS[config.regulariser](registration.velocity)}
    total = similarity + config.smoothness * terms["regularisation"]
    if config.dice_weight:
        moving = losses.one_hot(batch["moving_label"], list(labels))
        fixed = losses.one_hot(batch["fixed_label"], list(labels))
        terms["overlap"] = losses.soft_dice_loss(warp(moving, registration.displacement), fixed)
        total = total + config.dice_weight * terms["overlap"]
    if config.jacobian_weight:
        terms["folding"] = losses.jacobian_loss(registration.displacement)
        total = total + config.jacobian_weight * terms["folding"]
    return {"loss": total, **terms}


def precision(amp: str, device: torch.device) -> torch.dtype | None:
    """The autocast type that ``amp`` means on a device, None for float32.

    Raises:
        CourseError: fp16 on a CPU, where it is emulated and has no loss scaler.
    """
    if amp == "fp16" and device.type != "cuda":
        raise CourseError(f"amp=fp16 needs a CUDA device, not {device.type}: use bf16 or off")
    if amp != "auto":
        return AMP[amp]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if device.type == "cpu":
        native = torch.cpu.get_capabilities()
        return torch.bfloat16 if native.get("avx512_bf16") or native.get("amx_bf16") else None
    return None


def load_model(path: str | Path) -> Trained:
    """Read a checkpoint. Only tensors and plain values are read: a file with code in it is refused, not run.

    Raises:
        CourseError: no such file, damaged, not a checkpoint of this course, or of another architecture.
    """
    path = Path(path)
    state = _read_checkpoint(path)
    try:
        config = TrainConfig(**state["config"])
        model = config.network(state["spatial_dims"])
        model.load_state_dict(state["model"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CourseError(
            f"{path} holds a network of another architecture: train it again with this version of course_utils"
        ) from error
    return Trained(model.eval(), config, state["about"], state["step"], state["score"])


class _Run:
    """The state of a run: everything that a checkpoint holds."""

    def __init__(
        self, config: TrainConfig, out: Path, about: dict[str, Any], device: torch.device, spatial_dims: int
    ) -> None:
        self.config, self.out, self.about, self.device = config, out, about, device
        self.spatial_dims = spatial_dims
        self.dtype = precision(config.amp, device)
        self.model = config.network(spatial_dims).to(device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), config.learning_rate)
        # Gradients of float16 activations underflow unless the loss is scaled up; bfloat16 has float32's range.
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype is torch.float16)
        self.step = 0
        self.seconds = 0.0
        self.score = self.best_score = -math.inf
        self.next_validation = 1 / config.validations
        self.excess = 0.0
        self.history: list[dict[str, float]] = []

    # --- beginning, saving, going on ---

    def begin(self) -> None:
        if (self.out / "last.pt").exists():
            raise CourseError(f"{self.out} holds a run already: resume it, or choose another folder")
        try:
            self.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CourseError(f"{self.out} cannot be made ({error.strerror}): choose another folder") from error
        self.save("last.pt")
        self.started = time.monotonic()

    def resume(self) -> None:
        path = self.out / "last.pt"
        if not path.is_file():
            raise CourseError(f"{self.out} holds no run to resume: begin one there, or name its folder")
        state = _read_checkpoint(path)
        mine, its = {**_plain(self.config), **self.about}, {**state["config"], **state["about"]}
        names = (*_plain(self.config), "dataset", "labels", "spacing", "recipe")
        was = ", ".join(f"{name}={its.get(name)!r}" for name in names if its.get(name) != mine.get(name))
        if was:
            raise CourseError(
                f"the run in {self.out} was begun with {was}: resume it with that, or start another folder"
            )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if state["scaler"]:  # empty where the run was begun without float16
            self.scaler.load_state_dict(state["scaler"])
        self.step, self.seconds, self.history = state["step"], state["seconds"], state["history"]
        self.score, self.best_score = state["score"], state["best_score"]
        self.next_validation, self.excess = state["next_validation"], state["excess"]
        self.started = self.saved_at = time.monotonic()
        self.started -= self.seconds

    def save(self, name: str) -> None:
        """Write a checkpoint under its name, whole or not at all."""
        if not all(parameter.isfinite().all() for parameter in self.model.parameters()):
            raise self._failure("the weights are no longer finite")
        state = {
            "format": "course_utils 1",
            "spatial_dims": self.spatial_dims,
            "config": _plain(self.config),
            "about": self.about,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "score": self.score,
            "best_score": self.best_score,
            "next_validation": self.next_validation,
            "excess": self.excess,
            "history": self.history,
        }
        with replacing(self.out / name) as partial:
            torch.save(state, partial)
        self.saved_at = time.monotonic()

    def save_history(self) -> None:
        with replacing(self.out / "history.csv") as partial:
            pd.DataFrame(self.history).to_csv(partial, index=False)

    # --- a step ---

    @property
    def progress(self) -> float:
        """How much of the budget is spent, 0 to 1."""
        if self.config.steps is not None:
            return min(self.step / self.config.steps, 1.0)
        return min(self.seconds / (60 * self.config.minutes), 1.0)

    def learning_rate(self) -> float:
        """Of the coming step: 20 steps of linear warm-up, under a half cosine over the budget."""
        warm_up = min(1.0, (self.step + 1) / 20)
        return self.config.learning_rate * warm_up * 0.5 * (1 + math.cos(math.pi * self.progress))

    def train_step(self, batch: Mapping[str, Any]) -> dict[str, float]:
        learning_rate = self.learning_rate()
        self.step += 1
        if self.config.dice_weight and "fixed_label" not in batch:
            raise CourseError(
                f"step {self.step}: not all of {', '.join(batch['name'])} have labels: leave subjects without out, or "
                "set dice_weight to 0"
            )
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.model.train()
        registration, batch = self._register(batch)
        terms = registration_loss(self.config, registration, batch, self.about["labels"])
        row = {"step": self.step} | {name: term.item() for name, term in terms.items()}
        if not math.isfinite(row["loss"]):
            raise self._failure("the loss is not finite")
        self._check_diverging(row["loss"], batch)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(terms["loss"]).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.seconds = time.monotonic() - self.started
        return row | {"learning_rate": learning_rate, "seconds": self.seconds}

    def _register(self, batch: Mapping[str, Any]) -> tuple[Registration, dict[str, Any]]:
        batch = {
            key: value.to(self.device, non_blocking=True) if isinstance(value, Tensor) else value
            for key, value in batch.items()
        }
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None):
            return self.model(batch["moving"], batch["fixed"]), batch

    @torch.no_grad()
    def _check_diverging(self, loss: float, batch: Mapping[str, Any]) -> None:
        """A network starts at the identity: losing to it, on the same pairs, is what only a lost run does.

        The margin is a quarter, and is averaged over the last comparisons: single pairs differ too much.
        """
        if self.step == 1:
            self.excess = -0.25 * loss
        if self.step % COMPARED:
            return
        nothing = batch["moving"].new_zeros(len(batch["moving"]), self.spatial_dims, *batch["moving"].shape[2:])
        identity = Registration(batch["moving"], nothing, nothing)
        identity_loss = registration_loss(self.config, identity, batch, self.about["labels"])["loss"].item()
        self.excess = 0.8 * self.excess + 0.2 * (loss - 1.25 * identity_loss)
        if self.excess > 0:
            raise self._failure(f"the run diverges, its loss is {loss:.4g} where doing nothing has {identity_loss:.4g}")

    def _failure(self, what: str) -> CourseError:
        kept = "best.pt keeps the best network" if (self.out / "best.pt").exists() else "no network was good yet"
        return CourseError(
            f"step {self.step}: {what}; lower the learning rate ({self.config.learning_rate:g}) or raise the "
            f"smoothness ({self.config.smoothness:g}), check the images for NaN, and start again in another folder; "
            f"in {self.out} {kept}"
        )

    # --- validation ---

    @torch.inference_mode()
    def validate(self, pairs: PairDataset, writer: SummaryWriter) -> dict[str, float]:
        """Mean Dice (or similarity) and folding on the validation pairs; a new best is kept as ``best.pt``."""
        self.model.eval()
        rows, shown = [], None
        for batch in loader(pairs, 1):
            registration, batch = self._register(batch)
            terms = registration_loss(self.config, registration, batch, self.about["labels"])
            row = {
                "validation_similarity": terms["similarity"].item(),
                "validation_folding_percent": metrics.folding_percent(registration.displacement).item(),
            }
            if "fixed_label" in batch:
                moved = warp(batch["moving_label"], registration.displacement, mode="nearest", padding="zeros")
                dice = metrics.dice(moved, batch["fixed_label"], list(self.about["labels"]))
                row["validation_dice"] = dice.nanmean().item()
            rows.append(row)
            if shown is None:
                shown = {"moving": batch["moving"], "fixed": batch["fixed"], "moved": registration.moved}
        means = pd.DataFrame(rows).mean().to_dict()
        writer.add_figure("validation/pair", plotting.panel(shown), self.step)
        dice = means.get("validation_dice", math.nan)
        self.score = -means["validation_similarity"] if math.isnan(dice) else dice
        if self.score > self.best_score:
            self.best_score = self.score
            self.save("best.pt")
        return means


def _plain(config: TrainConfig) -> dict[str, Any]:
    return dataclasses.asdict(config) | {"features": list(config.features)}


def _read_checkpoint(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CourseError(f"{path} does not exist: name a checkpoint that `train` wrote, such as OUT/best.pt")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and torch each have their own words for a file that is none of theirs
        raise CourseError(
            f"{path} is damaged or no checkpoint of plain tensors: train again, or use another that `train` wrote"
        ) from error
    if not isinstance(state, dict) or state.get("format") != "course_utils 1":
        raise CourseError(
            f"{path} is not a checkpoint of this course: name one that `train` wrote, such as OUT/best.pt"
        )
    return state


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a file, or a new folder, beside ``path`` and put it in place at the end.

    A reader finds the old one or the new one, never a half.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:  # torch reports a failed write as a RuntimeError
        full = isinstance(error, RuntimeError) or error.errno == errno.ENOSPC
        reason = "the disk is full, or cannot be written" if full else error.strerror
        raise CourseError(
            f"{path} was not written ({reason}): make room and run again; what was there before stays"
        ) from error
    finally:
        shutil.rmtree(partial) if partial.is_dir() else partial.unlink(missing_ok=True)


@contextlib.contextmanager
def _scalars(folder: Path, step: int) -> Iterator[SummaryWriter]:
    """TensorBoard's writer; what an earlier run left in the folder counts up to ``step``.

    It writes in a thread, and tells of a full disk there and then at any later call.
    """
    unraised = threading.excepthook
    threading.excepthook = lambda thread: None if isinstance(thread.exc_value, OSError) else unraised(thread)
    try:
        with contextlib.closing(SummaryWriter(folder, purge_step=step + 1)) as writer:
            yield writer
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise CourseError(f"{folder} was not written (the disk is full): make room and resume") from error
    finally:
        threading.excepthook = unraised


@contextlib.contextmanager
def _ctrl_c() -> Iterator[threading.Event]:
    """An event that Ctrl-C sets, so that a step is finished and saved before the run ends; a second ends it at once."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event  # only the main thread may handle signals; elsewhere Ctrl-C stays what it is
        return

    def note(number: int, frame: Any) -> None:
        if event.is_set():
            raise KeyboardInterrupt
        event.set()

    before = signal.signal(signal.SIGINT, note)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, before)
