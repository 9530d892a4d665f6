"""Sample the completions that the benchmarks replay, and write them to `data/completions.json`.

    python -m benchmarks.record --dataset_path ./gsm8k [--model PATH] [--prompts 4]

This runs once; the repository has the file. The folder ./gsm8k holds GSM8K's `train.jsonl`. Its
first four rows are the worked examples of the 4-shot prompts. The rows after them become prompts,
zero-shot and 4-shot. Real completions matter because their lengths decide the cost of padding. The
file contains the texts of these prompts (GSM8K, © 2021 OpenAI, MIT licence), so the benchmarks need
no other data.
"""

import argparse
import json
import re
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, set_seed

from grpo_hf.runs.program import quiet

from .batches import RECORDED
from .common import MODEL, prepare

# Worked examples of a 4-shot prompt.
EXAMPLES = 4
SYSTEM = (
    "You solve problems in a few short lines of arithmetic. "
    "Your last line is always #### and the answer, for example:\n#### 10"
)


def read_rows(folder: Path, count: int) -> list[dict[str, str]]:
    """Return the first rows of `train.jsonl`, without GSM8K's calculator notes (`<<48/2=24>>`).

    Raises:
        SystemExit: the file is missing.
    """
    file = folder / "train.jsonl"
    if not file.exists():
        raise SystemExit(
            f"error: {file} is missing. --dataset_path is the folder with GSM8K's train.jsonl."
        )
    rows = []
    with file.open(encoding="utf-8") as lines:
        for line in islice(lines, count):
            row = json.loads(line)
            answer = re.sub(r"<<.*?>>", "", row["answer"])
            rows.append({"question": row["question"], "answer": answer})
    return rows


def messages(row: dict[str, str], examples: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """Return the messages of a prompt: the system message, a turn per example, the question."""
    turns = [{"role": "system", "content": SYSTEM}]
    for example in examples:
        turns.append({"role": "user", "content": example["question"]})
        turns.append({"role": "assistant", "content": example["answer"]})
    return [*turns, {"role": "user", "content": row["question"]}]


def sample(model: Any, prompt: list[int], config: GenerationConfig) -> list[list[int]]:
    """Return the token ids of G completions, with the end-of-sequence token, without padding."""
    input_ids = torch.tensor([prompt], device=model.device)
    with torch.no_grad():
        output = model.generate(
            input_ids=input_ids, attention_mask=torch.ones_like(input_ids), generation_config=config
        )
    end = config.eos_token_id
    completions = []
    for ids in output[:, len(prompt) :].tolist():
        # A completion that reached the length limit has no end-of-sequence token.
        completions.append(ids[: ids.index(end) + 1] if end in ids else ids)
    return completions


def flags() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--dataset_path", type=Path, required=True)
    parser.add_argument("--model", default=str(MODEL))
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--size", type=int, default=8, help="completions per prompt")
    parser.add_argument("--longest", type=int, default=150, help="tokens of a completion at most")
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=RECORDED)
    return parser


def main(given: Sequence[str] | None = None) -> None:
    """Record the completions that the flags describe."""
    arguments = flags().parse_args(given)
    quiet()
    # `prepare` checks it, but recording has no repeats.
    arguments.repeats = 1
    prepare(arguments)
    rows = read_rows(arguments.dataset_path, EXAMPLES + arguments.prompts)
    prompts = sample_prompts(rows, arguments)
    record = {
        "model": Path(arguments.model).name,
        "temperature": arguments.temperature,
        "longest": arguments.longest,
        "source": f"GSM8K (MIT licence, © 2021 OpenAI), train.jsonl, rows 1 to {len(rows)}",
        "prompts": prompts,
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    # No spaces between the numbers, which keeps the file in the repository small.
    text = json.dumps(record, separators=(",", ":"), ensure_ascii=False)
    arguments.output.write_text(text + "\n", encoding="utf-8")
    print(f"written to {arguments.output}: {arguments.output.stat().st_size / 1000:.0f} kB")


def sample_prompts(
    rows: Sequence[dict[str, str]], arguments: argparse.Namespace
) -> dict[str, list[dict[str, Any]]]:
    """Return the prompts with their completions, by kind: "zero-shot" and "4-shot".

    Args:
        rows: the worked examples, then the rows that become prompts.
    """
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32).eval()
    config = GenerationConfig(
        max_new_tokens=arguments.longest,
        num_return_sequences=arguments.size,
        do_sample=True,
        # 0 turns top-k sampling off: the policy's own distribution is sampled.
        top_k=0,
        temperature=arguments.temperature,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    # The same flags make the same file again, on the same kind of machine.
    set_seed(0)
    prompts: dict[str, list[dict[str, Any]]] = {}
    # The examples are the first rows; no prompt asks one of them.
    for kind, examples in (("zero-shot", []), ("4-shot", rows[:EXAMPLES])):
        for row in rows[EXAMPLES:]:
            turns = messages(row, examples)
            ids = tokenizer.apply_chat_template(
                turns, add_generation_prompt=True, tokenize=True, return_dict=False
            )
            completions = sample(model, ids, config)
            recorded_prompt = {
                "messages": turns,
                "answer": row["answer"],
                "prompt_ids": ids,
                "completion_ids": completions,
            }
            prompts.setdefault(kind, []).append(recorded_prompt)
            print(
                f"{kind}: prompt {len(ids)} tokens, completions {sorted(map(len, completions))}",
                flush=True,
            )
    return prompts


if __name__ == "__main__":
    main()
