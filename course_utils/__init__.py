"""Helpers of the course on deformable medical image registration: each part of it is described in docs/house.md.

Arrays are channel-first, `(B, C, D, H, W)` or `(B, C, H, W)`. A displacement is in voxels of the fixed grid and its
component `c` moves along array axis `c`: `moved(x) = moving(x + u(x))`.
"""

__version__ = "0.1.0"
