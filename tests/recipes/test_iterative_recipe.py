"""Test recipes/iterative.py: two iterations, a second call, and a program that is killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from support.programs import RECIPES, load_recipe
from transformers import AutoModelForCausalLM

REWARD = '''
def marks(completions, answer):
    """Return rewards that differ within a group, even for an untrained model."""
    rewards = []
    for completion, gold in zip(completions, answer):
        text = completion if isinstance(completion, str) else completion[0]["content"]
        rewards.append(sum(map(str.isdigit, text)) + len(set(text)) / 10 + len(gold))
    return rewards
'''
# Small enough for a run of seconds.
SIZES = {
    "max_steps": 2,
    "save_steps": 1,
    "logging_steps": 1,
    "num_generations": 4,
    "per_device_train_batch_size": 8,
    "max_completion_length": 8,
    "eval_rows": 4,
    "collect_prompts": 6,
    "collect_samples": 4,
    "reward_learning_rate": 1e-3,
    "cold_start_steps": 0,
}


@pytest.fixture
def flags(tiny_checkpoint: Path, tmp_path: Path) -> list[str]:
    """Return the flags of a run that takes seconds, without its output folder."""
    (tmp_path / "mine.py").write_text(REWARD)
    rows = [{"question": f"{n} + 1?", "answer": "x" * (n % 3)} for n in range(24)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    settings = {"config": RECIPES / "iterative_tiny.yaml", "model_name_or_path": tiny_checkpoint}
    settings |= {"dataset_path": tmp_path / "rows.jsonl", "rewards": f"{tmp_path}/mine.py:marks"}
    flags = []
    for name, value in (settings | SIZES).items():
        flags += [f"--{name}", str(value)]
    return flags


def weights(folder: Path) -> dict[str, dict]:
    """Return the adapters of all iterations, by file."""
    found = {}
    for file in sorted(folder.glob("iteration-*/*/adapter_model.safetensors")):
        found[str(file.relative_to(folder))] = load_file(file)
    return found


def write_times(folder: Path) -> dict[Path, int]:
    """Return the time of the last change of every file with weights."""
    return {file: file.stat().st_mtime_ns for file in folder.rglob("*.safetensors")}


@pytest.mark.long
def test_two_iterations_and_a_second_call(
    flags: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    recipe = load_recipe("iterative")
    out = tmp_path / "run"
    recipe.main([*flags, "--output_dir", str(out)])
    said = capsys.readouterr().out
    expected = []
    for number in range(3):
        for phase in ("policy", "samples.jsonl", "reward_model"):
            expected.append(f"iteration {number}: {phase}")
    assert [line for line in said.splitlines() if line.startswith("iteration")] == expected
    assert "replayed" in said
    assert len(weights(out)) == 6
    for number in range(3):
        answers = (out / f"iteration-{number}" / "answers.jsonl").read_text().splitlines()
        assert [type(json.loads(answer)) for answer in answers] == [str] * 4
    results = json.loads((out / "results.json").read_text())
    assert [result["policy"]["total"] for result in results] == [4] * 3
    assert results[0]["ranked"] is None and results[2]["ranked"]["total"] > 0
    # What the table says of the second iteration.
    (row,) = [line for line in said.splitlines() if line.startswith("│         2 ")]
    cells = [cell.strip() for cell in row.strip("│").split("│")]
    policy = results[2]["policy"]
    assert cells[1] == f"{policy['right']}/{policy['total']}"
    assert cells[5:] == [str(results[2]["pairs"]), str(results[2]["replayed"])]
    # The second call has nothing to do.
    before = write_times(out)
    recipe.main([*flags, "--output_dir", str(out)])
    assert "iteration 0: policy" not in capsys.readouterr().out
    assert write_times(out) == before
    # A setting cannot change between two calls.
    with pytest.raises(SystemExit) as left:
        recipe.main([*flags, "--output_dir", str(out), "--replay", "0.5"])
    assert left.value.code == 2
    assert "was begun with replay 0.1, and this is 0.5" in capsys.readouterr().err


@pytest.mark.long
def test_an_adapter_is_gone_on_with(
    flags: list[str], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    lora = LoraConfig(
        r=2, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM"
    )
    base = AutoModelForCausalLM.from_pretrained(tiny_checkpoint)
    get_peft_model(base, lora).save_pretrained(tmp_path / "adapter")
    out = tmp_path / "run"
    more = ["--iterations", "0", "--eval_rows", "0", "--adapter", str(tmp_path / "adapter")]
    load_recipe("iterative").main([*flags, "--output_dir", str(out), *more])
    expected = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    found = weights(out)["iteration-0/policy/adapter_model.safetensors"]
    assert expected.keys() == found.keys()
    for name, weight in expected.items():
        assert weight.equal(found[name])


def test_what_cannot_be_done_is_said_before_anything_is_taught_or_kept(
    flags: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = load_recipe("iterative")
    out = tmp_path / "run"

    def say(*more: str) -> str:
        with pytest.raises(SystemExit):
            recipe.main([*flags, "--output_dir", str(out), *more])
        return capsys.readouterr().err

    assert "prompts do not fit the model's context" in say("--max_completion_length", "255")
    # A refused call does not begin a run.
    assert not (out / "settings.json").exists()
    monkeypatch.setattr("grpo_hf.runs.train.prompts_of", lambda *_: pytest.fail("it came too far"))
    assert "has a weight of its own" in say("--rewards", f"{tmp_path}/mine.py:marks(weight=0.5)")
    assert "judges continuations by the first reward" in say("--process_reward", "monte_carlo(n=2)")
    assert "holds every iteration to the base" in say("--reference", "base")
    out.mkdir(exist_ok=True)
    (out / "settings.json").write_text(json.dumps({"replay": 0.5}))
    assert "was begun with" in say()


# The program is killed when these files appear.
MOMENTS = (
    "iteration-0/samples.jsonl",
    # This checkpoint is not complete: the trainer's state is written last.
    "iteration-1/policy/checkpoint-2/adapter_model.safetensors",
    # After the last step, but before the policy is saved.
    "iteration-1/policy/checkpoint-6/trainer_state.json",
    "iteration-1/report.json",
    "iteration-2/policy/metrics.jsonl",
)


@pytest.mark.slow
def test_a_program_that_is_killed_five_times_ends_the_same(
    flags: list[str], tmp_path: Path
) -> None:
    command = [sys.executable, str(RECIPES / "iterative.py"), *flags]
    command += ["--max_steps", "6", "--collect_prompts", "16"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}

    def begun(out: Path) -> "subprocess.Popen[bytes]":
        said = (tmp_path / f"{out.name}.log").open("ab")
        return subprocess.Popen(
            [*command, "--output_dir", str(out)],
            start_new_session=True,
            env=environment,
            stdout=said,
            stderr=said,
        )

    whole = tmp_path / "whole"
    out = tmp_path / "killed"
    assert begun(whole).wait() == 0
    for moment in MOMENTS:
        running = begun(out)
        while running.poll() is None and not (out / moment).exists():
            time.sleep(0.001)
        assert running.poll() is None, (tmp_path / "killed.log").read_text()[-2000:]
        # SIGKILL leaves the program no time to clean up.
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()
    assert begun(out).wait() == 0, (tmp_path / "killed.log").read_text()[-2000:]
    expected = weights(whole)
    found = weights(out)
    assert len(expected) == 6 and expected.keys() == found.keys()
    for name in expected:
        for key, weight in expected[name].items():
            assert weight.equal(found[name][key]), name
