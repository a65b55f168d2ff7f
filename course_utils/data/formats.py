"""Opening an image file of any format that nibabel, NumPy or SimpleITK reads, as one kind of thing.

Of NIfTI and FreeSurfer's MGH files nibabel reads the headers, and `course_utils.data.stored` the voxels; NRRD and
MetaImage are read by SimpleITK where it is installed, once their sizes fit. NumPy archives are read as voxelmorph's
lists have them: the image under the key `vol`, its label map under `seg`.
"""

import logging
import math
import re
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from course_utils.data.stored import Stored, check_size, head
from course_utils.data.zipped import opened_arrays
from course_utils.errors import CourseError

NIFTI = (".nii", ".nii.gz")
MGH = (".mgz", ".mgh")
ITK = (".nrrd", ".nhdr", ".mha", ".mhd")
"""What SimpleITK reads."""
NPZ = (".npz",)
READABLE = (*NIFTI, *MGH, *ITK, *NPZ)
"""How the name of a file ends that can be read as an image."""
WRITABLE = (*NIFTI, *MGH, ".nrrd", ".mha")
"""Of one that can be written."""

TO_MM = {"unknown": 1.0, "mm": 1.0, "meter": 1000.0, "micron": 0.001}
"""Millimetres in the units of length that a NIfTI header can name."""
SILENT = logging.Logger("of headers that nibabel mends", logging.CRITICAL)
PAIRED = (".hdr", ".img", ".hdr.gz", ".img.gz")
"""Of the two files of a NIfTI pair."""
LARGEST_OFFSET = 2**24
"""Bytes before the voxels of a NIfTI file: its header, and notes of the programs that wrote it."""
MGH_OFFSET = 284
"""Bytes before the voxels of an MGH file."""
DETACHED = re.compile(rb"^(?:ElementDataFile *=|data ?file *:)([^\r\n]+)", re.MULTILINE | re.IGNORECASE)
"""Where the header of a MetaImage or NRRD file says that its voxels are."""
RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""From ITK's axes (left, posterior, superior) to NIfTI's, and back."""


@dataclass(frozen=True, eq=False)
class Opened:
    """A file whose voxels need not have been read yet.

    Attributes:
        dataobj: What `numpy.asarray` makes the array of: scaled values, axes in NIfTI's order.
        affine: `(4, 4)`, from voxel indices to millimetres; None where the file does not say.
        zooms: Millimetres between voxels along each array axis.
        header: A NIfTI header with its data type and scaling, and with the codes of its place in space.
    """

    dataobj: Any
    affine: NDArray[np.float64] | None
    zooms: tuple[float, ...]
    header: nib.Nifti1Header

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the stored array, all its axes."""
        return tuple(int(n) for n in self.dataobj.shape)

    @property
    def fractional(self) -> bool:
        """Whether its values are those of a float type, as stored or scaled, which may be NaN or infinite."""
        return self.dataobj.dtype.kind == "f" or self.header.get_slope_inter() not in ((1.0, 0.0), (None, None))


def suffix(path: Path) -> str:
    """The ending that tells a file's format, `".nii.gz"` for example; empty where it is not one of `READABLE`."""
    return next(
        (ending for ending in sorted(READABLE, key=len, reverse=True) if path.name.lower().endswith(ending)), ""
    )


def stem(path: Path) -> str:
    """The name of an image file without the ending of its format."""
    return path.name[: len(path.name) - len(suffix(path))]


def open_image(path: Path, *, key: str = "vol") -> Opened:
    """Open an image file.

    Args:
        path: Of the file.
        key: Which array of an NPZ archive: `"vol"`, the image, or `"seg"`, its label map. An archive with one array
            need not use the name.

    Raises:
        CourseError: no such file; damaged, or of no known format; voxels of no size; SimpleITK is missing.
    """
    if not path.is_file():
        raise CourseError(f"{path} does not exist: correct the path, or leave the subject out")
    opener = {".npz": _open_npz, **dict.fromkeys(ITK, _open_itk)}.get(suffix(path), _open_stored)
    try:
        return opener(path, key)
    except CourseError:
        raise
    except Exception as error:  # nibabel, gzip, zlib and ITK each have their own words for a broken file
        raise unreadable(path, error) from error


def holds_label(path: Path) -> bool:
    """Whether a file is an archive with an image and its label map."""
    if suffix(path) not in NPZ:
        return False
    try:
        with opened_arrays(path) as arrays:
            return {"vol", "seg"} <= set(arrays)
    except (CourseError, zipfile.BadZipFile, OSError, ValueError):
        return False  # whoever reads the file says what is wrong with it


def unreadable(path: Path, error: Exception) -> CourseError:
    """What to say of a file that its format's own package cannot read, or for which no memory is left."""
    if isinstance(error, MemoryError):
        return CourseError(f"{path} needs more memory than is left here: crop or resample it, or close other programs")
    reason = " ".join(str(error).split())[:120]
    return CourseError(
        f"{path} cannot be read as an image ({reason}): truncated or another format; restore or convert it, or leave "
        "the subject out"
    )


def _open_stored(path: Path, key: str) -> Opened:
    if suffix(path) in MGH:
        return _open_mgh(path)
    stored, header = open_nifti(path)
    scale = TO_MM[header.get_xyzt_units()[0]]
    affine = np.diag([scale] * 3 + [1.0]) @ header.get_best_affine()
    zooms = tuple(float(zoom) * scale for zoom in header.get_zooms())
    return Opened(stored, affine, zooms, header)


def _open_mgh(path: Path) -> Opened:
    # Without what stands behind the voxels: times of the scanner, and notes.
    header = nib.freesurfer.mghformat.MGHHeader(head(path, MGH_OFFSET))
    dtype = np.dtype(header.get_data_dtype()).newbyteorder(">")
    stored = Stored(path, MGH_OFFSET, tuple(int(n) for n in header.get_data_shape()), dtype)
    placed = nifti_header(dtype, stored.shape, placed=bool(header["goodRASFlag"]))
    return Opened(stored, np.asarray(header.get_affine(), np.float64), header.get_zooms()[:3], placed)


def open_nifti(path: Path) -> tuple[Stored, nib.Nifti1Header]:
    """A NIfTI file, or one of a pair: its voxels, not read yet, and its header with the scaling that they have.

    Raises:
        CourseError: voxels of no size, where the place in space is computed from them.
        OSError, ValueError, zlib.error, HeaderDataError: no NIfTI file, or damaged.
    """
    paired = path.name.lower().endswith(PAIRED)
    described, held = _pair(path) if paired else (path, path)
    block = head(described, nib.Nifti2Header.sizeof_hdr)
    kind = next((kind for kind in (nib.Nifti1Header, nib.Nifti2Header) if _is(kind, block, paired)), None)
    if kind is None:
        raise ValueError("it is no NIfTI")
    unchecked = kind(block[: kind.sizeof_hdr], check=False)
    _check_pixdim(path, unchecked)
    offset, slope, inter = (float(unchecked[name]) for name in ("vox_offset", "scl_slope", "scl_inter"))
    if not math.isfinite(slope) or not math.isfinite(inter):
        raise CourseError(
            f"{path} has a scale of {slope:g} and {inter:g} in its header (scl_slope, scl_inter): set 1 and 0, if its "
            "values are as they are stored, or restore it"
        )
    header = kind(block[: kind.sizeof_hdr], check=False)
    header.check_fix(logger=SILENT)
    first = 0 if paired else kind.sizeof_hdr
    if not first <= offset <= LARGEST_OFFSET:
        raise ValueError(f"its voxels begin at byte {offset:g}")
    if slope == 0:  # by the standard: no scale
        slope, inter = 1.0, 0.0
    shape = tuple(int(n) for n in header.get_data_shape())
    header.set_slope_inter(slope, inter)
    return Stored(held, int(offset), shape, np.dtype(header.get_data_dtype()), slope, inter), header


def _is(kind: type[nib.Nifti1Header], block: bytes, paired: bool) -> bool:
    magic = kind.pair_magic if paired else kind.single_magic
    sizes = [kind.sizeof_hdr.to_bytes(4, order) for order in ("little", "big")]
    if len(block) < kind.sizeof_hdr or block[:4] not in sizes:
        return False
    return kind(block[: kind.sizeof_hdr], check=False)["magic"].item() == magic


def _pair(path: Path) -> tuple[Path, Path]:
    """The header and the voxels of a NIfTI pair, by either's name."""
    name = path.name.removesuffix(".gz")
    ending = path.name[len(name) :]
    of = {kind: path.with_name(f"{name[:-4]}.{kind}{ending}") for kind in ("hdr", "img")}
    return of["hdr"], of["img"]


def _check_pixdim(path: Path, header: nib.Nifti1Header) -> None:
    """Refuse voxels of no size where the place in space is computed from them; nibabel would take 1 mm instead."""
    dims = min(max(int(header["dim"][0]), 0), 3)
    sizes = header["pixdim"][1 : 1 + dims]
    if not header["sform_code"] and header["qform_code"] and not (np.isfinite(sizes) & (sizes > 0)).all():
        raise CourseError(
            f"{path} has voxels of {'x'.join(f'{size:g}' for size in sizes)} mm in its header (pixdim): set their true "
            "size, or convert the scan from DICOM again"
        )


def _open_npz(path: Path, key: str) -> Opened:
    with opened_arrays(path) as arrays:
        names = list(arrays)
        name = key if key in names else names[0] if len(names) == 1 else None
        array = None if name is None else arrays[name].read()
    if array is None:
        raise CourseError(f"{path} has no array '{key}' but {', '.join(names) or 'none'}: save it under that name")
    while array.ndim > 3 and array.shape[0] == 1:  # a batch of one
        array = array[0]
    return Opened(array, None, (1.0,) * array.ndim, nifti_header(array.dtype, array.shape, placed=False))


def _open_itk(path: Path, key: str) -> Opened:
    sitk, image = simpleitk(path), read_itk(path)
    if image.GetNumberOfComponentsPerPixel() != 1 or image.GetDimension() not in (2, 3):
        raise CourseError(f"{path} is not one grey value a voxel in 2-D or 3-D: save one volume for each file")
    array = sitk.GetArrayFromImage(image).T
    dims = array.ndim
    lps = np.eye(4)
    lps[:dims, :dims] = np.reshape(image.GetDirection(), (dims, dims)) @ np.diag(image.GetSpacing())
    lps[:dims, 3] = image.GetOrigin()
    return Opened(array, RAS @ lps, image.GetSpacing(), nifti_header(array.dtype, array.shape, placed=True))


def read_itk(path: Path) -> Any:
    """The image of SimpleITK in a NRRD or MetaImage file.

    Raises:
        CourseError: SimpleITK is missing; more voxels than any scan has, or more than the file can hold; voxels in a
            file of another folder.
        RuntimeError, OSError: SimpleITK cannot read it.
    """
    reader = simpleitk(path).ImageFileReader()
    reader.SetFileName(str(path))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reader.ReadImageInformation()
        voxels = math.prod(reader.GetSize())
        bits = re.search(r"(\d+)-bit", simpleitk(path).GetPixelIDValueAsString(reader.GetPixelID()))
        size = voxels * reader.GetNumberOfComponents() * (int(bits[1]) // 8 if bits else 8)
        check_size(path, voxels, size, path.stat().st_size + _beside(path), packed=True)
        return reader.Execute()


def _beside(path: Path) -> int:
    """Bytes of the file in which a header of ITK says that its voxels are; 0 where they follow the header."""
    with path.open("rb") as file:
        named = DETACHED.search(file.read(2**16))
    if named is None or named[1].strip() == b"LOCAL":
        return 0
    name = Path(named[1].strip().decode(errors="replace"))
    if name.is_absolute() or len(name.parts) != 1 or not (path.parent / name).is_file():
        raise CourseError(
            f"{path} says that its voxels are in {str(name)[:100]}, which is no file beside it: write it as one file, "
            ".nrrd or .mha"
        )
    return (path.parent / name).stat().st_size


def simpleitk(path: Path) -> Any:
    """The package SimpleITK, for a file that only it reads or writes; raises CourseError where it is not installed."""
    try:
        import SimpleITK
    except ImportError as error:
        raise CourseError(f"{path} needs one more package: pip install SimpleITK, or convert it to NIfTI") from error
    return SimpleITK


def nifti_header(dtype: Any, shape: tuple[int, ...], *, placed: bool) -> nib.Nifti1Header:
    """A header for an array of another format; `placed` says whether the file tells where its voxels are."""
    header = nib.Nifti1Header()
    header.set_data_dtype(np.dtype(dtype).newbyteorder("="))
    header.set_data_shape(shape)
    header["sform_code"] = header["qform_code"] = int(placed)
    header.set_slope_inter(1.0, 0.0)
    return header
