"""The processes that train one network together: who is there, what they agree on, and which of them writes.

Each is called a rank, by its number, as PyTorch calls it. One process alone is rank 0 of 1, and has nobody to ask.
"""

import contextlib
import os
import re
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from course_utils.errors import CourseError, Told

Value = TypeVar("Value")

PATIENCE = timedelta(minutes=30)
"""How long one process waits for another, which may have a large cohort to read, before it gives up."""
TOLD = "told"
"""Key of the store under which is counted who has told the user of a run's end."""
ENVIRONMENT = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What a launcher such as torchrun tells each of its processes."""
GONE = re.compile(r"gloo|nccl|connection|socket|timed out|process group|broken pipe", re.IGNORECASE)
"""What an error of PyTorch's says where another process does not answer; it has no type of its own."""


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together.

    Attributes:
        rank: Its number, from 0.
        size: How many there are.
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def here(cls) -> "Ranks":
        """Those of PyTorch's default group, which `joined` makes; without a group, this process alone."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        return cls()

    @property
    def alone(self) -> bool:
        return self.size == 1

    @property
    def of_this_machine(self) -> int:
        """How many of them are on this machine, as the launcher says; all, where it says nothing."""
        return self.size if self.alone else int(os.environ.get("LOCAL_WORLD_SIZE", self.size))

    @property
    def writes(self) -> bool:
        """Whether this is the one that writes files and tells how far the run has got."""
        return self.rank == 0

    @property
    def share(self) -> slice:
        """Which of many things in a row are this process's: every `size`-th."""
        return slice(self.rank, None, self.size)

    def batch(self, batch_size: int) -> int:
        """How many pairs of each step are this process's.

        Raises:
            CourseError: the processes cannot have equally many, without which the mean of theirs is not that of all.
        """
        if batch_size % self.size:
            raise CourseError(
                f"a step of {batch_size} pairs cannot be shared by {self.size} processes: take a batch size that is a "
                f"multiple of {self.size}, such as {self.size * -(-batch_size // self.size)}"
            )
        return batch_size // self.size

    def device(self, name: str) -> str:
        """The device of this process: of several on one machine, each has a GPU of its own where `name` is `cuda`.

        Raises:
            CourseError: one GPU is named for several processes, there are fewer than processes, or it is a device that
                several processes cannot train on.
        """
        if self.alone or name == "cpu":
            return name
        if name != "cuda":
            raise CourseError(f"device {name} is not for {self.size} processes: take cuda, a GPU for each, or cpu")
        count = torch.cuda.device_count()
        local = int(os.environ.get("LOCAL_RANK", self.rank % count))
        if local >= count:
            raise CourseError(
                f"process {self.rank} is number {local + 1} of its machine, which has {count} GPUs: start at most "
                f"{count} on each"
            )
        if not dist.is_nccl_available():
            raise CourseError(
                "this PyTorch has no NCCL, by which GPUs speak: install one for CUDA on Linux, or take cpu"
            )
        torch.cuda.set_device(local)
        return f"cuda:{local}"

    # --- what all have to say ---

    def mean(self, values: Mapping[str, float], device: torch.device) -> dict[str, float]:
        """Means over the processes, by name; every process must give the same names, in the same order.

        A number that is not finite in one process is not finite in the mean, so that all of them notice.
        """
        if self.alone:
            return dict(values)
        total = torch.tensor(list(values.values()), dtype=torch.float64, device=device)
        with answered():
            dist.all_reduce(total)
        return dict(zip(values, (total / self.size).tolist(), strict=True))

    def from_first(self, make: Callable[[], Value]) -> Value:
        """What `make` gives in the first process, which is the only one to call it."""
        if self.alone:
            return make()
        box: list[Any] = [make() if self.writes else None]
        with answered():
            dist.broadcast_object_list(box, src=0)
        return box[0]

    def gathered(self, mine: Sequence[Value]) -> list[Value]:
        """The shares of all, see `share`, put together again."""
        if self.alone:
            return list(mine)
        theirs = self._of_all(list(mine))
        whole: list[Any] = [None] * sum(map(len, theirs))
        for rank, part in enumerate(theirs):
            whole[rank :: self.size] = part
        return whole

    def check_same(self, what: Mapping[str, Any]) -> None:
        """Raise CourseError, in all processes, where one has another value of something than the first."""
        theirs = self._of_all({name: repr(value) for name, value in what.items()})
        for rank, values in enumerate(theirs):
            differing = [name for name in values if values[name] != theirs[0].get(name)]
            if differing:
                raise CourseError(
                    f"process {rank} has not the same {', '.join(differing)} as process 0: give all of them one "
                    "command, one version and the same data"
                )

    def parallel(self, module: nn.Module, *, unused: bool) -> nn.Module:
        """The module, whose gradients will be means over the processes; it begins with the first one's weights.

        Args:
            module: With the same parameters in all processes; its buffers must not change.
            unused: Whether some of its parameters may have no gradient, for which PyTorch else waits in vain.
        """
        with answered():
            return DistributedDataParallel(module, find_unused_parameters=unused)

    def _of_all(self, mine: Value) -> list[Value]:
        theirs: list[Any] = [None] * self.size
        with answered():
            dist.all_gather_object(theirs, mine)
        return theirs


@contextlib.contextmanager
def answered() -> Generator[None]:
    """Around what needs the other processes: where one is gone, the error says so in one line."""
    try:
        yield
    except RuntimeError as error:
        if not GONE.search(str(error)):
            raise
        raise CourseError(
            "another process of this run has ended, or does not answer: see what its launcher says of it, and go on "
            "with --resume, or resume=True"
        ) from error


# --- beginning and ending together ------------------------------------------------------------------------------------


@contextlib.contextmanager
def joined() -> Generator[Ranks]:
    """Join the processes that a launcher has started beside this one, until the end of the block.

    GPUs speak by NCCL, processors by gloo. Where the block fails, one process alone raises its error, the first to
    have one; the others raise `Told`. A process without a launcher is alone, and nothing is different for it.

    Raises:
        CourseError: what the launcher says is not complete, or the others do not come.
    """
    size = launched()
    if size == 1:
        yield Ranks()
        return
    store = _met(size)
    try:
        yield Ranks.here()
    except (Exception, KeyboardInterrupt) as error:
        # The group is left to the end of the process: to take leave would be to wait for those who are gone.
        if _is_first_to_tell(store):
            raise
        raise Told(str(error)) from error
    dist.destroy_process_group()


def launched() -> int:
    """How many processes a launcher has started, by its environment variables; 1 without one.

    Raises:
        CourseError: some of the variables are missing, or are no numbers that fit.
    """
    text = os.environ.get("WORLD_SIZE", "1")
    if text == "1":
        return 1
    missing = [name for name in ENVIRONMENT if not os.environ.get(name)]
    if missing:
        raise CourseError(
            f"WORLD_SIZE={text} is set and {', '.join(missing)} is not: start the processes by torchrun, or unset "
            "WORLD_SIZE"
        )
    size = _number("WORLD_SIZE", range(1, 2**20))
    _number("RANK", range(size))
    _number("MASTER_PORT", range(2**16))
    if "LOCAL_RANK" in os.environ:
        _number("LOCAL_RANK", range(size))
    if "LOCAL_WORLD_SIZE" in os.environ:
        _number("LOCAL_WORLD_SIZE", range(1, size + 1))
    return size


def _number(name: str, those: range) -> int:
    value = os.environ[name]
    if not (value.isdecimal() and int(value) in those):
        raise CourseError(
            f"{name}={value} is no number from {those[0]} to {those[-1]}: start the processes by torchrun"
        )
    return int(value)


def _met(size: int) -> dist.Store:
    """Wait for the other processes and make the default group with them; the store that all of them see."""
    if not (dist.is_available() and dist.is_gloo_available()):
        raise CourseError("this PyTorch has no gloo, by which processes speak: install another, or start one process")
    # Small things go by gloo even where gradients go by NCCL, which is begun by the first tensor on a GPU.
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
    try:
        store, rank, _ = next(iter(dist.rendezvous("env://", timeout=PATIENCE)))
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=PATIENCE)
    except (RuntimeError, ValueError, OSError) as error:
        place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise CourseError(
            f"the {size} processes did not meet at {place} ({str(error).splitlines()[0]:.120}): start all of them, and "
            "let them reach that machine"
        ) from error
    return store


def _is_first_to_tell(store: dist.Store) -> bool:
    try:
        return store.add(TOLD, 1) == 1
    except RuntimeError:  # torchrun keeps the store itself; without it, the store ends with the first process
        return True
