"""The rules that keep the library readable, checked on its source: which room may import which,
who knows TRL, and how long things may get."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import grpo_hf

SOURCE = Path(grpo_hf.__file__).parent

# A room, or a file on the ground floor, imports rooms further up this list only. So data goes one
# way, and every room can be read after those above it.
ORDER = [
    "errors",
    "quieting",
    "config_checks",
    "config",
    "run_files",
    "recipe_keys",
    "run_folders",
    "process_log",
    "run_context",
    "torch_seam",
    "trl_seam",
    "demo",
    "tiny_model",  # an old import path
    "data",
    "models",
    "algorithm",
    "update",
    "rollout",
    "scoring",
    "evaluation",
    "reporting",
    "run_report",
    "reward_models",
    "planning",
    "durability",
    "durable_trainer",
    "trainer",
    "runs",
    "starting",
    "cli_rewards",
    "cli_plan",
    "cli_report",
    "cli_start",
    "cli_evaluate",
    "cli_use",
    "cli",
    "__init__",  # the public names, imported on first use
]

IMPORT_TRL = {
    "config",
    "demo.cold_start",
    "durable_trainer",
    "models.loading",
    "runs.recipe",
    "trainer",
    "trl_seam",
}
LIGHT = [
    "grpo_hf",
    "grpo_hf.cli",
    "grpo_hf.data.completions",
    "grpo_hf.errors",
    "grpo_hf.reporting.pushing",
    "grpo_hf.reporting.token_credit",
    "grpo_hf.runs.finished",
    "grpo_hf.runs.program",
    "grpo_hf.scoring.registry",
]
HEAVY = {"torch", "transformers", "trl", "peft", "datasets", "accelerate", "numpy"}
# What survives, and on it the stages of an update.
TRAINERS = {"trainer": "GRPOTrainer", "durable_trainer": "DurableTrainer"}
LONGEST_FILE, LONGEST_TRAINER, LONGEST_OVERRIDE = 400, 250, 15
LONGEST_SEAM = 900  # one file by design: whatever moves is found there


def module_name(file: Path) -> str:
    """`scoring.reward` for `scoring/reward.py`, and `scoring` for `scoring/__init__.py`."""
    parts = file.relative_to(SOURCE).with_suffix("").parts
    if len(parts) > 1 and parts[-1] == "__init__":
        parts = parts[:-1]
    return ".".join(parts)


FILES = {
    module_name(file): file
    for file in sorted(SOURCE.rglob("*.py"))
    if "rewards" not in file.relative_to(SOURCE).parts
}
MODULES = {name: ast.parse(file.read_text(encoding="utf-8")) for name, file in FILES.items()}


def room_of(module: str) -> str:
    return module.partition(".")[0]


def imported(module: str, tree: ast.AST) -> set[str]:
    """The full names of what a module imports, type-checking imports among them.

    `grpo_hf.errors` for `from ..errors import X`, and `grpo_hf.data.prompts` for
    `from ..data import prompts`.
    """
    inside = [] if "." not in module and module not in packages() else [room_of(module)]
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            here = ["grpo_hf", *inside]
            base = here[: len(here) - node.level + 1] if node.level else []
            home = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                whole = f"{home}.{alias.name}"
                names.add(whole if whole.removeprefix("grpo_hf.") in FILES else home)
    return names


def packages() -> set[str]:
    return {folder.name for folder in SOURCE.iterdir() if (folder / "__init__.py").is_file()}


def own(module: str) -> set[str]:
    """The modules of this library that a module imports."""
    names = imported(module, MODULES[module])
    return {name.removeprefix("grpo_hf.") for name in names if name.startswith("grpo_hf.")}


def test_every_import_is_seen():
    tree = ast.parse("""
import trl.trainer
from typing import TYPE_CHECKING
from . import reward, registry
from ..data import prompts
from ..errors import DataError as E
if TYPE_CHECKING:
    from ..runs.train import train
def f():
    if True:
        import grpo_hf.rewards.gsm8k
""")
    assert imported("scoring.scorer", tree) == {
        "trl.trainer",
        "typing",
        "grpo_hf.scoring.reward",
        "grpo_hf.scoring.registry",
        "grpo_hf.data.prompts",
        "grpo_hf.errors",
        "grpo_hf.runs.train",
        "grpo_hf.rewards.gsm8k",
    }


def test_every_room_has_one_place():
    assert {room_of(module) for module in MODULES} == set(ORDER)
    assert len(ORDER) == len(set(ORDER))


@pytest.mark.parametrize("module", MODULES)
def test_arrows_between_rooms_go_one_way(module: str):
    place = ORDER.index(room_of(module))
    backward = set()
    for name in own(module):
        room = room_of(name)
        if room == "rewards":
            backward.add(name)  # the core knows no reward
        elif room != room_of(module) and ORDER.index(room) >= place:
            backward.add(name)
    assert not backward, f"{module} may not import {sorted(backward)}: see ORDER"


def test_no_room_has_a_circle():
    """Inside a room the files can be put in an order, too."""
    left = {module: own(module) & FILES.keys() for module in MODULES}
    while left:
        ready = [module for module, needs in left.items() if not needs & left.keys() - {module}]
        assert ready, f"these files import each other in a circle: {sorted(left)}"
        for module in ready:
            del left[module]


def test_every_room_says_what_it_is_for():
    for room in packages() - {"rewards"}:
        tree = MODULES[room]
        assert ast.get_docstring(tree), f"{room}/__init__.py: say what comes in and what goes out"
        assert len(tree.body) == 1, f"{room}/__init__.py: nothing but the paragraph"


def test_only_a_few_modules_know_trl():
    know = set()
    for module, tree in MODULES.items():
        if any(name.partition(".")[0] == "trl" for name in imported(module, tree)):
            know.add(module)
    assert know == IMPORT_TRL


@pytest.mark.parametrize("module", LIGHT)
def test_light_modules_import_nothing_heavy(module: str):
    code = f"import sys, {module}; print(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert HEAVY & set(done.stdout.split()) == set()


@pytest.mark.parametrize("module", MODULES)
def test_no_file_grows_too_long_to_read(module: str):
    lines = len(FILES[module].read_text(encoding="utf-8").splitlines())
    longest = dict.fromkeys(TRAINERS, LONGEST_TRAINER) | {"trl_seam": LONGEST_SEAM}
    most = longest.get(module, LONGEST_FILE)
    assert lines <= most, f"{module} has {lines} lines, {most} at most: split it"


def methods_of_the_trainer() -> Iterator[ast.FunctionDef]:
    for module in TRAINERS:
        (trainer,) = (node for node in MODULES[module].body if isinstance(node, ast.ClassDef))
        for node in trainer.body:
            if isinstance(node, ast.FunctionDef):
                yield node


def test_every_override_of_the_trainer_is_thin_and_says_what_it_does():
    methods = list(methods_of_the_trainer())
    assert {"__init__", "train", "create_model_card"} <= {method.name for method in methods}
    for method in methods:
        documented = ast.get_docstring(method) is not None
        body = method.body[1:] if documented else method.body
        lines = body[-1].end_lineno - body[0].lineno + 1
        assert lines <= LONGEST_OVERRIDE, f"{method.name} has {lines} lines: move a stage out"
        assert documented or method.name == "__init__", f"{method.name}: say what it relies on"


def test_trl_s_trainer_has_two_subclasses_one_on_the_other():
    classes = set()
    for module, tree in MODULES.items():
        for node in ast.walk(tree):
            bases = [ast.unparse(base) for base in getattr(node, "bases", [])]
            if isinstance(node, ast.ClassDef) and any("GRPOTrainer" in base for base in bases):
                classes.add((module, node.name))
    assert classes == {("durable_trainer", "DurableTrainer")}
    assert [base.__name__ for base in grpo_hf.GRPOTrainer.__mro__[:2]] == list(TRAINERS.values())
