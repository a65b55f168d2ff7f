"""How a network is trained: the budget, the optimiser and the precision of a run."""

import math
from dataclasses import dataclass

import torch

from course_utils.errors import CourseError

AMP = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class TrainConfig:
    """All that decides a run, apart from its network, its objective and its data.

    Attributes:
        steps: The budget as work; either this or `minutes`. Two such runs agree in their numbers.
        minutes: The budget as time. The learning rate follows the clock, so two such runs differ in their numbers.
        batch_size: Pairs a step.
        learning_rate: Adam's, at its highest: it rises over the first 20 steps and falls to 0 on a half cosine.
        validations: How often to validate, evenly over the run; the last time is at its end.
        amp: `"auto"` (bf16 where the device computes with it natively, fp16 on older GPUs), `"off"`, `"bf16"`,
            `"fp16"` (CUDA only, with a loss scaler).
        augment: How much the images of each training pair are changed at random: 0 not at all, 1 as much as
            `Augmentation` says.
        seed: Of what an objective draws at random. The network's first weights have a seed of their own.
    """

    steps: int | None = None
    minutes: float | None = None
    batch_size: int = 2
    learning_rate: float = 2e-3
    validations: int = 10
    amp: str = "auto"
    augment: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        def require(condition: bool, name: str, what: str) -> None:
            if not condition:
                raise CourseError(f"{name}={getattr(self, name)!r} is not {what}: change it")

        require(self.amp in ("auto", *AMP), "amp", f"one of auto, {', '.join(AMP)}")
        for name in ("batch_size", "validations"):
            require(getattr(self, name) >= 1, name, "1 or more")
        require(self.learning_rate > 0, "learning_rate", "above 0")
        require(0 <= self.augment < math.inf, "augment", "0 or more")
        if (self.steps is None) == (self.minutes is None):
            raise CourseError("a run needs one budget: give it either steps or minutes")
        for name in ("steps", "minutes"):
            require(getattr(self, name) is None or getattr(self, name) > 0, name, "above 0")

    def progress(self, steps: int, seconds: float) -> float:
        """How much of the budget is spent after so many steps and seconds, 0 to 1."""
        if self.steps is not None:
            return min(steps / self.steps, 1.0)
        assert self.minutes is not None  # one of the two is given
        return min(seconds / (60 * self.minutes), 1.0)


def precision(amp: str, device: torch.device) -> torch.dtype | None:
    """The autocast type that `amp` means on a device, None for float32.

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
        native = getattr(torch.cpu, "get_capabilities", dict)()  # PyTorch before 2.11 cannot tell
        return torch.bfloat16 if native.get("avx512_bf16") or native.get("amx_bf16") else None
    return None
