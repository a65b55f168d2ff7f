"""The files that a user's words mean: a folder, a glob, a list or a CSV file; and which label map is of which image."""

import csv
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from course_utils.data.formats import READABLE, stem, suffix
from course_utils.errors import CourseError

SPLITS = ("train", "val", "test")
COLUMNS = ("image", "label", "subject", "split")
"""Of a CSV file of images; all but the first may be left out."""


@dataclass(frozen=True)
class Entry:
    """An image that a user names.

    Attributes:
        image: Its file.
        label: Of its label map, where the user names one for each image.
        person: Who is shown, where the user says so: images of one person stay on one side of a split.
        split: Where it belongs, one of `SPLITS`, where the user says so; else empty.
    """

    image: Path
    label: Path | None = None
    person: str = ""
    split: str = ""


def list_entries(words: str, prefix: str = "", suffix: str = "") -> list[Entry]:
    """The images that a folder, a glob, a text file of paths, or a CSV file names.

    Args:
        words: A folder (its images or, where it has none itself, those below it), a glob such as `scans/*/t1.nii.gz`,
            a text file with one path a line, or a CSV file with the columns `COLUMNS`. Paths in a file are relative to
            it or, where there is nothing, to the working folder.
        prefix: Stands before each line of a text file.
        suffix: Stands behind it.

    Raises:
        CourseError: there is nothing of that name, nothing in it, or a file that it names does not exist.
    """
    path = Path(words)
    if (prefix or suffix) and (not path.is_file() or path.suffix == ".csv"):
        raise CourseError(f"--prefix and --suffix are for lines of a text file, and {words} is none: leave them out")
    if path.is_dir():
        files = _images_in(path)
    elif path.suffix == ".csv" and path.is_file():
        return _from_csv(path)
    elif path.is_file() and not is_image(path):
        files = _from_text(path, prefix, suffix)
    elif path.is_file():
        files = [path]
    else:
        files = _globbed(words)
    return [Entry(file) for file in files]


def is_image(path: Path) -> bool:
    """Whether a file's name is that of an image, and not of the hidden ones that macOS leaves."""
    return bool(suffix(path)) and not path.name.startswith(".")


def _images_in(folder: Path) -> list[Path]:
    files = [path for path in sorted(folder.iterdir()) if is_image(path)]
    files = files or [path for path in sorted(folder.rglob("*")) if is_image(path)]
    if not files:
        raise CourseError(f"{folder} holds no image ({', '.join(READABLE)}): name the folder that does")
    return files


def _globbed(words: str) -> list[Path]:
    if not re.search(r"[*?\[]", words):
        raise CourseError(f"{words} does not exist: name a folder, a glob, a text file of paths, or a CSV file")
    path = Path(words)
    root = Path(path.anchor) if path.is_absolute() else Path()
    pattern = path.relative_to(path.anchor) if path.is_absolute() else path
    files = [path for path in sorted(root.glob(str(pattern))) if is_image(path)]
    if not files:
        raise CourseError(f"nothing fits {words}: correct the pattern, and keep it in quotes")
    return files


def _from_text(path: Path, prefix: str, suffix: str) -> list[Path]:
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise CourseError(f"{path} cannot be read as text ({error}): give one path a line") from error
    files = [
        _found(path, number, f"{prefix}{line}{suffix}")
        for number, line in enumerate(lines, 1)
        if line and not line.startswith("#")
    ]
    if not files:
        raise CourseError(f"{path} lists no file: write one path a line")
    return files


def _from_csv(path: Path) -> list[Entry]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            if "image" not in (reader.fieldnames or ()):
                raise CourseError(
                    f"{path} has no column image: its first line must name it, and perhaps {', '.join(COLUMNS[1:])}"
                )
            entries = [_entry(path, reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise CourseError(f"{path} cannot be read as CSV ({error}): give a comma-separated text file") from error
    if not entries:
        raise CourseError(f"{path} lists no image: add one line an image below the column names")
    return entries


def _entry(path: Path, line: int, row: Mapping[str, str | None]) -> Entry:
    cells = {column: (row.get(column) or "").strip() for column in COLUMNS}
    if not cells["image"]:
        raise CourseError(f"{path}, line {line}: no image; remove the line, or name the file")
    if cells["split"] not in ("", *SPLITS):
        raise CourseError(f"{path}, line {line}: no split called '{cells['split']}'; choose from {', '.join(SPLITS)}")
    label = _found(path, line, cells["label"]) if cells["label"] else None
    return Entry(_found(path, line, cells["image"]), label, cells["subject"], cells["split"])


def _found(path: Path, line: int, name: str) -> Path:
    """The file that a line of a list names."""
    for candidate in (path.parent / name, Path(name)):
        if candidate.is_file():
            return candidate
    raise CourseError(f"{path}, line {line}: {path.parent / name!s:.300} does not exist; correct the path")


# --- names, and which label belongs to which image --------------------------------------------------------------------


def names_of(images: Iterable[Path]) -> dict[Path, str]:
    """A name for each image: that of its file or, where two files have one name, of its path."""
    stems = {image: stem(image) for image in images}
    if len(set(stems.values())) == len(stems):
        return stems
    root = os.path.commonpath([image.parent.absolute() for image in stems])
    folders = {image: re.sub(r"\W+", "_", os.path.relpath(image.parent.absolute(), root)).strip("_") for image in stems}
    return {image: "_".join(filter(None, (folders[image], stem))) for image, stem in stems.items()}


def match_labels(images: Sequence[Path], labels: Sequence[Path], *, by_order: bool) -> dict[Path, Path]:
    """The label map of each image that has one.

    A label map belongs to the image of the same name, or else to the one whose name stands in its own
    (`case_07.nii.gz` and `case_07_seg.nii.gz`). Otherwise what counts is what is left of the paths without what all
    images, or all label maps, share at the beginning and at the end: `07` of `case_07_t1.nii.gz` and
    `case_07_seg.nii.gz`, `0007` of `OAS1_0007/norm.nii.gz` and `OAS1_0007/seg.nii.gz`.

    Args:
        images: Files.
        labels: Files.
        by_order: Both are lists that the user wrote: the n-th label map belongs to the n-th image.

    Raises:
        CourseError: no label map fits an image, one fits two, or two lists differ in length.
    """
    if by_order:
        if len(images) != len(labels):
            raise CourseError(
                f"the lists name {len(images)} images and {len(labels)} label maps: write one line for each in both, "
                "or a CSV file with the columns image and label"
            )
        return dict(zip(images, labels, strict=True))
    for of_images, of_labels in (
        (_stems(images), _stems(labels)),
        (_stems(images), _within(labels, _stems(images).values())),
        (_differences(images), _differences(labels)),
    ):
        by_key = {key: label for label, key in of_labels.items()}
        pairs = {image: by_key[key] for image, key in of_images.items() if key in by_key}
        unique = len(set(of_images.values())) == len(images) and len(by_key) == len(labels)
        if pairs and unique:
            return pairs
    raise CourseError(
        f"no label map fits an image by its name: {images[0]} and {labels[0]}, for example; give a CSV file with the "
        "columns image and label"
    )


def _stems(files: Sequence[Path]) -> dict[Path, str]:
    return {file: stem(file) for file in files}


def _within(labels: Sequence[Path], stems: Iterable[str]) -> dict[Path, str]:
    """The longest of the images' names that stands in each label map's name, as a whole; else the name itself."""
    longest = sorted(stems, key=len, reverse=True)
    patterns = [(name, re.compile(rf"(?<![^\W_]){re.escape(name)}(?![^\W_])")) for name in longest]
    return {
        label: next((name for name, pattern in patterns if pattern.search(stem(label))), stem(label))
        for label in labels
    }


def _differences(files: Sequence[Path]) -> dict[Path, str]:
    """What is left of each path, in whole words and numbers, without what all of them share at both ends."""
    if len(files) < 2:
        return _stems(files)
    paths = {file: (file.parent.absolute() / stem(file)).as_posix() for file in files}
    words = {file: re.findall(r"\d+|[^\W\d_]+|[\W_]", path) for file, path in paths.items()}
    first = _shared(list(words.values()))
    last = _shared([parts[first:][::-1] for parts in words.values()])
    return {file: "".join(parts[first : len(parts) - last]) for file, parts in words.items()}


def _shared(lists: Sequence[Sequence[str]]) -> int:
    """How many parts all lists have in common at their beginning."""
    count = 0
    for parts in zip(*lists, strict=False):
        if len(set(parts)) > 1:
            break
        count += 1
    return count
