"""The documented command of EleutherAI's harness, on base and adapter and a task of four rows."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.runs import made_run

TASK = """
task: four_sums
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["\\n\\n"], max_gen_toks: 8, do_sample: false}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
"""


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm-eval not installed")
@pytest.mark.parametrize("with_adapter", [False, True])
def test_the_harness_reads_base_and_adapter(
    tmp_path: Path, tiny_checkpoint: Path, with_adapter: bool
):
    made_run(tmp_path / "run", tiny_checkpoint, recipe={})
    rows = [{"question": f"{number} + 1?", "answer": str(number + 1)} for number in range(4)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "four_sums.yaml").write_text(TASK.format(rows=tmp_path / "rows.jsonl"))
    model = f"pretrained={tiny_checkpoint},dtype=float32"
    if with_adapter:
        model += f",peft={tmp_path / 'run'}"
    command = [sys.executable, "-m", "lm_eval", "--model", "hf", "--model_args", model]
    command += ["--tasks", "four_sums", "--include_path", str(tmp_path), "--apply_chat_template"]
    command += ["--device", "cpu", "--output_path", str(tmp_path / "found")]
    done = subprocess.run(
        command, env=os.environ | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (file,) = (tmp_path / "found").rglob("results_*.json")
    assert "four_sums" in json.loads(file.read_text())["results"]
