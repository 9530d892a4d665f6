"""The trainer as its users call it: TRL's constructor, TRL's numbers, and what it adds."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import trl
from datasets import Dataset
from support.models import LORA
from transformers import AutoModelForCausalLM, AutoTokenizer

from grpo_hf import GRPOConfig, GRPOTrainer, reward_settings
from grpo_hf.errors import (
    DataError,
    OutputExistsError,
    RewardFailuresError,
    RewardNotFound,
    RewardSpecError,
)
from grpo_hf.reporting.metrics_file import read_metrics

MakeTrainer = Callable[..., GRPOTrainer]


def count_threes(completions: list[str], **_: Any) -> list[float]:
    return [float(text.count("3")) + len(text) / 100 for text in completions]


def trained_weights(trainer: Any) -> dict[str, torch.Tensor]:
    trainer.train()
    return {
        name: weight.detach().clone()
        for name, weight in trainer.model.named_parameters()
        if weight.requires_grad
    }


@pytest.mark.long
def test_it_learns_what_trl_learns_from_the_same_script(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """With the flags for TRL's own path; update/test_log_probs.py compares ours with it."""

    def script(library: Any, **ours: Any) -> Any:
        return library.GRPOTrainer(
            str(tiny_checkpoint),
            count_threes,
            library.GRPOConfig(
                output_dir=str(tmp_path / library.__name__),
                loss_type="grpo",
                beta=0.04,
                use_bias_correction_kl=False,
                num_generations=4,
                num_iterations=2,
                per_device_train_batch_size=8,
                max_completion_length=8,
                max_steps=4,
                report_to="none",
                save_strategy="no",
                use_cpu=True,
                bf16=False,
                gradient_checkpointing=False,
                **ours,
            ),
            Dataset.from_list([{"prompt": f"{n} and {n}: "} for n in range(16)]),
            processing_class=AutoTokenizer.from_pretrained(tiny_checkpoint, padding_side="left"),
            peft_config=LORA,
        )

    import grpo_hf

    ours = trained_weights(
        script(grpo_hf, packed_update=False, grouped_rollout=False, early_rewards=False)
    )
    theirs = trained_weights(script(trl))
    assert ours.keys() == theirs.keys()
    for name, weight in ours.items():
        assert torch.equal(weight, theirs[name]), name


@pytest.mark.long
def test_rewards_are_taken_by_every_name(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "def concise(completions, *, limit=5, **_):\n"
        "    return [-len(c) / limit for c in completions]\n"
    )
    trainer = make_trainer(
        reward_funcs=["gsm8k", f"{file}:concise(limit=2)", count_threes],
        reward_weights=[1.0, 0.5, 2.0],
        peft_config=LORA,
    )
    trainer.train()
    assert trainer.reward_func_names == ["gsm8k", "concise", "count_threes"]
    first = trainer.state.log_history[0]
    assert first["rewards/concise/mean"] < 0
    weighted = (
        first["rewards/gsm8k/mean"]
        + 0.5 * first["rewards/concise/mean"]
        + 2 * first["rewards/count_threes/mean"]
    )
    assert first["reward"] == pytest.approx(weighted, abs=1e-5)


@pytest.mark.long
def test_async_rewards_and_none_are_scored(make_trainer: MakeTrainer) -> None:
    async def judge_some(completions: list[str], **_: Any) -> list[float | None]:
        return [None if index % 2 else 1.0 for index, _ in enumerate(completions)]

    trainer = make_trainer(reward_funcs=[judge_some, count_threes], peft_config=LORA)
    trainer.train()
    assert trainer.state.log_history[0]["rewards/judge_some/mean"] == 1.0


@pytest.mark.parametrize(
    ("reward", "error", "message"),
    [
        ("gsm8", RewardNotFound, "Did you mean 'gsm8k'"),
        ("overlong(max=3)", RewardSpecError, "no option 'max'"),
    ],
)
def test_a_reward_that_does_not_fit_is_refused(
    make_trainer: MakeTrainer, reward: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make_trainer(reward_funcs=reward)


def test_a_column_that_a_reward_needs_is_missed_before_training(make_trainer: MakeTrainer) -> None:
    with pytest.raises(
        DataError, match=r"'gsm8k' needs the column 'answer'.*Its columns are prompt"
    ):
        make_trainer(
            reward_funcs="gsm8k", train_dataset=Dataset.from_list([{"prompt": "1 + 1"}] * 8)
        )


def test_functions_of_one_name_are_taken_as_in_trl(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(
        reward_funcs=[lambda completions, **_: [1.0] * len(completions) for _ in "ab"]
    )
    assert trainer.reward_func_names == ["<lambda>", "<lambda>"]


@pytest.mark.long
def test_streaming_data_trains(make_trainer: MakeTrainer) -> None:
    rows = Dataset.from_list([{"prompt": f"{n}: "} for n in range(64)]).to_iterable_dataset()
    make_trainer(train_dataset=rows, peft_config=LORA).train()


def test_completions_are_printed_on_request(
    make_trainer: MakeTrainer, tmp_path: Path, capsys: Any
) -> None:
    make_trainer(
        peft_config=LORA, log_completions=True, num_completions_to_print=1, max_steps=2
    ).train()
    shown = capsys.readouterr().out
    # Once for each step, and not again with the summary of the training.
    assert shown.count("Completion") == 2
    assert shown.count(" Step 1 ") == shown.count(" Step 2 ") == 1
    assert len(list((tmp_path / "run" / "completions").glob("*.parquet"))) == 2


def test_a_run_that_logs_no_step_shows_its_completions_at_the_end(
    make_trainer: MakeTrainer, capsys: Any
) -> None:
    settings = {"num_completions_to_print": 1, "logging_steps": 10, "max_steps": 2}
    make_trainer(peft_config=LORA, log_completions=True, **settings).train()
    assert capsys.readouterr().out.count("Completion") == 1


def test_an_evaluation_shows_its_own_completions(make_trainer: MakeTrainer, capsys: Any) -> None:
    settings = {"num_completions_to_print": 1, "max_steps": 1, "eval_strategy": "steps"}
    rows = Dataset.from_list([{"prompt": f"{n}: "} for n in range(4)])
    trainer = make_trainer(
        peft_config=LORA, log_completions=True, eval_dataset=rows, eval_steps=1, **settings
    )
    trainer.train()
    assert capsys.readouterr().out.count("Completion") == 2
    # What a callback adds to an evaluation is about the same completions.
    trainer.log({"eval_accuracy": 0.5})
    assert "Completion" not in capsys.readouterr().out


def test_a_reward_that_returns_too_few_stops_the_run_and_is_named(
    make_trainer: MakeTrainer,
) -> None:
    @reward_settings(in_process=True, batched=True)
    def short(completions: list[str], **_: Any) -> list[float]:
        return [0.0] * (len(completions) - 1)

    with pytest.raises(
        RewardFailuresError, match=r"short failed on 8 of 8 (?s:.*) returned 7 values for 8"
    ):
        make_trainer(reward_funcs=short, peft_config=LORA).train()


@pytest.mark.long
def test_a_cell_of_a_notebook_that_is_run_twice(make_trainer: MakeTrainer) -> None:
    make_trainer(peft_config=LORA, max_steps=1, save_strategy="steps", save_steps=1)
    # A trainer that did not train holds no folder.
    make_trainer(peft_config=LORA, max_steps=1, save_strategy="steps", save_steps=1).train()
    again = make_trainer(peft_config=LORA, max_steps=2)
    with pytest.raises(OutputExistsError, match=r'train\("auto"\)\), remove or rename the folder'):
        again.train()
    again.train("auto")
    assert again.state.global_step == 2


def test_another_run_is_never_overwritten(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    def contents() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}

    first = make_trainer(peft_config=LORA, save_strategy="steps", save_steps=1)
    first.train()
    first.save_model()
    before = contents()
    with pytest.raises(OutputExistsError, match="resume_from_checkpoint"):
        make_trainer(peft_config=LORA).train()
    assert contents() == before


@pytest.mark.long
def test_resuming_into_the_folder_of_another_run_is_refused(
    make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    for name in "ab":
        make_trainer(
            peft_config=LORA, output_dir=str(tmp_path / name), save_strategy="steps", save_steps=1
        ).train()
    with pytest.raises(OutputExistsError, match="b holds a run already"):
        make_trainer(peft_config=LORA, output_dir=str(tmp_path / "b")).train(
            resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-1")
        )


@pytest.mark.long
def test_a_run_resumes_where_it_stopped(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    make_trainer(peft_config=LORA, max_steps=2, save_strategy="steps", save_steps=1).train()
    resumed = make_trainer(peft_config=LORA, max_steps=4)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 4
    assert [row["step"] for row in read_metrics(tmp_path / "run")] == [1, 2, 3, 4]


def test_metrics_reach_disk_and_screen(
    make_trainer: MakeTrainer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_trainer(peft_config=LORA, max_steps=3).train()
    rows = read_metrics(tmp_path / "run")
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert {
        "reward",
        "rewards/count_ones/mean",
        "kl",
        "completions/mean_length",
        "num_tokens",
    } <= rows[0].keys()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step")]
    assert len(lines) == 3
    assert (
        lines[-1].startswith("step 3/3") and "count_ones" in lines[-1] and "tokens/s" in lines[-1]
    )


def test_without_an_adapter_it_is_trl_with_its_second_model(
    tiny_checkpoint: Path, make_trainer: MakeTrainer
) -> None:
    trainer = make_trainer(model=str(tiny_checkpoint))
    trainer.train()
    assert trainer.ref_model is not None
    start = AutoModelForCausalLM.from_pretrained(tiny_checkpoint).state_dict()
    assert any(
        not torch.equal(weight, start[name]) for name, weight in trainer.model.state_dict().items()
    )


@pytest.mark.long
def test_trl_configurations_are_taken_as_they_are(
    make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    args = trl.GRPOConfig(
        output_dir=str(tmp_path / "trl"), use_cpu=True, bf16=False, report_to="none"
    )
    trainer = make_trainer(peft_config=LORA)
    ours = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(trainer.processing_class.name_or_path),
        reward_funcs=count_threes,
        args=args,
        train_dataset=trainer.train_dataset,
        processing_class=trainer.processing_class,
        peft_config=LORA,
    )
    assert (ours.loss_type, ours.beta) == ("dapo", 0.0)
    assert isinstance(trainer.args, GRPOConfig) and (trainer.loss_type, trainer.beta) == (
        "grpo",
        0.04,
    )
