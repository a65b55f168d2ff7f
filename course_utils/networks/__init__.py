"""Registration networks, one file an architecture."""

from course_utils.networks.base import (
    ARCHITECTURES,
    NetworkSpec,
    RegistrationNetwork,
    VelocityNetwork,
    architecture,
)
from course_utils.networks.hypernetwork import Hypernetwork
from course_utils.networks.inception import Inception, InceptionStem
from course_utils.networks.joint import Joint, scores_of
from course_utils.networks.probabilistic import LOG_VARIANCE, MEAN, Probabilistic
from course_utils.networks.pyramid import Pyramid
from course_utils.networks.refined import Refined
from course_utils.networks.registration import Registration
from course_utils.networks.smoothness import SmoothnessRange
from course_utils.networks.swin import Swin
from course_utils.networks.template import TemplateNetwork
from course_utils.networks.unet import UNet
from course_utils.networks.voxelmorph import VoxelMorph

__all__ = [
    "ARCHITECTURES",
    "LOG_VARIANCE",
    "MEAN",
    "Hypernetwork",
    "Inception",
    "InceptionStem",
    "Joint",
    "NetworkSpec",
    "Probabilistic",
    "Pyramid",
    "Refined",
    "Registration",
    "RegistrationNetwork",
    "SmoothnessRange",
    "Swin",
    "TemplateNetwork",
    "UNet",
    "VelocityNetwork",
    "VoxelMorph",
    "architecture",
    "scores_of",
]
