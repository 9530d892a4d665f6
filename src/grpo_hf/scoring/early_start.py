"""Rewards while the device works: scoring begins when the completions exist, and is collected when it is asked for.

TRL 1.16 scores after the old and the reference pass. Here processes score meanwhile, and a thread for rewards that stay
in the trainer's process, one after the other. Such a reward can tell: `signal` does not work off the main thread, and
what it reads of the trainer is what the reference pass has made of it at that moment. One that raises in the thread is
tried on the main thread, and stays there if that helps; `early_rewards=False` keeps all of them there.
"""

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..config import option
from ..data.completions import columns_of
from .scorer import ScoredReward


def begin(
    trainer: Any,
    rows: Sequence[dict[str, Any]],
    prompts: Any,
    completions: Any,
    completion_ids: Any,
) -> None:
    """Start the rewards on a rollout, with the arguments that TRL 1.16's `_calculate_rewards` will give them.

    A rollout function and environments add columns later, so with them rewards start when they are called.
    """
    if (
        not option(trainer.args, "early_rewards")
        or trainer.rollout_func is not None
        or trainer.environments is not None
    ):
        return
    columns: dict[str, Any] = dict(columns_of(rows))
    columns |= {
        "prompts": prompts,
        "completion_ids": completion_ids,
        "trainer_state": trainer.state,
    }
    rewards = [
        reward
        for reward in trainer.reward_funcs
        if isinstance(reward, ScoredReward) and reward.off_main_thread
    ]
    begun = [reward.begin(completions, **columns) for reward in rewards]
    jobs = [job for job in begun if job is not None]
    if jobs:  # a daemon: a reward that hangs must not keep an interrupted program alive
        device = trainer.accelerator.device
        threading.Thread(target=_run, args=(jobs, device), name="rewards", daemon=True).start()


def _run(jobs: list[Callable[[], None]], device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.set_device(device)  # which is a thread's own
    for job in jobs:
        job()
