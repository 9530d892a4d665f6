"""Group Relative Policy Optimization (DeepSeekMath, arXiv 2402.03300) on one frozen base model.

from grpo_hf import GRPOConfig, GRPOTrainer, RewardModel, StepRewards
from grpo_hf import completion_text, load_reward, message_text, register_reward, reward_settings
from grpo_hf import split_steps
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import quieting

if TYPE_CHECKING:
    from .config import GRPOConfig
    from .data.completions import completion_text, message_text
    from .reward_models.model import RewardModel
    from .scoring.registry import load_reward, register_reward
    from .scoring.reward import Reward, reward_settings
    from .scoring.steps import StepRewards, split_steps
    from .trainer import GRPOTrainer

__all__ = [
    "GRPOConfig",
    "GRPOTrainer",
    "Reward",
    "RewardModel",
    "StepRewards",
    "completion_text",
    "load_reward",
    "message_text",
    "register_reward",
    "reward_settings",
    "split_steps",
]

# Before any import below that makes bitsandbytes log it.
quieting.drop_kernel_line()

_HOMES = {
    "GRPOConfig": "config",
    "GRPOTrainer": "trainer",
    "Reward": "scoring.reward",
    "RewardModel": "reward_models.model",
    "StepRewards": "scoring.steps",
    "completion_text": "data.completions",
    "load_reward": "scoring.registry",
    "message_text": "data.completions",
    "register_reward": "scoring.registry",
    "reward_settings": "scoring.reward",
    "split_steps": "scoring.steps",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that a light part of the library stays light."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
