"""Every folder of an export comes out where the scanner put it, or is refused in one line that names the fault."""

import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from course_utils.commands.app import main
from course_utils.data.dicom import convert_series, list_series
from course_utils.data.volumes import read_image
from course_utils.errors import CourseError
from notebooks.build import ROOT
from tests.data.dicom_files import UID, element, write_enhanced, write_series

sitk = pytest.importorskip("SimpleITK")

SHAPE, SPACING = (14, 10, 12), (2.0, 3.0, 5.0)
AFFINE = np.eye(4)  # stored from left to right and from front to back, tilted by 9 degrees
AFFINE[:3, :3] = Rotation.from_rotvec(np.deg2rad(9) * np.array([0.6, -0.48, 0.64])).as_matrix() @ np.diag([-1, -1, 1])
AFFINE[:3, :3] *= SPACING
AFFINE[:3, 3] = 31, 24, -18


def grey(positions):
    """The grey values of a smooth body, of RAS millimetres (..., 3)."""
    return np.round(500 + 300 * np.sin(positions @ [0.05, 0.03, 0.04]) + 2 * positions @ [1, -2, 3]).astype(np.int16)


def positions_of(shape, affine):
    return np.moveaxis(np.indices(shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3]


VOLUME = grey(positions_of(SHAPE, AFFINE))


def converted(folder, tmp_path, series=None):
    """The file that comes out, whose values must be those of the body at the positions that the file states."""
    out = tmp_path / "scan.nii.gz"
    convert_series(folder, out, series)
    image = nib.load(out)
    assert np.allclose(image.get_sform(), image.get_qform(), atol=1e-4)
    assert int(image.header["sform_code"]) == int(image.header["qform_code"]) == 1
    assert image.header.get_xyzt_units()[0] == "mm"
    array = np.asarray(image.dataobj)
    there = grey(positions_of(array.shape, image.affine))
    assert np.abs(array.astype(float) - there).max() <= 1  # positions are decimals of a few digits
    return image


def refused(folder, tmp_path, series=None):
    with pytest.raises(CourseError) as caught:
        convert_series(folder, tmp_path / "scan.nii.gz", series)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir() if "scan" in path.name] == []
    return str(caught.value)


# --- right ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{}, {"number": lambda k: 100 - k}, {"drop": (11,)}, {"drop": (0,)}, {"echo": 1}],
    ids=["plain", "numbers reversed", "last missing", "first missing", "an echo"],
)
def test_a_series_lies_where_the_scanner_put_it(tmp_path, options):
    write_series(tmp_path / "d", VOLUME, AFFINE, **options)
    image = converted(tmp_path / "d", tmp_path)
    assert image.shape == (14, 10, 12 - len(options.get("drop", ())))
    assert np.allclose(image.header.get_zooms(), SPACING, atol=1e-4)
    assert image.get_data_dtype() == np.int16
    read_image(tmp_path / "scan.nii.gz")


def test_simpleitk_reads_the_same_scan_from_the_file(tmp_path):
    write_series(tmp_path / "d", VOLUME, AFFINE)
    converted(tmp_path / "d", tmp_path)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path / "d")))
    itk, ours = reader.Execute(), sitk.ReadImage(str(tmp_path / "scan.nii.gz"))
    assert (sitk.GetArrayFromImage(itk) == sitk.GetArrayFromImage(ours)).all()
    for get in ("GetOrigin", "GetSpacing", "GetDirection"):
        assert np.allclose(getattr(itk, get)(), getattr(ours, get)(), atol=1e-4)


@pytest.mark.parametrize("order", [None, list(range(12))[::-1], [3, 0, 7, 1, 2, 11, 10, 9, 8, 6, 5, 4]])
def test_a_file_of_many_frames_in_any_order(tmp_path, order):
    write_enhanced(tmp_path / "d" / "IM0001", VOLUME, AFFINE, order=order)
    image = converted(tmp_path / "d", tmp_path)
    assert image.shape == SHAPE and np.allclose(image.header.get_zooms(), SPACING, atol=1e-4)
    assert np.array_equal(np.asarray(image.dataobj), VOLUME)
    convert_series(tmp_path / "d" / "IM0001", tmp_path / "of_the_file.nii")
    assert np.array_equal(np.asarray(nib.load(tmp_path / "of_the_file.nii").dataobj), VOLUME)


def test_files_of_one_frame_that_are_written_like_many(tmp_path):
    for k in range(SHAPE[2]):
        write_enhanced(tmp_path / "d" / f"IM{7 * k % 12}", VOLUME, AFFINE, drop={*range(12)} - {k})
    assert converted(tmp_path / "d", tmp_path).shape == SHAPE


@pytest.mark.parametrize("compressor", ["JPEG", "JPEG2000"])
def test_compressed_slices(tmp_path, compressor):
    write_series(tmp_path / "d", VOLUME, AFFINE)
    (tmp_path / "c").mkdir()
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    writer.UseCompressionOn()
    writer.SetCompressor(compressor)
    for path in (tmp_path / "d").iterdir():
        image = sitk.ReadImage(str(path))
        writer.SetFileName(str(tmp_path / "c" / path.name))
        writer.Execute(image)
    assert {b"DICM" in path.read_bytes() for path in (tmp_path / "c").iterdir()} == {True}
    assert converted(tmp_path / "c", tmp_path).shape == SHAPE
    broken = next((tmp_path / "c").iterdir())
    broken.write_bytes(broken.read_bytes()[:-200])
    (tmp_path / "scan.nii.gz").unlink()
    assert f"{broken} cannot be decoded" in refused(tmp_path / "c", tmp_path)


def test_slices_with_scales_of_their_own(tmp_path):
    """As PET has them; read in the type of the first slice, the others would be rounded."""
    write_series(tmp_path / "d", VOLUME, AFFINE, slope=lambda k: 1 if k == 0 else 0.125 * k)
    convert_series(tmp_path / "d", tmp_path / "scan.nii.gz")
    scales = np.array([1, *(0.125 * k for k in range(1, 12))])
    image = nib.load(tmp_path / "scan.nii.gz")
    assert image.get_data_dtype() == np.float32
    assert np.allclose(np.asarray(image.dataobj), VOLUME * scales, atol=1e-3)


def test_folders_are_searched_and_other_files_left_alone(tmp_path):
    write_series(tmp_path / "d" / "study" / "series1", VOLUME, AFFINE)
    (tmp_path / "d" / "readme.txt").write_text("a viewer", encoding="utf-8")
    (tmp_path / "d" / "empty").touch()
    report = b"\0" * 128 + b"DICM" + element(8, 0x60, "CS", "SR")
    (tmp_path / "d" / "study" / "report.dcm").write_bytes(report)
    assert len(list_series(tmp_path / "d")) == 1
    assert converted(tmp_path / "d", tmp_path).shape == SHAPE


# --- several series ---------------------------------------------------------------------------------------------------


@pytest.fixture
def two(tmp_path):
    """A localiser of three slices, in two planes, and a scan."""
    write_series(tmp_path / "d", VOLUME[:, :, 4:7], AFFINE, uid=f"{UID}.1", start=500, description="localiser")
    write_series(tmp_path / "d" / "b", VOLUME, AFFINE, uid=f"{UID}.2", description="T1 MPRAGE")
    return tmp_path / "d"


def test_of_several_series_one_is_chosen_by_number_or_uid(two, tmp_path):
    assert [one.size for one in list_series(two)] == [(14, 10, 3), SHAPE]
    message = refused(two, tmp_path)
    assert "holds 2 series: choose one with --series" in message
    assert "1 (MR localiser, 3 slices of 14x10), 2 (MR T1 MPRAGE, 12 slices of 14x10)" in message
    for series in (2, "2", f"{UID}.2"):
        assert converted(two, tmp_path, series).shape == SHAPE
    (tmp_path / "scan.nii.gz").unlink()
    for series in (3, "0", f"{UID}.3"):
        assert f"holds no series called '{series}': choose" in refused(two, tmp_path, series)


def test_a_long_list_is_cut(tmp_path):
    for number in range(9):
        write_series(tmp_path / "d" / str(number), VOLUME[:, :, :2], AFFINE, uid=f"{UID}.{number}")
    assert refused(tmp_path / "d", tmp_path).endswith("6 (MR, 2 slices of 14x10) and 3 more")


def test_echoes_under_one_uid_are_two_series(tmp_path):
    write_series(tmp_path / "d", VOLUME, AFFINE, echo=1)
    write_series(tmp_path / "d", (VOLUME // 3).astype(np.int16), AFFINE, echo=2, start=300)
    assert "1 (MR, echo 1, 12 slices of 14x10), 2 (MR, echo 2, 12 slices" in refused(tmp_path / "d", tmp_path)
    assert "holds 2 series called" in refused(tmp_path / "d", tmp_path, f"{UID}.7")
    assert converted(tmp_path / "d", tmp_path, 1).shape == SHAPE
    convert_series(tmp_path / "d", tmp_path / "second.nii", 2)
    assert np.array_equal(np.asarray(nib.load(tmp_path / "second.nii").dataobj), VOLUME // 3)


def test_planes_under_one_uid_are_series_of_their_own(tmp_path):
    """As most localisers are stored."""
    turned = AFFINE[:, [1, 2, 0, 3]]
    write_series(tmp_path / "d", VOLUME[:, :, :3], AFFINE)
    write_series(tmp_path / "d", grey(positions_of(SHAPE, turned))[:, :, :4], turned, start=500)
    assert [one.size[2] for one in list_series(tmp_path / "d")] == [3, 4]
    for series in (1, 2):
        converted(tmp_path / "d", tmp_path, series)


# --- refused ----------------------------------------------------------------------------------------------------------


def sheared(degrees):
    """Slices that follow each other along the table, though their planes are tilted."""
    down = AFFINE[:3, 1] * [-1, -1, 1] / SPACING[1]
    return lambda k: k * SPACING[2] * np.tan(np.deg2rad(degrees)) * down


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"drop": (5,)}, ("1 slice is missing (after slice 5 the step is 10.00 mm, not 5.00 mm)", "export the series")),
        ({"drop": (3, 4, 5, 8)}, ("4 slices are missing (after slice 3 the step is 20.00 mm",)),
        ({"drop": (1,)}, ("1 slice is missing (after slice 1",)),
        ({"drop": (10,)}, ("1 slice is missing (after slice 10",)),
        ({"twice": (5,)}, ("1 of its slices are there twice", "0035_0.dcm and ", "0035_1.dcm", "take the copies out")),
        ({"position": False}, ("do not say where the slices are", "ImagePositionPatient")),
        ({"spacing": False}, ("do not say where the slices are", "PixelSpacing")),
        ({"shift": sheared(15)}, ("shifted sideways", "tilted by 15.0 degrees", "dcm2niix")),
        ({"shift": sheared(-1)}, ("tilted by 1.0 degrees",)),
        (
            {"shift": lambda k: AFFINE[:3, 2] * [-1, -1, 1] * 0.02 * k**2},
            ("steps between its slices are not equal (5.10 to 7.10 mm)", "dcm2niix"),
        ),
    ],
    ids=[
        *("one missing", "several missing", "second missing", "last but one missing", "twice", "no position"),
        *("no spacing", "gantry", "slight gantry", "growing steps"),
    ],
)
def test_what_a_nifti_file_cannot_say_is_refused(tmp_path, options, words):
    write_series(tmp_path / "d", VOLUME, AFFINE, **options)
    message = refused(tmp_path / "d", tmp_path)
    assert all(word in message for word in words), message
    (listed,) = list_series(tmp_path / "d")  # the list tells it too, and does not fail
    assert message.endswith(listed.fault)


def test_positions_of_few_digits_are_no_fault(tmp_path):
    write_series(tmp_path / "d", VOLUME, AFFINE, shift=lambda k: 1e-3 * np.array([(-1) ** k, 1, (-1) ** (k // 2)]))
    convert_series(tmp_path / "d", tmp_path / "scan.nii")


@pytest.mark.parametrize(
    ("options", "words"),
    [({"drop": (4,)}, "1 slice is missing"), ({"order": [*range(12), 3, 4]}, "2 of its frames lie where others are")],
)
def test_frames_are_held_to_the_same(tmp_path, options, words):
    write_enhanced(tmp_path / "d" / "IM0001", VOLUME, AFFINE, **options)
    assert words in refused(tmp_path / "d", tmp_path)


@pytest.mark.parametrize("size", [20, 48])
def test_a_file_that_ends_early_is_refused(tmp_path, size):
    volume = np.ones((size, size, 4), np.int16)
    write_series(tmp_path / "d", volume, AFFINE)
    path = tmp_path / "d" / "0014_0.dcm"
    path.write_bytes(path.read_bytes()[: -size * size])
    assert refused(tmp_path / "d", tmp_path).startswith(f"{path} cannot be decoded (damaged")


def test_no_folder_no_files_no_name(tmp_path):
    assert "does not exist" in refused(tmp_path / "none", tmp_path)
    (tmp_path / "d").mkdir()
    assert "holds no DICOM image (0 other files)" in refused(tmp_path / "d", tmp_path)
    (tmp_path / "d" / "a.txt").write_text("DICM", encoding="utf-8")
    assert "holds no DICOM image (1 other files)" in refused(tmp_path / "d", tmp_path)
    write_series(tmp_path / "d", VOLUME[:, :, :1], AFFINE)
    assert "it is one slice, no volume" in refused(tmp_path / "d", tmp_path)
    with pytest.raises(CourseError, match=r"scan\.png is no name of a NIfTI file"):
        convert_series(tmp_path / "d", tmp_path / "scan.png")
    with pytest.raises(CourseError, match="is not a folder: make it"):
        convert_series(tmp_path / "d", tmp_path / "nowhere" / "scan.nii")


def test_without_simpleitk_one_line_says_what_to_install():
    code = (
        "import sys; sys.modules['SimpleITK'] = None\nfrom course_utils.data.dicom import list_series\nlist_series('.')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr.splitlines()[-1].endswith("which is not installed: pip install SimpleITK")


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(monkeypatch, capsys):
    def command(*arguments):
        monkeypatch.setattr(sys, "argv", ["course_utils", "convert-dicom", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        return end.value.code, *capsys.readouterr()

    return command


def test_the_command_lists_and_converts(two, tmp_path, run):
    write_series(two / "c", VOLUME, AFFINE, uid=f"{UID}.3", drop=(5,))
    code, out, _ = run(two, "--list")
    assert code == 0
    first, second, third = out.splitlines()
    assert first == f"1: MR localiser, 3 slices of 14x10, {UID}.1"
    assert second.startswith("2: MR T1 MPRAGE, 12 slices of 14x10")
    assert "cannot be converted: 1 slice is missing" in third
    code, out, _ = run(two, "--series", 2, "--out", tmp_path / "scan.nii.gz")
    assert (code, out) == (0, f"{tmp_path / 'scan.nii.gz'}: MR T1 MPRAGE, 12 slices of 14x10\n")
    assert nib.load(tmp_path / "scan.nii.gz").shape == SHAPE


@pytest.mark.parametrize("arguments", [(), ("--list", "--out", "scan.nii")])
def test_the_command_says_what_it_needs(two, run, arguments):
    code, _, err = run(two, *arguments)
    assert (code, err) == (
        2,
        "error: convert-dicom needs either --out FILE.nii.gz or --list: give one of them\n",
    )


def test_the_command_ends_in_one_line(two, tmp_path, run):
    code, _, err = run(two, "--out", tmp_path / "scan.nii.gz")
    assert code == 2 and err.startswith("error: ") and err.count("\n") == 1
