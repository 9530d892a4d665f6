"""Sample the completions that the benchmarks replay, once: `data/completions.json`.

    python -m benchmarks.record --dataset_path ./gsm8k [--model PATH] [--prompts 4] [--temperature 0.7]

The folder holds GSM8K's `train.jsonl`. Its first four rows are the worked examples of the 4-shot prompts; the rows
after them are asked, zero-shot and 4-shot. Real completions matter because their lengths decide what padding costs.
The file keeps the texts of these prompts (GSM8K, © 2021 OpenAI, MIT licence), so the benchmarks need no data.
"""

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, set_seed

from grpo_hf.runs.program import quiet

from .batches import RECORDED
from .common import MODEL, prepare

EXAMPLES = 4
SYSTEM = (
    "You solve problems in a few short lines of arithmetic. Your last line is always #### and the answer, for "
    "example:\n#### 10"
)


def read_rows(folder: Path, count: int) -> list[dict[str, str]]:
    """The first rows of `train.jsonl`, without GSM8K's calculator notes (`<<48/2=24>>`)."""
    file = folder / "train.jsonl"
    if not file.exists():
        raise SystemExit(
            f"error: {file} is missing. --dataset_path is the folder with GSM8K's train.jsonl."
        )
    with file.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line, _ in zip(lines, range(count), strict=False)]
    return [
        {"question": row["question"], "answer": re.sub(r"<<.*?>>", "", row["answer"])}
        for row in rows
    ]


def messages(row: dict[str, str], examples: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """A system message, each example as a turn, and the question."""
    turns = [{"role": "system", "content": SYSTEM}]
    for example in examples:
        turns.append({"role": "user", "content": example["question"]})
        turns.append({"role": "assistant", "content": example["answer"]})
    return [*turns, {"role": "user", "content": row["question"]}]


def sample(model: Any, prompt: list[int], config: GenerationConfig) -> list[list[int]]:
    """Token ids of G completions, their end included and the padding after it not."""
    input_ids = torch.tensor([prompt], device=model.device)
    with torch.no_grad():
        output = model.generate(
            input_ids=input_ids, attention_mask=torch.ones_like(input_ids), generation_config=config
        )
    completions = output[:, len(prompt) :].tolist()
    end = config.eos_token_id
    return [ids[: ids.index(end) + 1] if end in ids else ids for ids in completions]


def main(given: Sequence[str] | None = None) -> None:
    """Record what the flags describe."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--dataset_path", type=Path, required=True)
    parser.add_argument("--model", default=str(MODEL))
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--size", type=int, default=8, help="completions per prompt")
    parser.add_argument("--longest", type=int, default=150, help="tokens of a completion at most")
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=RECORDED)
    arguments = parser.parse_args(given)
    quiet()
    arguments.repeats = 1
    prepare(arguments)
    rows = read_rows(arguments.dataset_path, EXAMPLES + arguments.prompts)
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32).eval()
    config = GenerationConfig(
        max_new_tokens=arguments.longest,
        num_return_sequences=arguments.size,
        do_sample=True,
        top_k=0,
        temperature=arguments.temperature,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    set_seed(0)
    prompts: dict[str, list[dict[str, Any]]] = {}
    for kind, examples in (("zero-shot", []), ("4-shot", rows[:EXAMPLES])):
        for row in rows[EXAMPLES:]:
            turns = messages(row, examples)
            ids = tokenizer.apply_chat_template(
                turns, add_generation_prompt=True, tokenize=True, return_dict=False
            )
            completions = sample(model, ids, config)
            asked = {
                "messages": turns,
                "answer": row["answer"],
                "prompt_ids": ids,
                "completion_ids": completions,
            }
            prompts.setdefault(kind, []).append(asked)
            print(
                f"{kind}: prompt {len(ids)} tokens, completions {sorted(map(len, completions))}",
                flush=True,
            )
    record = {
        "model": Path(arguments.model).name,
        "temperature": arguments.temperature,
        "longest": arguments.longest,
        "source": f"GSM8K (MIT licence, © 2021 OpenAI), train.jsonl, rows 1 to {len(rows)}",
        "prompts": prompts,
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(
        json.dumps(record, separators=(",", ":"), ensure_ascii=False) + "\n", encoding="utf-8"
    )
    print(f"written to {arguments.output}: {arguments.output.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
