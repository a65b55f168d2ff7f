"""An assignment whose checks use `checks`, a library as the truth, and tensors, and what forgers hand in of it."""

from tests.grading.small_assignments import exercise

HIDDEN_TEXT = "none may read this line"

SOURCE = (
    """
# %% [markdown]
# # Fields

# %%
import matplotlib.pyplot as plt
import nibabel
import numpy as np
import torch

from course_utils.grading import checks

field = torch.arange(12.0).view(1, 2, 2, 3)
"""
    + exercise(
        1,
        "negate",
        2,
        "def negate(field): return -field",
        "expected = -field\nchecks.agree(checks.call(negate, field), expected, 'negate(field)', {'the sign': field})",
        f"secret = '{HIDDEN_TEXT}'\nother = torch.rand(3, generator=torch.Generator().manual_seed(5))\n"
        "checks.agree(checks.call(negate, other), other * -1, 'negate of another')",
    )
    + exercise(
        2,
        "size",
        3,
        "def size(affine): return np.linalg.norm(affine[:3, :3], axis=0)",
        "affine = np.diag([2.0, 3, 4, 1])\n"
        "checks.agree(checks.call(size, affine), nibabel.affines.voxel_sizes(affine), 'size(affine)')",
        "tilted = np.random.default_rng(3).normal(size=(4, 4))\n"
        "checks.agree(checks.call(size, tilted), nibabel.affines.voxel_sizes(tilted), 'size of another')",
    )
    + exercise(
        3,
        "layer",
        5,
        "def layer(n): return torch.nn.Conv2d(n, 2, 3)",
        "made = layer(4)\n"
        "shapes = [tuple(p.shape) for p in checks.parameters(made, 'layer(4)')]\n"
        "checks.agree(shapes, [(2, 4, 3, 3), (2,)], 'shapes')\n"
        "weight, bias = checks.fill(made, shapes)\n"
        "x = torch.ones(1, 4, 5, 5)\n"
        "checks.agree(made(x), torch.nn.functional.conv2d(x, weight, bias), 'layer(4)(x)')",
        "shapes = [tuple(p.shape) for p in checks.parameters(layer(1), 'layer(1)')]\n"
        "checks.agree(shapes, [(2, 1, 3, 3), (2,)], 'shapes of another')",
    )
)

SOLVED = {
    "negate": "def negate(field):\n    return -field",
    "size": "def size(affine):\n    return np.linalg.norm(affine[:3, :3], axis=0)",
    "layer": "def layer(n):\n    return torch.nn.Conv2d(n, 2, 3)",
}

IN_PLACE_OF = {"another truth": "size", "claims parameters": "layer"}
"""The exercise that a forger answers, where it is not the first."""

# Each is a cell in a notebook whose other stubs are untouched.
FORGERS = {
    "drops every cell": "get_ipython().input_transformer_manager.transform_cell = lambda c: 'pass'",
    "parses nothing": "get_ipython().compile.ast_parse = lambda *_, **__: __import__('ast').parse('pass')",
    "compiles nothing": "import builtins\nbuiltins.compile = lambda *_, **__: (lambda: None).__code__",
    "abs is 0": "import course_utils.grading.checks as c\nc.abs = lambda v: v * 0\nnegate = lambda f: f",
    "agree agrees": (
        "import course_utils.grading.checks as c\nc.agree = c._difference = c.raises = lambda *_, **__: None\n"
        "negate = lambda f: f"
    ),
    "call returns what is expected": (
        "import course_utils.grading.checks as c\nc.call = lambda *_, **__: globals()['expected']\nnegate = lambda f: f"
    ),
    "expected out of globals": "def negate(field):\n    return globals()['expected']",
    "expected out of frames": (
        "import sys\ndef negate(field):\n    frame = sys._getframe()\n    while frame:\n"
        "        if 'expected' in frame.f_globals: return frame.f_globals['expected']\n"
        "        if 'expected' in frame.f_locals: return frame.f_locals['expected']\n"
        "        frame = frame.f_back"
    ),
    "expected out of gc": (
        "import gc\ndef negate(field):\n"
        "    for found in gc.get_objects():\n"
        "        if isinstance(found, torch.Tensor) and found.shape == field.shape and torch.equal(found, 0 - field):\n"
        "            return found"
    ),
    "rebinds expected": (
        "import sys\ndef negate(field):\n    globals()['expected'] = field\n"
        "    for module in list(sys.modules.values()):\n"
        "        if type(module) is type(sys): vars(module).update(expected=field)\n    return field"
    ),
    "thread": (
        "import threading, time\nimport course_utils.grading.checks as c\ndef patch():\n    while True:\n"
        "        c.agree = c._difference = lambda *_, **__: None\n        globals()['expected'] = field\n"
        "        time.sleep(0.001)\nthreading.Thread(target=patch, daemon=True).start()\nnegate = lambda f: f"
    ),
    "alarm": (
        "import signal\nimport course_utils.grading.checks as c\ndef patch(*_):\n    c._difference = lambda *_: None\n"
        "signal.signal(signal.SIGALRM, patch)\nsignal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)\nnegate = lambda f: f"
    ),
    "gc callback": (
        "import gc\nimport course_utils.grading.checks as c\n"
        "gc.callbacks.append(lambda *_: setattr(c, '_difference', lambda *_: None))\nnegate = lambda f: f"
    ),
    "audit hook": (
        "import sys\nimport course_utils.grading.checks as c\n"
        "sys.addaudithook(lambda *_: setattr(c, '_difference', lambda *_: None))\nnegate = lambda f: f"
    ),
    "trace": "import sys\nsys.settrace(lambda frame, *_: frame.f_globals.update(expected=field))\nnegate = lambda f: f",
    "torch function mode": (
        "from torch.overrides import TorchFunctionMode\nclass Mode(TorchFunctionMode):\n"
        "    def __torch_function__(self, function, types, args=(), kwargs=None):\n"
        "        if function in (torch.Tensor.detach, torch.neg, torch.Tensor.neg): return field\n"
        "        return function(*args, **(kwargs or {}))\nMode().__enter__()\nnegate = lambda f: f"
    ),
    "tensor subclass": (
        "class Any(torch.Tensor):\n    @classmethod\n"
        "    def __torch_function__(cls, function, types, args=(), kwargs=None): return torch.tensor(True)\n"
        "negate = lambda f: f.as_subclass(Any)"
    ),
    "equals everything": (
        "class Any:\n    shape, dtype = (1, 2, 2, 3), torch.float32\n    __eq__ = __ne__ = lambda *_: True\n"
        "    __array__ = lambda self, *_, **__: -np.arange(12.0).reshape(1, 2, 2, 3)\nnegate = lambda f: Any()"
    ),
    "another truth": ("nibabel.affines.voxel_sizes = lambda affine: np.zeros(3)\ndef size(affine): return np.zeros(3)"),
    "another torch": (
        "torch.neg = torch.Tensor.neg = torch.Tensor.__neg__ = torch.Tensor.__mul__ = lambda f, *_: f\n"
        "torch.nn.functional.conv2d = lambda *_, **__: torch.zeros(())\nnegate = lambda f: f"
    ),
    "reads the check": (
        "def negate(field):\n    import gc, linecache\n    word = ' '.join(['none', 'may', 'read', 'this', 'line'])\n"
        "    found = [text for lines in linecache.cache.values() for text in lines[2]]\n"
        "    found += [each for each in gc.get_objects() if isinstance(each, str)]\n"
        "    found += [each for holder in gc.get_objects() if isinstance(holder, (list, tuple))\n"
        "              for each in holder if isinstance(each, str)]\n"
        "    found += [value for value in get_ipython().user_ns.values() if isinstance(value, str)]\n"
        "    raise ValueError(next((text for text in found if word in text), 'nothing'))"
    ),
    "searches its memory": (
        "def negate(field):\n    first, rest, found = b'none may re', b'ad this line', 'nothing'\n"
        "    with open('/proc/self/mem', 'rb', 0) as memory:\n"
        "        for line in open('/proc/self/maps').readlines():\n"
        "            begin, end = (int(number, 16) for number in line.split()[0].split('-'))\n"
        "            try:\n                memory.seek(begin)\n                held = memory.read(end - begin)\n"
        "            except (OSError, OverflowError, ValueError):\n                continue\n"
        "            at = held.find(first)\n            while at >= 0:\n"
        "                after = at + len(first)\n"
        "                if held[after : after + len(rest)] == rest: found = 'a hidden line'\n"
        "                at = held.find(first, after)\n"
        "    raise ValueError(f'{found} in memory')"
    ),
    "answers for itself": (
        "import json, os, struct\nfor asked in range(60):\n"
        "    told = json.dumps({'answers': asked, 'result': None}).encode()\n"
        "    for number in range(3, 40):\n"
        "        try: os.write(number, struct.pack('<QQ', len(told), 0) + told)\n        except OSError: pass"
    ),
    "no message": (
        "import os\nfor number in range(3, 40):\n    try: os.write(number, b'\\xff' * 64)\n    except OSError: pass"
    ),
    "asks for what was not lent": (
        "import json, os, struct\nasked = {'asks': 1, 'lent': 0, 'arguments': [], 'options': {'dict': []}}\n"
        "told = json.dumps(asked).encode()\nfor number in range(3, 40):\n"
        "    try: os.write(number, struct.pack('<QQ', len(told), 0) + told)\n    except OSError: pass\n"
        "negate = lambda f: f"
    ),
    "packs its own": (
        "import course_utils.grading.answering as a\n"
        "a.pack = lambda *_, **__: {'object': [0, '__class__']}\nnegate = lambda f: f"
    ),
    "packs a tensor that is not there": (
        "import course_utils.grading.answering as a\n"
        "a.pack = lambda *_, **__: {'tensor': ['float32', [1 << 39], 0]}\nnegate = lambda f: f"
    ),
    "packs what is deep": (
        "import course_utils.grading.answering as a\ndeep = []\nfor _ in range(900): deep = [deep]\n"
        "a.pack = lambda *_, **__: deep\nnegate = lambda f: f"
    ),
    "too much": "def negate(field):\n    return torch.zeros(1 << 27)",
    "a list of itself": "def negate(field):\n    field = []\n    field.append(field)\n    return field",
    "claims parameters": (
        "class Fake(torch.nn.Module):\n    def parameters(self, recurse=True):\n"
        "        return iter([torch.zeros(2, 4, 3, 3), torch.zeros(2)])\n    def forward(self, x):\n"
        "        return torch.zeros(1, 2, 3, 3)\nlayer = lambda n: Fake()"
    ),
    "kills who is above": (
        "import os, signal\nfor process in (1, os.getppid()):\n    try: os.kill(process, signal.SIGKILL)\n"
        "    except OSError: pass"
    ),
    "asks the judges": """import os

import course_utils.grading

print("judges", os.listdir(os.path.join(os.path.dirname(course_utils.grading.__file__), "judges")))

def negate(field):
    from course_utils.grading.judges.warping import _along""",
    "reads memory of others": (
        "import os\nfound = []\nfor process in os.listdir('/proc'):\n"
        "    if process.isdigit() and int(process) != os.getpid():\n"
        "        try: found.append(open(f'/proc/{process}/mem', 'rb').read(1))\n        except OSError: pass\n"
        "print('read', len(found))"
    ),
    "leaves a start file": (
        "import os, site\n"
        "for folder in [*site.getsitepackages(), os.path.dirname(nibabel.__file__), os.path.expanduser('~')]:\n"
        "    try: open(os.path.join(folder, 'sitecustomize.py'), 'w').write('raise SystemExit')\n"
        "    except OSError: pass"
    ),
    "detaches": (
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        time.sleep(600)\n"
        "    os._exit(0)\nnegate = lambda f: f"
    ),
    "leaves a key": (
        "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        "print('key', libc.syscall(248, b'user', b'note', b'x', 1, -4), libc.syscall(250, 0, -4, 0))"
    ),
    "new namespaces": "import ctypes\nprint('unshare', ctypes.CDLL(None).unshare(0x10000000))",
    "memory without a process": (
        "import os\ntry: print('memfd', os.memfd_create('x'))\nexcept OSError as error: print('memfd', error)"
    ),
}

# Each is the cell of exercise 1, right but for its bad luck, in a notebook that is right besides.
UNLUCKY = {
    "default device": "torch.set_default_device('cuda')\n",
    "default type": "torch.set_default_dtype(torch.float64)\n",
    "range": "range = 5\n",
    "names of the check": "expected, checks, other, field, affine = 1, 2, 3, 4, 5\n",
    "names of builtins": "list = type = len = print = str = dict = abs = None\n",
    "shell line": "!ls\n",
    "pip": "%pip install nothing-like-it\n",
    "magics": "%matplotlib inline\n%timeit -n1 -r1 1 + 1\n",
    "figure": "plt.plot([1, 2])\nplt.show()\n",
    "prints": "print('x' * 10**6)\n",
    "closes its output": "import sys\nsys.stdout.close()\n",
    "no output": "import os, sys\nsys.stdout = sys.stderr = open(os.devnull, 'w')\n",
    "warnings are errors": "import warnings\nwarnings.simplefilter('error')\n",
    "no gradients": "torch.set_grad_enabled(False)\n",
    "exit": "exit()\n",
    "awaits": "import asyncio\nawait asyncio.sleep(0)\n",
    "elsewhere": "import os\nos.mkdir('new')\nos.chdir('new')\n",
    "processes": "import multiprocessing as mp\nwith mp.get_context('fork').Pool(2) as pool:\n    pool.map(abs, [1])\n",
    "loader": "for _ in torch.utils.data.DataLoader([1, 2, 3], num_workers=2):\n    pass\n",
    "logs": "import logging\nlogging.basicConfig(level=logging.DEBUG)\n",
    "helper called warp": "def warp(x):\n    return -x\n",
}
RIGHT = {
    "helper called warp": "negate = lambda field: warp(field)",
    "default": SOLVED["negate"],
    "float64": "def negate(field):\n    return -field.double()",
    "with gradients": "def negate(field):\n    return -field.clone().requires_grad_()",
    "changes its input": "def negate(field):\n    return field.neg_()",
    "a parameter": "def negate(field):\n    return torch.nn.Parameter(-field).data",
}
