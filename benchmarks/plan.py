"""Compare the memory that `grpo-hf plan` foretells with what runs take.

Each case is a process of its own that makes a trainer, trains a step with completions of the full
length, and saves. Before the model is loaded, a step of the embedded model has loaded the
libraries' code; what the process has then is not counted. On a CPU the peak is the kernel's own
count of the process's memory (VmHWM), with an allocator that gives freed memory back at once. On
CUDA it is `torch.cuda.max_memory_allocated`.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from grpo_hf.demo.tiny_model import tiny_model, tiny_tokenizer
from grpo_hf.models import measuring
from grpo_hf.planning.memory import phases_of
from grpo_hf.runs.program import quiet

from .common import MEBIBYTE, ROOT, Row, options, prepare, report
from .timing import ratio_row

# The largest distance between plan and measurement, as a share of the measurement.
BAR = 0.15

# Freed blocks of this size and above go back to the kernel at once, so that the peak is that of
# what was in use.
ALLOCATOR = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
    "MALLOC_TOP_PAD_": "0",
}

TINY = "tiny"

# Prompts of the training data; a rollout of the largest case has fewer.
PROMPTS = 32

_WORDS = " one two three four five six seven eight nine ten eleven twelve" * 200


@dataclass(frozen=True)
class Case:
    """Case is a configuration whose memory is foretold and measured.

    Attributes:
        tiny: whether the model is the embedded one, with room for longer texts.
        prompt: tokens of a prompt.
        settings: of the recipe.
    """

    name: str
    title: str
    tiny: bool
    prompt: int
    settings: dict[str, Any] = field(default_factory=dict)


def _case(name: str, title: str, rows: int, group: int, completion: int, **settings: Any) -> Case:
    """Return a case: `checkpointing` is off, and the adapter has no dropout, unless given."""
    tiny = name.startswith(TINY)
    given = {
        "per_device_train_batch_size": rows,
        "num_generations": group,
        "max_completion_length": completion,
        "gradient_checkpointing": False,
        "lora_dropout": 0.0,
    }
    return Case(name, title, tiny, 128 if tiny else 256, given | settings)


CASES = (
    _case("tiny-g16", "tiny, G=16", 64, 16, 128),
    _case("tiny-g4-ckpt", "tiny, G=4, checkpointing", 64, 4, 128, gradient_checkpointing=True),
    _case("135m-g4", "135M, G=4, dropout 0.05", 8, 4, 48, lora_dropout=0.05),
    _case("135m-g16", "135M, G=16", 16, 16, 48),
    _case("135m-g16-ckpt", "135M, G=16, checkpointing", 16, 16, 48, gradient_checkpointing=True),
    _case("135m-4bit", "135M in 4 bits, G=4", 8, 4, 16, load_in_4bit=True),
    _case(
        "135m-4bit-ckpt",
        "135M in 4 bits, G=4, checkpointing",
        8,
        4,
        16,
        load_in_4bit=True,
        gradient_checkpointing=True,
    ),
    _case(
        "135m-trl",
        "135M, G=4, TRL's updates and rollouts",
        4,
        4,
        48,
        packed_update=False,
        grouped_rollout=False,
    ),
)


class Meter:
    """The memory that a process has taken since it was made, and the most of it."""

    def __init__(self) -> None:
        self._on_gpu = torch.cuda.is_available()
        self._before = self._now()
        self.reset()

    def reset(self) -> None:
        """Let the peak begin anew."""
        if self._on_gpu:
            torch.cuda.reset_peak_memory_stats()
        else:
            # Linux: 5 resets the peak of the resident memory.
            Path("/proc/self/clear_refs").write_text("5")

    def peak(self) -> int:
        """Return the most bytes since the last reset."""
        if self._on_gpu:
            return torch.cuda.max_memory_allocated() - self._before
        return _status("VmHWM") - self._before

    def _now(self) -> int:
        return torch.cuda.memory_allocated() if self._on_gpu else _status("VmRSS")


def _status(key: str) -> int:
    """Return an entry of Linux's /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"error: /proc/self/status has no {key}; this benchmark needs Linux.")


def one_case(case: Case, model: str) -> Row:
    """Train a case in this process; return what was foretold and measured, in bytes."""
    from grpo_hf.runs.plan import Question, plan_facts

    # A run takes a float32 copy of the weights where there is room for it, and needs none.
    measuring.free_memory = lambda _: 0
    folder = Path(tempfile.mkdtemp(prefix="benchmark-plan-"))
    _train(_recipe(_tiny(folder, "warm"), folder / "warmed", 2, 2, max_completion_length=2), 4)
    # Trainers refer to themselves.
    gc.collect()
    meter = Meter()
    name = _tiny(folder, "model") if case.tiny else model
    recipe = _recipe(name, folder / "run", **case.settings)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    facts = plan_facts(recipe, Question(prompt_tokens=case.prompt, device=device))
    phases = {phase.name: phase.size for phase in phases_of(facts)}
    rollout = _train(recipe, case.prompt, meter)
    measured = {"rollout": rollout, "rest": meter.peak()}
    rest = max(size for phase, size in phases.items() if phase != "rollout")
    return {"foretold": {"rollout": phases["rollout"], "rest": rest}, "measured": measured}


def _tiny(folder: Path, name: str) -> str:
    """Save the embedded model with room for longer texts; return its folder."""
    tokenizer = tiny_tokenizer()
    model = tiny_model(tokenizer)
    model.config.max_position_embeddings = 1024
    model.save_pretrained(folder / name)
    tokenizer.save_pretrained(folder / name)
    return str(folder / name)


def _recipe(model: str, output: Path, rows: int = 0, group: int = 0, **settings: Any) -> Any:
    """Return a recipe of one step of a model, with LoRA on all its matrices."""
    from grpo_hf.runs.recipe import read_recipe

    given = {
        "model_name_or_path": model,
        "lora_target_modules": "all-linear",
        "output_dir": str(output),
        "max_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "reward_workers": 0,
        "use_cpu": not torch.cuda.is_available(),
        "dtype": "bfloat16" if torch.cuda.is_available() else "float32",
    }
    if rows:
        given |= {"per_device_train_batch_size": rows, "num_generations": group}
    flags = []
    for name, value in (given | settings).items():
        flags += [f"--{name}", str(value)]
    return read_recipe(flags)


def _train(recipe: Any, prompt: int, meter: Meter | None = None) -> int:
    """Train a recipe on prompts of that length; return the peak up to the end of its rollout."""
    from datasets import Dataset
    from transformers import AutoTokenizer

    from grpo_hf.models.loading import load_base, lora_config
    from grpo_hf.trainer import GRPOTrainer

    peaks = [0]

    class Measured(GRPOTrainer):
        def _generate(self, prompts: list[Any]) -> Any:
            output = super()._generate(prompts)
            if meter is not None:
                peaks.append(meter.peak())
                meter.reset()
            return output

    tokenizer = AutoTokenizer.from_pretrained(recipe.model.model_name_or_path, padding_side="left")
    ids = tokenizer(_WORDS)["input_ids"]
    rows = []
    for start in range(PROMPTS):
        rows.append({"prompt": tokenizer.decode(ids[start : start + prompt])})
    # A completion never ends before the limit, so that the case has the tokens of its plan.
    length = recipe.training.max_completion_length
    recipe.training.generation_kwargs = {"min_new_tokens": length}
    model = load_base(recipe.model)
    for weight in model.parameters():
        # Out of the checkpoint's file, which is mapped into memory as a whole as long as one of its
        # weights is used. On a GPU weights are copied as well.
        weight.data = weight.data.clone()
    if meter is not None:
        meter.reset()
    trainer = Measured(
        model,
        [_reward],
        recipe.training,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=lora_config(recipe.model),
    )
    trainer.train()
    trainer.save_model()
    return max(peaks)


def _reward(completions: list[str], **_: Any) -> list[float]:
    return [float(len(completion) % 7) for completion in completions]


def run_case(case: Case, arguments: argparse.Namespace) -> Row:
    """Run `one_case` in a new process; a process's memory never is what it was.

    Raises:
        SystemExit: the process failed.
    """
    command = [sys.executable, "-m", "benchmarks.plan", "--case", case.name]
    command += ["--model", arguments.model, "--threads", str(arguments.threads)]
    environment = os.environ | ALLOCATOR | {"OMP_NUM_THREADS": str(arguments.threads)}
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(
            f"error: the process of {case.name} ended with code {done.returncode}; its output is "
            "above."
        )
    # Libraries and the run print before; the last line is ours.
    row: Row = json.loads(done.stdout.splitlines()[-1])
    return row


def case_row(case: Case, runs: Sequence[Row]) -> Row:
    """Return the row of a case: what was foretold over what was measured, at the peak."""
    ratios = []
    for run in runs:
        ratios.append(max(run["foretold"].values()) / max(run["measured"].values()))
    worst = max(ratios, key=lambda ratio: abs(ratio - 1))
    row = ratio_row(case.name, case.title, worst, None, ratios)
    row["bar"] = BAR
    row["met"] = abs(worst - 1) <= BAR
    row["runs"] = list(runs)
    return row


def markdown(rows: Sequence[Row]) -> str:
    """Return the table of docs/performance.md."""
    lines = [
        "| case | rollout, plan | measured | rest of the step, plan | measured | peak, plan ÷ "
        "measured |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        run = row["runs"][0]
        cells = [row["title"]]
        for part in ("rollout", "rest"):
            for side in ("foretold", "measured"):
                cells.append(f"{run[side][part] / MEBIBYTE:,.0f} MiB")
        cells.append(f"{row['value']:.2f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(given: Sequence[str] | None = None) -> None:
    """Run the benchmark that the flags describe.

    Raises:
        SystemExit: with code 1, if a plan is further from its measurement than the bar.
    """
    names = [case.name for case in CASES]
    parser = options(__doc__, rows=names, repeats=1)
    parser.add_argument("--case", choices=names, help=argparse.SUPPRESS)
    arguments = parser.parse_args(given)
    quiet()
    prepare(arguments)
    cases = {case.name: case for case in CASES}
    # This is a process that `run_case` started.
    if arguments.case:
        print(json.dumps(one_case(cases[arguments.case], arguments.model)))
        return
    rows = []
    for name in arguments.rows:
        runs = [run_case(cases[name], arguments) for _ in range(arguments.repeats)]
        rows.append(case_row(cases[name], runs))
        print(f"{name}: {rows[-1]['value']:.2f}", flush=True)
    # Not a setting that the file should have.
    del arguments.case
    report("plan", rows, arguments)
    print(markdown(rows))
    missed = [row["name"] for row in rows if not row["met"]]
    if missed:
        raise SystemExit(f"error: the plan is more than 15% off in {', '.join(missed)}.")


if __name__ == "__main__":
    main()
