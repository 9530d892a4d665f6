"""Tests of which checkpoints a run may resume from."""

from pathlib import Path

import torch

from grpo_hf.runs import checkpoints


def test_a_checkpoint_is_whole_when_the_state_and_all_random_numbers_are(tmp_path: Path) -> None:
    """Check two processes, the second of which may still write when the first has ended."""
    checkpoint = tmp_path / "checkpoint-2"
    checkpoint.mkdir()
    for name in ("rng_state_0.pth", "rng_state_1.pth"):
        torch.save({"cpu": torch.get_rng_state()}, checkpoint / name)
        assert not checkpoints._is_whole(checkpoint, 2)
    (checkpoint / "trainer_state.json").write_text('{"global_step": 2, "max_steps": 3}')
    assert checkpoints._is_whole(checkpoint, 2)
    for left, name in ((1, "rng_state_1.pth"), (0, "rng_state_0.pth")):
        (checkpoint / name).write_bytes((checkpoint / name).read_bytes()[:-10])
        assert not checkpoints._is_whole(checkpoint, left + 1)
    assert checkpoints.whole_checkpoint(tmp_path) is None and not tmp_path.exists()
