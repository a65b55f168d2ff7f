"""A network whose encoder attends: MONAI's Swin transformer, and convolutions on the finest grid."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from course_utils.networks.base import VelocityNetwork, architecture, check_levels
from course_utils.networks.blocks import CONVOLUTION, convolution_block, velocity_head
from course_utils.networks.unet import Decoder

STAGES = 4
"""So many times MONAI's transformer attends and merges at most."""
BLOCKS = 2
"""Of a stage: one attends within windows, the next within windows that are shifted by half of their width."""


@architecture("swin")
class Swin(VelocityNetwork):
    """A Swin transformer encodes the two images, seen as channels, and VoxelMorph's decoder predicts the velocity.

    The finest level is a convolution, as in TransMorph: there attention would cost most and say least. On the next
    one, patches of the images become tokens. Each stage lets the tokens of a window attend to each other, then to those
    of shifted windows, and merges neighbours to the tokens of the next coarser level, which have twice the channels. Of
    each level a convolution of kernel 1 hands as many channels to the decoder as `features` says.

    Unlike a convolutional network it is not the same everywhere: images that are shifted by less than the windows of
    all stages divide fall into other windows.

    Args:
        spatial_dims: 2 or 3.
        features: Channels of the levels, finest first, three to six of them. The second is also the tokens' first
            number of channels, a multiple of `heads`.
        window: How many tokens along each axis attend to each other. Where the grid is smaller, all of it does.
        heads: Of the first stage; each next one has twice as many.
        drop_path: How probably a block of the deepest stage is skipped in training, 0 to below 1; earlier ones less.
        half_resolution, integration_steps, antisymmetric, edges: See `VelocityNetwork`.
        instance_norm: See `VelocityNetwork`; of the convolutions. Tokens are normalised one by one, always.
        conditions: See `VelocityNetwork`; the convolutions depend on them.

    Raises:
        ValueError: there are fewer than three levels or more than six, the channels are no multiple of the heads, or
            an argument is outside of what is said here.

    Source: Liu et al., Swin transformer: hierarchical vision transformer using shifted windows, ICCV 2021 (the
    encoder, as MONAI has it); Chen et al., TransMorph: transformer for unsupervised medical image registration, Medical
    Image Analysis 82, 2022 (for registration, with a convolutional decoder and a convolutional finest level).
    """

    def __init__(
        self,
        spatial_dims: int = 3,
        *,
        features: Sequence[int] = (16, 24, 32, 32),
        window: int = 4,
        heads: int = 2,
        drop_path: float = 0.0,
        half_resolution: bool = True,
        integration_steps: int = 7,
        instance_norm: bool = True,
        antisymmetric: bool = False,
        edges: bool = False,
        conditions: int = 0,
    ) -> None:
        check_levels(features)
        super().__init__(
            spatial_dims,
            len(features),
            half_resolution=half_resolution,
            integration_steps=integration_steps,
            instance_norm=instance_norm,
            antisymmetric=antisymmetric,
            edges=edges,
            conditions=conditions,
        )
        stages, tokens = len(features) - 2, features[1]
        if not 1 <= stages <= STAGES:
            raise ValueError(f"a transformer needs three to {STAGES + 2} levels, not features={tuple(features)}")
        if window < 2 or heads < 1 or not 0 <= drop_path < 1:
            raise ValueError(
                f"window={window} is 2 or more, heads={heads} is 1 or more, and drop_path={drop_path} from 0 to below 1"
            )
        if tokens % heads:
            raise ValueError(f"features[1]={tokens} is no multiple of heads={heads}")
        # Here, so that nobody who wants another network waits for all that MONAI imports with it.
        from monai.networks.nets.swin_unetr import SwinTransformer

        norms = {"instance_norm": instance_norm, "conditional": conditions > 0}
        self.finest = convolution_block(spatial_dims, 2, features[0], stride=self.first_stride, **norms)
        with _ReadableSteps():
            self.transformer = SwinTransformer(
                in_chans=2,
                embed_dim=tokens,
                window_size=[window] * spatial_dims,
                patch_size=[2 * self.first_stride] * spatial_dims,
                depths=[BLOCKS] * stages,
                num_heads=[heads * 2**stage for stage in range(stages)],
                drop_path_rate=drop_path,
                spatial_dims=spatial_dims,
                downsample="mergingv2",  # which takes all eight neighbours in every version of MONAI
            )
        self.projections = nn.ModuleList(
            CONVOLUTION[spatial_dims](tokens * 2**number, width, 1) for number, width in enumerate(features[1:])
        )
        self.decoder = Decoder(spatial_dims, features, **norms)
        self.velocity = velocity_head(spatial_dims, features[0], bias=not antisymmetric)

    def tokens(self, pair: Tensor) -> list[Tensor]:
        """Tokens of each level but the finest, `(B, features[1] * 2^i, *spatial / first_stride / 2^(i + 1))`.

        They are what `SwinTransformer.forward` returns, which wants four stages.

        Args:
            pair: Moving and fixed images, `(B, 2, *spatial)`.
        """
        transformer = self.transformer
        x = transformer.pos_drop(transformer.patch_embed(pair))
        levels = [x]
        for stages in (transformer.layers1, transformer.layers2, transformer.layers3, transformer.layers4):
            for stage in stages:  # one, or none
                x = stage(x.contiguous())
                levels.append(x)
        return [transformer.proj_out(level, normalize=True) for level in levels]

    def predict(self, moving: Tensor, fixed: Tensor, condition: Tensor | None) -> Tensor:
        """See `VelocityNetwork.predict`."""
        code = self.code(condition, len(moving))
        pair = torch.cat([moving, fixed], dim=1)
        coarser = [project(x) for project, x in zip(self.projections, self.tokens(pair), strict=True)]
        return self.velocity(self.decoder([self.finest(pair, code), *coarser], code)).float()


class _ReadableSteps(TorchFunctionMode):
    """Even steps are on the CPU on any device: MONAI's transformer reads them one by one while it is built."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        return func(*args, **(given | {"device": "cpu"} if func is torch.linspace else given))
