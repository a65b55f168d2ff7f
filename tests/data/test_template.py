"""The template that the package ships is the one that its script makes, and its notice goes with it."""

import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest

from course_utils.data.synthetic import TEMPLATE, TISSUES
from notebooks.build import ROOT


@pytest.mark.slow
def test_the_script_makes_the_files_that_are_shipped(tmp_path):
    pytest.importorskip("nilearn", reason="the script needs nilearn, of the extra dev")
    subprocess.run([sys.executable, ROOT / "data_scripts" / "make_template.py", tmp_path], check=True)
    for name in ("t1.nii.gz", "tissue.nii.gz"):
        made, shipped = nib.load(tmp_path / name), nib.load(TEMPLATE / name)
        np.testing.assert_array_equal(made.affine, shipped.affine)
        np.testing.assert_array_equal(np.asarray(made.dataobj), np.asarray(shipped.dataobj))


def test_each_tissue_is_inside_the_brain_and_on_both_sides():
    t1, tissue = (np.asarray(nib.load(TEMPLATE / f"{name}.nii.gz").dataobj) for name in ("t1", "tissue"))
    assert np.array_equal(tissue > 0, t1 > 0) and t1.max() == 255
    middle = 98  # of the first axis, where MNI's x is 0
    left, right = (np.bincount(half.ravel(), minlength=6)[1:] for half in (tissue[:middle], tissue[middle + 1 :]))
    assert len(left) == len(TISSUES) and left.min() > 5000
    np.testing.assert_allclose(left, right, rtol=0.05)  # the template is symmetric


def test_the_template_s_notice_is_shipped_with_it():
    assert "Copyright (C) 1993–2009 Louis Collins" in (TEMPLATE / "NOTICE.md").read_text(encoding="utf-8")
