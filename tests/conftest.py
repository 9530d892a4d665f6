"""Fixtures that more than one test module uses."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from fakehub import FakeHub

from grpo_hf.tiny_model import tiny_model, tiny_tokenizer

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test that reaches for the network fails at once
torch.set_num_threads(1)  # the models are too small for more, and a test run shares its cores


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the embedded model, untrained, and its tokenizer."""
    folder = tmp_path_factory.mktemp("tiny_checkpoint")
    tokenizer = tiny_tokenizer()
    tiny_model(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def gsm8k_data() -> Path:
    """GSM8K's own files, where GRPO_HF_DATA says they are."""
    folder = Path(os.environ.get("GRPO_HF_DATA", ""), "gsm8k")
    if "GRPO_HF_DATA" not in os.environ or not folder.is_dir():
        pytest.skip("GRPO_HF_DATA does not name a folder with gsm8k/train.jsonl")
    return folder


@pytest.fixture
def fake_hub(tmp_path: Path) -> Iterator[FakeHub]:
    """An empty Hub on a free loopback port; run clients in a subprocess with `env=fake_hub.environment()`."""
    with FakeHub(tmp_path / "hf_home") as hub:
        yield hub
