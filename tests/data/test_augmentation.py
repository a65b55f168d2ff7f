"""Changed pairs: labels follow their images, numbers follow from the seed, and what is turned off stays as it is."""

from dataclasses import dataclass

import pytest
import torch
from torch.testing import assert_close

from course_utils.data.augmentation import Augmentation, AugmentedPairs

NOTHING = Augmentation(rotation=0, scale=0, shift=0, bend=0, contrast=0)
both = pytest.mark.parametrize("shape", [(30, 34), (18, 22, 20)], ids=["2-D", "3-D"])


def item(shape):
    """A pair of blobs, each with a label where it is bright."""
    grids = torch.meshgrid(*[torch.arange(float(n)) for n in shape], indexing="ij")
    made = {"name": "a_to_b"}
    for side, shift in (("moving", 1.0), ("fixed", -1.0)):
        squares = [(grid - n / 2 - shift) ** 2 for grid, n in zip(grids, shape, strict=True)]
        image = torch.exp(-sum(squares) / 30)[None]
        made |= {side: image, f"{side}_label": (image > 0.5).to(torch.int16)}
    return made


def changed(augmentation, shape, seed=0):
    return augmentation(item(shape), torch.Generator().manual_seed(seed))


@both
def test_labels_lie_where_their_image_is_bright(shape):
    """Without a change of contrast the label is where the image is above one half, but for the rounding of its edge."""
    for seed in range(5):
        pair = changed(Augmentation(contrast=0), shape, seed)
        for side in ("moving", "fixed"):
            label = pair[f"{side}_label"]
            bright = pair[side] > 0.5
            assert label.dtype == torch.int16 and bright.sum() > 20
            assert 2 * (bright & (label > 0)).sum() / (bright.sum() + label.sum()) > 0.85


@both
def test_nothing_changes_where_all_is_off(shape):
    original = item(shape)
    for off in (NOTHING, Augmentation().scaled(0)):
        pair = changed(off, shape)
        for side in ("moving", "fixed"):
            assert_close(pair[side], original[side], rtol=0, atol=1e-5)
            assert_close(pair[f"{side}_label"], original[f"{side}_label"], rtol=0, atol=0)


def test_a_strength_multiplies_every_change_and_no_distance():
    assert Augmentation(1, 2, 3, 4, 12, 5).scaled(0.5) == Augmentation(0.5, 1, 1.5, 2, 12, 2.5)


def test_the_two_images_are_changed_separately_and_keep_their_range():
    pair = changed(Augmentation(), (18, 22, 20))
    same = {**item((18, 22, 20))}
    same["moving"] = same["fixed"]
    twins = Augmentation()(same, torch.Generator().manual_seed(0))
    assert (twins["moving"] - twins["fixed"]).abs().max() > 0.1
    for side in ("moving", "fixed"):
        assert pair[side].min() >= 0 and pair[side].max() <= 1
        assert (pair[side] - item((18, 22, 20))[side]).abs().max() > 0.1


@both
def test_a_shift_is_as_large_as_it_says(shape):
    shifts = []
    for seed in range(60):
        displacement = Augmentation(0, 0, 2.0, 0, 12, 0)._displacement(shape, torch.Generator().manual_seed(seed))
        assert displacement.shape == (1, len(shape), *shape)
        assert_close(displacement.std((2, *range(3, displacement.ndim))), torch.zeros(1, len(shape)), atol=1e-4, rtol=0)
        shifts.append(displacement.flatten(2).mean(2))
    assert torch.cat(shifts).std().item() == pytest.approx(2.0, rel=0.25)


@dataclass
class Pairs:
    subjects = None
    pairs = ()


def test_an_item_follows_from_the_seed_and_its_index(monkeypatch):
    monkeypatch.setattr("course_utils.data.loading.PairDataset.__getitem__", lambda self, index: item((18, 22, 20)))
    first, again, other = (AugmentedPairs(Pairs(), Augmentation(), seed) for seed in (3, 3, 4))
    state = torch.get_rng_state()
    assert torch.equal(first[7]["moving"], again[7]["moving"])
    assert not torch.equal(first[7]["moving"], first[8]["moving"])
    assert not torch.equal(first[7]["moving"], other[7]["moving"])
    assert torch.equal(torch.get_rng_state(), state)
    assert first[7]["name"] == "a_to_b"
