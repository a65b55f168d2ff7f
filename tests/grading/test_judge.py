"""The judge and the student's process: what crosses between them, and that every check says there what it says at home.

The student's process runs without a sandbox here; tests/grading/test_forgers.py and test_hostile_class.py use both.
"""

import contextlib
import importlib
import json
import linecache
import math
import os
import socket
import subprocess
import sys
import textwrap
import threading

import matplotlib
import numpy as np
import pytest
import torch

from course_utils import networks
from course_utils.grading import checks, trained
from course_utils.grading.assignments import SOLUTION, exercises, read_assignment
from course_utils.grading.bindings import names_of
from course_utils.grading.judge import Guest
from course_utils.grading.layers import built, described
from course_utils.grading.link import Broken, Peer
from course_utils.grading.plain import NotPlain, pack, unpack
from course_utils.grading.standins import StandIn, Student, student_error, there
from notebooks import build

SOURCES = build.assignments()
TRAININGS = {"train", "train-well"}
"""Exercises that take long, which the engine's own test runs."""


def there_and_back(value):
    row = bytearray()
    document = json.loads(json.dumps(pack(value, row)))
    return unpack(document, row)


@pytest.mark.parametrize(
    "value",
    [
        *(
            None,
            True,
            7,
            -(10**30),
            0.1,
            math.inf,
            1 + 2j,
            "ä\n\ud800",
            [],
            (1, [2.5, ("a",)]),
            {1, 2},
            {"a": {3: None}},
        ),
        *(np.float32(0.1), np.int64(3), np.arange(6, dtype=np.uint8).reshape(2, 3), np.zeros((0, 4)), np.array(True)),
        *(torch.arange(6).view(2, 3).t(), torch.tensor(0.1), torch.zeros(0, 2), torch.ones(2, dtype=torch.bfloat16)),
        *(torch.ones(1).expand(3), torch.tensor([1 + 2j]).conj(), torch.tensor([True]), torch.zeros(2, 1, 3).half()),
    ],
    ids=repr,
)
def test_plain_data_comes_back_as_it_was(value):
    back = there_and_back(value)
    assert type(back) is type(value)
    if isinstance(value, torch.Tensor | np.ndarray):
        assert back.dtype == value.dtype and back.shape == value.shape and bool((back == value).all())
    else:
        assert back == value


def test_what_is_almost_plain_becomes_plain():
    class Name(str):
        pass

    assert type(there_and_back(Name("a"))) is str
    assert type(there_and_back(np.str_("a"))) is str
    assert type(there_and_back(torch.Size([1, 2]))) is tuple
    assert type(there_and_back(torch.nn.Parameter(torch.ones(2)))) is torch.Tensor
    assert not there_and_back(torch.ones(2, requires_grad=True) * 2).requires_grad
    field = torch.ones(1, 2, 4, 4)
    back = there_and_back(networks.Registration(field[:, :1], field, None))
    assert type(back) is networks.Registration and torch.equal(back.displacement, field) and back.velocity is None


@pytest.mark.parametrize(
    "value", [object(), print, [lambda: 0], torch.nn.ReLU(), np.array(["a"]), torch.ones(2).to_sparse()]
)
def test_nothing_else_is_plain(value):
    with pytest.raises(NotPlain):
        there_and_back(value)


DEEP = []
for _ in range(500):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    "document",
    [
        *({"tensor": ["float32", [2], 0]}, {"tensor": ["float32", [1 << 40], 0]}, {"tensor": ["float32", [-1], 0]}),
        *({"tensor": ["object", [1], 0]}, {"tensor": ["float32", [1] * 99, 0]}, {"tensor": ["float32", [1], -4]}),
        *({"tensor": 3}, {"tensor": ["float32", [1.0], 0]}, {"array": ["<U9", [1], 0]}, {"scalar": ["float64", 0]}),
        *({"int": "0x"}, {"int": "9" * 9}, {"int": None}, {"complex": [1]}, {"dict": [[[1], 2]]}, {"set": [[1]]}),
        *({"dict": 3}, {"tuple": None}, {"registration": [1, 2, 3]}, {"registration": []}, {}, {"a": 1, "b": 2}),
        *({"pickle": "x"}, {"object": [1, "x"]}, DEEP),
    ],
    ids=lambda document: str(document)[:40],
)
def test_a_document_that_is_none_is_refused(document):
    try:
        value = unpack(document, bytearray(4))
    except NotPlain:
        return
    assert value == 0x999999999  # the one that is a number after all


def test_large_things_are_not_sent():
    with pytest.raises(NotPlain, match="larger than 128 MB"):
        pack(torch.zeros(1).expand(1 << 26), bytearray())
    with pytest.raises(NotPlain, match="larger than 128 MB"):
        pack([torch.zeros(1 << 23)] * 5, bytearray())
    endless = []
    endless.append(endless)
    with pytest.raises(NotPlain, match="deeper"):
        pack(endless, bytearray())


@pytest.mark.parametrize(
    "said",
    [
        *(b"", b"\xff" * 16, b"\0" * 16, (5).to_bytes(8, "little") + bytes(8) + b"[1,2]"),
        (4).to_bytes(8, "little") + (1 << 40).to_bytes(8, "little") + b"null",
        (100_000).to_bytes(8, "little") + bytes(8) + b"[" * 100_000,
    ],
)
def test_a_message_that_is_none_ends_the_line(said):
    ours, theirs = socket.socketpair()
    threading.Thread(target=lambda: (theirs.sendall(said), theirs.close())).start()
    peer = Peer(ours.detach(), lambda question, row: ({}, b""))
    with pytest.raises(Broken):
        peer.serve()


def test_errors_have_the_type_that_python_has_and_no_other():
    for told, kind in (
        ({"name": "IndexError", "text": "pair 3"}, IndexError),
        ({"name": "Mine", "base": "ValueError", "text": "x"}, ValueError),
        ({"name": "SystemExit", "base": "SystemExit", "text": "0"}, Exception),
        ({"name": "StopIteration", "base": "StopIteration"}, Exception),
        ({"name": "UnicodeDecodeError", "base": "UnicodeDecodeError", "text": "x"}, Exception),
        ({"name": "print", "base": "print"}, Exception),
        ({"name": 3, "text": [4]}, Exception),
        (None, Exception),
        ("x", Exception),
    ):
        error = student_error(told)
        assert isinstance(error, kind) and not isinstance(error, StopIteration | UnicodeError)
        assert not isinstance(told, dict) or str(error) == str(told.get("text") or "")


@pytest.mark.parametrize(
    "module",
    [
        *(
            networks.UNet(2, 2, (4, 6), first_stride=1),
            networks.VoxelMorph(2, features=(4, 6)),
            torch.nn.Conv3d(1, 2, 3),
        ),
        torch.nn.Sequential(torch.nn.Conv2d(2, 2, 3, dilation=2), torch.nn.LeakyReLU(0.2), torch.nn.InstanceNorm2d(2)),
    ],
    ids=lambda module: type(module).__name__,
)
def test_layers_are_built_again(module):
    again = built(there_and_back(described(module)))
    assert type(again) is type(module) and str(again) == str(module)
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), again.parameters(), strict=True))


@contextlib.contextmanager
def student_of(cells, folder):
    """A student's process with these cells."""
    page = folder / "cells.json"
    page.write_text(json.dumps(cells), encoding="utf-8")
    ours, theirs = socket.socketpair()
    with theirs:
        code = "from pathlib import Path\nfrom course_utils.grading import answering\n"
        code += f"answering.main(Path({str(page)!r}), {theirs.fileno()})"
        command = [sys.executable, "-c", code]
        environment = os.environ | {"PYTHONPATH": str(build.ROOT)}
        process = subprocess.Popen(command, pass_fds=[theirs.fileno()], cwd=folder, env=environment)
    try:
        yield Student(ours.detach())
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """A student's process; `asked(NAME)` is what the cell below binds."""
    cell = """
import torch
print("written")
def add(a, b=1): return a + b
def ask(function, x): return function(x, scale=2) + 1
def grow(image): return image.add_(1)
def fails(x): raise LookupError(f"no {x}")
def quits(): raise SystemExit(3)
def gradients(): return torch.is_grad_enabled()
def total(pairs): return sum(pairs[n]["x"].item() for n in range(len(pairs)))
def applied(layer, x): return layer(x)
def inverse(x): return torch.linalg.inv(x)
def number(x): return x.sum().item()
class Holder:
    def __init__(self, items): self.items = items
    def __len__(self): return len(self.items)
    def __getitem__(self, n): return self.items[n]
answer = 42
raise KeyError("at the end")
"""
    names = sorted(names_of(cell).bound)
    with student_of(["three = 3", cell], tmp_path_factory.mktemp("student")) as student:
        student.prepare(1)
        values, shown, failure = student.run(1, [*names, "nothing"])
        assert shown == [{"text": "written\n"}]
        assert isinstance(failure, KeyError) and str(failure) == "'at the end'"
        assert "nothing" not in values
        yield values.__getitem__


def test_calls_go_there_and_plain_data_comes_back(asked):
    assert asked("answer") == 42
    assert isinstance(asked("add"), StandIn) and type(asked("add")).__name__ == "function"
    assert asked("add")(2) == 3 and asked("add")([1], b=[2]) == [1, 2]
    image = torch.zeros(2)
    assert asked("grow")(image).sum() == 2 and image.sum() == 0
    holder = asked("Holder")("abc")
    assert type(holder).__name__ == "Holder" and len(holder) == 3 and holder[1] == "b"
    with pytest.raises(IndexError):
        holder[9]


def test_errors_come_back_too(asked):
    with pytest.raises(LookupError, match=r"^no 3$"):
        asked("fails")(3)
    with pytest.raises(Exception, match="3") as error:
        asked("quits")()
    assert type(error.value).__name__ == "SystemExit"
    assert asked("add")(1) == 2


def test_functions_and_data_sets_are_lent(asked):
    def tenfold(x, scale):
        assert type(x) is int
        return 10 * x * scale

    assert asked("ask")(tenfold, 2) == 41
    with pytest.raises(AssertionError):
        asked("ask")(tenfold, "a")
    with pytest.raises(NotPlain):  # nobody lends an object
        asked("ask")(object(), 2)

    class Pairs(torch.utils.data.Dataset):
        def __len__(self):
            return 3

        def __getitem__(self, n):
            return {"x": torch.tensor(n)}

    assert asked("total")(Pairs()) == 3


def test_layers_are_copied(asked):
    layer, x = torch.nn.Conv2d(1, 2, 3), torch.ones(1, 1, 4, 4)
    assert torch.equal(asked("applied")(layer, x), layer(x))
    assert asked("gradients")()
    with torch.no_grad():
        assert not asked("gradients")()


def helped(function, x):
    return helper(function(x)) * FACTOR


def helper(x):
    return math.sqrt(x)


FACTOR = 2.0


def test_a_check_s_own_function_runs_there(asked, monkeypatch):
    for function in (helped, helper):
        monkeypatch.setattr(function, "__module__", "__main__")
    assert there(helped, asked("add"), 8.0) == there(helped, lambda x: x + 1, 8.0) == 6.0


def test_checks_look_at_objects_where_they_are(asked):
    x = torch.tensor([[2.0, 0], [0, 4]])
    with pytest.raises(AssertionError, match="uses inv, linalg"):
        checks.by_hand(asked("inverse"), {"inv", "linalg"}, "solve it")
    with pytest.raises(AssertionError, match="no gradient flows"):
        checks.gradient(asked("number"), x, what="number")
    with pytest.raises(AssertionError, match=r"it should be an nn\.Module and is a Holder"):
        checks.parameters(asked("Holder")("a"), "a holder")
    checks.raises(IndexError, asked("Holder")("a").__getitem__, 4, what="the fourth")


TRAIN = """
import torch
from course_utils.data.loading import loader
from course_utils.networks import VoxelMorph
def train(pairs, seed, stop=16, workers=0):
    model = VoxelMorph(2, features=(2, 3))
    for batch in loader(pairs, batch_size=4, stop=stop, workers=workers):
        model(batch["moving"], batch["fixed"])
    model.velocity.bias.data.fill_(seed)
    return model
def greedy(pairs, seed): return train(pairs, seed, stop=17)
def forked(pairs, seed): return train(pairs, seed, workers=2)
def idle(pairs, seed): return VoxelMorph(2)
def nothing(pairs, seed): train(pairs, seed)
class Mine(VoxelMorph): pass
def mine(pairs, seed):
    train(pairs, seed)
    return Mine(2)
def large(pairs, seed):
    model = train(pairs, seed)
    model.spec.arguments["features"] = [10**6, 10**6]
    return model
"""


def test_a_network_that_is_trained_there_comes_back_and_the_judge_counts_the_pairs(tmp_path):
    class Pairs(torch.utils.data.Dataset):
        def __len__(self):
            return 1000

        def __getitem__(self, n):
            return {"moving": torch.full((1, 16, 16), float(n)), "fixed": torch.ones(1, 16, 16), "name": f"pair {n}"}

    with student_of([TRAIN], tmp_path) as student:
        found, _, failure = student.run(0, sorted(names_of(TRAIN).bound))
        assert failure is None
        for name in ("train", "forked"):
            network = trained.trained_by(found[name], Pairs(), 16, seed=3)
            assert type(network) is networks.VoxelMorph and network.spec.arguments["features"] == [2, 3]
            assert network.velocity.bias.tolist() == [3, 3] and not network.training
        for name, says in {
            "greedy": "the budget of 16 pairs is spent",
            "idle": "0 of the 16 pairs were asked for",
            "nothing": "returns a NoneType",
            "mine": "returns a Mine",
            "large": "is it a plain VoxelMorph",
        }.items():
            with pytest.raises(AssertionError, match=says):
                trained.trained_by(found[name], Pairs(), 16, seed=3)


def test_an_answer_binds_nothing_that_the_assignment_has_bound(monkeypatch, capsys):
    page = {"truth": 1}
    guest = Guest(socket.socketpair()[0].detach(), page)
    answers = iter([{"truth": 2, "own": 3}, {"own": 4}])
    monkeypatch.setattr(
        guest, "run", lambda number, names: (next(answers), [{"text": "a"}, {"picture": "no"}, 5], None)
    )
    guest.answer(0, ["truth", "own"])
    guest.answer(1, ["own"])
    assert page == {"truth": 1, "own": 4}
    assert capsys.readouterr().out == "aa"


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_every_wrong_answer_hears_from_the_judge_what_it_hears_at_home(source, tmp_path, built_in_cohort, monkeypatch):
    notebook = read_assignment(source)
    wrong = importlib.import_module(f"tests.grading.wrong_answers.{source.stem[3:]}")
    right = [(each.grade_id, None, None) for each in exercises(notebook)]
    right += [(name, code, None) for name, code in getattr(wrong, "RIGHT", [])]
    cells, steps = [], []  # a step is a cell of the judge's, what it is to say, and the student's cell before it
    for cell in notebook.cells:
        name = cell.metadata.nbgrader.grade_id.removesuffix("-check")
        if cell.cell_type != "code" or name in TRAININGS or cell.metadata.nbgrader.solution:
            continue
        if not cell.metadata.nbgrader.grade:
            steps.append((cell, None, None))
            cells.append(cell.source)
            continue
        solution = next(each for each in notebook.cells if each.id == name)
        for exercise, code, says in [*right, *wrong.WRONG]:
            if exercise == name:
                steps.append((cell, says, len(cells)))
                cells.append(solution.source if code is None else in_place(solution.source, code))
    page = {"__name__": "__main__"}
    monkeypatch.chdir(tmp_path)
    matplotlib.use("Agg")
    heard = 0
    with student_of(cells, tmp_path) as student:
        for cell, says, number in steps:
            if number is not None:
                asked = sorted(
                    names_of(next(each for each in notebook.cells if each.id == f"{cell.id[:-6]}").source).bound
                )
                page.update(student.run(number, asked)[0])
            linecache.cache[cell.id] = len(cell.source), None, cell.source.splitlines(keepends=True), cell.id
            failure = None
            try:
                exec(compile(cell.source, cell.id, "exec"), page)
            except Exception as error:
                failure = f"{type(error).__name__}: {error}"
            if number is not None:
                assert (failure is None) == (says is None), f"{cell.id}: {failure}, and not {says}"
                assert says is None or says in failure
                heard += 1
    assert heard > 30


def in_place(source, code):
    """A solution cell with this code in place of the solution."""
    lines = source.splitlines()
    begin, end = (next(i for i, line in enumerate(lines) if line.strip() == marker) for marker in SOLUTION)
    indent = lines[begin][: len(lines[begin]) - len(lines[begin].lstrip())]
    return "\n".join([*lines[:begin], textwrap.indent(code.rstrip(), indent), *lines[end + 1 :]])
