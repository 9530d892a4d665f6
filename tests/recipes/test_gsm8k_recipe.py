"""Launch recipes/gsm8k.py: short runs of the embedded demo, and whole runs on three seeds."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.programs import RECIPES, load_recipe

from grpo_hf.runs.recipe import read_recipe

pytestmark = pytest.mark.long

# The flags answer the questions of `accelerate config`.
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch"]
LAUNCH += ["--num_processes", "1", "--num_machines", "1", "--mixed_precision", "no"]
LAUNCH += ["--dynamo_backend", "no"]
LAUNCH.append(str(RECIPES / "gsm8k.py"))


def demo(folder: Path, *flags: str, threads: int | None = 1) -> str:
    """Run the embedded demo, and return its output."""
    config = str(RECIPES / "gsm8k_tiny.yaml")
    command = [*LAUNCH, "--config", config, "--output_dir", str(folder), *flags]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def start_here(folder: Path, *flags: str) -> None:
    """Run the embedded demo in this process, which has imported the libraries."""
    config = str(RECIPES / "gsm8k_tiny.yaml")
    load_recipe("gsm8k").main(["--config", config, "--output_dir", str(folder), *flags])


def test_the_demo_runs_from_cold_start_to_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = ["--cold_start_steps", "4", "--max_steps", "2", "--logging_steps", "1"]
    short += ["--eval_rows", "12"]
    said = demo(tmp_path / "first", *short)
    assert "cold start: 4 supervised steps" in said
    assert re.search(
        r"^step 1/2  reward .*gsm8k .*answer_format .*kl .*tokens/s", said, re.MULTILINE
    )
    # The second iteration (μ = 2) has the same rollout.
    assert re.search(r"^step 2/2  on the same rollout  kl ", said, re.MULTILINE)
    for row in ("base (adapter disabled)", "adapter", "difference (paired)"):
        assert row in said
    first = tmp_path / "first"
    for name in ("adapter_model.safetensors", "adapter_config.json", "tokenizer.json"):
        assert (first / name).exists()
    for name in ("metrics.jsonl", "README.md"):
        assert (first / name).exists()
    answers = list(map(json.loads, (first / "evaluation.jsonl").read_text().splitlines()))
    assert len(answers) == 12
    # The second run finds the cold-started checkpoint of the first one.
    start_here(tmp_path / "second", *short, "--save_strategy", "no")
    assert "using the checkpoint in" in capsys.readouterr().out


def test_a_mistake_reaches_the_user_through_the_launcher(tmp_path: Path) -> None:
    command = [*LAUNCH, "--config", str(RECIPES / "gsm8k_tiny.yaml"), "--rewards", "gsm8"]
    # Without --quiet, accelerate's launcher adds its own traceback when the program fails.
    command.insert(command.index("--num_processes"), "--quiet")
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode != 0
    assert "error: reward 'gsm8' is not known. Did you mean 'gsm8k'?" in done.stderr
    assert "Traceback" not in done.stderr


def test_qlora_is_a_flag(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short = ["--cold_start_steps", "2", "--max_steps", "2", "--logging_steps", "1"]
    short += ["--eval_rows", "4", "--max_completion_length", "8"]
    start_here(tmp_path / "run", *short, "--load_in_4bit", "--per_device_train_batch_size", "8")
    said = capsys.readouterr().out
    assert "step 2/2" in said and "base (adapter disabled)" in said


def test_full_fine_tuning_claims_no_comparison(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = ["--cold_start_steps", "2", "--max_steps", "1", "--eval_rows", "4"]
    short += ["--max_completion_length", "8"]
    short += ["--per_device_train_batch_size", "8"]
    start_here(tmp_path / "run", *short, "--use_peft", "false")
    said = capsys.readouterr().out
    assert "no comparison with the base: the whole model was trained" in said
    assert "accuracy" not in said


@pytest.mark.parametrize("name", ["gsm8k", "gsm8k_smollm2", "gsm8k_tiny"])
def test_every_recipe_file_is_read(name: str) -> None:
    recipe = read_recipe(["--config", str(RECIPES / f"{name}.yaml"), "--learning_rate", "0.5"])
    assert recipe.task.rewards == ["gsm8k", "answer_format"]
    assert recipe.training.learning_rate == 0.5
    assert recipe.model.use_peft


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_demo_gets_better_on_every_seed(tmp_path: Path, seed: int) -> None:
    said = demo(tmp_path / "run", "--seed", str(seed), threads=os.cpu_count())
    difference = re.search(r"difference \(paired\).*?([+-]\d\.\d{3}).*?([+-]\d\.\d{3}) to", said)
    assert difference is not None, said
    # The gain in accuracy, then the lower end of its 95% interval.
    assert float(difference[1]) >= 0.15
    assert float(difference[2]) > 0
