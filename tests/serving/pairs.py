"""A pair of phantoms in files, and the form that a page would send of it."""

import numpy as np

from tests import phantoms


def phantom_pair(folder, moving="flipped LAS"):
    """Paths of `fixed`, `moving` and `moving_label`; the moving phantom is larger by 6 % and lies 1.5 mm off."""
    paths = {}
    for name, place in (("fixed", "same"), ("moving", moving)):
        grid = phantoms.PLACES[place]
        points = phantoms.positions(grid)
        if name == "moving":
            points = points / 1.06 + np.array([1.5, 0, -1.0]).reshape(3, 1, 1, 1)
            paths["moving_label"] = phantoms.save(
                folder / "moving_label.nii.gz", phantoms.structures(points), grid, np.uint8
            )
        paths[name] = phantoms.save(folder / f"{name}.nii.gz", phantoms.intensity(points), grid)
    return paths


def files_of(paths, **names):
    """What a client of HTTP sends; `names` are what the files are called there."""
    return {name: (names.get(name, path.name), path.read_bytes()) for name, path in paths.items()}
