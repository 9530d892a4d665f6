"""What a logger of another maker gets: the names and values of `metrics.jsonl`."""

import math
from collections.abc import Callable
from pathlib import Path

from datasets import Dataset
from peft import LoraConfig
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers.integrations.integration_utils import rewrite_logs

from grpo_hf import GRPOTrainer
from grpo_hf.run_files import METRICS_FILE, read_lines


def test_tensorboard_has_the_names_and_values_of_the_metrics(
    make_trainer: Callable[..., GRPOTrainer], tmp_path: Path
):
    trainer = make_trainer(
        peft_config=LoraConfig(r=4, target_modules="all-linear"),
        eval_dataset=Dataset.from_list([{"prompt": "2 + 2 = "}]),
        eval_strategy="steps",
        eval_steps=1,
        per_device_eval_batch_size=4,
        report_to="tensorboard",
    )
    trainer.train()
    run = tmp_path / "run"
    expected = {}
    for row in read_lines(run / METRICS_FILE):
        step = row.pop("step")
        for name, value in rewrite_logs(row).items():
            # JSON has no NaN.
            expected[name, step] = math.nan if value is None else value
    (file,) = run.rglob("events.out.tfevents.*")
    events = EventAccumulator(str(file), size_guidance={"scalars": 0}).Reload()
    found = {}
    for name in events.Tags()["scalars"]:
        for event in events.Scalars(name):
            found[name, event.step] = event.value
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        # The file of events holds float32.
        same = math.isclose(found[key], value, rel_tol=1e-6, abs_tol=1e-30)
        assert same or (math.isnan(found[key]) and math.isnan(value)), key
    names = {name for name, _ in found}
    ours = {"train/reward", "train/kl", "train/kl/median", "train/time/rollout", "eval/reward"}
    assert ours <= names
    assert {step for name, step in found if name == "train/reward"} == {1, 2}
