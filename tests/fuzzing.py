"""Files that nobody meant to be read, given to every reader of the package: `python -m tests.fuzzing FOLDER`.

Prints a line of JSON: by reader how many files were tried, how many were refused, and the faults, which are all that is
no CourseError of one line; and how much memory the process had at most. It runs by itself, so that this is its own.
"""

import gzip
import io
import json
import os
import struct
import sys
import tarfile
import time
import traceback
import warnings
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from course_utils.checkpoint import Checkpoint
from course_utils.data.cohorts import load_cohort
from course_utils.data.pair_files import pairs_from_csv
from course_utils.data.registry import read_registry
from course_utils.data.unpacking import extract
from course_utils.data.volumes import read_image, read_labels
from course_utils.errors import CourseError
from course_utils.memory import most_memory
from course_utils.scans import learn2reg_evaluation
from course_utils.scans.applying import read_field
from tests.checkpoints import SLICES, checkpoint

EXAMPLES = 40
"""Files of each seed."""
CODE = "$__import__('os').mkdir('RAN')"
QUICK = settings(
    derandomize=True,
    deadline=None,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
VALUES = [None, True, -1, 0, 2**70, 1e308, float("nan"), "", "../../out", "/etc/passwd", "C:\\x", "a\0b", CODE, [], {}]
VALUES += [[[]], {"_target_": "os.mkdir", "path": "RAN"}, [1, 2, 3, 4, 5], "x" * 20_000, ["a"], {"a": 1}, "@x", "%x"]


@dataclass
class Tried:
    """What became of the files that one reader was given."""

    files: int = 0
    refused: int = 0
    seconds: float = 0.0
    faults: list[str] = field(default_factory=list)

    def read(self, reader, path):
        """Give a file to a reader, and note how it ends."""
        self.files += 1
        try:
            reader(path)
        except CourseError as error:
            self.refused += 1
            if "\n" in str(error) or len(str(error)) > 1000:
                self.faults.append(f"a message of several lines: {error}"[:500])
        except BaseException:
            self.faults.append(traceback.format_exc()[-1500:])


# --- how a file is spoilt ---------------------------------------------------------------------------------------------

EXTREMES = [0, 1, 255, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x7FC00000, 0x7F800000]
PLACE = st.one_of(st.integers(0, 400), st.integers(0, 2**20))
CHANGE = st.one_of(
    st.tuples(st.just("flip"), PLACE, st.integers(1, 255)),
    st.tuples(st.just("set"), PLACE, st.sampled_from(EXTREMES)),
    st.tuples(st.just("cut"), PLACE, st.just(0)),
    st.tuples(st.just("swap"), PLACE, PLACE),
    st.tuples(st.just("grow"), PLACE, st.integers(1, 3000)),
)
CHANGES = st.lists(CHANGE, min_size=1, max_size=3)


def spoilt(content, changes):
    """The bytes after each change: its kind, the place from the beginning or in any part, and a number."""
    content = bytearray(content)
    for kind, place, number in changes:
        if not content:
            break
        place %= len(content)
        if kind == "flip":
            content[place] ^= number
        elif kind == "set":
            content[place : place + 4] = struct.pack("<I", number)
        elif kind == "cut":
            del content[place:]
        elif kind == "swap":
            other = number % len(content)
            content[place], content[other] = content[other], content[place]
        else:
            content[place:place] = bytes(number)
    return bytes(content)


def leaves(value, way=()):
    """The ways to all values of a JSON document."""
    yield way
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, child in children:
        yield from leaves(child, (*way, name))


def replaced(document, way, value):
    """The document with another value in one place."""
    if not way:
        return value
    copy = json.loads(json.dumps(document))
    inner = copy
    for name in way[:-1]:
        inner = inner[name]
    inner[way[-1]] = value
    return copy


# --- the readers, and good files for them -----------------------------------------------------------------------------


def image(shape=(6, 7, 8), dtype=np.int16, slope=None):
    array = np.random.default_rng(0).integers(0, 900, shape).astype(dtype)
    file = nib.Nifti1Image(array, np.diag([2, 2, 2, 1]))
    if slope is not None:
        file.header.set_slope_inter(slope, 1)
    return file


def npz(**arrays):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def archive(kind):
    """Two members in an archive."""
    buffer = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr("a/1.nii", b"one" * 500)
            file.writestr("a/2.nii", b"two" * 500)
    else:
        with tarfile.open(fileobj=buffer, mode=kind) as file:
            for name in ("a/1.nii", "a/2.nii"):
                member = tarfile.TarInfo(name)
                member.size = 1500
                file.addfile(member, io.BytesIO(b"one" * 500))
    return buffer.getvalue()


def itk_files(folder):
    """NRRD and MetaImage, where SimpleITK is there."""
    import SimpleITK as sitk

    made = sitk.GetImageFromArray(np.random.default_rng(0).integers(0, 900, (6, 7, 8)).astype(np.int16))
    for name, packed in (("a.nrrd", False), ("a.nrrd", True), ("a.mha", False), ("a.mha", True)):
        sitk.WriteImage(made, str(folder / name), useCompression=packed)
        yield name, (folder / name).read_bytes()


def checkpoints(folder):
    made = checkpoint(SLICES)
    for name in ("a.pt", "a.safetensors"):
        made.save(folder / name)
        yield name, (folder / name).read_bytes()
    torch.save(made.to_dict(), folder / "plain.pt")
    yield "plain.pt", (folder / "plain.pt").read_bytes()


def files_of(folder):
    """By reader: what reads, and the names and bytes of good files."""
    packed, field_5d = gzip.compress(image().to_bytes(), mtime=0), image((6, 7, 8, 1, 3), np.float32)
    unpacked = extracting(folder)
    return {
        "image": (
            read_image,
            [("a.nii", image().to_bytes()), ("a.nii.gz", packed), ("s.nii", image(slope=2.0).to_bytes())],
        ),
        "NIfTI-2": (read_labels, [("two.nii", nib.Nifti2Image.from_image(image()).to_bytes())]),
        "MGH": (read_image, [("a.mgh", nib.MGHImage(np.ones((5, 5, 5), np.float32), np.eye(4)).to_bytes())]),
        "NumPy": (read_labels, [("a.npz", npz(vol=np.ones((5, 5, 5)), seg=np.ones((5, 5, 5), int)))]),
        "ITK": (read_image, list(itk_files(folder))),
        "field": (read_field, [("f.nii", field_5d.to_bytes())]),
        "checkpoint": (lambda path: Checkpoint.load(path).model(), list(checkpoints(folder))),
        "archive": (unpacked, [(f"a.{kind}", archive(kind.replace("tar", "w:"))) for kind in ("zip", "tar")]),
        "packed tar": (unpacked, [("a.tgz", archive("w:gz"))]),
        "list of pairs": (pairs_from_csv, [("p.csv", b"fixed_image,moving_image\na.nii,a.nii\n")]),
        "submission": submission(folder),
    }


def extracting(folder):
    def read(path):
        extract(path, folder / f"out{time.monotonic_ns()}", progress=False)

    return read


TASK = {
    "name": "Blobs",
    "labels": {"0": "background", "1": "shell"},
    "tensorImageShape": {"0": [6, 7, 8]},
    "training": [{"image": f"./imagesTr/Blobs_000{n}_0000.nii.gz"} for n in range(1, 4)],
    "registration_val": [{"fixed": "./imagesTr/Blobs_0001_0000.nii.gz", "moving": "./imagesTr/Blobs_0002_0000.nii.gz"}],
}
REGISTRY = {
    "mine": {
        "title": "Mine",
        "folder": "mine",
        "url": "https://example.org/a.zip",
        "checksum": "md5:00",
        "bytes": 5,
        "labels": {"1": "one"},
        "shape": [6, 7, 8],
        "spacing": [1.0, 1.0, 1.0],
        "image": "images/{name}.nii.gz",
        "label": "labels/{name}.nii.gz",
        "aligned": True,
        "members": ["*.nii.gz"],
        "validation": ["a"],
    }
}


def task(folder):
    """A Learn2Reg folder of three subjects."""
    for side in ("imagesTr", "labelsTr"):
        (folder / side).mkdir(parents=True)
        for n in range(1, 4):
            content = image(dtype=np.uint8).to_bytes()
            (folder / side / f"Blobs_000{n}_0000.nii.gz").write_bytes(gzip.compress(content, mtime=0))
    (folder / "Blobs_dataset.json").write_text(json.dumps(TASK), encoding="utf-8")
    return folder


def submission(folder):
    cohort = load_cohort("learn2reg", task(folder / "task"), download=False)
    name = "disp_0001_0000_0002_0000.nii.gz"
    field = gzip.compress(nib.Nifti1Image(np.zeros((6, 7, 8, 3), np.float32), np.eye(4)).to_bytes(), mtime=0)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr(name, field)
    learn2reg_evaluation._measure = lambda *_: []  # what is measured takes longer than what is read
    return lambda path: learn2reg_evaluation.evaluate_submission(path, cohort), [("s.zip", buffer.getvalue())]


NOTHING = bytes(2**20)
HUNDREDS = 320
"""Of them, in a file that packs to a thousandth."""


def bombs(folder):
    """Small files that ask for hundreds of megabytes, or for more than any machine has."""
    header = image((4, 4, 4), np.uint8).header
    header.set_data_shape((2**10, 2**10, HUNDREDS))
    start = header.binaryblock + bytes(4)
    with gzip.open(folder / "bomb.nii.gz", "wb", compresslevel=1) as file:
        file.write(start)
        for _ in range(HUNDREDS):
            file.write(NOTHING)
    yield read_image, folder / "bomb.nii.gz"
    yield read_labels, folder / "bomb.nii.gz"
    yield read_field, folder / "bomb.nii.gz"
    for kind, shape in ((np.float64, (660, 660, 660)), (np.uint8, (32767,) * 3), (np.float32, (32767,) * 6)):
        header.set_data_dtype(kind)
        header.set_data_shape(shape)
        claim = header.binaryblock + bytes(4) + np.random.default_rng(0).bytes(28_000)
        for name, content in (("claim.nii", claim), ("claim.nii.gz", gzip.compress(claim, mtime=0))):
            (folder / name).write_bytes(content)
            yield read_image, folder / name
            yield read_labels, folder / name
    mgh = nib.MGHImage(np.ones((4, 4, 4), np.uint8), np.eye(4)).to_bytes()
    (folder / "bomb.mgz").write_bytes(gzip.compress(mgh[:4] + struct.pack(">3i", 2000, 2000, 2000) + mgh[16:]))
    yield read_image, folder / "bomb.mgz"
    with zipfile.ZipFile(folder / "bomb.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        with file.open("vol.npy", "w") as member:
            shape = {"descr": "|u1", "fortran_order": False, "shape": (HUNDREDS, 2**10, 2**10)}
            np.lib.format.write_array_header_1_0(member, shape)
            for _ in range(HUNDREDS):
                member.write(NOTHING)
        with file.open("seg.npy", "w") as member:
            np.lib.format.write_array_header_1_0(member, shape | {"shape": (2**20, 2**20, 2**20)})
    yield read_image, folder / "bomb.npz"
    yield read_labels, folder / "bomb.npz"
    os.rename(folder / "bomb.nii.gz", folder / "disp_0001_0000_0002_0000.nii.gz")
    with zipfile.ZipFile(folder / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.write(folder / "disp_0001_0000_0002_0000.nii.gz", "disp_0001_0000_0002_0000.nii.gz")
    cohort = load_cohort("learn2reg", folder / "task", download=False)
    yield lambda path: learn2reg_evaluation.evaluate_submission(path, cohort), folder / "bomb.zip"
    for name, content in headers_of_itk():
        (folder / name).write_bytes(content)
        yield read_image, folder / name
    for kind in ("w", "w:gz"):
        with tarfile.open(folder / "bomb.tar", kind, format=tarfile.PAX_FORMAT) as file:
            member = tarfile.TarInfo("a.nii")
            member.pax_headers = {"comment": "x" * 2**25}
            file.addfile(member)
        yield extracting(folder), folder / "bomb.tar"


def headers_of_itk():
    """Headers that claim too much, or that their voxels are somebody else's file."""
    sizes = "32000 32000 32000"
    for place in ("LOCAL", "/etc/passwd", "../a.nii", "LIST"):
        text = f"ObjectType = Image\nNDims = 3\nDimSize = {sizes}\nElementType = MET_SHORT\nElementDataFile = {place}\n"
        yield "claim.mhd", text.encode() + bytes(1000)
        yield "claim.mha", text.encode() + bytes(1000)
    for place in ("", "data file: /etc/passwd\n", "data file: ../a.nii\n"):
        text = f"NRRD0004\ntype: short\ndimension: 3\nsizes: {sizes}\nencoding: gzip\nendian: little\n{place}\n"
        yield "claim.nrrd", text.encode() + bytes(1000)
        yield "claim.nhdr", text.encode() + bytes(1000)


def fuzz_bytes(folder, tried, reader, name, content):
    path = folder / name

    @settings(QUICK, max_examples=EXAMPLES)
    @given(changes=CHANGES, inside=st.booleans())
    def one(changes, inside):
        # In a gzip what is packed, too: its sums are then right, and only what they guard is wrong.
        wrapped = content[:2] == b"\x1f\x8b" and inside
        spoiled = gzip.compress(spoilt(gzip.decompress(content), changes)) if wrapped else spoilt(content, changes)
        path.write_bytes(spoiled)
        tried.read(reader, path)

    one()


def fuzz_values(folder, tried, reader, name, document):
    path = folder / name
    ways = list(leaves(document))

    @settings(QUICK, max_examples=EXAMPLES)
    @given(way=st.sampled_from(ways), value=st.sampled_from(VALUES))
    def one(way, value):
        path.write_text(json.dumps(replaced(document, way, value)), encoding="utf-8")
        tried.read(reader, path)

    one()


def fuzz_checkpoints(folder, tried):
    """Whole files whose values were replaced, and sealed anew: only their types can be wrong."""
    made = checkpoint(SLICES).to_dict()
    document = {name: value for name, value in made.items() if name != "weights"}
    document["card"]["labels"] = {str(value): name for value, name in document["card"]["labels"].items()}

    @settings(QUICK, max_examples=2 * EXAMPLES)
    @given(way=st.sampled_from(list(leaves(document))[1:]), value=st.sampled_from(VALUES))
    def one(way, value):
        torch.save(replaced(document, way, value) | {"weights": made["weights"]}, folder / "v.pt")
        tried.read(lambda path: Checkpoint.load(path).model(), folder / "v.pt")

    one()


def main(folder):
    """Give every reader its files."""
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    warnings.simplefilter("ignore")
    found = {}

    def timed(name, work):
        found[name], begun = Tried(), time.monotonic()
        work(found[name])
        found[name].seconds = round(time.monotonic() - begun, 1)

    for name, (reader, seeds) in files_of(folder).items():
        for each, content in seeds:
            reader_name = f"{name} {each}"
            timed(reader_name, lambda tried, r=reader, e=each, c=content: fuzz_bytes(folder, tried, r, e, c))
    timed("bombs", lambda tried: [tried.read(reader, path) for reader, path in bombs(folder)])
    timed("registry", lambda tried: fuzz_values(folder, tried, read_registry, "r.json", REGISTRY))
    whole = folder / "task"

    def read_task(path):
        load_cohort("learn2reg", whole, download=False)

    timed("dataset.json", lambda tried: fuzz_values(whole, tried, read_task, "Blobs_dataset.json", TASK))
    timed("values of a checkpoint", lambda tried: fuzz_checkpoints(folder, tried))
    peak = most_memory()
    print(json.dumps({"peak": peak, "ran": os.path.exists("RAN"), "tried": {n: vars(t) for n, t in found.items()}}))


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())
