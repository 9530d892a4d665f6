"""The one door for rewards: every way in, and what it says when a reward does not fit."""

import asyncio
import inspect
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from trl.trainer.utils import is_async_callable

from grpo_hf.errors import RewardError, RewardNotFound, RewardSpecError
from grpo_hf.plugins import Reward, installed_rewards, load_reward, register_reward

COMPLETIONS = ["one", "three"]


def lengths(completions, *, scale=1.0, **columns):
    """Pays for characters.

    The second paragraph is not part of the first line.
    """
    return [scale * len(text) for text in completions]


def as_trl_calls(reward, completions=COMPLETIONS, **columns):
    """The keywords of TRL 1.16's `_calculate_rewards`."""
    return reward(
        prompts=["?"] * len(completions),
        completions=completions,
        completion_ids=[[0]] * len(completions),
        trainer_state=None,
        log_extra=print,
        log_metric=print,
        **columns,
    )


@pytest.fixture(autouse=True)
def _nothing_registered(monkeypatch):
    monkeypatch.setattr("grpo_hf.plugins._registered", {})


@pytest.fixture
def distribution(tmp_path, monkeypatch):
    """Put a distribution with entry points on sys.path, as an installer lays it out."""

    def install(name, version, module, source, **names):
        site = tmp_path / f"site-{name}"
        info = site / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        lines = "".join(f"{key} = {value}\n" for key, value in names.items())
        (info / "entry_points.txt").write_text(f"[grpo_hf.rewards]\n{lines}")
        (site / f"{module}.py").write_text(source)
        monkeypatch.syspath_prepend(site)
        monkeypatch.delitem(sys.modules, module, raising=False)

    return install


@pytest.fixture
def reward_file(tmp_path):
    def write(source, name="my_rewards.py"):
        (tmp_path / name).write_text(source)
        return tmp_path

    return write


class TestWaysIn:
    def test_function(self):
        reward = load_reward(lengths)
        assert as_trl_calls(reward) == [3.0, 5.0]
        assert (reward.name, reward.spec, reward.source) == ("lengths", f"{__name__}:lengths", __name__)
        assert reward.doc == "Pays for characters."
        assert load_reward(reward) is reward

    def test_registered_name(self):
        assert register_reward("concise")(lengths) is lengths
        reward = load_reward("concise")
        assert as_trl_calls(reward) == [3.0, 5.0]
        assert (reward.name, reward.__name__, reward.spec) == ("concise", "concise", "concise")
        assert reward.source == f"registered in {__name__}"

    def test_entry_point(self, distribution):
        distribution("pkg-a", "1.2", "pkg_a", "def score(completions): return [7.0]", from_a="pkg_a:score")
        reward = load_reward("from_a")
        assert as_trl_calls(reward, ["x"]) == [7.0]
        assert (reward.name, reward.source) == ("from_a", "pkg-a 1.2")

    def test_our_own_rewards_are_entry_points(self):
        reward = load_reward("gsm8k")
        assert as_trl_calls(reward, ["#### 42", "#### 41"], answer=["#### 42"] * 2) == [1.0, 0.0]
        assert reward.source.startswith("grpo-hf ")
        assert reward.columns == ("answer",)

    def test_module_and_function(self, distribution):
        distribution("pkg-b", "1", "pkg_b", "def score(completions): return [7.0]")
        reward = load_reward("pkg_b:score")
        assert as_trl_calls(reward, ["x"]) == [7.0]
        assert (reward.name, reward.spec, reward.source) == ("score", "pkg_b:score", "pkg_b")

    def test_file_is_relative_to_the_given_folder(self, reward_file):
        folder = reward_file("def score(completions): return [7.0]")
        reward = load_reward("./my_rewards.py:score", relative_to=folder)
        assert as_trl_calls(reward, ["x"]) == [7.0]
        assert (reward.name, reward.spec) == ("score", "./my_rewards.py:score")
        assert reward.source == str(folder / "my_rewards.py")

    def test_file_is_relative_to_the_current_folder_by_default(self, reward_file, monkeypatch):
        monkeypatch.chdir(reward_file("def score(completions): return [7.0]"))
        assert load_reward("my_rewards.py:score").source == "my_rewards.py"

    def test_absolute_file_and_brackets_in_its_path(self, reward_file):
        folder = reward_file("def score(completions, *, by=1): return [by]", "old (copy).py")
        assert as_trl_calls(load_reward(f"{folder / 'old (copy).py'}:score")) == [1]
        assert as_trl_calls(load_reward(f"{folder / 'old (copy).py'}:score(by=2)")) == [2]

    def test_package_that_somebody_installs(self, tmp_path):
        """A stranger's package, built and installed by pip, is found by its entry point in a new process."""
        package, site = tmp_path / "stranger", tmp_path / "site"
        package.mkdir()
        (package / "stranger.py").write_text("def polite(completions):\n    return [float('please' in c) for c in completions]\n")
        (package / "pyproject.toml").write_text(
            '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
            '[project]\nname = "stranger"\nversion = "3.1"\n'
            '[project.entry-points."grpo_hf.rewards"]\npolite = "stranger:polite"\n'
            '[tool.setuptools]\npy-modules = ["stranger"]\n'
        )
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation"]
        subprocess.run([*pip, "--target", str(site), str(package)], check=True)
        program = (
            "from grpo_hf import load_reward; reward = load_reward('polite');"
            "print(reward.source, reward(completions=['yes please', 'no']))"
        )
        assert run_python(program, PYTHONPATH=str(site)) == "stranger 3.1 [1.0, 0.0]"


def run_python(program, **environment):
    import os

    result = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()
