"""Opening an image file of any format that nibabel, NumPy or SimpleITK reads, as one kind of thing.

NIfTI and FreeSurfer's MGH files are read by nibabel, NRRD and MetaImage by SimpleITK where it is installed. NumPy
archives are read as voxelmorph's lists have them: the image under the key `vol`, its label map under `seg`.
"""

import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.openers import ImageOpener
from numpy.typing import NDArray

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
    opener = {".npz": _open_npz, **dict.fromkeys(ITK, _open_itk)}.get(suffix(path), _open_nibabel)
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
        with np.load(path, allow_pickle=False) as archive:
            return {"vol", "seg"} <= set(archive.files)
    except (zipfile.BadZipFile, OSError, ValueError):
        return False  # whoever reads the file says what is wrong with it


def unreadable(path: Path, error: Exception) -> CourseError:
    """What to say of a file that its format's own package cannot read."""
    reason = " ".join(str(error).split())[:120]
    return CourseError(
        f"{path} cannot be read as an image ({reason}): truncated or another format; restore or convert it, or leave "
        "the subject out"
    )


def _open_nibabel(path: Path, key: str) -> Opened:
    if suffix(path) in NIFTI:
        _check_pixdim(path)
    image: Any = nib.load(path)
    if isinstance(image, nib.MGHImage):
        header = nifti_header(image.get_data_dtype(), image.shape, placed=bool(image.header["goodRASFlag"]))
        return Opened(image.dataobj, np.asarray(image.affine, np.float64), image.header.get_zooms()[:3], header)
    if not isinstance(image, nib.Nifti1Pair):
        raise ValueError(f"it is {type(image).__name__}")
    header = image.header.copy()
    header.set_slope_inter(image.dataobj.slope, image.dataobj.inter)
    scale = TO_MM[header.get_xyzt_units()[0]]
    affine = np.diag([scale] * 3 + [1.0]) @ image.affine
    zooms = tuple(float(zoom) * scale for zoom in header.get_zooms())
    return Opened(image.dataobj, affine, zooms, header)


def _check_pixdim(path: Path) -> None:
    """Refuse voxels of no size where the place in space is computed from them; nibabel would take 1 mm instead."""
    with ImageOpener(str(path)) as file:
        block = file.read(nib.Nifti1Header.sizeof_hdr)
    header = nib.Nifti1Header(block, check=False)
    dims = min(int(header["dim"][0]), 3)
    sizes = header["pixdim"][1 : 1 + dims]
    if not header["sform_code"] and header["qform_code"] and not (np.isfinite(sizes) & (sizes > 0)).all():
        raise CourseError(
            f"{path} has voxels of {'x'.join(f'{size:g}' for size in sizes)} mm in its header (pixdim): set their true "
            "size, or convert the scan from DICOM again"
        )


def _open_npz(path: Path, key: str) -> Opened:
    try:
        with np.load(path, allow_pickle=False) as archive:
            names = archive.files
            name = key if key in names else names[0] if len(names) == 1 else None
            array = None if name is None else archive[name]
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise unreadable(path, error) from error
    if array is None:
        raise CourseError(f"{path} has no array '{key}' but {', '.join(names) or 'none'}: save it under that name")
    while array.ndim > 3 and array.shape[0] == 1:  # a batch of one
        array = array[0]
    return Opened(array, None, (1.0,) * array.ndim, nifti_header(array.dtype, array.shape, placed=False))


def _open_itk(path: Path, key: str) -> Opened:
    sitk = simpleitk(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = sitk.ReadImage(str(path))
    if image.GetNumberOfComponentsPerPixel() != 1 or image.GetDimension() not in (2, 3):
        raise CourseError(f"{path} is not one grey value a voxel in 2-D or 3-D: save one volume for each file")
    array = sitk.GetArrayFromImage(image).T
    dims = array.ndim
    lps = np.eye(4)
    lps[:dims, :dims] = np.reshape(image.GetDirection(), (dims, dims)) @ np.diag(image.GetSpacing())
    lps[:dims, 3] = image.GetOrigin()
    return Opened(array, RAS @ lps, image.GetSpacing(), nifti_header(array.dtype, array.shape, placed=True))


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
