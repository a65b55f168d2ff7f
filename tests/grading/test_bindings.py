import time

import pytest

from course_utils.grading.bindings import begins_anew, names_of


@pytest.mark.parametrize(
    ("source", "bound"),
    [
        ("def f(a):\n    b = a\n", {"f"}),
        ("class C:\n    x = 1\nasync def g(): pass", {"C", "g"}),
        ("a = 1\nb, (c, *d) = e\nf: float = 2", {"a", "b", "c", "d", "f"}),
        ("import numpy as np, torch.nn\nfrom os import (path, sep as s)", {"np", "torch", "path", "s"}),
        ("a == 1\nb += 1\nc[0] = 1\nd.e = 1\nprint(f=1)\nif g: pass", set()),
        ("!pip install x\n%time y = 1\nz = !ls", {"z"}),
        ("    return x", set()),
    ],
)
def test_the_names_at_the_top_of_a_cell(source, bound):
    assert names_of(source).bound == bound


@pytest.mark.parametrize(
    ("before", "source", "anew"),
    [
        ("def f(): pass", "def f(): return 1", True),
        ("f = 1", "import f", True),
        ("def f(): pass", "def f(n): return f(n - 1)", True),
        ("def f() return", "def f(): return 1", True),
        ("def g(): pass", "def f(): return 1", False),
        ("def f(): pass", "print(f())", False),
        ("def f(): pass\ng = 3", "def f(): return g", False),
        ("f = 1", "f = f + 1", False),
        ("def f():\n    x = 1", "    return x", False),
    ],
)
def test_a_second_attempt_needs_nothing_of_the_first(before, source, anew):
    assert begins_anew(source, before, {"f"}) == anew
    assert not begins_anew(source, before, set())


@pytest.mark.parametrize("text", ["-", "(", "a, ", "a.", "import a,", "\x00", "x: ", "def ", "lambda: ", "[a for "])
def test_text_that_would_bring_down_a_parser_is_read_in_no_time(text):
    began = time.process_time()
    names_of(text * 50_000 + "\n" + f"{text}\n" * 10_000)
    assert time.process_time() - began < 3
