"""Tests of `credit.jsonl`: what a run keeps of its rollouts, and when."""

import json
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from peft import LoraConfig
from support.credit import batch_of
from transformers import TrainerState

from grpo_hf import GRPOConfig, StepRewards, reward_settings
from grpo_hf.demo.tiny_model import tiny_tokenizer
from grpo_hf.reporting import credit_file
from grpo_hf.reporting.credit_file import Scored, logged_step, record_credit
from grpo_hf.reporting.metrics_file import read_metrics
from grpo_hf.reporting.token_credit import CREDIT_FILE
from grpo_hf.run_context import RunContext

LORA = LoraConfig(r=4, target_modules="all-linear")
NAN = float("nan")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny_tokenizer()


@reward_settings(in_process=True)
def has_digit(completions: list[str], **_: Any) -> list[float]:
    """Pay for a digit; about every other group of an untrained model then has equal rewards."""
    return [float(any(map(str.isdigit, text))) for text in completions]


@reward_settings(in_process=True)
def halves(completions: list[str], **_: Any) -> list[StepRewards]:
    """Judge both halves of a completion."""
    judged = []
    for text in completions:
        ends = sorted({len(text) // 2, len(text)} - {0})
        judged.append(StepRewards(ends, [0.25, 0.75][: len(ends)]))
    return judged


def lines(folder: Path) -> list[dict[str, Any]]:
    text = (folder / CREDIT_FILE).read_text(encoding="utf-8")
    return list(map(json.loads, text.split("\n")[:-1]))


def arguments(
    folder: Path, per_generation: int, iterations: int, accumulation: int, **more: Any
) -> GRPOConfig:
    """Return the settings of a run that makes a rollout for so many micro-steps."""
    return GRPOConfig(
        output_dir=str(folder),
        use_cpu=True,
        report_to="none",
        num_generations=2,
        per_device_train_batch_size=2,
        steps_per_generation=per_generation,
        num_iterations=iterations,
        gradient_accumulation_steps=accumulation,
        **more,
    )


class OtherProcess(Accelerator):
    """The accelerator of a process that is not the first one."""

    is_main_process = False


class TestRuns:
    @pytest.mark.long
    def test_a_run_keeps_what_it_trained_on(
        self, make_trainer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        trainer = make_trainer(peft_config=LORA, logging_steps=2, max_steps=4)
        batches, record_credit = {}, credit_file.record_credit

        def remembered(batch: Any, scored: Any, tokenizer: Any, run: Any, *more: Any):
            batches[run.step + 1] = batch
            record_credit(batch, scored, tokenizer, run, *more)

        monkeypatch.setattr(credit_file, "record_credit", remembered)
        trainer.train()
        kept = lines(tmp_path / "run")
        assert [row["step"] for row in kept] == [2, 4]
        decode = trainer.processing_class.decode
        for row in kept:
            batch = batches[row["step"]]
            (place,) = {0, 4} & set(self.places(batch, row, decode))
            assert row["prompt"] == decode(
                batch["prompt_ids"][place][batch["prompt_mask"][place].bool()]
            )
            for number, one in enumerate(row["completions"], place):
                ids = batch["completion_ids"][number][batch["completion_mask"][number].bool()]
                assert "".join(one["tokens"]) == decode(ids) and len(one["tokens"]) == len(ids)
                assert one["advantages"] == pytest.approx(
                    [batch["advantages"][number].item()] * len(ids), rel=1e-3
                )
                text = decode(ids, skip_special_tokens=True)
                assert one["reward"] == len(text) + text.count("1")
                assert one["rewards"] == {"count_ones": one["reward"]}

    @staticmethod
    def places(batch: dict[str, Any], row: dict[str, Any], decode: Any) -> list[int]:
        """Return the rows of a batch that have the text of the first completion."""
        wanted = "".join(row["completions"][0]["tokens"])
        found = []
        rows = zip(batch["completion_ids"], batch["completion_mask"], strict=True)
        for place, (ids, mask) in enumerate(rows):
            if decode(ids[mask.bool()]) == wanted:
                found.append(place)
        return found

    @pytest.mark.long
    def test_rewards_are_those_of_the_completions_when_groups_are_replaced(
        self, make_trainer: Any, tmp_path: Path
    ):
        trainer = make_trainer(
            peft_config=LORA,
            reward_funcs=has_digit,
            dynamic_sampling=True,
            max_steps=4,
            max_completion_length=4,
        )
        trainer.train()
        replaced = [row["signal/refilled_groups"] for row in read_metrics(tmp_path / "run")]
        assert any(replaced)
        for row in lines(tmp_path / "run"):
            for one in row["completions"]:
                text = ""
                for position, token in enumerate(one["tokens"]):
                    if position not in one["special"]:
                        text += token
                assert one["reward"] == float(any(map(str.isdigit, text)))

    def test_steps_keep_their_rewards(self, make_trainer: Any, tmp_path: Path):
        trainer = make_trainer(reward_funcs=[halves], peft_config=LORA, max_steps=1)
        trainer.train()
        (row,) = lines(tmp_path / "run")
        for one in row["completions"]:
            steps = one["steps"]["halves"]
            length = len(one["tokens"]) - len(one["special"])
            assert [reward for _, reward in steps] == [0.25, 0.75][: len(steps)]
            assert [end for end, _ in steps][-1] in (length - 1, length)
            assert all(0 <= end < len(one["tokens"]) for end, _ in steps)

    @pytest.mark.long
    def test_a_resumed_run_appends(self, make_trainer: Any, tmp_path: Path):
        make_trainer(peft_config=LORA, max_steps=2, save_strategy="steps", save_steps=1).train()
        before = (tmp_path / "run" / CREDIT_FILE).read_bytes()
        make_trainer(peft_config=LORA, max_steps=3).train(resume_from_checkpoint=True)
        assert (tmp_path / "run" / CREDIT_FILE).read_bytes().startswith(before)
        assert [row["step"] for row in lines(tmp_path / "run")] == [1, 2, 3]

    def test_it_can_be_left_out(self, make_trainer: Any, tmp_path: Path):
        make_trainer(peft_config=LORA, max_steps=1, log_credit=False).train()
        assert read_metrics(tmp_path / "run") and not (tmp_path / "run" / CREDIT_FILE).exists()

    @pytest.mark.long
    def test_an_evaluation_writes_nothing(self, make_trainer: Any, tmp_path: Path):
        """Evaluate between two steps; a rollout for training would then be credited to the next."""
        trainer = make_trainer(peft_config=LORA, max_steps=2)
        trainer.train()
        before = lines(tmp_path / "run")
        trainer.args.max_steps = trainer.state.max_steps = 3
        trainer.evaluate(trainer.train_dataset.select(range(2)))
        assert lines(tmp_path / "run") == before

    @pytest.mark.parametrize(
        "changes", [{"main": False}, {"logging_strategy": "no"}, {"max_steps": 0}]
    )
    def test_nothing_is_written_by(self, tmp_path: Path, tokenizer: Any, changes: dict[str, Any]):
        """Another process, a run that does not log, and a rollout outside of training."""
        rewards = torch.tensor([[1.0, 2.0], [NAN, 0.5], [NAN, NAN], [0.0, 0.0]])
        batch = batch_of(tokenizer, ["a", "b", "c", "d"], [0.0, 0.0, 0.5, 0.5])

        def record(
            batch: Any, *, main: bool = True, logging_strategy: str = "steps", max_steps: int = 5
        ) -> None:
            args = arguments(tmp_path, 1, 1, 1, logging_strategy=logging_strategy)
            state = TrainerState(global_step=0, logging_steps=1, max_steps=max_steps)
            accelerator = Accelerator(cpu=True) if main else OtherProcess(cpu=True)
            run = RunContext(accelerator, group_size=2, training=True, step=0)
            scored = Scored(rewards, torch.ones(2), ["first", "second"])
            record_credit(batch, scored, tokenizer, run, args, state)

        record(batch, **changes)
        assert list(tmp_path.iterdir()) == []
        record(batch)
        batch["advantages"] = torch.tensor([0.5, 0.5, 0.0, 0.0])
        record(batch)
        rewards_kept = [[one["reward"] for one in row["completions"]] for row in lines(tmp_path)]
        assert rewards_kept == [[None, 0.0], [3.0, 0.5]]
        by_name = [one["rewards"] for row in lines(tmp_path) for one in row["completions"]]
        assert by_name[0] == {"first": None, "second": None}
        assert by_name[2:] == [{"first": 1.0, "second": 2.0}, {"first": None, "second": 0.5}]


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(
    ("per_generation", "iterations", "accumulation"), [*product([1, 2, 3, 4], [1, 2], [1, 2, 3, 4])]
)
def test_a_logged_step_has_credit_where_it_has_rewards(
    tmp_path: Path, per_generation: int, iterations: int, accumulation: int, first: bool
):
    """Simulate every micro-step; TRL logs the rewards of the rollouts since the last log."""
    args = arguments(tmp_path, per_generation, iterations, accumulation, logging_first_step=first)
    for every in (1, 2, 3, 5):
        steps = 12
        logged = []
        for step in range(1, steps + 1):
            if step % every == 0 or (first and step == 1):
                logged.append(step)
        # A rollout is made before every so many micro-steps; it is known by the steps done by then.
        made = []
        for micro_step in range(0, steps * accumulation, per_generation * iterations):
            made.append(micro_step // accumulation)
        kept = set()
        for done in made:
            state = TrainerState(global_step=done, logging_steps=every, max_steps=steps)
            kept.add(logged_step(args, state))
        expected = set()
        for last, now in pairwise([0, *logged]):
            if any(last <= done < now for done in made):
                expected.add(now)
        assert kept - {None} == expected
