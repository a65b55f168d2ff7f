"""Registration networks, one file an architecture."""

from course_utils.networks.base import (
    ARCHITECTURES,
    NetworkSpec,
    Registration,
    RegistrationNetwork,
    VelocityNetwork,
    architecture,
)
from course_utils.networks.pyramid import Pyramid
from course_utils.networks.template import TemplateNetwork
from course_utils.networks.unet import UNet
from course_utils.networks.voxelmorph import VoxelMorph

__all__ = [
    "ARCHITECTURES",
    "NetworkSpec",
    "Pyramid",
    "Registration",
    "RegistrationNetwork",
    "TemplateNetwork",
    "UNet",
    "VelocityNetwork",
    "VoxelMorph",
    "architecture",
]
