"""What users rely on: the public names, and TRL's own constructor and configuration."""

import importlib
from inspect import signature
from typing import Any

import pytest
import trl
from support.settings import OURS

import grpo_hf

PUBLIC = {
    "GRPOConfig": "grpo_hf.config",
    "GRPOTrainer": "grpo_hf.trainer",
    "Reward": "grpo_hf.scoring.reward",
    "RewardModel": "grpo_hf.reward_models.model",
    "StepRewards": "grpo_hf.scoring.steps",
    "completion_text": "grpo_hf.data.completions",
    "load_reward": "grpo_hf.scoring.registry",
    "message_text": "grpo_hf.data.completions",
    "register_reward": "grpo_hf.scoring.registry",
    "reward_settings": "grpo_hf.scoring.reward",
    "split_steps": "grpo_hf.scoring.steps",
}


def test_public_names():
    assert sorted(grpo_hf.__all__) == sorted(PUBLIC) == dir(grpo_hf)
    for name, home in PUBLIC.items():
        assert getattr(grpo_hf, name) is getattr(importlib.import_module(home), name)
    everything: dict[str, Any] = {}
    exec("from grpo_hf import *", everything)
    assert everything.keys() >= PUBLIC.keys()


def test_an_unknown_name_is_an_attribute_error():
    assert not hasattr(grpo_hf, "GRPOTrainner")
    with pytest.raises(AttributeError, match="'grpo_hf' has no attribute 'GRPOTrainner'"):
        grpo_hf.__getattr__("GRPOTrainner")
    with pytest.raises(ImportError):
        exec("from grpo_hf import GRPOTrainner")


def test_the_trainer_and_its_configuration_are_trl_s():
    assert issubclass(grpo_hf.GRPOTrainer, trl.GRPOTrainer) and issubclass(
        grpo_hf.GRPOConfig, trl.GRPOConfig
    )
    assert signature(grpo_hf.GRPOTrainer) == signature(trl.GRPOTrainer)
    theirs, ours = signature(trl.GRPOConfig).parameters, signature(grpo_hf.GRPOConfig).parameters
    assert ours.keys() - theirs.keys() == OURS - theirs.keys() and theirs.keys() <= ours.keys()
    changed = {name for name in theirs if theirs[name].default != ours[name].default}
    assert changed == {"loss_type", "beta", "use_bias_correction_kl", "hub_private_repo"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "missing a required argument: 'model'"),
        ({"model": "m", "rewards": 1}, "unexpected keyword.*'rewards'"),
    ],
)
def test_wrong_arguments_are_refused_by_name(arguments: dict[str, Any], said: str):
    with pytest.raises(TypeError, match=said):
        grpo_hf.GRPOTrainer(**arguments)
