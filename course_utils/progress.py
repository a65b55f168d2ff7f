"""How far a loop has got: a bar on a terminal, a line now and then elsewhere."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm.auto import tqdm

SECONDS = 30.0
"""Between two lines."""

Item = TypeVar("Item")


def track(items: Iterable[Item], what: str, total: int, *, show: bool = True) -> Iterator[Item]:
    """The same items, while stderr tells how many of them are done.

    Args:
        items: to go through.
        what: is done with them, a participle such as "reading".
        total: how many there are.
        show: False tells nothing.
    """
    if not show:
        yield from items
    elif sys.stderr.isatty():
        yield from tqdm(items, desc=what, total=total)
    else:
        due = time.monotonic() + SECONDS
        for done, item in enumerate(items, 1):
            yield item
            if time.monotonic() >= due:
                due = time.monotonic() + SECONDS
                print(f"{what}: {done} of {total}", file=sys.stderr, flush=True)
