"""The process that registers one pair and ends: `python -m course_utils.serving.worker FOLDER`.

It imports what it needs and waits for one line of JSON, a `Request`. It answers with lines of JSON: `{"stage": ...,
"share": ...}` while it works, and at last `{"report": ...}` or `{"error": ...}`. Its input stays open as long as the
server lives; when that ends, however it ends, the process deletes FOLDER, which is the server's, and ends too.
"""

import contextlib
import json
import os
import shutil
import sys
import threading
import traceback
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from course_utils.data.volumes import read_image, read_label, read_labels, read_volume
from course_utils.errors import CourseError, CourseWarning
from course_utils.files import replacing
from course_utils.scans import writing
from course_utils.scans.applying import read_field
from course_utils.scans.registration import register_files
from course_utils.serving.request import SCANS, Request
from course_utils.serving.viewing import view_of

RESULTS = {
    "moved": "moved.nii.gz",
    "warp": "field_itk.nii.gz",
    "inverse_warp": "inverse_field_itk.nii.gz",
    "moved_label": "moved_label.nii.gz",
}
"""The files that `register_files` writes, by its own names."""
LEARN2REG = "field_learn2reg.nii.gz"


def work(request: Request, tell: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Register the pair in the current folder; write the results and what the page draws.

    Args:
        request: Whose folder is the current one.
        tell: Called with the stage, and with the share of it that is done where that is known.

    Returns:
        The report, the files to download, and the warnings, one line each.

    Raises:
        CourseError: the scans cannot be used or registered.
    """
    label = request.files.get("moving_label")
    outputs = {name: file for name, file in RESULTS.items() if label is not None or name != "moved_label"}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", CourseWarning)
        tell({"stage": "registering"})
        report = register_files(
            request.files["moving"],
            request.files["fixed"],
            outputs,
            model=request.model,
            iterations=request.iterations,
            moving_label=label,
            as_images=request.as_images,
            device=request.device,
            progress=lambda share: tell({"stage": "optimising", "share": share}),
        )
    tell({"stage": "drawing"})
    moving, fixed = (read_image(request.files[name], as_image=True) for name in ("moving", "fixed"))
    moved, field = read_volume(outputs["moved"]), read_field(outputs["warp"])
    files = list(outputs.values())
    if moving.grid.shape == fixed.grid.shape:  # which that layout is for
        content = writing.learn2reg_field(field.onto(moving), field.grid, field.header)
        with replacing(Path(LEARN2REG)) as partial:
            writing.save(content, partial, Path(LEARN2REG))
        files.insert(2, LEARN2REG)
    labels = {}
    if label is not None:
        labels = {"moving_label": read_label(label, moving), "moved_label": read_labels(outputs["moved_label"])}
    view_of(moving, fixed, moved, field, labels).write(Path())
    told = [in_words_of_the_page(str(one.message), request) for one in caught]
    return {"report": asdict(report), "files": files, "warnings": told}


def in_words_of_the_page(line: str, request: Request) -> str:
    """A message as a line that names no file of the server, and no option of the command line."""
    line = " ".join(line.split())
    for what, words in SCANS.items():
        if what in request.files:
            line = line.replace(request.files[what], words)
    if request.model is not None and os.sep in request.model:
        line = line.replace(request.model, "the network")
    for option, words in {
        "--as-images": "that they are images",
        "--iterations 0": "0 steps",
        "--iterations": "steps",
        "as --moving-label": "as its label map",
        "take --device cpu": "give smaller ones",
    }.items():
        line = line.replace(option, words)
    return line.replace(f"{request.folder}{os.sep}", "")


def bound_memory(most: int) -> None:
    """Let this process hold no more than so many bytes, and be the first that a system short of memory ends."""
    if sys.platform != "linux":
        return
    import resource  # Windows has no such module

    # OpenBLAS asks for its buffer at its first work, and again for ever where it gets none.
    np.linalg.det(np.eye(3))
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    with contextlib.suppress(OSError):  # a container may forbid it
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")


def answer(request: Request, tell: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """`work` in the folder of the request, whatever comes of it: its result, or one line in words of the page."""
    os.chdir(request.folder)
    if request.device == "cpu":  # with a GPU, its own memory is what runs out
        bound_memory(request.memory_bytes)
    try:
        return work(request, tell)
    except CourseError as error:
        return {"error": in_words_of_the_page(str(error), request)}
    except Exception as error:
        if isinstance(error, MemoryError) or "allocate memory" in str(error):  # the latter is PyTorch's
            return {"error": "scans of this size need more memory than a registration may take: crop or resample them"}
        traceback.print_exc()  # for whoever runs the server
        return {"error": f"the registration ended with a fault of this program ({type(error).__name__})"}


def _end_with_the_server(folder: Path) -> None:
    sys.stdin.buffer.read()
    for _ in range(3):  # the registration may be writing
        shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


def main() -> None:
    """Wait for a request, and answer it."""
    # What any package prints goes to stderr; the lines of JSON have a way of their own.
    lines = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    first = sys.stdin.buffer.readline()
    threading.Thread(target=_end_with_the_server, args=[Path(sys.argv[1])], daemon=True).start()
    if not first:
        threading.Event().wait()

    def tell(message: dict[str, Any]) -> None:
        print(json.dumps(message), file=lines, flush=True)

    tell(answer(Request(**json.loads(first)), tell))
    os._exit(0)  # at once: the thread that reads would keep the interpreter


if __name__ == "__main__":
    main()
