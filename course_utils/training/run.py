"""A training run: its state, a step, a validation, and what is saved of them."""

import contextlib
import dataclasses
import math
import threading
import time
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from course_utils import __version__, metrics
from course_utils.checkpoint import Checkpoint, read_state
from course_utils.data.card import DataCard
from course_utils.data.loading import PairDataset, loader
from course_utils.errors import CourseError
from course_utils.fields import warp
from course_utils.networks import RegistrationNetwork
from course_utils.objectives import Objective, Outcome
from course_utils.plain import number, settings
from course_utils.schedule import half_cosine, warm_up
from course_utils.seeds import seed_of
from course_utils.training.config import TrainConfig, precision
from course_utils.training.hooks import Hook, TensorBoard
from course_utils.training.models import Minimised, MixedPrecision, Motionless
from course_utils.training.ranks import Ranks, answered

COMPARED = 10
"""Every so many steps a batch's loss is compared with that of doing nothing, to tell a run that diverges."""
VALIDATION_SEED = 2**31
"""Where the seeds of validation pairs begin, beyond those of any step."""


class TrainingRun:
    """The state of a run, all that a checkpoint of it holds, and its single steps; see `fit` for the arguments.

    Several processes hold the same state and take the same turns, each with pairs of its own; the first alone writes,
    and has the hooks.
    """

    def __init__(
        self,
        model: RegistrationNetwork,
        objective: Objective,
        config: TrainConfig,
        out: Path,
        card: DataCard,
        device: torch.device,
        hooks: Sequence[Hook] | None,
    ) -> None:
        if not hasattr(model, "spec"):
            raise CourseError(
                f"the network {type(model).__name__} has no name that a checkpoint could hold: decorate its class with "
                "course_utils.networks.architecture"
            )
        self.objective, self.config, self.out, self.card, self.device = objective, config, out, card, device
        self.ranks = Ranks.here()
        self.hooks: list[Hook] = []
        if self.ranks.writes:
            self.hooks = [TensorBoard()] if hooks is None else list(hooks)
        dtype = precision(config.amp, device)
        self.model = model.to(device)
        self.callable = MixedPrecision(self.model, device, dtype)
        self.minimised: nn.Module = Minimised(self.model, self.callable, objective)
        self.optimizer = torch.optim.Adam(self.model.parameters(), config.learning_rate)
        # Gradients of float16 activations underflow unless the loss is scaled up; bfloat16 has float32's range.
        self.scaler = torch.amp.GradScaler(device.type, enabled=dtype is torch.float16)
        self.step = 0
        self.seconds = 0.0
        self.score = self.best_score = -math.inf
        self.metrics: dict[str, float] = {}
        self.next_validation = 1 / config.validations
        self.excess = 0.0
        self.history: list[dict[str, float]] = []
        self.interrupted = threading.Event()
        self.stop_agreed = False

    # --- several processes ---

    def share(self, train: PairDataset, validation: PairDataset) -> None:
        """Bind the processes together; raise CourseError where they are not of one run, or cannot be."""
        if self.ranks.alone:
            return
        self.ranks.check_same(
            {
                **self._options(self._checkpoint()),
                "subjects": self.card.subjects,
                "training pairs": len(train),
                "validation pairs": len(validation),
                "device": self.device.type,
                "version": (__version__, torch.__version__),
            }
        )
        self.minimised = self.ranks.parallel(self.minimised, unused=self._rehearse(train))

    @property
    def stopping(self) -> bool:
        """Whether the run ends after this step: several processes must have agreed on it, see `_agreed`."""
        return self.interrupted.is_set() if self.ranks.alone else self.stop_agreed

    def _agreed(self, row: dict[str, float]) -> dict[str, float]:
        """The means of the processes' rows; with them they agree on the time, and on whether to stop."""
        if self.ranks.alone:
            return row
        # In one message, as each costs a round through all machines. The clock is the first one's.
        clock = self.ranks.size * (time.monotonic() - self.started) if self.ranks.writes else 0.0
        mean = self.ranks.mean({**row, "clock": clock, "stop": float(self.interrupted.is_set())}, self.device)
        self.seconds, self.stop_agreed = mean.pop("clock"), mean.pop("stop") > 0
        return mean

    def _rehearse(self, train: PairDataset) -> bool:
        """Make a step of a single pair, of which nothing is kept; whether it leaves any parameter out.

        Raises:
            CourseError: it changes what no gradient changes, such as a running mean. Each process would go on with that
                of its own pairs, and the checkpoint hold the first one's.
        """
        before = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        (batch,) = loader(train, 1, 0, 1)
        self.model.train()
        with _seeded(self.config.seed, 0, self.device):
            loss, _ = self.minimised(self._on_device(batch))
        loss.backward()
        changed = [name for name, buffer in self.model.named_buffers() if not torch.equal(buffer, before[name])]
        if changed:
            raise CourseError(
                f"the network keeps running numbers ({', '.join(changed)}), which several processes do not share: "
                "train it with one process"
            )
        unused = any(parameter.grad is None for parameter in self.model.parameters() if parameter.requires_grad)
        self.optimizer.zero_grad(set_to_none=True)
        return unused

    # --- beginning, saving, going on ---

    def check_folder(self, resume: bool) -> None:
        """Make the folder of a new run; raise CourseError where it cannot be, holds one already, or none to resume."""
        if resume and not (self.out / "last.pt").is_file():
            raise CourseError(f"{self.out} holds no run to resume: begin one there, or name its folder")
        if not resume and (self.out / "last.pt").exists():
            raise CourseError(f"{self.out} holds a run already: resume it, or choose another folder")
        try:
            self.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CourseError(f"{self.out} cannot be made ({error.strerror}): choose another folder") from error

    def begin(self) -> None:
        if self.ranks.writes:
            # Again, now that nobody else begins here.
            self.check_folder(resume=False)
        self.save("last.pt")
        self.started = time.monotonic()

    def resume(self) -> None:
        path = self.out / "last.pt"
        state = self.ranks.from_first(lambda: read_state(path))
        mine, its = self._options(self._checkpoint()), self._options(Checkpoint.from_dict(state, path))
        was = ", ".join(f"{name}={its.get(name)!r}" for name in {**mine, **its} if its.get(name) != mine.get(name))
        if was:
            raise CourseError(
                f"the run in {self.out} was begun with {was}: resume it with that, or start another folder"
            )
        try:
            self._restore(state)
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError, IndexError) as error:
            raise CourseError(f"{path} holds no run that can go on ({error!s:.200}): start another folder") from error
        self.started = self.saved_at = time.monotonic()
        self.started -= self.seconds

    def _restore(self, state: Mapping[str, Any]) -> None:
        self.model.load_state_dict(state["weights"])
        self.step, self.score, self.metrics = state["step"], state["score"], state["metrics"]
        run = state["run"]
        self.optimizer.load_state_dict(run["optimizer"])
        if run["scaler"]:  # empty where the run was begun without float16
            self.scaler.load_state_dict(run["scaler"])
        self.history = [settings(row, "history") for row in run["history"]]
        self.seconds, self.best_score, self.next_validation, self.excess = (
            float(number(run[name], name)) for name in ("seconds", "best_score", "next_validation", "excess")
        )

    @staticmethod
    def _options(checkpoint: Checkpoint) -> dict[str, Any]:
        """What a resumed run must have been begun with, by name."""
        # Built, so that an argument which a network did not have yet when the run was begun has its default.
        network = {"architecture": checkpoint.network.architecture, **checkpoint.network.build().spec.arguments}
        card = {
            name: value
            for name, value in checkpoint.card.to_dict().items()
            if name not in ("licence", "citation", "source", "subjects")
        }
        return {**network, **checkpoint.objective, **checkpoint.config, **card}

    def _checkpoint(self) -> Checkpoint:
        return Checkpoint(
            self.model.spec,
            self.model.state_dict(),
            self.card,
            self.objective.describe(),
            dataclasses.asdict(self.config),
            self.step,
            self.score,
            self.metrics,
        )

    def save(self, name: str) -> None:
        """Write a checkpoint under its name, whole or not at all."""
        if not all(parameter.isfinite().all() for parameter in self.model.parameters()):
            raise self._failure("the weights are no longer finite")
        if self.ranks.writes:
            self._write(name)
        self.saved_at = time.monotonic()

    def _write(self, name: str) -> None:
        run = None
        if name == "last.pt":
            for hook in self.hooks if self.step else ():
                hook.saving()
            run = {
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
                "seconds": self.seconds,
                "best_score": self.best_score,
                "next_validation": self.next_validation,
                "excess": self.excess,
                "history": self.history,
            }
        self._checkpoint().save(self.out / name, run=run)

    # --- who looks on ---

    @contextlib.contextmanager
    def watched(self) -> Generator[None]:
        with contextlib.ExitStack() as stack:
            for hook in self.hooks:
                stack.enter_context(hook.watching(self.out, self._checkpoint()))
            yield

    def note(self, row: dict[str, float]) -> None:
        self.history.append(row)
        for hook in self.hooks:
            hook.stepped(row, self.progress)

    # --- a step ---

    @property
    def progress(self) -> float:
        """How much of the budget is spent, 0 to 1."""
        return self.config.progress(self.step, self.seconds)

    def learning_rate(self) -> float:
        """Of the coming step."""
        return self.config.learning_rate * warm_up(self.step) * half_cosine(self.progress)

    def train_step(self, batch: Mapping[str, Any]) -> dict[str, float]:
        learning_rate = self.learning_rate()
        self.step += 1
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.model.train()
        batch = self._on_device(batch)
        with _seeded(self.config.seed, self.step, self.device, self.ranks.rank):
            loss, terms = self.minimised(batch)
        row = {"loss": loss.item()} | {name: term.item() for name, term in terms.items()}
        row = {"step": self.step, **self._agreed(row)}
        if not math.isfinite(row["loss"]):
            raise self._failure("the loss is not finite")
        self._check_diverging(row["loss"], batch)
        self.optimizer.zero_grad(set_to_none=True)
        with answered():
            self.scaler.scale(loss).backward()
        # Several processes have the same gradients by now: where one is not finite, the scalers of all skip the step.
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.ranks.alone:
            self.seconds = time.monotonic() - self.started
        return row | {"learning_rate": learning_rate, "seconds": self.seconds}

    def _on_device(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        return {
            key: value.to(self.device, non_blocking=True) if isinstance(value, Tensor) else value
            for key, value in batch.items()
        }

    @torch.no_grad()
    def _check_diverging(self, loss: float, batch: Mapping[str, Any]) -> None:
        """A network starts at the identity: losing to it, on the same pairs, is what only a lost run does.

        The margin is a quarter, and is averaged over the last comparisons: single pairs differ too much. A loss may be
        below zero, as minus the mutual information is.
        """
        if self.step == 1:
            self.excess = -0.25 * abs(loss)
        if self.step % COMPARED:
            return
        with _seeded(self.config.seed, self.step, self.device, self.ranks.rank):
            nothing = self.objective(Motionless(self.model), batch).loss.item()
        nothing = self.ranks.mean({"loss": nothing}, self.device)["loss"]
        self.excess = 0.8 * self.excess + 0.2 * (loss - nothing - 0.25 * abs(nothing))
        if self.excess > 0:
            raise self._failure(f"the run diverges, its loss is {loss:.4g} where doing nothing has {nothing:.4g}")

    def _failure(self, what: str) -> CourseError:
        kept = "best.pt keeps the best network" if (self.out / "best.pt").exists() else "no network was good yet"
        return CourseError(
            f"step {self.step}: {what}; lower the learning rate ({self.config.learning_rate:g}) or raise the weight of "
            f"the smoothness, check the images for NaN, and start again in another folder; in {self.out} {kept}"
        )

    # --- validation ---

    @torch.inference_mode()
    def validate(self, pairs: PairDataset) -> dict[str, float]:
        """Means over the validation pairs; a new best is kept as `best.pt`."""
        self.model.eval()
        rows = []
        mine = range(len(pairs))[self.ranks.share]
        for index, batch in zip(mine, loader(pairs, 1, share=self.ranks.share), strict=True):
            batch = self._on_device(batch)
            with _seeded(self.config.seed, VALIDATION_SEED + index, self.device):
                outcome = self.objective(self.callable, batch)
            rows.append(self._measure(outcome, batch))
            if index == 0:
                for hook in self.hooks:
                    hook.validated(self.step, batch, outcome)
        means = pd.DataFrame(self.ranks.gathered(rows)).mean()
        self.metrics = {str(name): float(value) for name, value in means.items()}
        known = {name: value for name, value in self.metrics.items() if not math.isnan(value)}
        self.score = known.get("dice", -known.get("similarity", known.get("loss", math.inf)))
        if self.score > self.best_score:
            self.best_score = self.score
            self.save("best.pt")
        validations = self.config.validations
        self.next_validation = min(1.0, (math.floor(self.progress * validations + 1e-9) + 1) / validations)
        return {f"validation_{name}": value for name, value in self.metrics.items()}

    def _measure(self, outcome: Outcome, batch: Mapping[str, Any]) -> dict[str, float]:
        row = {"loss": outcome.loss.item()} | {name: term.item() for name, term in outcome.terms.items()}
        if outcome.registration is None:
            return row
        displacement = outcome.registration.displacement
        row["folding_percent"] = metrics.folding_percent(displacement).item()
        if "fixed_label" in batch and self.card.labels:
            moved = warp(batch["moving_label"], displacement, mode="nearest", padding="zeros")
            row["dice"] = metrics.dice(moved, batch["fixed_label"], list(self.card.labels)).nanmean().item()
        return row


@contextlib.contextmanager
def _seeded(seed: int, number: int, device: torch.device, rank: int = 0) -> Generator[None]:
    """Random numbers within follow from these numbers; the global generators are left as they were."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed_of(seed, number, rank))
        yield
