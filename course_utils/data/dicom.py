"""DICOM folders: which series lie in one, and a series as a NIfTI file with its voxels where the scanner put them.

A series is put in order by the positions of its slices, never by names or numbers of files. What a NIfTI file cannot
say (unequal steps, slices that are shifted against each other) is refused, not straightened in silence.

SimpleITK decodes the files. It is no requirement of the course: `pip install SimpleITK`.

Source: DICOM PS3.3, C.7.6.2 (image plane) and C.7.6.16 (functional groups of multi-frame images).
"""

import gzip
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from course_utils.data.formats import NIFTI
from course_utils.errors import CourseError
from course_utils.files import check_writable, replacing

MARKS = {
    "0018|0086": "echo",
    "0018|0081": "echo time",
    "0020|0100": "time point",
    "0018|9087": "b-value",
    "0008|0008": "image type",
    "0020|0012": "acquisition",
}
"""Tags that tell images of one place apart, with a word for each."""
SAME_PLACE = 1e-2
"""Millimetres."""
PARALLEL = 1e-3
"""By how much directions, and shares of a spacing, differ within a stack at most: they are stored as decimals."""
UNEVEN = 0.02
"""Share of a step that steps may differ by: positions are stored as rounded decimals."""
ASKEW = 0.2
"""Voxels that a slice may lie beside the line through the first one."""
LISTED = 6
"""Series that a message names at most."""

PIXELS = b"\xe0\x7f\x10\x00"  # the tag (7fe0,0010), little endian
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class Series:
    """A stack of slices that lie behind each other.

    Attributes:
        uid: SeriesInstanceUID. Images of one place that share it, such as the echoes of a scan, are several series.
        what: Modality and description, and what tells it from others of its uid.
        size: Columns, rows, slices.
        folder: Where its files are.
        files: In the order of the slices; a single one where it holds all of them.
        fault: Why it cannot become a NIfTI file, and what to do; empty where it can.
        frames: Of a single file, its frames in the order of the slices; empty otherwise.
        affine: `(4, 4)`, from (column, row, slice) to millimetres (RAS); None where there is a fault.
    """

    uid: str
    what: str
    size: tuple[int, int, int]
    folder: Path
    files: tuple[Path, ...] = field(repr=False)
    fault: str = ""
    frames: tuple[int, ...] = field(default=(), repr=False)
    affine: NDArray[np.float64] | None = field(default=None, repr=False, compare=False)

    def __str__(self) -> str:
        columns, rows, slices = self.size
        return f"{self.what}, {slices} slice{'s' * (slices != 1)} of {columns}x{rows}"


def list_series(folder: str | Path) -> list[Series]:
    """The series in a folder and in the folders below it, in the order of their numbers.

    Args:
        folder: Of DICOM files, among others perhaps; or one file.

    Raises:
        CourseError: SimpleITK is missing; no such folder, or no DICOM image in it; a DICOM image cannot be read.
    """
    folder = Path(folder)
    if not folder.exists():
        raise CourseError(f"{folder} does not exist: name the folder of a DICOM export")
    paths = sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else [folder]
    slices = [found for path in paths if (found := _read_header(path)) is not None]
    if not slices:
        raise CourseError(
            f"{folder} holds no DICOM image ({len(paths)} other files): name the folder that the scanner or the "
            "archive has exported"
        )
    stacks: list[list[_Slice]] = []
    for one in slices:
        stack = next((stack for stack in stacks if _alike(stack[0], one)), None)
        stacks.append([one]) if stack is None else stack.append(one)
    parts = [part for stack in stacks for part in _told_apart(stack)]
    parts.sort(key=lambda part: (part[0][0].number, part[0][0].uid, part[1], str(part[0][0].path)))
    return [_series(stack, mark) for stack, mark in parts]


def convert_series(folder: str | Path, out: str | Path, series: int | str | None = None) -> Series:
    """Write a series as a NIfTI file and return it.

    Args:
        folder: See `list_series`.
        out: The file, `.nii` or `.nii.gz`. It holds the stored values (rescaled as the headers say), no names or dates.
        series: Which one, where there are several: its number in the list, from 1, or its uid.

    Raises:
        CourseError: as for `list_series`; several series and none chosen, or none of that name; a series that cannot
            become a NIfTI file, see `Series.fault`; `out` cannot be written.
    """
    out = Path(out)
    if not out.name.endswith(NIFTI):
        raise CourseError(f"{out} is no name of a NIfTI file: let it end in .nii.gz or .nii")
    check_writable(out, "scan.nii.gz")
    chosen = _chosen(list_series(folder), Path(folder), series)
    if chosen.fault:
        raise CourseError(f"{chosen} in {chosen.folder}: {chosen.fault}")
    image = nib.Nifti1Image(_values(chosen), chosen.affine)
    image.set_sform(chosen.affine, 1)  # 1: the scanner's space
    image.set_qform(chosen.affine, 1)
    image.header.set_xyzt_units("mm")
    content = image.to_bytes()
    with replacing(out) as partial:
        partial.write_bytes(gzip.compress(content, compresslevel=4, mtime=0) if out.suffix == ".gz" else content)
    return chosen


def _chosen(found: Sequence[Series], folder: Path, series: int | str | None) -> Series:
    if series is None and len(found) == 1:
        return found[0]
    numbered = {str(number): one for number, one in enumerate(found, start=1)}
    of_uid = [one for one in found if one.uid == series]
    if len(of_uid) == 1:
        return of_uid[0]
    if str(series) in numbered:
        return numbered[str(series)]
    names = [f"{number} ({one})" for number, one in numbered.items()][:LISTED]
    more = f" and {len(found) - LISTED} more" if len(found) > LISTED else ""
    many = f"{folder} holds {len(found)} series"
    if series is not None:
        many = f"{folder} holds {len(of_uid) or 'no'} series called '{series}'"
    raise CourseError(f"{many}: choose one with --series (series= in Python), {', '.join(names)}{more}")


# --- headers ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Slice:
    """What a file says; a multi-frame file says it of all its frames.

    Attributes:
        positions: `(frames, 3)` mm (LPS) of the first voxel of each, None where the file does not say.
        axes: `(6,)`, directions along a row and along a column (LPS); None where the file does not say.
        spacing: mm from column to column and from row to row; empty where the file does not say.
        marks: Values of `MARKS`.
    """

    path: Path
    uid: str
    number: int
    what: str
    size: tuple[int, int]
    frames: int
    channels: int
    positions: NDArray[np.float64] | None
    axes: NDArray[np.float64] | None
    spacing: tuple[float, ...]
    marks: dict[str, str]


def _simpleitk() -> Any:
    try:
        import SimpleITK  # an extra: only scans from DICOM need it
    except ImportError as error:
        raise CourseError("reading DICOM needs SimpleITK, which is not installed: pip install SimpleITK") from error
    return SimpleITK


def _read_header(path: Path) -> _Slice | None:
    """What a DICOM image says; None for any other file, such as a report, a directory of the medium, a text."""
    sitk = _simpleitk()
    with path.open("rb") as file:
        named = file.read(132)[128:] == b"DICM"
    if not named and sitk.ImageFileReader.GetImageIOFromFileName(str(path)) != "GDCMImageIO":
        return None  # old files lack the name
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        if PIXELS not in path.read_bytes():
            return None
        raise CourseError(
            f"{path} cannot be decoded (damaged, or compressed in an unknown way): restore it, or take it out of the "
            "folder"
        ) from error
    tags = {key: reader.GetMetaData(key).strip(" \0") for key in reader.GetMetaDataKeys()}
    size, frames = (reader.GetSize()[0], reader.GetSize()[1]), _whole(tags.get("0028|0008"), 1)
    positions, axes = _numbers(tags.get("0020|0032"), 3), _numbers(tags.get("0020|0037"), 6)
    spacing = _numbers(tags.get("0028|0030"), 2)  # from row to row comes first
    if frames > 1 or positions is None:  # enhanced images say it in nested sequences
        content = path.read_bytes()
        header = content[: content.rfind(PIXELS)]
        positions = _of_frames(header, b"\x20\x00\x32\x00", 3, frames)
        axes = _shared(_of_frames(header, b"\x20\x00\x37\x00", 6)) if axes is None else axes
        spacing = _shared(_of_frames(header, b"\x28\x00\x30\x00", 2)) if spacing is None else spacing
    what = " ".join(filter(None, (tags.get("0008|0060"), tags.get("0008|103e")))) or "series"
    return _Slice(
        path,
        tags.get("0020|000e", ""),
        _whole(tags.get("0020|0011"), 0),
        what,
        size,
        frames,
        reader.GetNumberOfComponents(),
        positions if positions is None else positions.reshape(-1, 3),
        axes,
        () if spacing is None else tuple(spacing[::-1].tolist()),
        {word: tags[tag] for tag, word in MARKS.items() if tags.get(tag)},
    )


def _whole(text: str | None, otherwise: int) -> int:
    return int(text) if text and text.isdecimal() else otherwise


def _numbers(text: str | None, count: int) -> NDArray[np.float64] | None:
    try:
        numbers = np.array([float(number) for number in (text or "").split("\\")])
    except ValueError:
        return None
    return numbers if len(numbers) == count and np.isfinite(numbers).all() else None


def _of_frames(header: bytes, tag: bytes, numbers: int, frames: int | None = None) -> NDArray[np.float64] | None:
    """What nested sequences say of the frames, (frames, numbers), as they are stored; None where it cannot be told.

    SimpleITK keeps these values to itself, or guesses where frames are in no order. The tag, its type or length and so
    many decimals are looked for in what stands before the pixels.

    Args:
        frames: How many there must be; None for any.
    """
    found, place = [], -1
    while (place := header.find(tag, place + 1)) >= 0:
        explicit = header[place + 4 : place + 6] == b"DS"
        length = int.from_bytes(header[place + 6 : place + 8] if explicit else header[place + 4 : place + 8], "little")
        values = _numbers(header[place + 8 : place + 8 + length].decode("latin-1").strip(" \0"), numbers)
        if values is not None:
            found.append(values)
    return np.stack(found) if found and len(found) == (frames or len(found)) else None


def _shared(values: NDArray[np.float64] | None) -> NDArray[np.float64] | None:
    """What all frames say alike; None where they differ."""
    return values[0] if values is not None and np.allclose(values, values[0], atol=1e-4) else None


# --- from slices to series --------------------------------------------------------------------------------------------


def _alike(one: _Slice, other: _Slice) -> bool:
    """Whether two files may be of one stack: slices of one size, whose planes are parallel."""
    if one.uid != other.uid or one.size != other.size or max(one.frames, other.frames) > 1:
        return False
    if (one.axes is None) != (other.axes is None) or len(one.spacing) != len(other.spacing):
        return False
    parallel = one.axes is None or other.axes is None or np.allclose(one.axes, other.axes, rtol=0, atol=PARALLEL)
    return parallel and np.allclose(one.spacing, other.spacing, rtol=PARALLEL)


def _told_apart(stack: Sequence[_Slice]) -> list[tuple[list[_Slice], str]]:
    """Images of one place are several series where a tag tells them apart: each part, and what it is called."""
    if not _shared_places(stack):
        return [(list(stack), "")]
    for words in (*((word,) for word in MARKS.values()), tuple(MARKS.values())):
        parts = defaultdict(list)
        for one in stack:
            parts[tuple(one.marks.get(word, "") for word in words)].append(one)
        if len(parts) > 1 and all(len(part) > 1 and not _shared_places(part) for part in parts.values()):
            differing = [i for i, values in enumerate(zip(*parts, strict=True)) if len(set(values)) > 1]
            return [(part, ", ".join(f"{words[i]} {values[i]}" for i in differing)) for values, part in parts.items()]
    return [(list(stack), "")]


def _shared_places(stack: Sequence[_Slice]) -> bool:
    places = [tuple(np.round(one.positions[0], 2)) for one in stack if one.positions is not None]
    return len(set(places)) < len(places)


def _series(stack: Sequence[_Slice], mark: str) -> Series:
    first = stack[0]
    what = f"{first.what}, {mark}" if mark else first.what
    size = (*first.size, sum(one.frames for one in stack))
    order, affine, fault = _geometry(stack)
    files = (first.path,) if first.frames > 1 else tuple(stack[index].path for index in order)
    frames = tuple(order) if first.frames > 1 else ()
    return Series(first.uid, what, size, first.path.parent, files, fault, frames, affine)


def _geometry(stack: Sequence[_Slice]) -> tuple[list[int], NDArray[np.float64] | None, str]:
    """The slices' order along the normal of their plane, their affine (RAS), or None and what is wrong with them."""
    first, count = stack[0], sum(one.frames for one in stack)
    as_found = list(range(count))
    given = [one.positions for one in stack if one.positions is not None]
    if first.channels != 1:
        return as_found, None, "it holds colours, no grey values: choose another series"
    if len(given) < len(stack) or first.axes is None or not first.spacing:
        return (
            as_found,
            None,
            "its files do not say where the slices are (ImagePositionPatient, ImageOrientationPatient, PixelSpacing): "
            "export the original series, not its screenshots",
        )
    if count < 2:
        return as_found, None, "it is one slice, no volume: choose another series"
    along, down = first.axes.reshape(2, 3)
    normal = np.cross(along, down)
    positions = np.concatenate(given)
    order = np.argsort(positions @ normal, kind="stable").tolist()
    positions = positions[order]
    steps = np.diff(positions @ normal)
    copies = np.flatnonzero(steps < SAME_PLACE)
    if len(copies) and first.frames > 1:
        return order, None, f"{len(copies)} of its frames lie where others are: convert it with dcm2niix"
    if len(copies):
        one, other = (stack[order[index]].path for index in (copies[0], copies[0] + 1))
        what = f"{len(copies)} of its slices are there twice ({one} and {other})"
        return order, None, f"{what}: take the copies out of the folder, or export the series again"
    if fault := _fault_of_steps(steps):
        return order, None, fault
    beside = positions - positions[0] - np.outer(positions @ normal - positions[0] @ normal, normal)
    furthest = np.linalg.norm(beside, axis=1).max()
    if furthest > ASKEW * min(first.spacing):
        angle = np.degrees(np.arctan2(np.linalg.norm(beside[-1]), steps.sum()))
        return (
            order,
            None,
            f"its slices are shifted sideways, by {furthest:.1f} mm in all (a gantry tilted by {angle:.1f} degrees?), "
            "which most tools place wrongly: convert it with dcm2niix, which corrects the tilt",
        )
    lps = np.eye(4)
    lps[:3, 0], lps[:3, 1], lps[:3, 3] = along * first.spacing[0], down * first.spacing[1], positions[0]
    lps[:3, 2] = normal * steps.mean()
    return order, LPS_TO_RAS @ lps, ""


def _fault_of_steps(steps: NDArray[np.float64]) -> str:
    """What is wrong with the steps between slices, mm; empty where they are equal."""
    usual = float(np.median(steps))
    off = np.abs(steps - usual) > UNEVEN * usual
    if not off.any():
        return ""
    holes = steps[off] / usual
    missing = int((holes.round() - 1).sum())
    after = f"after slice {int(np.argmax(off)) + 1} the step is {steps[off][0]:.2f} mm, not {usual:.2f} mm"
    if np.allclose(holes, holes.round(), atol=UNEVEN) and missing > 0:
        lost = f"{missing} slice{'s are' if missing > 1 else ' is'} missing"
        return f"{lost} ({after}): export the series again, with all of its slices"
    return (
        f"the steps between its slices are not equal ({steps.min():.2f} to {steps.max():.2f} mm): export the series "
        "again, or convert it with dcm2niix, which interpolates"
    )


# --- pixels -----------------------------------------------------------------------------------------------------------


def _values(series: Series) -> NDArray[Any]:
    """`(columns, rows, slices)`, of a type that NIfTI has."""
    sitk = _simpleitk()
    try:
        if series.frames:
            array = sitk.GetArrayFromImage(sitk.ReadImage(str(series.files[0]), imageIO="GDCMImageIO"))
            array = array[list(series.frames)]
        else:
            # Each file has a scale of its own, and a series is read in the type of its first file.
            slices = [sitk.ReadImage(str(path), imageIO="GDCMImageIO") for path in series.files]
            array = np.concatenate([sitk.GetArrayFromImage(one) for one in slices])
    except RuntimeError as error:
        raise CourseError(
            f"{series} in {series.folder} cannot be decoded (damaged, or compressed in an unknown way): export it again"
        ) from error
    if array.dtype.kind == "f":
        array = array.astype(np.float32)
    return np.ascontiguousarray(array.transpose(2, 1, 0))
