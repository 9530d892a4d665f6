# ruff: noqa: E501  (samples of code stand on one line each)
import ast
import json
import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.tiers import BEST, every_level, needs_a_tier

from grpo_hf.errors import RewardSpecError
from grpo_hf.rewards._code import last_block
from grpo_hf.rewards.python_tests import python_tests

DOUBLE = "def double(x):\n    return x * 2\n"
TESTS = ["assert double(2) == 4", "assert double(-1) == -2", "assert double([1]) == [1, 1]"]


def score(code, tests=TESTS, **options):
    [reward] = python_tests([f"```python\n{code}\n```"], [tests], **{"sandbox": BEST, **options})
    return reward


@every_level
def test_share_of_tests(level):
    assert score(DOUBLE, sandbox=level) == 1.0
    assert score("def double(x): return 4 if x == 2 else None", sandbox=level) == pytest.approx(
        1 / 3
    )
    assert score("def double(x): pass", sandbox=level) == 0.0


def test_all_or_nothing():
    assert score("def double(x): return 4 if x == 2 else -2", partial=False) == 0.0
    assert score(DOUBLE, partial=False) == 1.0


FORGERIES = {
    "exit": "import sys\ndef double(x): sys.exit(0)",
    "exit at once": "raise SystemExit(0)",
    "os._exit": "import os\ndef double(x): os._exit(0)",
    "os._exit at once": "import os\nos._exit(0)",
    "print": "def double(x): print('passed 1\\npassed 2\\npassed 3\\nready'); return 0",
    "equals all": "class Same:\n    def __eq__(self, other): return True\n    __hash__ = None\ndef double(x): return Same()",
    "an int that equals all": "class Same(int):\n    def __eq__(self, other): return True\ndef double(x): return Same()",
    "a list that equals all": "class Same(list):\n    def __eq__(self, other): return True\ndef double(x): return Same()",
    "class in disguise": "class Same:\n    __class__ = int\n    def __eq__(self, other): return True\ndouble = lambda x: Same()",
    "builtins": "import builtins\nbuiltins.AssertionError = ()\nbuiltins.set = builtins.len = lambda x: 0\ndouble = len",
    "atexit": "import atexit\natexit.register(print, 'passed 1')\nclass double: pass",
    "threads": "import threading, os\nthreading.Thread(target=lambda: os._exit(0)).start()\ndef double(x): return 0",
    "no function": "double = 4",
    "debug off": "__debug__ and None\ndef double(x): return 0",
    "trace": "import sys\nsys.settrace(lambda *a: None)\nsys.setrecursionlimit(10)\ndef double(x): return 0",
    "kill the judge": "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)",
    "stop the judge": "import os, signal\nos.kill(os.getppid(), signal.SIGSTOP)",
    "patch the harness": """
import sys
main = sys.modules["__main__"]
main._be_judge = lambda peer: print("passed 1")
main.Remote.__eq__ = main.Peer.__eq__ = lambda *a: True
main._OPERATIONS["call"] = lambda *a: main.Remote(None, 1)
main.Peer.encode = lambda self, value: {"plain": "tuple", "args": [{"mine": 1}]}
def double(x): return 4
""",
    "lie on the pipe": """
import os
for fd in range(3, 64):
    for text in (b'{"value": true, "args": []}\\n', b'{"value": {"builtin": "eval"}, "args": []}\\n', b"passed 1\\n" * 9):
        try: os.write(fd, text * 9)
        except OSError: pass
def double(x): return 0
""",
    "read the judge": """
import glob, os, re
found = []
def tell(text):
    for path in glob.glob("/proc/[0-9]*/fd/*"):
        try:
            with open(path, "w") as file: file.write(text)
        except OSError: pass
for path in glob.glob("/proc/[0-9]*/mem") + glob.glob("/proc/[0-9]*/fd/0") + glob.glob("/proc/[0-9]*/cmdline"):
    if f"/{os.getpid()}/" in path: continue
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        found.append(os.read(fd, 100000))
    except OSError: pass
for nonce in re.findall(rb"[0-9a-f]{32}", b"".join(found)):
    tell("".join(f"{nonce.decode()} passed {n}\\n" for n in range(9)))
def double(x): return 0
""",
    "frames": """
import gc, sys
texts = [o for o in gc.get_objects() if isinstance(o, (list, dict)) and "assert " + "double" in str(o)[:10000]]
frame, depth = sys._getframe(), 0
while frame:
    texts += [v for v in frame.f_locals.values() if isinstance(v, str) and "assert " + "double(2)" in v]
    frame = frame.f_back
def double(x): return {2: 4, -1: -2}.get(x, [1, 1]) if texts else 0
""",
}


@needs_a_tier
@pytest.mark.parametrize("code", FORGERIES.values(), ids=FORGERIES)
def test_forged_passes_are_no_passes(code):
    assert score(code, timeout=2.0) == 0.0


def test_a_redefined_set_is_not_asked():
    code = "def set(x): return 0\ndef math(): pass\nclass math:\n    isclose = staticmethod(lambda *a: True)\ndef f(x): return x"
    assert score(code, ["assert set(f([1])) == set([2])", "assert math.isclose(f(1), 2)"]) == 0.0
    assert (
        score("def f(x): return x", ["assert set(f([1])) == {1}", "assert math.isclose(f(1), 1)"])
        == 1.0
    )


def test_a_function_under_test_may_be_called_like_a_builtin():
    assert score("def sum(a, b): return 6", ["assert sum(10, 15) == 6"]) == 1.0


@pytest.mark.long
def test_the_neighbours_keep_their_scores():
    good = f"```python\n{DOUBLE}```"
    bad = [
        "```python\nwhile True: pass\n```",
        "```python\nx = bytearray(10 << 30)\n```",
        "```python\nimport os\nos.abort()\n```",
    ]
    completions = [good, bad[0], good, bad[1], good, bad[2], good]
    assert python_tests(completions, [TESTS] * 7, sandbox=BEST, timeout=1.5) == [
        1.0,
        0.0,
        1.0,
        0.0,
        1.0,
        0.0,
        1.0,
    ]


@pytest.mark.long
def test_tests_that_passed_before_the_timeout_count():
    code = "def double(x):\n    while x == -1: pass\n    return x * 2"
    start = time.monotonic()
    assert score(code, timeout=1.0) == pytest.approx(1 / 3)
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    ("code", "test"),
    [
        (
            "def f(): return [1, (2.5, None), {'a': {3}}, b'x', 1j, True, frozenset([1]), range(3)]",
            "assert f() == [1, (2.5, None), {'a': {3}}, b'x', 1j, True, frozenset([1]), range(3)]",
        ),
        ("from collections import Counter\nf = Counter", "assert f('aab') == {'a': 2, 'b': 1}"),
        (
            "from collections import namedtuple\nf = namedtuple('f', 'x y')",
            "assert f(1, y=2) == (1, 2)",
        ),
        ("def f(n): return (i * i for i in range(n))", "assert list(f(4)) == [0, 1, 4, 9]"),
        ("def f(x): x.sort()", "x = [3, 1, 2]\nf(x)\nassert x == [1, 2, 3]"),
        ("def f(g, xs): return [g(x) for x in xs]", "assert f(lambda x: x + 1, [1, 2]) == [2, 3]"),
        ("def f(kind, x): return isinstance(x, kind)", "assert f(str, 'a') and not f(int, 'a')"),
        (
            "def f(x): raise ValueError('no')",
            "try:\n    f(1)\n    assert False\nexcept ValueError as e:\n    assert str(e) == 'no'",
        ),
        (
            "class S:\n    def __init__(self): self.x = []\n    def push(self, v): self.x.append(v)\n    def __len__(self): return len(self.x)",
            "s = S()\ns.push(3)\nassert len(s) == 1 and s.x == [3]",
        ),
        (
            "class P:\n    def __init__(self, a): self.a = a\ndef f(ps): return sum(p.a for p in ps)",
            "assert f([P(1), P(2)]) == 3",
        ),
        (
            "class P:\n    def __eq__(self, o): return isinstance(o, P)\ndef f(): return P()",
            "assert f() == f() and f() != 1",
        ),
        ("def f(): return 10 ** 5000", "assert f() == 10 ** 5000"),
        ("def f(): return float('nan'), float('-inf')", "a, b = f()\nassert a != a and b < 0"),
        ("def f(s): return s + '\\ud800é\\x00'", "assert f('a') == 'a\\ud800é\\x00'"),
        (
            "from datetime import date\ndef f(): return date(2020, 1, 31)",
            "from datetime import date\nassert f() == date(2020, 1, 31)",
        ),
        ("X = 3\ndef f(): return X", "assert f() == X == 3"),
    ],
)
def test_honest_code_passes(code, test):
    assert score(code, [test]) == 1.0


def test_setup_columns():
    columns = {"test_setup_code": ["n = double(1)"], "test_imports": [["import math as m"]]}
    assert python_tests(
        [DOUBLE], [["assert double(n) == m.floor(4.5)"]], sandbox=BEST, **columns
    ) == [1.0]


@pytest.mark.parametrize(
    "tests", [None, [], "assert double(2) == 4", ["assert double(2"], [3], ["assert 1"]]
)
def test_rows_that_cannot_judge(tests):
    assert score(DOUBLE, tests) is None


def test_an_object_of_the_tests_own_class_cannot_be_passed():
    assert score(DOUBLE, ["class Own: pass\nassert double(Own()) == 1"]) is None


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("x = 1", "x = 1"),
        ("```python\nx = 1\n```", "x = 1\n"),
        ("```py\nx = 1\n```\nthen\n```\nx = 2\n```", "x = 1\n"),
        ("```\nx = 1\n```", "x = 1\n"),
        ("```Python\nx = 1\n```\n```python\nx = 2\n```", "x = 2\n"),
        ("```rust\nx\n```", ""),
        ("", ""),
    ],
)
def test_which_code_counts(text, code):
    assert last_block(text, {"python", "py"}) == code


@pytest.mark.parametrize(
    "text",
    [
        "```python\n" * 10_000,
        "`" * 100_000,
        "```" + " " * 100_000 + "x",
        "```python\n" + "x\n" * 50_000,
    ],
)
def test_long_completions_are_fast(text):
    start = time.process_time()
    last_block(text, {"python"})
    assert time.process_time() - start < 1.0


@pytest.mark.parametrize(
    "completion",
    ["", "\x00", "\ud800", "def", "((((" * 5000, [{"role": "assistant", "content": None}]],
)
def test_bad_text_scores_zero(completion):
    assert python_tests([completion], [TESTS], sandbox=BEST) == [0.0]


@pytest.mark.parametrize(
    "options",
    [{"timeout": 0}, {"timeout": "5"}, {"timeout": True}, {"memory_mb": -1}, {"memory_mb": "1"}],
)
def test_impossible_options(options):
    [name] = options
    with pytest.raises(
        RewardSpecError, match=f"python_tests: {name} is .*; expected a number above 0"
    ):
        score(DOUBLE, **options)


def test_unknown_sandbox():
    with pytest.raises(RewardSpecError, match=r"Did you mean 'auto'\?"):
        score(DOUBLE, sandbox="aut")


def test_a_sandbox_that_does_not_start_is_no_low_score(monkeypatch):
    nowhere = SimpleNamespace(executable="/nowhere/python")
    monkeypatch.setattr("grpo_hf.rewards.python_tests.sys", nowhere)
    with pytest.raises(RuntimeError, match="the sandbox did not start"):
        score(DOUBLE, sandbox="none")


def test_takes_what_trl_passes():
    assert python_tests(
        prompts=["a", "b"],
        completions=[DOUBLE, "no code"],
        completion_ids=[[1, 2], [1, 3]],
        test_list=[TESTS, TESTS],
        extra_column=[0, 1],
        trainer_state=None,
        log_extra=None,
        log_metric=None,
        sandbox=BEST,
    ) == [1.0, 0.0]


def mbpp(step):
    if "GRPO_HF_DATA" not in os.environ:
        pytest.skip("GRPO_HF_DATA is not set: it names the folder that holds mbpp/mbpp.jsonl")
    lines = (
        (Path(os.environ["GRPO_HF_DATA"]) / "mbpp" / "mbpp.jsonl")
        .read_text(encoding="utf-8")
        .splitlines()
    )
    assert len(lines) == 974
    return list(map(json.loads, lines))[::step]


def judged(row, code, **options):
    return score(code, row["test_list"], test_setup_code=[row["test_setup_code"]], **options)


def without_bodies(code):
    """Return the code with the same names and functions that do nothing."""
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            node.body = [ast.Pass()]
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Lambda):
            node.value.body = ast.Constant(None)
    return ast.unparse(ast.fix_missing_locations(tree))


def check_mbpp(step):
    rows = mbpp(step)
    failed = []
    paid_stubs = []
    for row in rows:
        if judged(row, row["code"]) != 1.0:
            failed.append(row["task_id"])
        if judged(row, without_bodies(row["code"]), partial=False) != 0.0:
            paid_stubs.append(row["task_id"])
    assert failed == []
    assert paid_stubs == []


@pytest.mark.long
def test_mbpp_solutions_pass_and_stubs_fail():
    check_mbpp(25)


@pytest.mark.slow
def test_all_mbpp_solutions_pass_and_stubs_fail():
    check_mbpp(1)
