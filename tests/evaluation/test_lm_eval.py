"""The documented command of EleutherAI's harness, on base and adapter and a task of four rows."""

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support.runs import made_run
from transformers import AutoModelForCausalLM, AutoTokenizer

# An untrained model gets no sum right, so a second task asks how likely the right answers are.
TASKS = {
    "four_sums": """
output_type: generate_until
generation_kwargs: {until: ["\\n\\n"], max_gen_toks: 8, do_sample: false}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
""",
    "four_likelihoods": """
output_type: loglikelihood
target_delimiter: ""
metric_list:
  - {metric: perplexity, aggregation: perplexity, higher_is_better: false}
""",
}
OF_BOTH = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
"""
ROWS = [{"question": f"{number} + 1?", "answer": str(number + 1)} for number in range(4)]


def harness(base: Path, adapter: Path | None, tasks: Path, found: Path) -> dict[str, Any]:
    """Return the results of the command in docs/evaluation.md."""
    model = f"pretrained={base},dtype=float32"
    if adapter is not None:
        model += f",peft={adapter}"
    command = [sys.executable, "-m", "lm_eval", "--model", "hf", "--model_args", model]
    command += ["--tasks", ",".join(TASKS), "--include_path", str(tasks), "--apply_chat_template"]
    command += ["--device", "cpu", "--output_path", str(found)]
    done = subprocess.run(
        command, env=os.environ | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (file,) = found.rglob("results_*.json")
    results: dict[str, Any] = json.loads(file.read_text())["results"]
    return results


def perplexity(model: Any, base: Path) -> float:
    """Return exp(-mean log p) of the right answers, each after its question as a chat."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    logs = []
    for row in ROWS:
        asked = [{"role": "user", "content": row["question"]}]
        text = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
        question, answer = (
            tokenizer(part, add_special_tokens=False)["input_ids"] for part in (text, row["answer"])
        )
        with torch.no_grad():
            logits = model(torch.tensor([question + answer])).logits[0]
        likely = logits.log_softmax(-1)[len(question) - 1 : -1]
        logs.append(sum(likely[place, token].item() for place, token in enumerate(answer)))
    return math.exp(-sum(logs) / len(logs))


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm-eval not installed")
def test_the_harness_reads_base_and_adapter(tmp_path: Path, tiny_checkpoint: Path):
    run = tmp_path / "run"
    policy = made_run(run, tiny_checkpoint, recipe={}, scale=2.0)
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    for name, task in TASKS.items():
        of_both = OF_BOTH.format(name=name, rows=tmp_path / "rows.jsonl")
        (tasks / f"{name}.yaml").write_text(of_both + task)
    base = AutoModelForCausalLM.from_pretrained(tiny_checkpoint).eval()
    expected = [perplexity(model, tiny_checkpoint) for model in (base, policy)]
    found = []
    for adapter in (None, run):
        results = harness(tiny_checkpoint, adapter, tasks, tmp_path / f"found-{len(found)}")
        assert 0 <= results["four_sums"]["exact_match,none"] <= 1
        found.append(results["four_likelihoods"]["perplexity,none"])
    # So that the adapter was read: it changes the number by far more than rounding does.
    assert found == pytest.approx(expected, rel=1e-4)
    assert abs(math.log(found[0] / found[1])) > 0.1
