"""Similarities of images of different contrasts, by definition and against SciPy, scikit-learn and MONAI."""

import itertools
import math

import numpy as np
import pytest
import scipy.interpolate
import scipy.ndimage
import torch
from monai.losses import GlobalMutualInformationLoss
from sklearn.metrics import mutual_info_score
from torch.testing import assert_close

from course_utils.errors import CourseError
from course_utils.fields import warp
from course_utils.losses import mi_loss, mind, mind_loss
from course_utils.networks import Registration
from course_utils.objectives import MI, MIND, pair_objective
from course_utils.scans.mapping import deform
from course_utils.scans.optimise import instance_objective, optimise

SHAPES = {2: (24, 30), 3: (12, 15, 10)}
both = pytest.mark.parametrize("dims", [2, 3])
LOSSES = {"mi": mi_loss, "mind": mind_loss}
each = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


def lumps(dims, seed=0, sigma=1.5, batch=1, shape=None):
    """Smooth random images from 0 to 1."""
    noise = torch.rand(batch, 1, *(shape or SHAPES[dims]), generator=torch.Generator().manual_seed(seed)).numpy()
    image = torch.from_numpy(scipy.ndimage.gaussian_filter(noise, (0, 0, *[sigma] * dims)))
    low, high = (f(tuple(range(1, image.ndim)), keepdim=True) for f in (image.amin, image.amax))
    return (image - low) / (high - low)


def other_contrast(image):
    """Dark, bright, then darker: no line and no monotone curve; black stays black."""
    knots = [0.0, 0.12, 0.3, 0.6, 1.0], [0.0, 0.9, 1.0, 0.65, 0.2]
    return torch.from_numpy(np.interp(image.numpy(), *knots)).float()


# --- mutual information -----------------------------------------------------------------------------------------------


@both
def test_mi_of_few_intensities_is_that_of_a_table(dims):
    """Four grey values, further apart than a window is wide: nothing is smeared, and scikit-learn counts the same."""
    generator = torch.Generator().manual_seed(1)
    moved = torch.randint(0, 4, (1, 1, *SHAPES[dims]), generator=generator)
    fixed = torch.where(torch.rand(moved.shape, generator=generator) < 0.6, (3 * moved + 1) % 4, moved)
    expected = mutual_info_score(moved.flatten(), fixed.flatten())
    assert 0.5 < expected < 1.2
    assert -mi_loss(moved / 3, fixed / 3).item() == pytest.approx(expected, abs=1e-4)
    assert -mi_loss(moved / 3, moved / 3).item() == pytest.approx(mutual_info_score(*[moved.flatten()] * 2), abs=1e-4)


@both
@pytest.mark.parametrize("bins", [5, 16, 32])
def test_mi_by_a_histogram_through_splines_of_scipy(dims, bins):
    moved, fixed = lumps(dims, 2), 0.5 * lumps(dims, 2) + 0.5 * lumps(dims, 3)
    spline = scipy.interpolate.BSpline.basis_element(np.arange(-2.0, 3.0), extrapolate=False)

    def windows(image):
        places = 1 + image.double().flatten().numpy() * (bins - 3)
        return np.nan_to_num(spline(places[:, None] - np.arange(bins)))

    joint = windows(moved).T @ windows(fixed) / moved.numel()
    assert joint.sum() == pytest.approx(1)

    def entropy(p):
        return -(p[p > 0] * np.log(p[p > 0])).sum()

    expected = entropy(joint.sum(0)) + entropy(joint.sum(1)) - entropy(joint)
    assert -mi_loss(moved, fixed, bins).item() == pytest.approx(expected, abs=1e-4)


def test_mi_of_a_normal_distribution():
    """`-log(1 - r**2) / 2`, less what the windows blur away; a sign of the correlation makes no difference."""
    generator = torch.Generator().manual_seed(0)
    a, noise = torch.randn(2, 1, 1, 500, 500, generator=generator)
    b = 0.8 * a + 0.6 * noise
    a, b = (0.5 + x / 10 for x in (a, b))
    expected = -math.log(1 - 0.8**2) / 2
    assert -mi_loss(a, b, bins=64).item() == pytest.approx(expected, abs=0.03)
    assert -mi_loss(a, 1 - b, bins=64).item() == pytest.approx(expected, abs=0.03)
    assert 0 <= -mi_loss(a, b.roll(250, -1), bins=64).item() < 0.01


@both
@pytest.mark.parametrize("kernel", ["gaussian", "b-spline"])
def test_mi_ranks_images_as_monai_does(dims, kernel):
    fixed = lumps(dims, 4)
    shift = torch.zeros(1, dims, *SHAPES[dims])
    ours, theirs = [], []
    for step in range(5):
        shift[:, 0] = step
        moved = warp(other_contrast(fixed), shift)
        ours.append(mi_loss(moved, fixed, 16).item())
        theirs.append(GlobalMutualInformationLoss(kernel, num_bins=16)(moved, fixed).item())
    assert ours == sorted(ours) and theirs == sorted(theirs)
    assert ours[0] == pytest.approx(theirs[0], rel=0.25)


@both
def test_mi_minds_no_invertible_map_of_the_intensities(dims):
    moved, fixed = lumps(dims, 5), 0.7 * lumps(dims, 5) + 0.3 * lumps(dims, 6)
    plain = mi_loss(moved, fixed, 24).item()
    assert plain < -0.5
    assert mi_loss(1 - moved, fixed, 24).item() == pytest.approx(plain, abs=1e-4)
    for changed in (moved.sqrt(), moved**1.5, 0.2 + 0.6 * moved):
        assert mi_loss(changed, fixed, 24).item() == pytest.approx(plain, rel=0.15)
    assert mi_loss(torch.full_like(fixed, 0.3), fixed, 24).item() == pytest.approx(0, abs=1e-5)


def test_mi_of_each_pair_of_a_batch_is_its_own():
    moved, fixed = lumps(2, 7, batch=2), lumps(2, 8, batch=2)
    moved[1] = 1 - 0.5 * fixed[1]
    alone = [mi_loss(moved[i : i + 1], fixed[i : i + 1]) for i in range(2)]
    assert abs(alone[0] - alone[1]) > 0.3
    assert_close(mi_loss(moved, fixed), torch.stack(alone).mean())


def test_intensities_outside_count_as_the_nearest_inside():
    moved, fixed = 1.4 * lumps(2, 9) - 0.2, lumps(2, 10)
    assert_close(mi_loss(moved, fixed), mi_loss(moved.clamp(0, 1), fixed))
    with pytest.raises(ValueError, match="bins is 5 or more"):
        mi_loss(moved, fixed, bins=4)


# --- self-similarity --------------------------------------------------------------------------------------------------


def mind_by_loops(image, radius, distance):
    """One voxel after the other, of `(*spatial)`; the patch ends where the image does, beyond which edges repeat."""
    image = image.double().numpy()
    dims, shape = image.ndim, image.shape

    def at(place):
        return image[tuple(min(max(p, 0), n - 1) for p, n in zip(place, shape, strict=True))]

    steps = [distance * sign * np.eye(dims, dtype=int)[axis] for axis in range(dims) for sign in (-1, 1)]
    pairs = [(a, b) for a, b in itertools.combinations(steps, 2) if np.dot(a, b) == 0]
    apart = np.zeros((len(pairs), *shape))
    for place in np.ndindex(shape):
        ranges = [range(max(0, p - radius), min(n, p + radius + 1)) for p, n in zip(place, shape, strict=True)]
        patch = [np.array(p) for p in itertools.product(*ranges)]
        for channel, (a, b) in enumerate(pairs):
            apart[(channel, *place)] = np.mean([(at(p + a) - at(p + b)) ** 2 for p in patch])
    mean = apart.mean(0)
    return np.exp(-(apart - apart.min(0)) / np.clip(mean, 1e-3 * mean.mean(), 1e3 * mean.mean()))


@pytest.mark.parametrize(
    ("shape", "radius", "distance"), [((9, 11), 1, 2), ((9, 8), 2, 1), ((6, 7), 0, 1), ((5, 6, 4), 1, 1)]
)
def test_mind_by_a_loop_over_the_voxels(shape, radius, distance):
    image = torch.rand(1, 1, *shape, generator=torch.Generator().manual_seed(11))
    found, expected = mind(image, radius, distance)[0].numpy(), mind_by_loops(image[0, 0], radius, distance)
    assert found.shape == expected.shape == ({2: 4, 3: 12}[len(shape)], *shape)
    # The order of the channels is nobody's business: the same in both images.
    order = [sorted(range(len(expected)), key=lambda c: x[c].sum()) for x in (found, expected)]
    np.testing.assert_allclose(found[order[0]], expected[order[1]], atol=1e-4)
    assert found.max(0).min() == pytest.approx(1)


@both
def test_mind_minds_neither_gain_nor_offset_nor_sign(dims):
    image = lumps(dims, 12)
    found = mind(image, 1, 2)
    for gain, offset in ((2.5, 0.3), (0.1, 0.0), (-1.0, 1.0)):
        assert_close(mind(gain * image + offset, 1, 2), found, atol=2e-3, rtol=0)
    assert mind_loss(lumps(dims, 13), image) > 5 * mind_loss(other_contrast(image), image)
    assert_close(mind(torch.full_like(image, 0.4)), torch.ones_like(found))


def test_mind_is_convexadams():
    theirs = pytest.importorskip("convexAdam.convex_adam_utils").MINDSSC
    image = lumps(3, 14)
    inner = (..., *[slice(4, -4)] * 3)
    image = lumps(3, 14, shape=(18, 17, 16))
    ours, expected = (f(image, 1, 2)[inner] for f in (mind, lambda *a: theirs(*a, device="cpu")))
    assert_close(ours.sort(1).values, expected.sort(1).values, atol=0.02, rtol=0)


@pytest.mark.parametrize(("radius", "distance"), [(-1, 1), (1, 0)])
def test_a_self_similarity_needs_neighbours(radius, distance):
    with pytest.raises(ValueError, match=f"not {radius} and {distance}"):
        mind(torch.rand(1, 1, 8, 8), radius, distance)


# --- both -------------------------------------------------------------------------------------------------------------


@both
@each
def test_both_are_least_where_the_images_lie_on_each_other(dims, loss):
    """Whatever the contrast; a wrong sign, or the neighbours of one image moved, would put it elsewhere."""
    fixed = lumps(dims, 15, shape=(24,) * dims)
    moving = other_contrast(fixed)
    shift = torch.zeros(1, dims, *[24] * dims)
    for axis in range(dims):
        values = []
        for step in range(-3, 4):
            shift.zero_()[:, axis] = step
            values.append(loss(warp(moving, shift), fixed).item())
        assert values[:4] == sorted(values[:4], reverse=True) and values[3:] == sorted(values[3:])


@both
@each
def test_gradients_are_those_of_finite_differences(dims, loss):
    fixed, direction = lumps(dims, 16), lumps(dims, 17) - 0.5
    moved = (0.1 + 0.8 * other_contrast(lumps(dims, 18))).requires_grad_()
    (slope,) = torch.autograd.grad(loss(moved, fixed), moved)
    step = 1e-3
    with torch.no_grad():
        ahead, back = (loss(moved + sign * step * direction, fixed).item() for sign in (1, -1))
    expected = (ahead - back) / (2 * step)
    assert abs(expected) > 1e-3
    assert (slope * direction).sum().item() == pytest.approx(expected, rel=0.03)


@both
@each
def test_what_does_not_count_changes_nothing(dims, loss):
    moved, fixed = lumps(dims, 19), lumps(dims, 20)
    weight = torch.zeros_like(fixed)
    weight[..., : fixed.shape[-1] // 2] = 1
    changed = moved.clone()
    changed[..., fixed.shape[-1] // 2 + 4 :] = 0.9  # beyond what a patch of the counted ones sees
    assert abs(loss(changed, fixed) - loss(moved, fixed)) > 1e-3
    assert_close(loss(changed, fixed, weight=weight), loss(moved, fixed, weight=weight), atol=1e-4, rtol=0)
    assert_close(loss(moved, fixed, weight=0.5 * torch.ones_like(fixed)), loss(moved, fixed))
    # A part that counts is compared as if it were alone.
    if loss is mi_loss:
        half = (..., slice(None, fixed.shape[-1] // 2))
        assert_close(loss(moved, fixed, weight=weight), loss(moved[half], fixed[half]))


@each
def test_images_of_two_shapes_are_refused(loss):
    with pytest.raises(ValueError, match=r"\(2, 1, 6, 6\).*\(1, 1, 6, 6\)"):
        loss(torch.zeros(2, 1, 6, 6), torch.zeros(1, 1, 6, 6))


@each
def test_half_precision_gives_the_same(loss):
    moved, fixed = lumps(2, 21), lumps(2, 22)
    with torch.autocast("cpu", torch.bfloat16):
        assert_close(loss(moved, fixed), loss(moved, fixed))
        assert loss(moved, fixed).dtype == torch.float32
    assert_close(loss(moved.half(), fixed.half()), loss(moved, fixed), atol=0.02, rtol=0.02)


# --- as terms ---------------------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize(("name", "loss"), LOSSES.items(), ids=LOSSES)
def test_a_term_compares_with_its_settings_and_heeds_masks(dims, name, loss):
    moving, fixed = lumps(dims, 23), lumps(dims, 24)
    displacement = torch.full((1, dims, *SHAPES[dims]), 1.0)
    registration = Registration(warp(moving, displacement), displacement)
    mask = (lumps(dims, 25) > 0.4).float()
    batch = {"moving": moving, "fixed": fixed}
    settings = {"mi": (32,), "mind": (1, 2)}[name]
    term = {"mi": MI(), "mind": MIND()}[name]
    assert_close(term(registration, batch), loss(registration.moved, fixed, *settings))
    weighted = mask * warp(mask, displacement, padding="zeros")
    found = term(registration, {**batch, "fixed_mask": mask, "moving_mask": mask})
    assert_close(found, loss(registration.moved, fixed, *settings, weight=weighted))
    assert pair_objective(name).terms["similarity"] == (1.0, term)


def test_neighbours_come_closer_on_a_coarser_grid():
    terms = [pair_objective("mind", coarseness=n).terms["similarity"][1] for n in (1, 2, 4)]
    assert [term.distance for term in terms] == [2, 1, 1]


def bumped(dims):
    """An image, the same deformed and in another contrast, and the deformation."""
    shape = {2: (48, 40), 3: (20, 24, 20)}[dims]
    moving = lumps(dims, 26, sigma=2.0, shape=shape)
    axes = torch.meshgrid(*[torch.linspace(0, math.pi, n) for n in shape], indexing="ij")
    bump = torch.stack([axis.sin() for axis in axes]).prod(0)
    truth = torch.zeros(1, dims, *shape)
    truth[:, 0], truth[:, 1] = 2.0 * bump, -1.5 * bump
    return moving, other_contrast(warp(moving, truth)), truth


def error(found, truth):
    inner = (..., *[slice(4, -4)] * truth.shape[1])
    return (found - truth).norm(dim=1)[inner].mean().item()  # voxels


@both
@pytest.mark.parametrize("similarity", [MI(16), MIND()], ids=["mi", "mind"])
def test_a_known_deformation_is_found_between_two_contrasts(dims, similarity):
    moving, fixed, truth = bumped(dims)
    found = optimise(moving, fixed, instance_objective(similarity), iterations=40)
    assert error(0 * truth, truth) > 0.8 and error(found.displacement, truth) < 0.55 * error(0 * truth, truth)


def test_what_refines_a_pair_of_scans_can_be_chosen():
    moving, fixed, truth = bumped(2)
    by = {name: deform(moving, fixed, None, 30, similarity=name).displacement for name in ("ncc-edges", "ssd", "mind")}
    assert torch.equal(by["ncc-edges"], deform(moving, fixed, None, 30).displacement)
    assert torch.equal(by["mind"], optimise(moving, fixed, instance_objective(MIND()), iterations=30).displacement)
    assert error(by["mind"], truth) < 0.7 * error(by["ssd"], truth)
    with pytest.raises(CourseError, match="similarity='nmi' is not one of ncc, ncc-edges, ssd, mi, mind"):
        deform(moving, fixed, None, 30, similarity="nmi")
