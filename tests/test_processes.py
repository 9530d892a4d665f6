"""Several processes: two do what one with twice the batch does, and groups are scored across
them.
"""

import json
from pathlib import Path
from statistics import mean

import pytest
from safetensors.torch import load_file
from support.processes import SCRIPT, launch, launch_with_accelerate

from grpo_hf.reporting.metrics_file import read_metrics
from grpo_hf.reporting.spikes import read_lines

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def one_process(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process with 8 rows a step, sampled and recorded."""
    folder = tmp_path_factory.mktemp("processes") / "one"
    launch(1, tiny_checkpoint, folder, 8)
    return folder


def test_two_processes_learn_what_one_with_twice_the_batch_learns(
    one_process: Path, tiny_checkpoint: Path
) -> None:
    two = one_process.parent / "two"
    launch_with_accelerate(2, tiny_checkpoint, two, 4, one_process / "rollouts-0.json")
    adapter, expected = (
        load_file(folder / "adapter_model.safetensors") for folder in (two, one_process)
    )
    assert adapter.keys() == expected.keys()
    moved = max(weight.abs().max().item() for name, weight in expected.items() if "lora_B" in name)
    apart = max((adapter[name] - expected[name]).abs().max().item() for name in expected)
    assert moved > 1e-3  # lora_B starts at 0: the runs did learn something
    assert apart <= 1e-5
    for row, other in zip(read_metrics(two), read_metrics(one_process), strict=True):
        assert row["reward"] == pytest.approx(other["reward"], abs=1e-5)
        assert row["kl"] == pytest.approx(other["kl"], abs=1e-5)
        for spread in ("kl/median", "kl/max"):
            assert row[spread] == pytest.approx(other[spread], abs=1e-5)
    for line, other in zip(read_lines(two), read_lines(one_process), strict=True):
        assert (line.step, line.tokens) == (other.step, other.tokens)
        for token, expected_token in zip(line.largest, other.largest, strict=True):
            assert token.kl == pytest.approx(expected_token.kl, abs=1e-5)
        # In the first step all are 0 but for rounding, and any may be the largest.
        if line.max > 1e-4:
            assert line.largest[0].text == other.largest[0].text


def test_a_group_that_two_processes_share_is_scored_as_one(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "shared"
    launch(2, tiny_checkpoint, folder, 2)  # 2 processes x 2 rows = one group of 4
    ranks = [json.loads((folder / f"rollouts-{rank}.json").read_text()) for rank in (0, 1)]
    for metrics, *steps in zip(read_metrics(folder), *ranks, strict=True):
        assert steps[0]["prompts"] == steps[1]["prompts"]
        ids = [row for step in steps for row in step["completion_ids"]]
        assert len({tuple(row) for row in ids}) > 1  # the ranks sample differently
        assert metrics["reward"] == pytest.approx(
            mean(len(row) + row[0] / 1000 for row in ids), abs=1e-4
        )


def test_two_processes_credit_steps_as_one_does(one_process: Path, tiny_checkpoint: Path) -> None:
    learned = []
    for processes, rows in ((1, 8), (2, 4)):
        folder = one_process.parent / f"steps-{processes}"
        launch(processes, tiny_checkpoint, folder, rows, one_process / "rollouts-0.json", "steps")
        learned.append(load_file(folder / "adapter_model.safetensors"))
        (count,) = {row["rewards/ends_cost/steps"] for row in read_metrics(folder)[:1]}
        assert count > 1
    without = load_file(one_process / "adapter_model.safetensors")
    for name, expected in learned[0].items():
        assert (learned[1][name] - expected).abs().max().item() <= 1e-5
    assert (
        max((without[name] - weight).abs().max().item() for name, weight in learned[0].items())
        > 1e-3
    )


def test_two_processes_keep_one_reference_where_norms_of_the_base_train(
    one_process: Path, tiny_checkpoint: Path
) -> None:
    learned, kls = [], []
    for processes, rows in ((1, 8), (2, 4)):
        folder = one_process.parent / f"norms-{processes}"
        launch(processes, tiny_checkpoint, folder, rows, one_process / "rollouts-0.json", "norms")
        learned.append(load_file(folder / "adapter_model.safetensors"))
        kls.append([row["kl"] for row in read_metrics(folder)])
    for name, expected in learned[0].items():
        assert (learned[1][name] - expected).abs().max().item() <= 1e-5
    assert kls[1] == pytest.approx(kls[0], abs=1e-5)
    # The norms move the policy further than the adapter does alone.
    assert kls[0][-1] > read_metrics(one_process)[-1]["kl"] * 1.01


def test_two_processes_fit_one_critic(one_process: Path, tiny_checkpoint: Path) -> None:
    """The critic's own optimizer is Adam, which makes whole steps of rounding: its predictions are
    compared instead.

    They show in its losses before each fit, and, through the advantages, in the policy, which
    learns by plain descent.
    """
    policies, critics, losses = [], [], []
    for processes, rows in ((1, 8), (2, 4)):
        folder = one_process.parent / f"gae-{processes}"
        launch(processes, tiny_checkpoint, folder, rows, one_process / "rollouts-0.json", "gae")
        policies.append(load_file(folder / "adapter_model.safetensors"))
        critics.append(load_file(folder / "critic" / "adapter_model.safetensors"))
        losses.append([row["critic/loss"] for row in read_metrics(folder)])
    for learned in (policies[0], critics[0]):
        assert (
            max(weight.abs().max().item() for name, weight in learned.items() if "lora_B" in name)
            > 1e-3
        )
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert len(set(losses[0])) == len(losses[0])  # each fit changed them
    assert (
        max((policies[1][name] - weight).abs().max().item() for name, weight in policies[0].items())
        <= 1e-5
    )


def test_two_processes_go_through_the_iterations_together(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """Each fits the reward model by itself, and both end with what is on disk."""
    out, script = tmp_path / "run", SCRIPT.with_name("iterative_training.py")
    said = launch(2, tiny_checkpoint, out, script=script)
    assert said.count("iteration 2: reward_model") == 1
    ranks = [load_file(out / f"weights-{rank}.safetensors") for rank in (0, 1)]
    assert all(weight.equal(ranks[1][name]) for name, weight in ranks[0].items())
    for adapter, role in (("default", "policy"), ("reward", "reward_model")):
        saved = load_file(out / "iteration-2" / role / "adapter_model.safetensors")
        own = {name: weight for name, weight in saved.items() if "lora" in name}
        held = {name: weight for name, weight in ranks[0].items() if f".{adapter}." in name}
        assert own.keys() == {name.replace(f".{adapter}.", ".") for name in held}
        assert all(
            weight.equal(own[name.replace(f".{adapter}.", ".")]) for name, weight in held.items()
        )
        before = load_file(out / "iteration-1" / role / "adapter_model.safetensors")
        assert not any(weight.equal(before[name]) for name, weight in own.items())
    samples = (out / "iteration-1" / "samples.jsonl").read_text().splitlines()
    assert len(samples) == 6 and len({row["prompt"] for row in map(json.loads, samples)}) == 6


def test_too_many_failures_on_one_process_stop_both(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """One decision on all processes; otherwise the first would wait for the second until this
    test's time is up.
    """
    script = SCRIPT.with_name("failing_reward.py")
    said = launch(2, tiny_checkpoint, tmp_path / "run", script=script)
    assert "rank 0 stopped" in said and "rank 1 stopped" in said
    assert said.count("failed on 4 of 8 completions at step 3") == 2
    assert "the judge of the second process has gone" in said and "on another process" in said
    checkpoint = tmp_path / "run" / "checkpoint-2"
    assert {"adapter_model.safetensors", "rng_state_0.pth", "rng_state_1.pth"} <= {
        f.name for f in checkpoint.iterdir()
    }


def test_rows_may_be_too_long_for_the_fast_ways_on_one_process(tmp_path: Path) -> None:
    """What one process leaves to TRL, for its own rows, keeps no other process waiting."""
    said = launch(2, tmp_path / "run", script=SCRIPT.with_name("uneven_lengths.py"))
    assert "rank 0 is done" in said and "rank 1 is done" in said
