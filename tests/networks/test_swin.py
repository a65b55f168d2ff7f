"""The Swin network: MONAI's tokens, windows and their shifts, every level's part in the answer, sizes, arguments."""

import pytest
import torch
from monai.networks.nets.swin_unetr import SwinTransformer
from torch.testing import assert_close

from course_utils.errors import CourseError
from course_utils.networks import NetworkSpec
from tests.networks.small import SIZES, both, images, inner, predicted, small


@both
@pytest.mark.parametrize("stages", [1, 2, 4])
def test_tokens_are_what_monai_s_transformer_gives(dims, stages):
    """With four stages, which it always has; the first of them are ours."""
    network = small("swin", dims, features=(4, 6, *[4] * stages), half_resolution=False)
    transformer = SwinTransformer(
        2, 6, [4] * dims, [2] * dims, [2] * 4, [2, 4, 8, 16], spatial_dims=dims, downsample="mergingv2"
    ).eval()
    unknown = transformer.load_state_dict(network.transformer.state_dict(), strict=False).unexpected_keys
    assert unknown == []
    pair = torch.cat([*images((32, 48, 32)[:dims], batch=2)], dim=1)
    found, wanted = network.tokens(pair), transformer(pair)
    assert len(found) == stages + 1
    for ours, theirs in zip(found, wanted, strict=False):
        assert_close(ours, theirs, rtol=0, atol=0)


@both
def test_a_token_sees_its_window_and_after_the_shift_the_neighbours_windows(dims):
    network = small("swin", dims, half_resolution=False)
    stage = network.transformer.layers1[0]
    stage.downsample = None  # of what the two blocks of a stage make
    x = torch.randn(1, 6, *[12] * dims, requires_grad=True)

    def seen():
        (gradient,) = torch.autograd.grad(stage(x)[(0, 0, *[5] * dims)], x)
        touched = gradient[0].abs().sum(0).nonzero()
        return touched.amin(0).tolist(), touched.amax(0).tolist()

    # Token 5 is in the window from 4 to 7, and in the shifted one from 2 to 5, which meets the one from 0 to 3, too.
    assert seen() == ([0] * dims, [7] * dims)
    with torch.no_grad():
        for name, parameter in stage.blocks[1].named_parameters():
            if name.startswith(("attn.proj", "mlp.linear2")):
                parameter.zero_()
    assert seen() == ([4] * dims, [7] * dims)


def test_only_shifts_that_keep_the_windows_shift_the_answer():
    network = small("swin", 2, features=(4, 6, 8), amplitude=3.0, half_resolution=False)
    moving, fixed = images((96, 96), seed=3)
    here = predicted(network(moving, fixed))

    def apart(step):
        there = predicted(network(*(image.roll(step, 2) for image in (moving, fixed))))
        return inner(there - here.roll(step, 2), 40).abs().max()

    assert inner(here, 40).abs().max() > 0.01
    assert apart(8) < 1e-4  # a window of four tokens of two voxels
    assert network.divisor == 4 and apart(4) > 10 * apart(8)  # windows of other tokens


@both
def test_every_level_has_a_part_in_the_answer(dims):
    network, pair = small("swin", dims, amplitude=3.0), images(SIZES[dims])
    right = predicted(network(*pair))
    for part in (network.finest[0], *network.projections):
        for channel in range(part.weight.shape[0]):
            saved = part.weight.detach().clone()
            with torch.no_grad():
                part.weight[channel, 0] += 0.5  # in one place: the channels of a token have a sum of 0
                assert (predicted(network(*pair)) - right).abs().max() > 1e-6
                part.weight.copy_(saved)


def test_dropped_paths_make_training_random_and_nothing_else():
    pair = images(SIZES[2])
    for rate in (0.0, 0.9):
        network = small("swin", 2, amplitude=3.0, drop_path=rate)
        assert_close(predicted(network(*pair)), predicted(network(*pair)), rtol=0, atol=0)
        network.train()
        answers = [predicted(network(*pair)) for _ in range(6)]
        assert all(torch.equal(answers[0], other) for other in answers[1:]) == (rate == 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"features": [4, 8]}, r"a transformer needs three to 6 levels, not features=\(4, 8\)"),
        ({"features": [4] * 7}, "a transformer needs three to 6 levels"),
        ({"features": [4, 7, 8]}, r"features\[1\]=7 is no multiple of heads=2"),
        ({"window": 1}, "window=1 is 2 or more"),
        ({"heads": 0}, "heads=0 is 1 or more"),
        ({"drop_path": 1.0}, "drop_path=1.0 from 0 to below 1"),
        ({"conditions": 1, "instance_norm": False}, "above 0 only with instance_norm"),
    ],
)
def test_a_transformer_that_cannot_be_built_is_refused(options, message):
    with pytest.raises(CourseError, match=f"a network 'swin' cannot be built .*{message}"):
        NetworkSpec("swin", {"spatial_dims": 2, **options}).build()
