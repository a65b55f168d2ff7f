"""Metrics against analytic cases, brute force, MONAI, SimpleITK and SciPy, and against what vanishes."""

import itertools
import math

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
import SimpleITK as sitk
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.metrics import DiceMetric, compute_hausdorff_distance
from monai.networks import one_hot
from scipy.spatial.distance import cdist

from course_utils.fields import affine_to_field, simplex_determinants
from course_utils.metrics import (
    dice,
    folding_percent,
    hausdorff,
    ndv_percent,
    sdlogj,
    sdlogj_learn2reg,
    target_registration_error,
)

SPACINGS = {2: (0.7, 2.0), 3: (0.7, 1.0, 2.5)}


def blobs(shape, seed, values=2):
    """A label map of smooth random structures 0..values that touch the border and have holes."""
    noise = scipy.ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1.5)
    edges = np.quantile(noise, np.linspace(0, 1, values + 2)[1:-1])
    return np.digitize(noise, edges).astype(np.uint8)


def batch(*label_maps):
    return torch.from_numpy(np.stack(label_maps)[:, None])


def smooth_field(shape, seed, amplitude, sigma=2.0):
    noise = np.random.default_rng(seed).normal(size=(len(shape), *shape))
    smooth = np.stack([scipy.ndimage.gaussian_filter(c, sigma) for c in noise])
    return torch.from_numpy(smooth / np.abs(smooth).max() * amplitude).float()[None]


def boundary_by_definition(inside, spacing):
    """Every voxel is asked, one neighbour at a time."""
    points = []
    for index in np.argwhere(inside):
        for axis, step in itertools.product(range(inside.ndim), (-1, 1)):
            neighbour = index.copy()
            neighbour[axis] += step
            outside_image = not 0 <= neighbour[axis] < inside.shape[axis]
            if outside_image or not inside[tuple(neighbour)]:
                points.append(index * np.asarray(spacing))
                break
    return np.array(points)


def brute_force(a, b, spacing, percentile):
    distances = cdist(boundary_by_definition(a, spacing), boundary_by_definition(b, spacing))
    return max(np.percentile(distances.min(axis), percentile) for axis in (0, 1))


# ---- Dice


@pytest.mark.parametrize(("shape", "side", "shift"), [((12, 14), 6, 2), ((12, 14, 16), 6, 2)])
def test_dice_of_shifted_cubes_is_exact(shape, side, shift):
    fixed, moved = np.zeros((2, *shape), np.uint8)
    fixed[(slice(1, 1 + side),) * len(shape)] = 3
    moved[(slice(1 + shift, 1 + shift + side), *[slice(1, 1 + side)] * (len(shape) - 1))] = 3
    assert dice(batch(moved), batch(fixed), [3]).tolist() == [[pytest.approx((side - shift) / side)]]


@pytest.mark.parametrize("shape", [(20, 24), (12, 14, 10)])
def test_dice_agrees_with_monai_on_every_structure(shape):
    a, b = batch(blobs(shape, 0), blobs(shape, 1)), batch(blobs(shape, 2), blobs(shape, 3))
    metric = DiceMetric(include_background=True, reduction="none")
    expected = metric(one_hot(a, 3), one_hot(b, 3))
    torch.testing.assert_close(dice(a, b, [0, 1, 2]), expected)


def test_labels_come_in_the_order_asked():
    a, b = batch(blobs((20, 24), 0)), batch(blobs((20, 24), 2))
    assert dice(a, b, [2, 1]).tolist() == dice(a, b, [1, 2]).flip(1).tolist()
    assert hausdorff(a, b, [2, 1], 1.0).tolist() == hausdorff(a, b, [1, 2], 1.0).flip(1).tolist()


def test_a_vanished_structure_is_the_worst_and_an_absent_one_is_not_a_number():
    cube = np.zeros((8, 8, 8), np.uint8)
    cube[2:5, 2:5, 2:5] = 1
    nothing = np.zeros_like(cube)
    moved, fixed = batch(cube, nothing, nothing, cube), batch(nothing, cube, nothing, cube)
    np.testing.assert_array_equal(dice(moved, fixed, [1])[:, 0], [0, 0, np.nan, 1])
    for percentile in (None, 95):
        distance = hausdorff(moved, fixed, [1], 1.0, percentile)
        np.testing.assert_array_equal(distance[:, 0], [np.inf, np.inf, np.nan, 0])


# ---- Hausdorff


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("shift", [1, 3])
def test_hausdorff_of_a_shifted_cube_is_the_shift_in_mm(dims, shift):
    spacing = SPACINGS[dims]
    for axis in range(dims):
        fixed = np.zeros((12,) * dims, np.uint8)
        fixed[(slice(2, 7),) * dims] = 1
        moved = np.roll(fixed, shift, axis)
        assert hausdorff(batch(moved), batch(fixed), [1], spacing).item() == pytest.approx(shift * spacing[axis])


@pytest.mark.parametrize("shape", [(17, 13), (11, 9, 10)])
@pytest.mark.parametrize("percentile", [None, 95, 50])
def test_hausdorff_agrees_with_brute_force(shape, percentile):
    spacing = SPACINGS[len(shape)]
    pairs = [(blobs(shape, seed), blobs(shape, seed + 100)) for seed in range(3)]
    measured = hausdorff(batch(*[a for a, _ in pairs]), batch(*[b for _, b in pairs]), [0, 1, 2], spacing, percentile)
    rank = 100 if percentile is None else percentile
    expected = [[brute_force(a == v, b == v, spacing, rank) for v in range(3)] for a, b in pairs]
    np.testing.assert_allclose(measured, expected, rtol=1e-6)


@pytest.mark.parametrize("shape", [(20, 24), (12, 14, 10)])
@pytest.mark.parametrize("percentile", [None, 95])
def test_hausdorff_agrees_with_monai_where_both_images_have_the_structure(shape, percentile):
    a, b = batch(blobs(shape, 0), blobs(shape, 1)), batch(blobs(shape, 2), blobs(shape, 3))
    spacing = SPACINGS[len(shape)]
    expected = compute_hausdorff_distance(
        one_hot(a, 3), one_hot(b, 3), include_background=True, percentile=percentile, spacing=spacing
    )
    torch.testing.assert_close(hausdorff(a, b, [0, 1, 2], spacing, percentile), expected)


def test_hausdorff_agrees_with_simpleitk_on_the_boundaries():
    # SimpleITK measures between all voxels of two sets, so it gets the boundaries as the sets.
    spacing = SPACINGS[3]
    maps = [blobs((12, 14, 10), seed) == 1 for seed in (0, 1)]
    images = []
    for inside in maps:
        edge = np.zeros(inside.shape, np.uint8)
        edge[tuple(np.rint(boundary_by_definition(inside, (1, 1, 1))).astype(int).T)] = 1
        images.append(sitk.GetImageFromArray(edge))
        images[-1].SetSpacing(spacing[::-1])
    reference = sitk.HausdorffDistanceImageFilter()
    reference.Execute(*images)
    measured = hausdorff(*[batch(m.astype(np.uint8)) for m in maps], [1], spacing).item()
    assert measured == pytest.approx(reference.GetHausdorffDistance(), rel=1e-5)


def test_one_stray_voxel_moves_the_maximum_and_not_the_95th_percentile():
    fixed = np.zeros((24, 24, 24), np.uint8)
    fixed[2:12, 2:12, 2:12] = 1
    moved = fixed.copy()
    moved[21, 2, 2] = 1
    maximum, hd95 = hausdorff(batch(moved), batch(fixed), [1], 1.5, (100, 95)).flatten().tolist()
    assert (maximum, hd95) == (pytest.approx(10 * 1.5), 0.0)


def test_a_sequence_of_percentiles_gives_what_each_gives_alone():
    a, b = batch(blobs((20, 24), 0), blobs((20, 24), 1)), batch(blobs((20, 24), 2), np.zeros((20, 24), np.uint8))
    both = hausdorff(a, b, [1, 2, 7], (1, 2), (100, 95))
    torch.testing.assert_close(both[0], hausdorff(a, b, [1, 2, 7], (1, 2)), equal_nan=True)
    torch.testing.assert_close(both[1], hausdorff(a, b, [1, 2, 7], (1, 2), 95), equal_nan=True)


def small_label_pairs():
    shapes = hnp.array_shapes(min_dims=2, max_dims=3, min_side=1, max_side=5)
    return shapes.flatmap(lambda s: hnp.arrays(np.uint8, (2, *s), elements=st.integers(0, 2)))


@given(small_label_pairs(), st.data())
@settings(max_examples=150, deadline=None)
def test_properties_of_overlap_and_distance(maps, data):
    a, b = batch(maps[0]), batch(maps[1])
    dims = a.ndim - 2
    spacing = data.draw(st.lists(st.sampled_from([0.5, 1.0, 3.0]), min_size=dims, max_size=dims))
    order = data.draw(st.permutations(range(dims)))
    labels = [0, 1, 2]
    overlap, distance = dice(a, b, labels), hausdorff(a, b, labels, spacing)
    hd95 = hausdorff(a, b, labels, spacing, 95)

    # Symmetric; the same whichever way the array lies; twice as far in voxels twice as large.
    np.testing.assert_array_equal(overlap, dice(b, a, labels))
    np.testing.assert_array_equal(distance, hausdorff(b, a, labels, spacing))
    axes = [0, 1, *[2 + axis for axis in order]]
    turned = hausdorff(a.permute(axes), b.permute(axes), labels, [spacing[axis] for axis in order])
    np.testing.assert_allclose(distance, turned, rtol=1e-6)
    np.testing.assert_allclose(2 * distance, hausdorff(a, b, labels, [2 * s for s in spacing]), rtol=1e-6)

    # The percentile never exceeds the maximum, and the edge cases of Dice and distance go together.
    assert ((hd95 <= distance) | distance.isnan()).all()
    np.testing.assert_array_equal(overlap.isnan(), distance.isnan())
    assert (distance[overlap == 1] == 0).all()  # not the reverse: a ring and a filled ring have one boundary
    in_a, in_b = ((m.flatten(1)[:, None] == torch.tensor(labels)[:, None]).any(2) for m in (a, b))
    np.testing.assert_array_equal(distance.isinf(), in_a ^ in_b)


def test_shapes_and_spacings_that_would_silently_broadcast_are_refused():
    a = torch.zeros(1, 1, 4, 5, dtype=torch.uint8)
    with pytest.raises(ValueError, match="one shape"):
        dice(a, a[..., :1], [1])
    with pytest.raises(ValueError, match="one shape"):
        hausdorff(a, a.expand(2, -1, -1, -1), [1], 1.0)
    for spacing in ((1, 1, 1), (1, 0), (1, -1), (1, math.nan), ()):
        with pytest.raises(ValueError, match="spacing is"):
            hausdorff(a, a, [1], spacing)
    u = torch.zeros(1, 2, 4, 5)
    with pytest.raises(ValueError, match="one shape"):
        target_registration_error(u, u[..., :1], 1.0)
    with pytest.raises(ValueError, match="5 voxels"):
        sdlogj_learn2reg(u)


# ---- Regularity


def mirrored(n=11):
    """phi(x) = |x - 5| along the first axis: det is -1 in 5 rows, 0 in one, 1 in 5."""
    u = torch.zeros(1, 2, n, 4)
    x = torch.arange(n, dtype=torch.float32)
    u[0, 0] = ((x - 5).abs() - x)[:, None]
    return u


def test_folding_of_known_folds():
    assert folding_percent(mirrored()).item() == pytest.approx(100 * 6 / 11)
    mask = torch.zeros(1, 1, 11, 4)
    mask[:, :, 5:] = 1
    assert folding_percent(mirrored(), mask).item() == pytest.approx(100 / 6)


def test_non_diffeomorphic_volume_of_known_folds():
    """Of 10 rows of cells, 5 are turned over, each by all of its volume."""
    assert ndv_percent(mirrored()).item() == pytest.approx(50)
    mask = torch.zeros(1, 1, 11, 4)
    mask[:, :, 4:] = 1
    assert ndv_percent(mirrored(), mask).item() == pytest.approx(100 / 6)  # the cells between rows 4 to 10
    assert ndv_percent(mirrored(), torch.zeros_like(mask)).isnan().all()
    assert ndv_percent(3 * mirrored()).item() > 100  # turned over, and larger than it was
    np.testing.assert_allclose(ndv_percent(torch.cat([mirrored(), 0 * mirrored()])), [50, 0])


SIMPLICES = {
    2: [[(0, 0), (0, 1), (1, 0)], [(1, 1), (0, 1), (1, 0)], [(0, 0), (0, 1), (1, 1)], [(0, 0), (1, 0), (1, 1)]],
    3: [
        [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)],
        [(1, 1, 0), (1, 0, 0), (0, 1, 0), (1, 1, 1)],
        [(1, 0, 1), (1, 0, 0), (0, 0, 1), (1, 1, 1)],
        [(0, 1, 1), (0, 1, 0), (0, 0, 1), (1, 1, 1)],
        [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1)],
        [(1, 1, 1), (0, 1, 1), (1, 0, 1), (1, 1, 0)],
        [(0, 0, 1), (0, 1, 1), (1, 0, 1), (0, 0, 0)],
        [(0, 1, 0), (0, 1, 1), (1, 1, 0), (0, 0, 0)],
        [(1, 0, 0), (1, 0, 1), (1, 1, 0), (0, 0, 0)],
        [(0, 1, 1), (1, 0, 1), (1, 1, 0), (0, 0, 0)],
    ],
}
"""Of one cell, cut in both ways."""


@pytest.mark.parametrize("shape", [(7, 8), (5, 6, 4)])
def test_non_diffeomorphic_volume_is_that_of_the_simplices_cell_by_cell(shape):
    dims = len(shape)
    u = smooth_field(shape, 3, 4.0) + torch.randn(1, dims, *shape, generator=torch.Generator().manual_seed(0))
    position = u[0].double().numpy() + np.indices(shape)
    negative = 0.0
    for cell in np.ndindex(*(n - 1 for n in shape)):
        for simplex in SIMPLICES[dims]:
            corners = np.array([position[(slice(None), *np.add(cell, corner))] for corner in simplex])
            plain = np.linalg.det(np.subtract(simplex[1:], simplex[0]))
            volume = np.linalg.det(corners[1:] - corners[0]) * np.sign(plain) / math.factorial(dims)
            negative += max(-volume, 0) / 2
    assert negative > 0
    expected = 100 * negative / math.prod(n - 1 for n in shape)
    assert ndv_percent(u).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("shape", [(9, 8), (6, 7, 8)])
def test_simplices_fill_what_the_border_encloses(shape):
    """However much the inside is folded: what is turned over is covered once more elsewhere."""
    u = torch.zeros(1, len(shape), *shape)
    inside = (..., *[slice(1, -1)] * len(shape))
    u[inside] = 3 * torch.randn(u[inside].shape, generator=torch.Generator().manual_seed(1))
    determinants, shares = simplex_determinants(u)
    assert determinants.min() < 0 and shares.sum() == pytest.approx(1)
    volume = torch.einsum("bk...,k->b...", determinants.double(), shares.double()).mean()
    assert volume.item() == pytest.approx(1, abs=1e-6)


def test_sdlogj_of_a_known_fold_clips_the_determinant():
    logs = [math.log(1e-9)] * 6 + [0.0] * 5
    assert sdlogj(mirrored()).item() == pytest.approx(np.std(logs), rel=1e-6)


def test_linear_maps_fold_everywhere_or_nowhere_and_have_no_spread():
    c, s = math.cos(0.4), math.sin(0.4)
    rotation = [[c, -s, 0, 3], [s, c, 0, 0], [0, 0, 1, -1]]
    shear = [[1.3, 0.4, 0, 0], [0, 0.8, 0.2, 0], [0.1, 0, 1.1, 0]]
    mirror = [[-1, 0, 0, 9], [0, 1, 0, 0], [0, 0, 1, 0]]
    u = affine_to_field(torch.tensor([rotation, shear, mirror]), (7, 8, 9))
    np.testing.assert_allclose(folding_percent(u), [0, 0, 100])
    np.testing.assert_allclose(sdlogj(u), [0, 0, 0], atol=1e-5)
    np.testing.assert_allclose(sdlogj_learn2reg(u), [0, 0, 0], atol=1e-5)


def determinant_by_numpy(u):
    derivatives = np.stack([np.stack(np.gradient(component)) for component in u])  # (component, axis, *spatial)
    return np.linalg.det(np.moveaxis(derivatives, (0, 1), (-2, -1)) + np.eye(len(u)))


@pytest.mark.parametrize("shape", [(16, 18), (10, 12, 11)])
@pytest.mark.parametrize("amplitude", [1.0, 8.0])
def test_folding_and_sdlogj_agree_with_numpy(shape, amplitude):
    u = torch.cat([smooth_field(shape, seed, amplitude) for seed in range(2)])
    mask = torch.from_numpy(np.stack([blobs(shape, seed)[None] > 0 for seed in range(2)]))
    for b in range(2):
        determinant = determinant_by_numpy(u[b].double().numpy())
        for m, inside in ((None, np.ones(shape, bool)), (mask, mask[b, 0].numpy())):
            folded = 100 * np.mean(determinant[inside] <= 0)
            spread = np.std(np.log(np.maximum(determinant[inside], 1e-9)))
            assert folding_percent(u, m)[b].item() == pytest.approx(folded, rel=1e-5)
            assert sdlogj(u, m)[b].item() == pytest.approx(spread, rel=1e-4)
    if amplitude == 8.0:
        assert (folding_percent(u) > 0).all(), "the case must fold to test folding"


def learn2reg_by_scipy(u):
    """The challenge's recipe: correlate with [-0.5, 0, 0.5], zeros beyond the image, identity added, 2 voxels cut."""
    n = len(u)
    jacobian = np.zeros((*u.shape[1:], n, n))
    for component, axis in itertools.product(range(n), range(n)):
        jacobian[..., component, axis] = scipy.ndimage.correlate1d(
            u[component], [-0.5, 0, 0.5], axis=axis, mode="constant", cval=0.0
        )
    determinant = np.linalg.det((jacobian + np.eye(n))[(slice(2, -2),) * n])
    return np.log(np.clip(determinant + 3, 1e-9, 1e9)).std()


@pytest.mark.parametrize("shape", [(16, 18), (10, 12, 11), (5, 5, 5)])
@pytest.mark.parametrize("amplitude", [1.0, 8.0])
def test_learn2reg_sdlogj_agrees_with_the_challenge_recipe(shape, amplitude):
    u = torch.cat([smooth_field(shape, seed, amplitude) for seed in range(2)])
    expected = [learn2reg_by_scipy(field) for field in u.double().numpy()]
    np.testing.assert_allclose(sdlogj_learn2reg(u), expected, rtol=1e-4)


def test_learn2reg_sdlogj_is_four_times_smaller_for_a_gentle_field():
    u = smooth_field((24, 24, 24), 0, 0.3)
    inner = torch.zeros(1, 1, 24, 24, 24)
    inner[:, :, 2:-2, 2:-2, 2:-2] = 1
    assert (sdlogj(u, inner) / sdlogj_learn2reg(u)).item() == pytest.approx(4, rel=0.02)


def test_nan_and_an_empty_mask_never_look_regular():
    u = torch.zeros(2, 3, 6, 6, 6)
    u[1, 0, 3, 3, 3] = math.nan
    for metric in (folding_percent, sdlogj, sdlogj_learn2reg):
        np.testing.assert_array_equal(metric(u), [0, np.nan])
    nowhere = torch.zeros(1, 1, 6, 6, 6)
    for metric in (folding_percent, sdlogj):
        np.testing.assert_array_equal(metric(u, nowhere), [np.nan, np.nan])


# ---- Target registration error


def test_tre_of_a_constant_offset_is_its_length_in_mm():
    truth = smooth_field((6, 7, 8), 0, 3.0).repeat(2, 1, 1, 1, 1)
    estimate = truth.clone()
    estimate[1] += torch.tensor([1.0, 2.0, -2.0]).view(3, 1, 1, 1)
    expected = [0.0, math.sqrt((1 * 1.0) ** 2 + (2 * 0.5) ** 2 + (2 * 2.0) ** 2)]
    np.testing.assert_allclose(target_registration_error(estimate, truth, (1.0, 0.5, 2.0)), expected, rtol=1e-5)


def test_tre_is_a_mean_of_lengths_inside_the_mask():
    truth = torch.zeros(1, 2, 4, 4)
    estimate = truth.clone()
    estimate[0, :, 0, 0] = torch.tensor([3.0, 4.0])
    estimate[0, :, 3, 3] = 1e6
    mask = torch.zeros(1, 1, 4, 4, dtype=torch.uint8)
    mask[0, 0, 0, :2] = 7  # any label counts as inside
    assert target_registration_error(estimate, truth, 2.0, mask).item() == pytest.approx(5.0)  # (10 + 0) / 2 mm
    assert target_registration_error(estimate, truth, 2.0, mask * 0).isnan().all()
