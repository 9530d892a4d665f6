"""Rewards where processes can share no locks, as in a container without /dev/shm."""

from pathlib import Path

import pytest
from support.mounts import run_with_mounts

REWARD = """
def lengths(completions, **columns):
    return [float(len(text)) for text in completions]
"""
CODE = """
import sys
from grpo_hf.scoring.registry import load_reward
from grpo_hf.scoring.run_rewards import isolate
from grpo_hf.scoring.scored_reward import ScoredReward

reward = ScoredReward(load_reward(sys.argv[1]))
process = isolate([reward], workers=2, timeout=None)
assert process is None
columns = {"prompts": ["", ""], "completion_ids": [[1], [2]]}
print([outcome.value for outcome in reward.score(["a", "bc"], columns)])
"""


@pytest.mark.parametrize(
    ("mount", "reason"),
    [
        ("mount -t tmpfs -o ro none /dev/shm", "Read-only file system"),
        (
            "mount -t tmpfs -o size=4k none /dev/shm; head -c 4096 /dev/zero > /dev/shm/full",
            "No space left on device",
        ),
    ],
)
def test_without_shared_memory_rewards_stay_here(tmp_path: Path, mount: str, reason: str):
    (tmp_path / "mine.py").write_text(REWARD)
    done = run_with_mounts(mount, CODE, f"{tmp_path}/mine.py:lengths")
    assert done.returncode == 0 and done.stdout == "[1.0, 2.0]\n", done.stderr
    assert done.stderr.count("--reward_workers 0") == 1 and "Traceback" not in done.stderr
    assert f"/dev/shm, where worker processes keep their locks, cannot be used ({reason})" in (
        done.stderr
    )
