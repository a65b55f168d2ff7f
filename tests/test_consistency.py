"""What a registration contradicts itself by, where the answer is known."""

from types import SimpleNamespace

import pytest
import torch

from course_utils.consistency import consistency


def pairs(shape):
    generator = torch.Generator().manual_seed(0)
    return [
        {name: torch.rand(1, *shape, generator=generator) for name in ("moving", "fixed")} | {"name": f"{n}"}
        for n in range(2)
    ]


def always(*shift):
    """A method that answers with the same displacement whatever it is shown."""

    def model(moving, fixed):
        vector = torch.tensor(shift).view(1, -1, *[1] * (moving.ndim - 2))
        return SimpleNamespace(displacement=vector.expand(1, -1, *moving.shape[2:]))

    return model


@pytest.mark.parametrize(
    ("shape", "shift", "length"), [((20, 24), (3.0, 4.0), 5.0), ((14, 12, 16), (1.0, 2.0, 2.0), 3.0)]
)
def test_one_answer_for_all_is_twice_its_length_away_from_an_inverse(shape, shift, length):
    table = consistency(always(*shift), pairs(shape))
    assert list(table["pair"]) == ["0", "1"]
    assert table["self_voxels"].to_list() == pytest.approx([length] * 2)
    assert table["swap_voxels"].to_list() == pytest.approx([2 * length] * 2)


def test_a_sign_that_follows_the_order_of_the_images_inverts_exactly():
    def model(moving, fixed):
        sign = torch.sign(moving.mean() - fixed.mean())
        return SimpleNamespace(displacement=sign * torch.ones(1, 2, *moving.shape[2:]))

    table = consistency(model, pairs((20, 24)))
    assert table[["swap_voxels", "self_voxels"]].to_numpy().tolist() == [[0.0, 0.0]] * 2
