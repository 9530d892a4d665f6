"""A run whose page has everything in it."""

import json
from pathlib import Path

import pytest
from support.run_folders import HOSTILE, write_evaluation, write_run, write_spike

from grpo_hf.run_report.page import write_report


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_run(tmp_path_factory.mktemp("runs") / "demo")
    write_evaluation(folder)
    write_spike(folder, step=5)
    sample = {"step": 3, "prompt": HOSTILE, "completion": HOSTILE, "rewards": {HOSTILE: 1.0}}
    finding = {"name": "one_answer", "text": HOSTILE, "strength": 1.0, "samples": [sample] * 2}
    finding["advice"] = "Lower its weight."
    (folder / "gaming.json").write_text(json.dumps([finding]))
    write_report([folder])
    return folder
