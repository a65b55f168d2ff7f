"""DICOM files of a few tags, byte by byte, so that every fault of an export can be written.

Explicit VR, little endian (PS3.5, chapters 7 and A.2). Nothing of what reads them takes part.
"""

import struct
from pathlib import Path

import numpy as np

UID = "1.2.826.0.1.3680043.2.1125"
MR, ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.4.1"
LITTLE_ENDIAN = "1.2.840.10008.1.2.1"


def element(group, number, kind, value):
    """The bytes of a data element; a sequence's value is a list of items' bytes."""
    if kind == "SQ":
        value = b"".join(struct.pack("<HHI", 0xFFFE, 0xE000, len(item)) + item for item in value)
    elif kind == "US":
        value = struct.pack("<H", value)
    elif isinstance(value, str):
        value = value.encode() + (b"\0" if kind == "UI" else b" ") * (len(value) % 2)
    head = struct.pack("<HH", group, number) + kind.encode()
    if kind in ("OB", "OW", "SQ"):
        return head + b"\0\0" + struct.pack("<I", len(value)) + value
    return head + struct.pack("<H", len(value)) + value


def decimals(values):
    return "\\".join(f"{value:.9g}"[:16] for value in values)


def dicom_file(path, elements, of=MR):
    """Write a file; `elements` are `(group, number, kind, value)`, those whose value is None are left out."""
    meta = element(2, 2, "UI", of) + element(2, 3, "UI", f"{UID}.9") + element(2, 0x10, "UI", LITTLE_ENDIAN)
    body = b"".join(element(*one) for one in sorted(elements, key=lambda one: one[:2]) if one[3] is not None)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\0" * 128 + b"DICM" + element(2, 0, "UL", struct.pack("<I", len(meta))) + meta + body)


def image_elements(array, uid, **tags):
    """What every image has: `array` is (columns, rows) or (columns, rows, frames) int16."""
    pixels = np.ascontiguousarray(array.T).astype("<i2").tobytes()
    named = {"description": (0x08, 0x103E, "LO"), "echo": (0x18, 0x86, "IS"), "slope": (0x28, 0x1053, "DS")}
    return [
        (0x08, 0x16, "UI", MR),
        (0x08, 0x18, "UI", f"{uid}.{abs(hash(pixels)) % 10**9}"),
        (0x08, 0x60, "CS", "MR"),
        (0x20, 0x0D, "UI", UID),
        (0x20, 0x0E, "UI", uid),
        (0x28, 0x02, "US", 1),
        (0x28, 0x04, "CS", "MONOCHROME2"),
        (0x28, 0x10, "US", array.shape[1]),
        (0x28, 0x11, "US", array.shape[0]),
        *((0x28, number, "US", value) for number, value in ((0x100, 16), (0x101, 16), (0x102, 15), (0x103, 1))),
        (0x7FE0, 0x10, "OW", pixels),
        *((*named[name], str(value)) for name, value in tags.items()),
        *([(0x28, 0x1052, "DS", "0")] if "slope" in tags else []),
    ]


def write_series(
    folder,
    volume,
    affine,
    *,
    uid=f"{UID}.7",
    drop=(),
    twice=(),
    position=True,
    spacing=True,
    number=lambda k: k + 1,
    shift=lambda k: np.zeros(3),
    slope=lambda k: None,
    start=0,
    **tags,
):
    """A file for each slice of `volume` (columns, rows, slices), whose voxels lie where `affine` (RAS) has them.

    Names follow no order. `shift(k)` moves slice k by mm (LPS), `slope(k)` is its rescale slope, `drop` and `twice`
    name slices.
    """
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    steps = np.linalg.norm(lps[:3, :3], axis=0)
    for k in range(volume.shape[2]):
        for copy in range(0 if k in drop else 2 if k in twice else 1):
            more = tags if slope(k) is None else {**tags, "slope": slope(k)}
            elements = [
                *image_elements(volume[:, :, k], uid, **more),
                (0x20, 0x13, "IS", str(number(k))),
                (0x20, 0x37, "DS", decimals((lps[:3, :2] / steps[:2]).T.ravel())),
                (0x20, 0x32, "DS", decimals(lps[:3] @ [0, 0, k, 1] + shift(k)) if position else None),
                (0x28, 0x30, "DS", decimals(steps[1::-1]) if spacing else None),
            ]
            dicom_file(Path(folder) / f"{start + k * 7 % 997:04d}_{copy}.dcm", elements)


def write_enhanced(path, volume, affine, *, order=None, drop=(), **tags):
    """One file of many frames, stored in `order` (of slices), those of `drop` left out."""
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    steps = np.linalg.norm(lps[:3, :3], axis=0)
    frames = [k for k in order or range(volume.shape[2]) if k not in drop]
    plane = element(0x20, 0x37, "DS", decimals((lps[:3, :2] / steps[:2]).T.ravel()))
    measures = element(0x18, 0x50, "DS", decimals(steps[2:])) + element(0x18, 0x88, "DS", decimals(steps[2:]))
    measures += element(0x28, 0x30, "DS", decimals(steps[1::-1]))
    shared = element(0x20, 0x9116, "SQ", [plane]) + element(0x28, 0x9110, "SQ", [measures])
    each = [element(0x20, 0x9113, "SQ", [element(0x20, 0x32, "DS", decimals(lps[:3] @ [0, 0, k, 1]))]) for k in frames]
    elements = [
        *(one for one in image_elements(volume[:, :, frames], f"{UID}.8", **tags) if one[:2] != (0x08, 0x16)),
        (0x08, 0x16, "UI", ENHANCED_MR),
        (0x28, 0x08, "IS", str(len(frames))),
        (0x5200, 0x9229, "SQ", [shared]),
        (0x5200, 0x9230, "SQ", each),
    ]
    dicom_file(Path(path), elements, of=ENHANCED_MR)
