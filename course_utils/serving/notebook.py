"""The page in a cell of a notebook."""

import atexit
import contextlib
import threading
from collections.abc import Iterable
from pathlib import Path

from course_utils.serving.limits import Limits
from course_utils.serving.server import prepared

FRAMES = ("http://localhost:*", "http://127.0.0.1:*")
"""Where a JupyterLab of this machine is, at whatever port."""


class PageInCell:
    """The page of `python -m course_utils serve`, answered by this process and shown in a frame below the cell.

    The browser has to be on the machine of the kernel: the page listens on its loopback address. It ends with the
    kernel, or when it is closed, and all that was uploaded is deleted then.

    Args:
        models: Checkpoints to offer beside the networks that ship.
        limits: What a registration may take.
        device: Where registrations are computed.
        height: Of the frame, in pixels.
        frames: Sites whose pages may show it.

    Attributes:
        address: Of the page, for a tab of its own.

    Raises:
        CourseError: a model cannot be used, or a site is none.
    """

    def __init__(
        self,
        models: Iterable[Path] = (),
        *,
        limits: Limits | None = None,
        device: str = "cpu",
        height: int = 900,
        frames: Iterable[str] = FRAMES,
    ) -> None:
        self._height = height
        self._ending = contextlib.ExitStack()
        self.address, server, sockets = self._ending.enter_context(
            prepared("127.0.0.1", 0, models=models, limits=limits, device=device, frames=frames)
        )
        answering = threading.Thread(target=server.run, args=(sockets,), daemon=True)
        self._ending.callback(answering.join)
        self._ending.callback(setattr, server, "should_exit", True)  # the last is done first
        answering.start()
        atexit.register(self.close)

    def close(self) -> None:
        """End the page and delete everything; a second time changes nothing."""
        atexit.unregister(self.close)
        self._ending.close()

    def _repr_html_(self) -> str:
        frame = (
            f'<iframe src="{self.address}" title="register two scans" width="100%" height="{self._height}"></iframe>'
        )
        return f'{frame}<p><a href="{self.address}" target="_blank" rel="noopener">in a tab of its own</a></p>'
