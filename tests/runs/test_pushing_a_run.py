"""Runs that push themselves: a Hub that fails at the end costs nothing that was paid for."""

import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from peft import LoraConfig
from support.fakehub import TOKEN, FakeHub

from grpo_hf import run_files
from grpo_hf.cli import main
from grpo_hf.errors import HubUnreachable
from grpo_hf.reporting import pushing
from grpo_hf.runs.recipe import read_recipe
from grpo_hf.runs.train import train

pytestmark = pytest.mark.long

REPO = "tester/demo"
SAMPLES = {"credit.jsonl", "evaluation.jsonl"}
REWARD = """
def lengths(completions, **columns):
    return [float(len(str(completion))) for completion in completions]
"""


@pytest.fixture
def hub(fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """The Hub of the clients in this process, which is in memory."""
    settings = {"ENDPOINT": fake_hub.url, "HF_HUB_DISABLE_XET": True, "HF_HUB_OFFLINE": False}
    for name, value in settings.items():
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("transformers.utils.hub._hf_api", None)
    monkeypatch.setattr(pushing, "_WAITS", (0.01, 0.02))
    run_files.warn_once.cache_clear()
    yield fake_hub
    # The next one that asks for transformers' client gets one of its own Hub.
    monkeypatch.setattr("transformers.utils.hub._hf_api", None)


@pytest.fixture
def recipe(tiny_checkpoint: Path, tmp_path: Path) -> Callable[..., Any]:
    (tmp_path / "mine.py").write_text(REWARD)
    rows = [{"prompt": f"say {number}"} for number in range(16)]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))

    def make(**settings: Any) -> Any:
        short = {
            "model_name_or_path": str(tiny_checkpoint),
            "lora_target_modules": "all-linear",
            "dataset_path": str(tmp_path / "data.jsonl"),
            "rewards": ["./mine.py:lengths"],
            "output_dir": str(tmp_path / "run"),
            "num_generations": 4,
            "per_device_train_batch_size": 4,
            "max_completion_length": 4,
            "max_steps": 1,
            "logging_steps": 1,
            "eval_rows": 2,
            "save_strategy": "no",
            "use_cpu": True,
            "report_to": "none",
            "reward_workers": 0,
            "push_to_hub": True,
            "hub_model_id": REPO,
        }
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(short | settings))
        return read_recipe(["--config", str(tmp_path / "recipe.yaml")])

    return make


def test_a_hub_that_is_away_at_the_end_costs_a_command(hub: FakeHub, recipe, tmp_path, capsys):
    hub.failures = [503] * 3
    run = tmp_path / "run"
    with pytest.raises(HubUnreachable) as raised:
        train(recipe())
    assert str(raised.value).endswith(f"Push them later: grpo-hf push {run} {REPO}")
    kept = {"adapter_model.safetensors", "metrics.jsonl", "README.md", "recipe.yaml"} | SAMPLES
    assert kept <= {file.name for file in run.iterdir()}
    assert len(run_files.read_lines(run / "evaluation.jsonl")) == 2
    assert "## Results" in (run / "README.md").read_text()
    said = capsys.readouterr().out
    assert said.index("difference (paired)") < said.index("trying again in 0.01 s")
    assert hub.files(REPO) == {}
    main(["push", str(run), REPO])
    assert set(hub.files(REPO)) >= kept - SAMPLES and not SAMPLES & set(hub.files(REPO))
    assert hub.repos["model", REPO].private


def test_a_hub_that_is_away_before_the_training_is_said_then(hub, recipe, tmp_path, monkeypatch):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{closed.getsockname()[1]}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", nobody)
        with pytest.raises(HubUnreachable, match=f"grpo-hf push {tmp_path / 'run'} REPO"):
            train(recipe())


def test_a_comparison_that_fails_leaves_a_pushed_adapter(hub, recipe, tmp_path, monkeypatch):
    def fails(*_: Any, **__: Any) -> None:
        raise MemoryError("no memory for the comparison")

    monkeypatch.setattr("grpo_hf.runs.training_evaluations.answer_greedily", fails)
    with pytest.raises(MemoryError):
        train(recipe())
    assert "adapter_model.safetensors" in hub.files(REPO)


def test_samples_and_a_public_repository_are_asked_for(hub: FakeHub, recipe):
    train(recipe(push_samples=True, hub_private_repo=False))
    assert set(hub.files(REPO)) >= SAMPLES
    assert not hub.repos["model", REPO].private


@pytest.mark.parametrize("strategy", ["every_save", "checkpoint"])
def test_pushes_of_a_script_are_as_quiet(hub: FakeHub, make_trainer, strategy: str, capsys):
    trainer = make_trainer(
        peft_config=LoraConfig(r=4, target_modules="all-linear"),
        push_to_hub=True,
        hub_model_id=REPO,
        hub_token=TOKEN,
        hub_strategy=strategy,
        save_strategy="steps",
        save_steps=1,
    )
    trainer.train()
    trainer.save_model()
    trainer.push_to_hub()
    repo = hub.repos["model", REPO]
    assert repo.private and len(repo.commits) > 3
    for commit in repo.commits:
        names = {name for name in commit.files if not name.startswith("last-checkpoint/")}
        assert not names & (SAMPLES | {"training_args.bin"})
    assert "adapter_model.safetensors" in repo.head.files
    # A checkpoint is pushed where a strategy names it.
    has_checkpoint = "last-checkpoint/optimizer.pt" in repo.head.files
    assert has_checkpoint == (strategy == "checkpoint")
    folder = Path(trainer.args.output_dir)
    for name, file in repo.head.files.items():
        if name.endswith((".json", ".md")):
            assert str(folder.parent).encode() not in file.content
    assert f"files of {folder} to {REPO}:" in capsys.readouterr().out


def test_a_hub_that_is_away_while_a_run_trains_costs_no_step(hub, make_trainer, capsys):
    hub.failures = [500, 500, 500]
    trainer = make_trainer(
        peft_config=LoraConfig(r=4, target_modules="all-linear"),
        push_to_hub=True,
        hub_model_id=REPO,
        hub_token=TOKEN,
        hub_strategy="checkpoint",
        hub_always_push=True,
        save_strategy="steps",
        save_steps=1,
    )
    trainer.train()
    assert trainer.state.global_step == 2
    trainer.push_to_hub()
    said = capsys.readouterr().out
    assert "a push during the training did not succeed (" in said and "The run goes on" in said
    assert "adapter_model.safetensors" in hub.repos["model", REPO].head.files


def test_code_of_a_model_is_said_aloud(recipe, caplog):
    run_files.warn_once.cache_clear()
    train(recipe(push_to_hub=False, trust_remote_code=True, eval_rows=0))
    said = [each.getMessage() for each in caplog.records if "trust_remote_code" in each.message]
    assert len(said) == 1 and "runs on this machine, with your rights and outside" in said[0]
