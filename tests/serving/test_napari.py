"""What docs/serving.md says to whoever looks at a result in napari, without a window."""

import re

import nibabel as nib
import numpy as np
import pytest

from notebooks.build import ROOT
from tests import phantoms

components = pytest.importorskip("napari.components", reason="napari is a viewer, and in no list of requirements")


class OneViewer:
    """napari, as far as the page's lines go: its viewer's model has layers and needs no window."""

    def __init__(self):
        self.viewer = components.ViewerModel()

    def Viewer(self):
        return self.viewer

    def run(self):
        """There is nothing to run without a window."""


@pytest.mark.parametrize("place", sorted(phantoms.PLACES))
def test_napari_puts_each_voxel_where_the_file_says(tmp_path, monkeypatch, place):
    lines = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", lines, re.DOTALL) if "napari" in block]
    for name in ("F.nii.gz", "moved.nii.gz"):
        nib.save(nib.load(phantoms.volume(tmp_path, place).path), tmp_path / name)
    monkeypatch.chdir(tmp_path)
    napari = OneViewer()
    exec(code.replace("import napari\n", ""), {"napari": napari})
    assert [layer.name for layer in napari.viewer.layers] == ["F.nii.gz", "moved.nii.gz"]
    for layer in napari.viewer.layers:
        scan = nib.load(tmp_path / layer.name)
        for voxel in ([0, 0, 0], [3, 1, 2], [n - 1 for n in scan.shape]):
            there = nib.affines.apply_affine(scan.affine, voxel)
            np.testing.assert_allclose(layer.data_to_world(voxel), there, atol=1e-4)
            assert layer.data[tuple(voxel)] == scan.get_fdata()[tuple(voxel)]
