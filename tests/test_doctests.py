"""The examples in the docstrings are promises: run them all, and let no reward go without one."""

import doctest
import importlib
import pkgutil

import pytest

import grpo_hf
import grpo_hf.rewards

PACKAGES = [grpo_hf, grpo_hf.rewards]
MODULES = sorted(
    {package.__name__ for package in PACKAGES}
    | {
        module.name
        for package in PACKAGES
        for module in pkgutil.walk_packages(package.__path__, prefix=f"{package.__name__}.")
        if not module.name.endswith(".__main__")
    }
)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0
    if name.startswith("grpo_hf.rewards."):
        assert result.attempted > 0, f"{name} has no example"
