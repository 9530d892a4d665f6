"""The rules that keep the library readable, checked on its source: who may import whom, and how long things may get."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import grpo_hf

SOURCE = Path(grpo_hf.__file__).parent

# A module imports modules of lower rows only, so the data goes one way and every module can be read after those below.
LAYERS = [
    {"errors", "console", "word_problems"},
    {"advantages", "objective", "tiny_model", "rows", "reward", "progress", "config", "hub", "base"}
    | {"head", "lora", "packing", "sandbox", "steps", "token_credit", "fitting"},
    {"data", "plugins", "outcomes", "recipe", "roles", "cold_start", "attention", "batches"},
    {"refill", "reward_files", "policy_files", "steering", "fork", "merging", "isolation", "reward_server"},
    {"scoring", "log_probs", "rollout", "critic"},
    {"monte_carlo", "sampling"},
    {"early_rewards", "reward_watch", "reward_check", "supervision", "step_labels"},
    {"evaluation"},
    {"preflight", "report", "trainer", "preferences"},
    {"run", "reward_model"},
    {"iterate"},
    {"cli"},
    {"__init__"},  # the public names, imported on first use
]
RANK = {module: rank for rank, layer in enumerate(LAYERS) for module in layer}

# trainer, config, recipe and base build on TRL's classes; roles switches adapters as TRL's trainer does; run turns its
# ModelConfig into a LoRA configuration with TRL's helper; cold_start runs TRL's supervised trainer.
IMPORT_TRL = {"trainer", "config", "recipe", "base", "roles", "run", "cold_start"}
LIGHT = ["grpo_hf", "grpo_hf.errors", "grpo_hf.plugins", "grpo_hf.cli", "grpo_hf.console", "grpo_hf.token_credit"]
HEAVY = {"torch", "transformers", "trl", "peft", "datasets", "accelerate", "numpy"}
LONGEST_FILE, LONGEST_TRAINER, LONGEST_OVERRIDE = 320, 250, 15

MODULES = {file.stem: ast.parse(file.read_text(encoding="utf-8")) for file in sorted(SOURCE.glob("*.py"))}


def executed(node: ast.AST) -> Iterator[ast.AST]:
    """Every node below, inside functions too, but nothing under `if TYPE_CHECKING:`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            yield from (inner for other in child.orelse for inner in [other, *executed(other)])
        else:
            yield child
            yield from executed(child)


def imported(tree: ast.AST) -> set[str]:
    """Full names of what a module imports: `grpo_hf.errors` for `from .errors import X` and `from . import errors`."""
    names = set()
    for node in executed(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            home = ".".join(filter(None, ["grpo_hf" if node.level else "", node.module]))
            names |= {f"{home}.{alias.name}" for alias in node.names} if home == "grpo_hf" else {home}
    return names


def own(tree: ast.AST) -> set[str]:
    """The modules of this library among them."""
    return {name.split(".")[1] for name in imported(tree) if name.startswith("grpo_hf.")}


def test_every_import_is_seen():
    tree = ast.parse("""
import trl.trainer
from typing import TYPE_CHECKING
from . import hub, roles
from .errors import DataError as E
if TYPE_CHECKING:
    from .run import train
else:
    from .cli import main
def f():
    if True:
        import grpo_hf.rewards.gsm8k
        from grpo_hf import data
""")
    assert own(tree) == {"hub", "roles", "errors", "cli", "rewards", "data"}
    assert imported(tree) >= {"trl.trainer", "typing", "grpo_hf.rewards.gsm8k"}


def test_every_module_has_one_place():
    assert sum(map(len, LAYERS)) == len(RANK)
    assert set(RANK) == set(MODULES), "a new module needs a row in LAYERS, a deleted one has none"


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down(module: str):
    upward = {name for name in own(MODULES[module]) if RANK.get(name, len(LAYERS)) >= RANK[module]}
    assert not upward, f"{module} (row {RANK[module]}) may not import {sorted(upward)}; see LAYERS"


def test_only_a_few_modules_know_trl():
    know = {module for module, tree in MODULES.items() if any(n.split(".")[0] == "trl" for n in imported(tree))}
    assert know == IMPORT_TRL


def test_the_core_knows_no_reward():
    for module, tree in MODULES.items():
        assert not own(tree) & {"rewards"}, module
        assert not any(name.split(".")[0] == "rewards" for name in imported(tree)), module


@pytest.mark.parametrize("module", LIGHT)
def test_light_modules_import_nothing_heavy(module: str):
    code = f"import sys, {module}; print(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert HEAVY & set(done.stdout.split()) == set()


@pytest.mark.parametrize("module", MODULES)
def test_no_file_grows_too_long_to_read(module: str):
    lines = len((SOURCE / f"{module}.py").read_text(encoding="utf-8").splitlines())
    longest = LONGEST_TRAINER if module == "trainer" else LONGEST_FILE
    assert lines <= longest, f"{module}.py has {lines} lines, {longest} at most: split it"


def test_every_override_of_the_trainer_is_thin_and_says_what_it_does():
    (trainer,) = (node for node in MODULES["trainer"].body if isinstance(node, ast.ClassDef))
    methods = [node for node in trainer.body if isinstance(node, ast.FunctionDef)]
    assert {"__init__", "train", "create_model_card"} <= {method.name for method in methods}
    for method in methods:
        documented = ast.get_docstring(method) is not None
        body = method.body[1:] if documented else method.body
        lines = body[-1].end_lineno - body[0].lineno + 1
        assert lines <= LONGEST_OVERRIDE, f"{method.name} has {lines} lines: move a stage out of the trainer"
        assert documented or method.name == "__init__", f"{method.name}: say what of TRL it relies on"


def test_there_is_one_subclass_of_trl_s_trainer():
    classes = {
        (module, node.name)
        for module, tree in MODULES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and any("GRPOTrainer" in ast.unparse(base) for base in node.bases)
    }
    assert classes == {("trainer", "GRPOTrainer")}
