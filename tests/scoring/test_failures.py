"""Failures of rewards in a run: they are counted and left out, and too many end the run."""

import json
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from accelerate import Accelerator
from support.models import LORA
from support.rollouts import watched_rollouts

from grpo_hf import GRPOConfig, GRPOTrainer, load_reward, reward_settings
from grpo_hf.algorithm.advantages import outcome_advantages
from grpo_hf.errors import ConfigError, RewardFailuresError, RewardSpecError
from grpo_hf.reporting.metrics_file import read_metrics
from grpo_hf.reporting.progress import progress_line
from grpo_hf.run_context import RunContext
from grpo_hf.scoring.failures import Settled, settle_failures, write_failures
from grpo_hf.scoring.outcomes import Failure, Outcome
from grpo_hf.scoring.scored_reward import ScoredReward
from grpo_hf.scoring.scorer import Scores

MakeTrainer = Callable[..., GRPOTrainer]
NAN = float("nan")

FAULTS = """
import ctypes, os, random, zlib
from grpo_hf import reward_settings

KINDS = ["raise", "hang", "segfault", "exit", "leak", "nan", "text", "short"]
hoard = []

def chance(text):
    return random.Random(zlib.crc32(text.encode()))

def healthy(completions, **columns):
    return [len(text) % 7 + chance(text).random() for text in completions]

def twin(completions, **columns):
    return healthy(completions)

@reward_settings(batched=False, in_process=False)
def faulty(completions, **columns):
    (text,) = completions
    draw = chance("fault" + text)
    if draw.random() < 0.02 * len(KINDS):
        kind = draw.choice(KINDS)
        if kind == "raise": raise ValueError("no")
        if kind == "hang":
            while True: pass
        if kind == "segfault": ctypes.string_at(0)
        if kind == "exit": os._exit(5)
        if kind == "leak": hoard.append(bytearray(200 * 2**20))
        if kind == "nan": return [float("nan")]
        if kind == "text": return ["1.0"]
        if kind == "short": return []
    return healthy(completions)
"""


def takes_the_answer(completions: list[str], answer: list[str], **other: Any) -> list[float]:
    return []


def scored(values: list[list[float | str]]) -> tuple[Scores, torch.Tensor]:
    """Scores and rewards, a list per reward; text is the reason of a failure, NaN is None."""
    entries = {}
    outcomes = {}
    for index, column in enumerate(values):
        entries[index] = ScoredReward(load_reward(takes_the_answer))
        entries[index].__name__ = f"reward{index}"
        outcomes[index] = []
        for value in column:
            if isinstance(value, str):
                outcomes[index].append(Outcome(None, Failure(value, "it went wrong"), 2.0))
            else:
                outcomes[index].append(Outcome(value, seconds=1.0))
    completions = [f"completion {row}" for row in range(len(values[0]))]
    columns: dict[str, Any] = {"trainer_state": None, "completion_ids": [[1]] * len(completions)}
    for name in ("prompts", "answer", "difficulty"):
        columns[name] = [f"{name} {row}" for row in range(len(completions))]
    numbers = [[NAN if isinstance(value, str) else value for value in row] for row in values]
    return Scores(entries, outcomes, completions, columns), torch.tensor(numbers).T


def settled(folder: Path, values: list[list[float | str]], size: int) -> Settled:
    """What becomes of the rewards of one process after three steps."""
    scores, rewards = scored(values)
    run = RunContext(Accelerator(cpu=True), group_size=size, training=True, step=3)
    args = GRPOConfig(
        output_dir=str(folder),
        num_generations=4,
        per_device_train_batch_size=4,
        use_cpu=True,
        max_reward_failures=0.5,
    )
    return settle_failures(scores, rewards, run, args)


def test_a_row_with_a_failure_is_left_out_and_one_that_cannot_be_judged_is_not(
    tmp_path: Path,
) -> None:
    found = settled(tmp_path, [[1.0, "timeout", 0.0, 0.5], [0.2, 0.2, NAN, 0.2]], 4)
    expected = torch.tensor([[1.0, 0.2], [NAN, NAN], [0.0, NAN], [0.5, 0.2]])
    torch.testing.assert_close(found.rewards, expected, equal_nan=True)
    metrics = found.metrics
    assert metrics["rewards/reward0/failed"] == metrics["rewards/reward0/failed/timeout"] == 0.25
    assert (metrics["rewards/reward1/failed"], metrics["rewards/reward1/judged"]) == (0.0, 0.75)
    (kept,) = (tmp_path / "failures.jsonl").read_text().splitlines()
    assert json.loads(kept) == {
        "step": 4,
        "reward": "reward0",
        "reason": "timeout",
        "detail": "it went wrong",
        "prompt": "prompts 1",
        "columns": {"answer": "answer 1"},
        "completion": "completion 1",
    }
    assert metrics["rewards/reward0/latency_p50"] == 1.0
    assert metrics["rewards/reward0/latency_p99"] > 1.9


def test_the_row_of_a_failure_is_kept_as_the_reward_got_it(
    make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    """An answer of the tiny data is the sum that its prompt asks for."""

    @reward_settings(in_process=True)
    def looks_up(completions: list[str], answer: list[str], **_: Any) -> list[float]:
        return [{"none": 1.0}[each] for each in answer]

    def passes(completions: list[str], **_: Any) -> list[float]:
        return [1.0 for _ in completions]

    trainer = make_trainer(reward_funcs=[passes, looks_up], max_reward_failures=1.0, max_steps=1)
    trainer.train()
    kept = [json.loads(line) for line in (tmp_path / "run/failures.jsonl").open()]
    assert len(kept) == 8
    for line in kept:
        first, second = line["prompt"].removesuffix(" = ").split(" + ")
        assert line["columns"] == {"answer": str(int(first) + int(second))}
        assert f"KeyError: {line['columns']['answer']!r}" in line["detail"]


def test_long_values_of_a_failed_row_are_cut(tmp_path: Path) -> None:
    scores, _ = scored([["timeout"]])
    # The beginning of long prompts is often the same in all rows, and their end is not.
    scores.columns["prompts"] = [[{"role": "user", "content": "s" * 3000 + "its end"}]]
    scores.columns["answer"] = ["its beginning" + "a" * 3000]
    write_failures(scores, tmp_path, step=1)
    (kept,) = (json.loads(line) for line in (tmp_path / "failures.jsonl").open())
    assert kept["prompt"].startswith("...s") and "its end" in kept["prompt"]
    assert kept["columns"]["answer"].startswith("its beginninga")
    assert len(kept["prompt"]) == len(kept["columns"]["answer"]) == 2003


def test_a_value_beside_the_columns_is_kept_whole(tmp_path: Path) -> None:
    """A subclass may pass its rewards what is no column."""
    scores, _ = scored([["timeout", 1.0, "timeout"]])
    for name, values in (("answer", 0.7), ("prompts", None)):
        scores.columns[name] = values
    write_failures(scores, tmp_path, step=1)
    kept = [json.loads(line) for line in (tmp_path / "failures.jsonl").open()]
    assert [line["columns"] for line in kept] == [{"answer": 0.7}] * 2
    scores.columns["answer"] = [1, 2]
    write_failures(scores, tmp_path, step=2)
    *_, last = (json.loads(line) for line in (tmp_path / "failures.jsonl").open())
    assert last["columns"] == {"answer": [1, 2]}


def test_a_value_without_a_text_does_not_end_the_run(tmp_path: Path) -> None:
    class Mute:
        def __str__(self) -> str:
            raise RuntimeError("no text")

    scores, _ = scored([["timeout"]])
    scores.columns["answer"] = [[Mute(), Path("a")]]
    write_failures(scores, tmp_path, step=1)
    (kept,) = (json.loads(line) for line in (tmp_path / "failures.jsonl").open())
    assert kept["columns"] == {"answer": ["Mute", "a"]}


def test_a_group_with_one_completion_left_is_left_out(tmp_path: Path) -> None:
    found = settled(tmp_path, [[1.0, "killed", 0.0, 0.5]], 2)
    assert found.rewards.isnan().all(1).tolist() == [True, True, False, False]


def test_the_share_that_may_fail(tmp_path: Path) -> None:
    settled(tmp_path, [["memory", "memory", 1.0, 0.0]], 4)
    with pytest.raises(
        RewardFailuresError,
        match=r"failed on 3 of 4 completions at step 4, more(?s:.*)it went wrong",
    ):
        settled(tmp_path, [["memory", "timeout", "memory", 0.0]], 4)


def test_one_wrong_setting_ends_a_run(tmp_path: Path) -> None:
    with pytest.raises(RewardFailuresError, match="cannot be used as it is set up: it went wrong"):
        settled(tmp_path, [["settings", 1.0, 1.0, 0.0]], 4)


def test_what_cannot_work_fails_before_the_model_is_loaded(
    make_trainer: MakeTrainer, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(completions: list[str], **columns: Any) -> list[float]:
        raise KeyError("x")

    with pytest.raises(RewardSpecError, match="cache is 9, an int; expected at most max_length"):
        make_trainer(reward_funcs="overlong(max_length=5, cache=9)", model="/no/such/model")
    make_trainer(reward_funcs=broken)
    assert "KeyError: 'x'" in caplog.text and "was tried on a few rows" in caplog.text


def test_advantages_are_those_of_the_completions_that_were_scored(
    make_trainer: MakeTrainer,
) -> None:
    """Completions 1 and 6 fail: the others' advantages are the oracle's with those two unjudged."""
    calls = []

    @reward_settings(in_process=True, batched=False)
    def partly(completions: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        calls.append(completion_ids[0])
        # The dry run has made two calls before the rollout.
        if len(calls) - 3 in (1, 6):
            raise ValueError
        return [float(sum(completion_ids[0]) % 23)]

    @reward_settings(in_process=True)
    def other(completions: list[str], **_: Any) -> list[float]:
        return [0.25 for _ in completions]

    trainer = make_trainer(
        reward_funcs=[partly, other], peft_config=LORA, max_steps=1, early_rewards=False
    )
    with watched_rollouts() as rollouts:
        trainer.train()
    (rollout,) = rollouts
    sums = [float(sum(ids) % 23) + 0.25 for ids in calls[2:10]]
    sums[1] = sums[6] = NAN
    expected = outcome_advantages(torch.tensor(sums).view(2, 4)).flatten()
    torch.testing.assert_close(rollout.batch["advantages"], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.long
def test_too_many_failures_stop_the_run_after_a_checkpoint(
    make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    def tires(completions: list[str], trainer_state: Any) -> list[float]:
        if trainer_state.global_step == 2:
            raise ConnectionError("the judge has gone")
        return [float(len(text)) for text in completions]

    trainer = make_trainer(reward_funcs=tires, peft_config=LORA, max_steps=5)
    with pytest.raises(
        RewardFailuresError, match=r"tires failed on 8 of 8 (?s:.*)the judge has gone"
    ):
        trainer.train()
    assert (tmp_path / "run" / "checkpoint-2" / "adapter_model.safetensors").is_file()

    def mended(completions: list[str]) -> list[float]:
        return [float(len(text)) for text in completions]

    again = make_trainer(reward_funcs=mended, peft_config=LORA, max_steps=5)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 5


@pytest.mark.long
def test_a_reward_that_fails_in_the_first_step_says_how_to_begin_anew(
    make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    """The folder has a run without a checkpoint, and the same command is refused there."""

    def broken(completions: list[str], trainer_state: Any) -> list[float]:
        raise ConnectionError("the judge has gone")

    with pytest.raises(RewardFailuresError) as caught:
        make_trainer(reward_funcs=broken, peft_config=LORA, max_steps=2).train()
    assert "begin anew in the same folder with --resume_from_checkpoint auto" in str(caught.value)
    assert not list((tmp_path / "run").glob("checkpoint-*"))
    again = make_trainer(peft_config=LORA, max_steps=2)
    again.train(resume_from_checkpoint="auto")
    assert again.state.global_step == 2


def test_the_progress_line_says_what_failed() -> None:
    of = {
        "mean": 0.5,
        "std": 0.25,
        "judged": 0.625,
        "failed": 0.375,
        "failed/timeout": 0.125,
        "failed/wrong_type": 0.25,
    }
    of |= {"latency_p50": 0.012, "latency_p99": 1.5, "waited": 12.3}
    logs = {"reward": 1.0, **{f"rewards/judge/{name}": value for name, value in of.items()}}
    line = progress_line(1, 2, logs, ["judge"], 1.0, 1.0)
    assert (
        "judge 0.500±0.25 (62.5% judged, timeout 12.5%, wrong type 25.0%, scored in 0.01 s, "
        "p99 1.50 s, waited for 12 s)" in line
    )
    quick = {"rewards/judge/mean": 1.0, "rewards/judge/std": 0.0, "rewards/judge/judged": 1.0}
    assert "judge 1.000±0.00  " in progress_line(1, 2, {"reward": 1.0} | quick, ["judge"], 1.0, 1.0)


@pytest.mark.long
def test_weights_follow_their_schedule_in_a_run(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    rewards = ["overlong(max_length=64, cache=64, weight='linear(1, 0, steps=2)')", "answer_format"]
    make_trainer(reward_funcs=rewards, peft_config=LORA, max_steps=3).train()
    rows = read_metrics(tmp_path / "run")
    assert [row["rewards/overlong/weight"] for row in rows] == [1.0, 0.5, 0.0]
    for row in rows:
        weighed = (
            row["rewards/overlong/weight"] * row["rewards/overlong/mean"]
            + row["rewards/answer_format/mean"]
        )
        assert row["reward"] == pytest.approx(weighed, abs=1e-6)


TIMEOUT = 0.5


def test_weights_twice_are_refused_before_a_model_is_loaded(make_trainer: MakeTrainer) -> None:
    with pytest.raises(ConfigError, match="reward_weights is given and answer_format"):
        make_trainer(
            reward_funcs="answer_format(weight=0.5)", reward_weights=[1.0], model="/no/such/model"
        )


def run_with_faults(
    make_trainer: MakeTrainer, folder: Path, steps: int, options: str = ""
) -> tuple[list[dict[str, Any]], float, int]:
    """A run whose first reward misbehaves in about 16% of samples, and whose second never does.

    Args:
        options: of both rewards, as in a recipe.

    Returns:
        What it logged, the seconds that it took, and how many samples hung.
    """
    (folder / "faults.py").write_text(FAULTS)
    rewards = [f"{folder}/faults.py:{name}{options}" for name in ("faulty", "healthy")]
    settings = {
        "max_steps": steps,
        "reward_timeout": TIMEOUT,
        "reward_workers": 2,
        "peft_config": LORA,
    }
    trainer = make_trainer(reward_funcs=rewards, **settings)
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    handles = psutil.Process().num_fds()
    start = time.monotonic()
    with watched_rollouts() as rollouts:
        trainer.train()
    seconds = time.monotonic() - start
    faulty: list[Outcome] = []
    healthy: list[Outcome] = []
    for rollout in rollouts:
        faulty += rollout.scores.outcomes[0]
        healthy += rollout.scores.outcomes[1]
    assert len(faulty) == 8 * steps and all(outcome.failure is None for outcome in healthy)
    # What does not fail scores exactly as it does without the faults.
    for outcome, twin in zip(faulty, healthy, strict=True):
        assert outcome.failure is not None or outcome.value == twin.value
    reasons = Counter(outcome.failure.reason for outcome in faulty if outcome.failure is not None)
    assert reasons.keys() >= {
        "exception",
        "timeout",
        "killed",
        "not finite",
        "wrong type",
        "wrong length",
    }
    assert 0.05 < sum(outcome.failure is not None for outcome in faulty) / len(faulty) < 0.3
    assert psutil.Process().num_fds() <= handles + 2
    # Workers were replaced, and perhaps the process that forks them; nothing was left behind.
    assert len(psutil.Process().children(recursive=True)) <= len(before)
    trainer.run_rewards.process.close()
    return read_metrics(folder / "run"), seconds, reasons["timeout"]


@pytest.mark.long
def test_a_run_survives_faults_of_every_kind(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    rows, _, _ = run_with_faults(make_trainer, tmp_path, 25)
    assert len(rows) == 25 and any(row["rewards/faulty/failed"] for row in rows)


@pytest.mark.slow
def test_two_hundred_steps_of_faults(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    rows, seconds, hangs = run_with_faults(make_trainer, tmp_path, 200, "(batched=False)")
    assert len(rows) == 200
    assert all(row["rewards/healthy/failed"] == 0 for row in rows)
    healthy = f"{tmp_path}/faults.py:healthy"
    settings = {"max_steps": 200, "peft_config": LORA, "output_dir": str(tmp_path / "free")}
    free = make_trainer(reward_funcs=[healthy, f"{tmp_path}/faults.py:twin"], **settings)
    start = time.monotonic()
    free.train()
    without = time.monotonic() - start
    print(f"{seconds:.0f} s with {hangs} hangs of {TIMEOUT} s, {without:.0f} s without faults")
    assert seconds - without < hangs * TIMEOUT + 0.2 * without
