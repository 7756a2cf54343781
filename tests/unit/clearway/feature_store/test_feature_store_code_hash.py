"""What a hash of code counts, and what it refuses: each case is a package that is written, imported and hashed."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from clearway.errors import ClearwayError
from clearway.feature_store.code_hash import code_sha256

PACKAGE = "cellar_for_code_hash_test"
Hash = Callable[..., str]


@pytest.fixture
def hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hash:
    """The hash of ``f`` of the module, which is imported anew from a folder of its own; the others lie beside it."""

    def made(module: str, folder: str = "", **others: str) -> str:
        folder = folder or f"{len(list(tmp_path.iterdir()))}"
        package = tmp_path / folder / PACKAGE
        package.mkdir(parents=True)
        for name, text in {"__init__": "", "m": module, **others}.items():
            (package / f"{name}.py").write_text(text)
        for name in [name for name in sys.modules if name.partition(".")[0] == PACKAGE]:
            del sys.modules[name]
        importlib.invalidate_caches()
        with monkeypatch.context() as path:
            path.syspath_prepend(str(tmp_path / folder))
            return code_sha256(importlib.import_module(f"{PACKAGE}.m").f)

    return made


MAKE = "def make(c):\n    return lambda t: c\n"
RUN_TIME = {
    "default of a lambda": "F = {n: (lambda t, n=n: n) for n in [@@]}\nf = F[@@]\n",
    "default of a nested def": "def make(n):\n    def g(t, k=n):\n        return k\n    return g\nf = make(@@)\n",
    "default by keyword": "def make(n):\n    def g(t, *, k=n):\n        return k\n    return g\nf = make(@@)\n",
    "default that is a function": (
        "def make(n):\n    return lambda t: n\n"
        "def bind(h):\n    def g(t, h=h):\n        return h(t)\n    return g\nf = bind(make(@@))\n"
    ),
    "argument of a wrapper": (
        "import functools\ndef scale(k):\n    def deco(fn):\n        @functools.wraps(fn)\n"
        "        def w(t): return fn(t) * k\n        return w\n    return deco\n"
        "def base(t): return 1\nf = scale(@@)(base)\n"
    ),
    "text of a wrapper": (
        "import functools\ndef deco(fn):\n    @functools.wraps(fn)\n    def w(t): return fn(t) * @@\n    return w\n"
        "def base(t): return 1\nf = deco(base)\n"
    ),
    "text of what is wrapped twice": (
        "import functools\ndef deco(fn):\n    @functools.wraps(fn)\n    def w(t): return fn(t)\n    return w\n"
        "def base(t): return @@\nf = deco(functools.lru_cache(deco(base)))\n"
    ),
    "attribute of a method's object": (
        "class B:\n    def __init__(self, w): self.w = w\n    def build(self, t): return self.w\nf = B(@@).build\n"
    ),
    "slot of a method's object": (
        "class B:\n    __slots__ = ('w',)\n    def __init__(self, w): self.w = w\n"
        "    def build(self, t): return self.w\nf = B(@@).build\n"
    ),
    "class of a method's object": (
        "class A:\n    def build(self, t): return self.w()\nclass B(A):\n    def w(self): return @@\nf = B().build\n"
    ),
    "field of a dataclass": (
        "from dataclasses import dataclass\n@dataclass(frozen=True)\nclass C:\n    w: int\n"
        "def make(c):\n    return lambda t: c.w\nf = make({'c': [C(@@)]})\n"
    ),
    "method of a dataclass": (
        "from dataclasses import dataclass\n@dataclass(frozen=True)\nclass C:\n    w: int\n"
        "    def twice(self): return @@ * self.w\ndef make(c):\n    return lambda t: c.twice()\nf = make(C(1))\n"
    ),
    "values of an array": f"import numpy as np\n{MAKE}f = make(np.array([[1, @@], [2, 3]]))\n",
    "type of an array": f"import numpy as np\n{MAKE}f = make(np.zeros(2, 'int@@').T)\n",
    "shape of an array": f"import numpy as np\n{MAKE}f = make(np.zeros(16).reshape(@@, -1))\n",
    "array of objects": (f"import numpy as np\n{MAKE}f = make(np.array(['a', @@], dtype=object))\n"),
    "table": f"import pandas as pd\n{MAKE}f = make(pd.DataFrame(dict(a=['x', 'y'], b=[1, @@])))\n",
    "argument of a partial": (
        "import functools\nclass C:\n    def __init__(self, w): self.w = w\ndef g(c, t): return c.w\n"
        "f = functools.partial(g, C(@@))\n"
    ),
    "value of an enum": (
        "import enum\nclass E(enum.Enum):\n    A = @@\ndef make(c):\n    return lambda t: c.value\nf = make(E.A)\n"
    ),
    "pattern": "import re\ndef make(c):\n    return lambda t: c.match(t)\nf = make(re.compile('x' * 300 + '@@'))\n",
    "zone": (f"from zoneinfo import ZoneInfo\n{MAKE}f = make(ZoneInfo(dict([(8, 'UTC'), (16, 'CET')])[@@]))\n"),
    "named tuple with methods": (
        "from typing import NamedTuple\nclass P(NamedTuple):\n    x: int\n    def twice(self): return @@ * self.x\n"
        "K = P(2)\ndef f(t): return K.twice()\n"
    ),
}


@pytest.mark.parametrize("code", RUN_TIME.values(), ids=RUN_TIME)
def test_what_a_function_is_made_with_counts(hashed: Hash, code: str) -> None:
    first = hashed(code.replace("@@", "8"))
    assert hashed(code.replace("@@", "8")) == first
    assert hashed(code.replace("@@", "16")) != first


NAMES = {
    "bound by for": "for K in [@@]: pass\ndef f(t): return K\n",
    "objects bound by for": (
        "class C:\n    def __init__(self, w): self.w = w\nfor K in [C(@@)]: pass\ndef f(t): return K.w\n"
    ),
    "bound by a walrus": "print(end='', file=(K := @@) and None)\ndef f(t): return K\n",
    "bound by with": "import contextlib\nwith contextlib.nullcontext(@@) as K: pass\ndef f(t): return K\n",
    "bound by global": "def init():\n    global K\n    K = @@\ninit()\ndef f(t): return K\n",
    "function in a loop": "for _ in (0,):\n    def g(): return @@\ndef f(t): return g()\n",
    "function in a match": "match 1:\n    case 1:\n        def g(): return @@\ndef f(t): return g()\n",
    "updated registry": "def r(x): return @@\nR = {}\nR.update(a=r)\ndef f(t): return R['a'](t)\n",
    "appended registry": "def r(x): return @@\nR = []\nR.append((r, 1))\ndef f(t): return [x(t) for x, _ in R]\n",
    "closures in a registry": (
        "def make(n):\n    return lambda t: n\nR = {}\nR.update(a=make(@@))\ndef f(t): return R['a'](t)\n"
    ),
    "registry of a decorator": (
        "R = {}\ndef reg(fn):\n    R[fn.__name__] = fn\n    return fn\n@reg\ndef r(x): return @@\n"
        "def f(t): return R['r'](t)\n"
    ),
    "dispatch by type": (
        "import functools\n@functools.singledispatch\ndef g(x): return 0\n@g.register\ndef _(x: int): return @@\n"
        "def f(t): return g(t)\n"
    ),
    "query": "LIMIT = @@\ndef f(t): return t.query('x > @LIMIT')\n",
    "attribute in a query": "class L:\n    most = @@\ndef f(t): return t.query(f'x > @L.most and {t}')\n",
}


@pytest.mark.parametrize("code", NAMES.values(), ids=NAMES)
def test_a_name_counts_however_it_is_bound(hashed: Hash, code: str) -> None:
    first = hashed(code.replace("@@", "8"))
    assert hashed(code.replace("@@", "8")) == first
    assert hashed(code.replace("@@", "16")) != first


@pytest.mark.parametrize(
    "code",
    [
        "from {p} import n\nh = n\ndef f(t): return h.g()\n",
        "def f(t):\n    from {p} import n\n    alias = n\n    return alias.g()\n",
        "from {p} import n\ndef apply(mod): return mod.g()\ndef f(t): return apply(n)\n",
        "from {p} import n\ndef make(mod):\n    return lambda t: mod.g()\nf = make(n)\n",
        "from {p}.n import *\ndef f(t): return g()\n",
    ],
)
def test_a_module_used_as_a_value_counts_with_all_that_it_defines(hashed: Hash, code: str) -> None:
    code, other = code.format(p=PACKAGE), f"from {PACKAGE} import o\ndef g(): return o.two()\n"
    first = hashed(code, n=other, o="def two(): return 2\ndef three(): return 3\n")
    assert hashed(code, n=other, o="def two(): return 3\ndef three(): return 3\n") != first
    assert hashed(code, n=other, o="def two(): return 2\ndef three(): return 4\n") == first, "o itself is no value"


HERE = "import os\nfrom pathlib import Path\nHERE = os.path.dirname(os.path.abspath(__file__))\n"


@pytest.mark.parametrize(
    "code",
    [
        f"{HERE}def f(t): return open(os.path.join(HERE, 'z.csv')).read()\n",
        f"{HERE}ABOVE = {{'data': [str(Path(HERE).parents[2] / 'data')], 'most': 3}}\ndef f(t): return ABOVE\n",
        f"{HERE}def f(t, here=HERE): return here\n",
        f"{HERE}def make(here):\n    return lambda t: here\nf = make(Path(HERE) / 'z.csv')\n",
        "def f(t): return __file__\n",
    ],
)
def test_a_path_computed_from_the_file_is_the_same_in_any_folder(hashed: Hash, code: str) -> None:
    first = hashed(code, folder="one")
    assert hashed(code, folder="another/deeper") == first
    other = code.replace("z.csv", "y.csv").replace("'data'", "'date'").replace("__file__))", "__file__) + 'x')")
    assert hashed(other.replace("return __file__", "return __name__")) != first


def test_data_that_a_constant_reads_beside_its_file_counts(hashed: Hash) -> None:
    code = (
        "from pathlib import Path\nHERE = Path(__file__).parent\n"
        "DATA = {'at': str(HERE.parents[2]), 'text': HERE.name * @@}\ndef f(t): return DATA\n"
    )
    assert hashed(code.replace("@@", "(1 + 1)")) != hashed(code.replace("@@", "(2 + 1)"))
    read = code.replace("HERE.name * @@", "len((HERE / 'n.py').read_text())")
    first = hashed(read, folder="one", n="1\n")
    assert hashed(read, folder="another/deeper", n="2\n") == first
    assert hashed(read, n="12\n") != first


def test_values_that_are_computed_once_and_kept_do_not_count(hashed: Hash) -> None:
    code = (
        "from functools import cached_property\nclass C:\n    @cached_property\n    def sum(self): return 7\n"
        "    def build(self, t): return self.sum\nc = C()\n@@\nf = c.build\n"
    )
    assert hashed(code.replace("@@", "")) == hashed(code.replace("@@", "c.sum"))


def test_what_holds_itself_is_hashed_once(hashed: Hash) -> None:
    code = (
        "def make(n):\n    def g(t): return g(n) + h(t)\n    def h(t): return g(t) * @@\n    return g\n"
        "class C:\n    def __init__(self): self.own, self.f = self, self.build\n"
        "    def build(self, t): return make(8)\nf = @@\n"
    )
    for made in ("make(8)", "C().build"):
        both = [hashed(code.replace("f = @@", f"f = {made}").replace("@@", text)) for text in ("2", "2", "3")]
        assert both[0] == both[1] != both[2]


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import threading\ndef make(lock):\n    return lambda t: lock\nf = make(threading.Lock())\n",
         r"make\.<locals>\.<lambda>\(\): lock is _thread\.lock, whose value cannot be hashed .* make it inside"),
        ("import threading\nclass B:\n    def __init__(self): self.locks = [threading.Lock()]\n"
         "    def build(self, t): return 1\nf = B().build\n", r"B\.build\(\): self\.locks\[0\] is _thread\.lock"),
        ("def make(rows):\n    return lambda t: rows\nf = make(iter(open(__file__)))\n", "rows is _io.TextIOWrapper"),
        ("import functools\ndef g(t, k): return k\nf = functools.partial(g, k=(each for each in 'ab'))\n",
         r"g\(\): k is builtins\.generator"),
        ("def make(n):\n    class C:\n        def build(self, t): return n\n    return C().build\nf = make(1)\n",
         r"self is of class .*make\.<locals>\.C, .* define the class at the top of a module"),
    ],
)  # fmt: skip
def test_a_value_that_cannot_be_hashed_is_refused_by_function_and_variable(hashed: Hash, code: str, said: str) -> None:
    with pytest.raises(ClearwayError, match=said) as raised:
        hashed(code)
    assert "\n" not in str(raised.value)


def test_a_wrapper_of_another_package_counts_by_name_and_by_what_it_is_given(hashed: Hash) -> None:
    managed = (
        "import contextlib\ndef make(n):\n    @contextlib.contextmanager\n    def g(t): yield n\n    return g\n"
        "f = make(@@)\n"
    )
    assert hashed(managed.replace("@@", "1")) == hashed(managed.replace("@@", "1"))
    assert hashed(managed.replace("@@", "1")) != hashed(managed.replace("@@", "2"))
