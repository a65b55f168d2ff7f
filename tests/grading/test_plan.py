"""What the kernel is told of a notebook, by however many threads."""

import sys
import threading
import time

import pytest

from course_utils.grading.plan import bound, cell_hash, imported, make_plan


def test_the_plan_names_what_exercises_bind_and_what_the_notebook_imports():
    asked = {"warp": "import math\ndef warp(u, v=1):\n    inner = u\nscale, (a, b) = 1, (2, 3)", "loss": "loss = 0"}
    code = ["import numpy as np, torch.nn", "from os import path\nfrom . import mine", "%matplotlib inline"]
    plan = make_plan({"warp": "def warp(): pass"}, asked, code)
    assert plan.answers == {cell_hash("def warp(): pass"): ["math", "warp", "scale", "a", "b"]}
    assert plan.imports == ["numpy", "os", "os.path", "torch.nn"]


def test_one_cell_in_two_exercises_may_bind_the_names_of_both():
    plan = make_plan({"one": "pass", "two": "pass"}, {"one": "a = 1", "two": "b = 1"}, [])
    assert plan.answers == {cell_hash("pass"): ["a", "b"]}


class Cycle:
    """Garbage whose end runs Python: a thread that builds a syntax tree then lets others run in the middle of it."""

    def __init__(self):
        self.itself = self

    def __del__(self):
        for _ in range(50):
            pass


@pytest.fixture
def restless():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def test_many_threads_read_nested_code_at_a_time(restless):
    """Python 3.11 counts the depth of a tree for all threads together, and fails where two build one at a time."""
    nested = "import math\nx = " + "(" * 60 + "1" + ",)" * 60
    nested += "".join(f"\ndef f{n}(a, b):\n    return [a + b * {n} for c in range(9)]" for n in range(40))
    errors, end = [], time.monotonic() + 3

    def read():
        while not errors and time.monotonic() < end:
            garbage = [Cycle() for _ in range(50)]
            del garbage
            try:
                assert list(imported(nested)) == ["math"]
                assert bound(nested)[:2] == ["math", "x"]
            except Exception as error:
                errors.append(error)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
