"""Broken numbers in whole runs: exit codes and `grpo-hf replay`, and runs on two processes."""

import json
import re
from pathlib import Path

import pytest
import yaml
from support.processes import SCRIPTS, launch

from grpo_hf import GRPOTrainer
from grpo_hf.cli import main
from grpo_hf.durability.kept_batch import KEPT_FOLDER

pytestmark = pytest.mark.long

REWARD = """
def length(completions, **_):
    return [float(len(text)) for text in completions]
"""


@pytest.fixture
def recipe(tmp_path: Path, tiny_checkpoint: Path) -> Path:
    (tmp_path / "mine.py").write_text(REWARD)
    rows = [json.dumps({"prompt": f"{number} + {number} = "}) for number in range(8)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    settings = {
        "model_name_or_path": str(tiny_checkpoint),
        "lora_target_modules": "all-linear",
        "dataset_path": str(tmp_path / "rows.jsonl"),
        "rewards": ["./mine.py:length"],
        "output_dir": str(tmp_path / "run"),
        "num_generations": 4,
        "per_device_train_batch_size": 8,
        "max_completion_length": 8,
        "max_steps": 2,
        "logging_steps": 1,
        "eval_rows": 0,
        "save_steps": 1,
        "use_cpu": True,
        "report_to": "none",
        "reward_workers": 0,
    }
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(settings))
    return file


def break_last_step(monkeypatch: pytest.MonkeyPatch, row: int) -> None:
    """Put a NaN into a row of the rollout of the second step."""
    make = GRPOTrainer._generate_and_score_completions

    def broken(self, inputs):
        batch = make(self, inputs)
        if self.state.global_step == 1:
            batch["ref_per_token_logps"][row, 0] = float("nan")
        return batch

    monkeypatch.setattr(GRPOTrainer, "_generate_and_score_completions", broken)


def test_a_broken_last_step_exits_with_2_and_can_be_replayed(
    recipe: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    break_last_step(monkeypatch, row=4)
    with pytest.raises(SystemExit) as left:
        main(["train", str(recipe)])
    assert left.value.code == 2
    said = capsys.readouterr().err
    assert (
        "error: step 2 is not made: NaN or infinity in the log-probabilities of the refer" in said
    )
    # No result beside the checkpoint of the step before.
    run = tmp_path / "run"
    assert [file.parent.name for file in run.rglob("adapter_model.safetensors")] == ["checkpoint-1"]
    monkeypatch.undo()
    main(["replay", str(run)])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step 2, ")]
    assert len(lines) == 8
    assert "NaN or infinity in the log-probabilities of the reference, the loss, the gr" in lines[0]
    assert not any("NaN" in line for line in lines[1:])
    # The row is the one that the message named.
    assert said.split("row ")[1].split(":")[0] == lines[0].split("row ")[1].split(":")[0]
    assert sorted(folder.name for folder in tmp_path.iterdir() if folder.is_dir()) == ["run"]


def test_there_is_nothing_to_replay_in_a_run_that_was_whole(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["train", str(recipe)])
    assert not (tmp_path / "run" / KEPT_FOLDER).exists()
    with pytest.raises(SystemExit):
        main(["replay", str(tmp_path / "run")])
    assert "has no batch to replay" in capsys.readouterr().err


@pytest.mark.parametrize("answer", ["stop", "skip"])
def test_two_processes_decide_alike(tiny_checkpoint: Path, tmp_path: Path, answer: str) -> None:
    run = tmp_path / "run"
    said = launch(2, tiny_checkpoint, run, answer, script=SCRIPTS / "broken_loss.py")
    ends = re.findall(r"rank (\d) step (\d) weights (\w+) (.*)", said)
    assert {rank for rank, *_ in ends} == {"0", "1"}
    assert len({tuple(end) for _, *end in ends}) == 1
    step, _, words = ends[0][1:]
    if answer == "skip":
        assert (step, words) == ("4", "trained")
    else:
        assert step == "2"
        assert words.startswith("stopped: step 3 is not made: NaN or infinity in the loss")
        assert "on process 1, whose loss is nan" in words
    kept = [file.name for file in (run / KEPT_FOLDER / "step-3").iterdir()]
    assert sorted(kept) == ["rank-0.pt", "rank-1.pt", "weights.pt"]
