"""recipes/iterative.py: two iterations of it, what a second call finds done, and a program that is killed."""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from programs import RECIPES, load_recipe
from safetensors.torch import load_file

REWARD = '''
def marks(completions, answer):
    """Differs within a group of an untrained model's babble."""
    texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
    return [sum(map(str.isdigit, text)) + len(set(text)) / 10 + len(a) for text, a in zip(texts, answer)]
'''
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
    """A call of the recipe that takes seconds, but for its output folder."""
    (tmp_path / "mine.py").write_text(REWARD)
    rows = [{"question": f"{n} + 1?", "answer": "x" * (n % 3)} for n in range(24)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = {"config": RECIPES / "iterative_tiny.yaml", "model_name_or_path": tiny_checkpoint}
    given |= {"dataset_path": tmp_path / "rows.jsonl", "rewards": f"{tmp_path}/mine.py:marks"}
    return [str(part) for name, value in (given | SIZES).items() for part in (f"--{name}", value)]


def weights(folder: Path) -> dict[str, dict]:
    files = sorted(folder.glob("iteration-*/*/adapter_model.safetensors"))
    return {str(file.relative_to(folder)): load_file(file) for file in files}


def test_two_iterations_and_a_second_call(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    recipe, out = load_recipe("iterative"), tmp_path / "run"
    recipe.main([*flags, "--output_dir", str(out)])
    said = capsys.readouterr().out
    assert [line for line in said.splitlines() if line.startswith("iteration")] == [
        f"iteration {number}: {phase}" for number in range(3) for phase in ("policy", "samples.jsonl", "reward_model")
    ]
    assert "replayed" in said
    assert len(weights(out)) == 6
    before = {file: file.stat().st_mtime_ns for file in out.rglob("*.safetensors")}
    recipe.main([*flags, "--output_dir", str(out)])
    assert "iteration 0: policy" not in capsys.readouterr().out
    assert {file: file.stat().st_mtime_ns for file in out.rglob("*.safetensors")} == before
    with pytest.raises(SystemExit) as left:
        recipe.main([*flags, "--output_dir", str(out), "--replay", "0.5"])
    assert left.value.code == 2
    assert "was begun with replay 0.1, and this is 0.5" in capsys.readouterr().err


@pytest.mark.slow
def test_a_program_that_is_killed_five_times_ends_the_same(flags: list[str], tmp_path: Path) -> None:
    command = [sys.executable, str(RECIPES / "iterative.py"), *flags, "--max_steps", "6", "--collect_prompts", "16"]
    quiet = {"env": os.environ | {"OMP_NUM_THREADS": "1"}, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run([*command, "--output_dir", str(tmp_path / "whole")], check=True, **quiet)
    chance, killed, out = random.Random(11), 0, tmp_path / "killed"
    while killed < 5:
        running = subprocess.Popen([*command, "--output_dir", str(out)], start_new_session=True, **quiet)
        seen = len(list(out.rglob("*")))
        while running.poll() is None and len(list(out.rglob("*"))) < seen + chance.randint(1, 25):
            try:
                running.wait(timeout=0.02)
            except subprocess.TimeoutExpired:
                continue
        if running.poll() is not None:
            break
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()
        killed += 1
    assert killed == 5, "it was finished before it had been killed five times"
    subprocess.run([*command, "--output_dir", str(out)], check=True, **quiet)
    whole, again = weights(tmp_path / "whole"), weights(out)
    policies = [name for name in whole if "checkpoint" not in name]
    assert len(policies) == 6
    for name in policies:
        assert all(weight.equal(again[name][key]) for key, weight in whole[name].items()), name
