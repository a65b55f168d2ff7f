"""What the page draws, against what is known of the phantoms."""

import json

import nibabel as nib
import numpy as np
import pytest
import torch

from course_utils.data.volumes import read_labels
from course_utils.fields import identity_grid
from course_utils.scans.applying import Field
from course_utils.serving import viewing
from tests import phantoms

PLACES = sorted(phantoms.PLACES)


def field(volume, displacement):
    return Field(volume.grid, displacement, "itk", volume.header, volume.path)


@pytest.mark.parametrize("place", PLACES)
def test_the_axes_lead_right_anterior_and_superior(tmp_path, place):
    scan = phantoms.volume(tmp_path, place)
    label = phantoms.save(
        tmp_path / "label.nii.gz", phantoms.structures(phantoms.positions(scan.grid)) * 7, scan.grid, np.uint8
    )
    labels = dict.fromkeys(("moving_label", "moved_label"), read_labels(label))
    still = torch.zeros(1, 3, *scan.grid.shape)
    view = viewing.view_of(scan, scan, scan, field(scan, still), labels)
    grid = viewing.grid_for(scan.grid)
    assert nib.aff2axcodes(grid.affine) == ("R", "A", "S") and view.spacing == pytest.approx(grid.spacing)
    points = phantoms.positions(grid)
    low, high = np.percentile(scan.data, (0.5, 99.5))
    expected = 255 * ((phantoms.intensity(points) - low) / (high - low)).clip(0, 1)
    for name in ("fixed", "moving", "moved"):
        np.testing.assert_allclose(view.arrays[name], expected, atol=0.51)
    np.testing.assert_array_equal(view.arrays["moved_label"], phantoms.structures(points))  # 7 and 14 are ranks 1 and 2
    assert not view.arrays["displacement"].any() and (view.arrays["jacobian"] == 128).all()


@pytest.mark.parametrize(
    ("stretch", "shown"), [(0.5, 128 + round(63.5 * np.log2(1.5))), (9.0, 255), (-0.9, 1), (-2.0, 0)]
)
def test_the_jacobian_is_told_in_octaves_and_a_fold_is_0(tmp_path, stretch, shown):
    scan = phantoms.volume(tmp_path, "flipped LAS")
    displacement = torch.zeros(1, 3, *scan.grid.shape)
    displacement[:, 1] = stretch * identity_grid(scan.grid.shape)[:, 1]
    view = viewing.view_of(scan, scan, scan, field(scan, displacement), {})
    assert set(np.unique(view.arrays["jacobian"])) == {shown}
    # The stored first axis leads left, and the page's to the right: the second is as it was.
    told = view.arrays["displacement"][1, :, 3, :] / viewing.FINE
    np.testing.assert_allclose(told, 3 * stretch, atol=0.5 / viewing.FINE)
    assert not view.arrays["displacement"][[0, 2]].any()


def test_a_large_scan_is_drawn_coarser_and_its_arrays_are_found_in_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(viewing, "VOXELS", 2000)
    scan = phantoms.volume(tmp_path, "permuted RPI")
    view = viewing.view_of(scan, scan, scan, field(scan, torch.zeros(1, 3, *scan.grid.shape)), {})
    shape = view.arrays["fixed"].shape
    assert np.prod(shape) < 3000
    view.write(tmp_path)
    told = json.loads((tmp_path / "view.json").read_text(encoding="utf-8"))
    content = (tmp_path / "view.bin").read_bytes()
    for name, array in view.arrays.items():
        place = told["arrays"][name]
        assert place["start"] % array.itemsize == 0
        read = np.frombuffer(content, place["type"], array.size, place["start"]).reshape(array.shape)
        np.testing.assert_array_equal(read, array)
