"""Fixtures that more than one test module uses."""

import gc
import os
import signal
import sys
from collections.abc import Callable, Iterator
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from huggingface_hub import constants
from support.fakehub import FakeHub
from transformers import AutoModelForCausalLM, AutoTokenizer

from grpo_hf import GRPOConfig, GRPOTrainer, reward_settings
from grpo_hf.cli import main
from grpo_hf.demo.tiny_model import tiny_model, tiny_tokenizer

# A test that reaches for the network fails at once. The library has read the variable by now.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
constants.HF_HUB_OFFLINE = True
# As Python does by itself, and no machine's setting decides what lies beside a file.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
# TRL warns of what is experimental there, and a warning of ours would be an error.
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
# A shell's background ignores Ctrl-C, nohup SIGHUP, and every child would inherit it.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
torch.set_num_threads(1)  # the models are too small for more, and a test run shares its cores

CONSTRUCTOR = [name for name in signature(GRPOTrainer).parameters if name != "args"]
TINY_RUN = {
    "num_generations": 4,
    "per_device_train_batch_size": 8,
    "max_completion_length": 8,
    "max_steps": 2,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "use_cpu": True,
    "gradient_checkpointing": False,
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kills", type=int, default=6, help="of each run in test_kills.py")


@reward_settings(in_process=True)
def count_ones(completions: list[str], **_: Any) -> list[float]:
    """A reward that differs within a group of an untrained model's babble."""
    return [float(len(text)) + text.count("1") for text in completions]


@pytest.fixture(scope="module", autouse=True)
def few_objects_to_look_through() -> None:
    """Set apart what is imported by now.

    Every training collects garbage several times, and going through the libraries takes longer
    than a step of the embedded model.
    """
    gc.collect()
    gc.freeze()
    # A benchmark that was tested in this process may have left more.
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the embedded model, untrained, and its tokenizer."""
    folder = tmp_path_factory.mktemp("tiny_checkpoint")
    tokenizer = tiny_tokenizer()
    tiny_model(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Return a function that runs a command, checks exit code 2, and returns its stderr."""

    def run(*arguments: object) -> str:
        with pytest.raises(SystemExit) as left:
            main([str(argument) for argument in arguments])
        assert left.value.code == 2
        return capsys.readouterr().err

    return run


@pytest.fixture
def fake_hub(tmp_path: Path) -> Iterator[FakeHub]:
    """An empty Hub on a free loopback port; run clients in a subprocess with
    `env=fake_hub.environment()`.
    """
    with FakeHub(tmp_path / "hf_home") as hub:
        yield hub


@pytest.fixture
def erratic_model(tiny_checkpoint: Path) -> Any:
    """The embedded model, with weights so large that it writes something else every time."""
    made, generator = (
        AutoModelForCausalLM.from_pretrained(tiny_checkpoint),
        torch.Generator().manual_seed(0),
    )
    for weight in made.parameters():
        weight.data.add_(torch.randn(weight.shape, generator=generator), alpha=0.1)
    return made


@pytest.fixture
def make_trainer(tiny_checkpoint: Path, tmp_path: Path) -> Callable[..., GRPOTrainer]:
    """A function that makes a trainer of 2 prompts x 4 completions on the embedded model;
    anything can be set.
    """
    return trainer_maker(tiny_checkpoint, tmp_path)


@pytest.fixture(scope="module")
def module_trainer(
    tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., GRPOTrainer]:
    """`make_trainer` for trainers that several tests of a module share."""
    return trainer_maker(tiny_checkpoint, tmp_path_factory.mktemp("trainer"))


def trainer_maker(tiny_checkpoint: Path, folder: Path) -> Callable[..., GRPOTrainer]:
    def make(**settings: Any) -> GRPOTrainer:
        constructor = {name: settings.pop(name) for name in CONSTRUCTOR if name in settings}
        base = (
            AutoModelForCausalLM.from_pretrained(tiny_checkpoint)
            if "model" not in constructor
            else None
        )
        rows = [{"prompt": f"{a} + {a + 1} = ", "answer": str(2 * a + 1)} for a in range(32)]
        return GRPOTrainer(
            **{
                "model": base,
                "reward_funcs": count_ones,
                "args": GRPOConfig(**(TINY_RUN | {"output_dir": str(folder / "run")} | settings)),
                "train_dataset": Dataset.from_list(rows),
                "processing_class": AutoTokenizer.from_pretrained(
                    tiny_checkpoint, padding_side="left"
                ),
            }
            | constructor
        )

    return make
