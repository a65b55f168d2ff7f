"""What a student's cell may have changed is put back; what libraries do by themselves is left alone."""

import sys
from types import ModuleType

import pytest

from course_utils.grading.kernel import Snapshot, take_snapshot
from course_utils.grading.plan import make_plan


@pytest.fixture
def module(monkeypatch):
    """A module like those that checks rely on."""
    made = ModuleType("course_utils.made")
    code = """
class Tensor:
    def __eq__(self, other): return self is other
    __hash__ = None
    def sum(self): return 1
    @staticmethod
    def of(x): return x

class Child(Tensor): pass

def allclose(a, b, *, rtol=0.1): return abs(a - b) < rtol

cache, seen = None, []
"""
    exec(code, vars(made))
    for value in (made.Tensor, made.Child):
        value.__module__ = "course_utils.made"
    monkeypatch.setitem(sys.modules, "course_utils.made", made)
    return made


@pytest.mark.parametrize(
    "patch",
    [
        "made.allclose = lambda *_: True",
        "del made.allclose",
        "made.allclose.__code__ = (lambda a, b, rtol=1: True).__code__",
        "made.allclose.__kwdefaults__ = {'rtol': 1e9}",
        "made.Tensor.sum = lambda self: 2",
        "made.Tensor.of = staticmethod(lambda x: 3)",
        "made.Child.sum = lambda self: 2",
        "made.Tensor = dict",
        "import sys; sys.modules['course_utils.made'] = None",
    ],
)
def test_functions_classes_and_modules_are_what_they_were(module, patch):
    snapshot = Snapshot(["course_utils.made"])
    tensor, child = module.Tensor, module.Child
    exec(patch, {"made": module})
    snapshot.restore()
    now = sys.modules["course_utils.made"]
    assert now is module
    assert now.Tensor is tensor
    assert now.Child().sum() == child().sum() == 1
    assert now.Tensor.of(7) == 7
    assert now.allclose(1, 1.05) and not now.allclose(1, 2)


CHECK = """\
import torch

from course_utils.grading.judges import voxelmorph as judges

judges.reach(lambda network, channels, size: 7, torch.nn.Conv2d(1, 1, 3), channels=1, size=9, what="a kernel")
"""


class Agreeable:
    """Has every function, and none of them minds."""

    def __getattr__(self, name):
        return lambda *_, **__: None


@pytest.mark.parametrize(
    "patch",
    [
        "judges.voxelmorph.reach = lambda *_, **__: None",
        "judges.voxelmorph.reach.__code__ = (lambda *_, **__: None).__code__",
        "judges.voxelmorph = Agreeable()",
        "sys.modules['course_utils.grading.judges'] = sys.modules['course_utils.grading'].judges = Agreeable()",
        "sys.modules['course_utils.grading.judges.voxelmorph'] = Agreeable()",
        "judges.voxelmorph.checks = Agreeable()",
        "judges.voxelmorph.checks.agree = lambda *_, **__: None",
        "judges.voxelmorph.checks.float = lambda _: 7.0",
    ],
)
def test_a_judge_in_whose_place_something_else_was_put_still_judges(patch):
    snapshot = take_snapshot(make_plan({}, {}, [CHECK]).imports)
    exec(patch, {"judges": sys.modules["course_utils.grading.judges"], "sys": sys, "Agreeable": Agreeable})
    snapshot.restore()
    with pytest.raises(AssertionError, match="it should be 3 and is 7"):
        exec(CHECK, {})


def test_a_name_of_python_s_is_not_hidden(module):
    snapshot = Snapshot(["course_utils.made"])
    module.abs, module.sum = lambda _: 0, "no function"
    snapshot.restore()
    assert not module.allclose(1, 2)
    assert module.sum == "no function"


def test_settings_and_caches_are_left_alone(module):
    snapshot = Snapshot(["course_utils.made"])
    module.cache, module.added = {"filled": True}, print
    module.seen.append(1)
    snapshot.restore()
    assert (module.cache, module.added, module.seen) == ({"filled": True}, print, [1])


def test_a_module_s_own_names_of_modules_are_put_back():
    from course_utils import grading
    from course_utils.grading.judges import two_directions

    wanted = grading.judges, two_directions, two_directions.torch, two_directions.agree
    snapshot = take_snapshot(["course_utils.grading.judges.two_directions"])
    try:
        two_directions.torch = two_directions.agree = grading.judges.two_directions = grading.judges = print
    finally:
        snapshot.restore()
    now = grading.judges.two_directions
    assert (grading.judges, now, now.torch, now.agree) == wanted


def test_torch_and_numpy_compare_again():
    import numpy as np
    import torch

    snapshot = take_snapshot(["numpy", "torch", "course_utils.no_module"])
    try:
        torch.allclose = np.allclose = np.testing.assert_allclose = torch.equal = lambda *_, **__: True
        torch.Tensor.__eq__ = torch.Tensor.all = torch.testing.assert_close = lambda *_, **__: True
    finally:
        snapshot.restore()
    assert not torch.allclose(torch.zeros(2), torch.ones(2))
    assert not (torch.zeros(2) == torch.ones(2)).all()
    assert not np.allclose(0, 1)
    for different in (
        np.testing.assert_allclose,
        lambda a, b: torch.testing.assert_close(torch.tensor(a), torch.tensor(b)),
    ):
        with pytest.raises(AssertionError):
            different(0.0, 1.0)
