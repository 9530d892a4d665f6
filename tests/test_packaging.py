"""Installed as a wheel and in place, grpo-hf works anywhere, and `rewards/` is `grpo_hf.rewards`
and nothing else.
"""

import json
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.long

PROJECT = Path(__file__).parents[1]
ENTRY_POINTS = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["entry-points"][
    "grpo_hf.rewards"
]
PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--no-input"]

PROBE = """
import importlib, importlib.util, json, sys
import grpo_hf, grpo_hf.rewards.gsm8k
from grpo_hf import load_reward

print(json.dumps({
    "grpo_hf": grpo_hf.__file__,
    "grpo_hf.rewards": grpo_hf.rewards.__file__,
    "grpo_hf.rewards.gsm8k": grpo_hf.rewards.gsm8k.__file__,
    "top-level rewards": importlib.util.find_spec("rewards") is not None,
    "functions": {name: load_reward(name).function.__module__ for name in sys.argv[1:]},
    "scores": load_reward("gsm8k")(completions=["#### 42", "#### 41"], answer=["42", "42"]),
}))
"""


@pytest.fixture
def tree(tmp_path):
    """A copy of the project, which a build may litter, and which the project itself cannot be
    mistaken for.
    """
    tree = tmp_path / "tree"
    for folder in ("src", "rewards"):
        shutil.copytree(
            PROJECT / folder,
            tree / folder,
            ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"),
        )
    for file in PROJECT.iterdir():
        if file.is_file():
            shutil.copy(file, tree)
    return tree


@pytest.fixture
def environment(tmp_path):
    """A new virtual environment that borrows the dependencies of this one."""
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    # A folder that a .pth file adds comes last and its own .pth files are not read: an editable
    # grpo-hf stays behind.
    (_site_packages(environment) / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return environment


def _site_packages(environment):
    return Path(
        sysconfig.get_path(
            "purelib", "venv", {"base": str(environment), "platbase": str(environment)}
        )
    )


def _install(environment, *what):
    # --ignore-installed: the borrowed folder may hold a grpo-hf, which is not to be touched.
    options = ["--no-index", "--no-deps", "--no-build-isolation", "--ignore-installed"]
    subprocess.run(
        [*PIP, "--python", environment / "bin" / "python", "install", *options, *what], check=True
    )


def _run(environment, folder, program, *arguments):
    """What `program` prints in the environment, with nothing of this process's settings."""
    result = subprocess.run(
        [environment / "bin" / "python", "-I", "-c", program, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def _check(environment, elsewhere, package, rewards):
    found = json.loads(_run(environment, elsewhere, PROBE, *ENTRY_POINTS))
    assert Path(found["grpo_hf"]) == package / "__init__.py"
    assert Path(found["grpo_hf.rewards"]) == rewards / "__init__.py"
    assert Path(found["grpo_hf.rewards.gsm8k"]) == rewards / "gsm8k.py"
    assert not found["top-level rewards"]
    assert found["functions"] == {
        name: value.partition(":")[0] for name, value in ENTRY_POINTS.items()
    }
    assert found["scores"] == [1.0, 0.0]


def test_wheel(tree, environment, tmp_path):
    subprocess.run(
        [
            *PIP,
            "wheel",
            "--no-index",
            "--no-deps",
            "--no-build-isolation",
            "--wheel-dir",
            tmp_path,
            tree,
        ],
        check=True,
    )
    [wheel] = tmp_path.glob("*.whl")
    packaged = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    source = tree / "src"
    files = [file for file in (source / "grpo_hf").rglob("*") if file.is_file()]
    library = {file.relative_to(source).as_posix() for file in files if file.suffix != ".pyc"}
    rewards = {f"grpo_hf/rewards/{file.name}" for file in (tree / "rewards").glob("*.py")}
    assert packaged == library | rewards

    _install(environment, wheel)
    package = _site_packages(environment) / "grpo_hf"
    _check(environment, tmp_path, package, package / "rewards")
    assert (environment / "bin" / "grpo-hf").is_file()


def test_editable(tree, environment, tmp_path):
    _install(environment, "--editable", tree)
    _check(environment, tmp_path, tree / "src" / "grpo_hf", tree / "rewards")

    # In place means that a file added afterwards is there without another installation.
    (tree / "rewards" / "later.py").write_text(
        "def later(completions): return [0.5 for _ in completions]\n"
    )
    program = (
        "from grpo_hf import load_reward; later = load_reward('grpo_hf.rewards.later:later'); "
        "print(later(completions=['x']))"
    )
    assert _run(environment, tmp_path, program).strip() == "[0.5]"
