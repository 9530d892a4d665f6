"""The embedded model is found at the import path of the first release, too."""

import importlib
import sys

import pytest

from grpo_hf.demo import tiny_model


def test_the_old_import_path_warns():
    sys.modules.pop("grpo_hf.tiny_model", None)
    with pytest.warns(DeprecationWarning, match=r"moved to grpo_hf\.demo\.tiny_model"):
        old = importlib.import_module("grpo_hf.tiny_model")
    for name in old.__all__:
        assert getattr(old, name) is getattr(tiny_model, name)
