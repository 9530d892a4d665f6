"""Data with which a run could take no step is refused before a model loads."""

import pytest
from datasets import Dataset, IterableDataset
from trl import GRPOConfig as TRLGRPOConfig
from trl.trainer.utils import RepeatSampler

from grpo_hf import GRPOConfig, GRPOTrainer
from grpo_hf.data.training_data import check_training_data
from grpo_hf.errors import ConfigError, DataError


def args(tmp_path, kind=GRPOConfig, **settings):
    batch = {"num_generations": 4, "per_device_train_batch_size": 8, "use_cpu": True}
    return kind(output_dir=str(tmp_path), bf16=False, **batch | settings)


def rows(count):
    return Dataset.from_dict({"prompt": [f"{number}?" for number in range(count)]})


GEOMETRIES = [
    {},
    {"gradient_accumulation_steps": 3},
    {"gradient_accumulation_steps": 4, "per_device_train_batch_size": 2},
    {"steps_per_generation": 2},
    {"generation_batch_size": 32},
    {"num_generations": 8},
    {"num_iterations": 3},
]


@pytest.mark.parametrize("kind", [GRPOConfig, TRLGRPOConfig])
@pytest.mark.parametrize("settings", GEOMETRIES, ids=str)
def test_refused_exactly_where_the_sampler_draws_nothing(tmp_path, settings, kind):
    settings = args(tmp_path, kind, **settings)
    needed = settings.generation_batch_size // settings.num_generations
    for count in range(needed + 2):
        # As TRL 1.16 makes it.
        drawn = RepeatSampler(
            range(count),
            mini_repeat_count=settings.num_generations,
            batch_size=needed,
            repeat_count=settings.num_iterations * settings.steps_per_generation,
        )
        if len(drawn):
            check_training_data(rows(count), settings)
            continue
        with pytest.raises(DataError) as refused:
            check_training_data(rows(count), settings, source="train.jsonl")
        said = str(refused.value)
        assert f"train.jsonl has {count} prompt" in said
        assert f"needs {needed} different ones: {settings.generation_batch_size} comp" in said
        assert f"Give at least {needed} rows to train on" in said
        if count:
            assert f"at most {count * settings.num_generations} completions" in said


def test_all_processes_count(tmp_path, monkeypatch):
    # Before the variable is set, which would start a process group.
    settings = args(tmp_path)
    settings.generation_batch_size = 16
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(DataError, match=r"3 prompts.*needs 4.*\(2 processes x per_device"):
        check_training_data(rows(3), settings)


def test_nothing_and_streams_pass(tmp_path):
    check_training_data(None, args(tmp_path))
    stream = rows(1).to_iterable_dataset()
    check_training_data(stream, args(tmp_path))
    with pytest.raises(ConfigError, match=r"a stream \(IterableDataset\) can only"):
        check_training_data(stream, args(tmp_path, dynamic_sampling=True))


@pytest.mark.parametrize("length", [{"max_steps": 3}, {"num_train_epochs": 3}], ids=str)
@pytest.mark.parametrize("count", [0, 1])
def test_the_trainer_refuses_before_it_loads_a_model(tmp_path, length, count):
    def same(completions, **columns):
        raise AssertionError("the reward was tried")

    with pytest.raises(DataError, match=f"has {count} prompts?, and a generation batch needs 2"):
        GRPOTrainer("no/such-model", same, args(tmp_path, **length), rows(count))


class TestEvaluation:
    @pytest.mark.long
    def test_before_the_training(self, make_trainer):
        trainer = make_trainer(eval_dataset=rows(3), per_device_eval_batch_size=4)
        before = trainer.evaluate()
        assert trainer.train().global_step == 2
        after = trainer.evaluate()
        for metrics in (before, after):
            assert metrics["eval_reward"] == metrics["eval_rewards/count_ones/mean"]

    def test_of_another_run_s_folder_writes_nothing(self, make_trainer, tmp_path):
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 1}\n')
        trainer = make_trainer(eval_dataset=rows(1), per_device_eval_batch_size=4)
        trainer.evaluate()
        assert (tmp_path / "run" / "metrics.jsonl").read_text() == '{"step": 1}\n'

    def test_needs_no_whole_generation_batch(self, make_trainer):
        """Evaluations draw group by group; a part of a batch is no part of a group."""
        trainer = make_trainer(eval_dataset=rows(3), per_device_eval_batch_size=8)
        assert "eval_reward" in trainer.evaluate()


def test_streams_train_and_are_evaluated(make_trainer):
    def stream(count):
        return IterableDataset.from_generator(lambda: iter(rows(count)))

    trainer = make_trainer(
        train_dataset=stream(8),
        eval_dataset=stream(3),
        per_device_eval_batch_size=4,
        num_iterations=2,
        steps_per_generation=2,
        per_device_train_batch_size=4,
        max_steps=4,
    )
    trainer.evaluate()
    assert trainer.train().global_step == 4
