"""The other parts of gpu_check.py: machine, kernel, benchmarks, plan, engines."""

import json
import os
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

import torch

from grpo_hf.models.digests import digest_of
from grpo_hf.torch_seam import FlashAttention
from grpo_hf.update.kernel_check import distance_from_softmax, operator_for
from grpo_hf.update.varlen_attention import Operator

from . import memory, plan, rollout, step, update
from .common import MEBIBYTE, OURS, ROOT, TRL, Row, dtype, machine
from .engines import by_vllm
from .gpu_correctness import PRECISE_BAR, free_memory
from .gpu_models import FULL, LARGE, SMALL, checkpoint, config_of, random_model
from .gpu_rows import Work, failed, guarded, left_out, one_gpu, verdict
from .sides import make_trainer
from .timing import timed
from .update import Case

GIBIBYTE = 2**30

# Timed runs of each side. They are an odd number, so that the median is one of them.
REPEATS = 3

# TRL's time or memory over ours has to be at least this: never slower, never larger.
RATIO_BAR = 1.0

# H, K and D of the families' heads, and others that the kernel takes.
HEADS = ((14, 2, 64), (12, 2, 128), (16, 8, 128), (32, 8, 64), (4, 1, 256), (4, 4, 64))
KERNEL_WINDOWS = (None, 1, 3, 100)
KERNEL_BAR = 0.02

# Random weights round more in bf16 than the trained ones that the benchmarks are made for. These
# bars only tell whether both sides do the same work; gpu_correctness.py measures how near they are.
NEAR = {"gradient": 0.1, "reference": 0.5}

UPDATES = {
    FULL: [
        *(case for case in update.CASES if case.name in ("p128", "p512")),
        # As much as TRL's side fits into 80 GB.
        Case("g16", "P=512, C≤256, G=16", prompt=512, longest=256, size=16),
    ],
    "tiny": [Case("p128", "P=24, C≤8, G=4, 2 groups", prompt=24, longest=8, size=4, groups=2)],
}
ROLLOUTS = {FULL: rollout.CASES, "tiny": UPDATES["tiny"]}

GREEDY = "the same greedy tokens in float32"

# How far vLLM's log-probabilities may be from ours, in nats: on average in bf16, and at most in
# float32.
VLLM_BARS = {
    torch.bfloat16: ("sampling/sampling_logp_difference/mean", 0.05),
    torch.float32: ("sampling/sampling_logp_difference/max", 1e-3),
}


def environment(work: Work) -> Iterator[Row]:
    """Say what the figures are of."""
    found = machine()
    if work.device == "cpu":
        yield verdict("processor", 0, None, note=str(found["cpu"]), machine=found)
        return
    card = torch.cuda.get_device_properties(0)
    note = (
        f"{card.name}, capability {card.major}.{card.minor}, driver {_driver()}, "
        f"torch {torch.__version__}, CUDA {torch.version.cuda}, {torch.cuda.device_count()} of it"
    )
    size = card.total_memory / GIBIBYTE
    yield verdict("card", size, None, unit=" GiB", note=note, machine=found)


def _driver() -> str:
    """Return the driver's version."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.split("\n")[0].strip()


def kernel(work: Work, operator: Operator | None = None) -> Iterator[Row]:
    """Hold the kernel of packed attention against softmax written out, and see that it is taken.

    Args:
        operator: another one with the kernel's signature.
    """
    if work.device == "cpu" and operator is None:
        yield left_out("variable-length attention", "the kernel is one of CUDA")
        return
    used = operator or FlashAttention()
    for of_states in (torch.bfloat16, torch.float16):
        for shape in HEADS:
            name = f"{str(of_states).removeprefix('torch.')}, heads {shape}"
            yield guarded(name, partial(_kernel_row, name, used, work.device, of_states, shape))
    if work.device == "cuda":
        yield guarded("it is taken in bf16", _taken)
        yield guarded("a changed byte is seen", _changed_byte)


def _kernel_row(
    name: str,
    operator: Operator,
    device: str,
    of_states: torch.dtype,
    shape: tuple[int, int, int],
) -> Row:
    """Return the largest distance over all windows."""
    found = []
    for window in KERNEL_WINDOWS:
        found.append(
            distance_from_softmax(operator, torch.device(device), of_states, shape, window)
        )
    note = "output and gradients against softmax, with and without windows"
    # Python's `max` would lose a NaN.
    return verdict(name, torch.tensor(found).max().item(), KERNEL_BAR, note=note)


def _taken() -> Row:
    """Return whether packed updates trust the kernel on this device."""
    states = torch.zeros(1, 4, 8, 64, dtype=torch.bfloat16, device="cuda")
    taken = operator_for(states, states, states) is not None
    return verdict("it is taken in bf16", int(taken), 1, met=taken, note="else rows are padded")


def _changed_byte() -> Row:
    """Return whether the guard of the base sees one changed weight on the device."""
    weights = torch.randn(1000, 1000, device="cuda")
    same = digest_of([weights]) == digest_of([weights.clone()])
    before = digest_of([weights])
    weights[7, 7] += 1
    seen = same and digest_of([weights]) != before
    return verdict("a changed byte is seen", int(seen), 1, met=seen, note="the guard of the base")


def beside_trl(row: Row, work: Work) -> Row:
    """Return the row of a benchmark: TRL's time or memory over ours."""
    wrong = [side for side, equal in row.get("equal", {}).items() if not equal]
    name = f"{row['name']}: {row['title']}"
    if wrong:
        return failed(name, f"{', '.join(wrong)} is not TRL's: {row.get('checks')}")
    # A model so small is all overhead.
    bar = RATIO_BAR if work.size == FULL else None
    value = row["value"]
    return verdict(
        name,
        value,
        bar,
        met=value >= RATIO_BAR,
        unit="×",
        note=_times(row),
        sides=row["sides"],
        checks=row.get("checks"),
    )


def _times(row: Row) -> str:
    """Return the median of each side as text."""
    texts = []
    for side, measures in row["sides"].items():
        if "cost" in measures:
            texts.append(f"{side} {measures['cost']['median']:.3f} s")
        else:
            texts.append(f"{side} {measures['peak']['median'] / MEBIBYTE:,.0f} MiB")
    return ", ".join(texts)


def _model(work: Work, family: str) -> str:
    folder = checkpoint(work.folder, family, work.size, dtype(), work.device)
    free_memory()
    return folder


def updates(work: Work) -> Iterator[Row]:
    """Time the update of both sides, and of prefix-grouper where it is installed."""
    trainers = update.trainers_for(_model(work, LARGE))
    for case in UPDATES[work.size]:

        def row(case: Case = case) -> Row:
            found = update.compare(case, trainers, REPEATS)
            if dtype() == torch.bfloat16:
                found["equal"] = {side: _is_near(each) for side, each in found["checks"].items()}
            return beside_trl(found, work)

        yield guarded(f"{case.name}: {case.title}", row)


def _is_near(found: dict[str, float]) -> bool:
    """Return whether numbers in bf16 are those of the same work."""
    return all(found[name] <= bar for name, bar in NEAR.items() if name in found)


def rollouts(work: Work) -> Iterator[Row]:
    """Time the rollout of both sides."""
    cases = ROLLOUTS[work.size]
    longest = max(case.longest for case in cases)
    trainers = {}
    for side in (TRL, OURS):
        trainers[side] = make_trainer(side, _model(work, SMALL), max_completion_length=longest)
    for case in cases:

        def row(case: Case = case) -> Row:
            found = rollout.compare(case, trainers, REPEATS)
            if dtype() == torch.bfloat16:
                # Many tokens of random weights are almost as likely as the first: float32 tells.
                del found["equal"]["greedy"]
            return beside_trl(found, work)

        yield guarded(f"{case.name}: {case.title}", row)
    yield guarded(GREEDY, partial(_greedy_row, work))


def _greedy_row(work: Work) -> Row:
    """Return whether both sides decode the same tokens greedily, in float32."""
    config = config_of(SMALL, work.size)
    trainers = {}
    for side in (TRL, OURS):
        policy = random_model(config, torch.float32, work.device)
        trainers[side] = make_trainer(side, work.tokenizer(), policy=policy)
    groups = ROLLOUTS[work.size][0].make(config.vocab_size)
    prompts = [prompt for prompt, completions in groups for _ in completions]
    share = rollout.greedy_agreement(trainers, prompts)
    bar = rollout.GREEDY_BAR
    return verdict(GREEDY, share, bar, met=share >= bar, note="of the first tokens, at least")


def steps(work: Work) -> Iterator[Row]:
    """Time whole steps of both sides."""
    kind = "zero-shot"

    def row() -> Row:
        return beside_trl(step.compare(kind, _model(work, SMALL), REPEATS), work)

    yield guarded(f"{kind}: {step.TITLES[kind]}", row)


def peaks(work: Work) -> Iterator[Row]:
    """Compare the memory of an update, each side in a process of its own."""
    arguments = Namespace(model=_model(work, LARGE), threads=torch.get_num_threads())
    runs: dict[str, list[Row]] = {}
    for side in (TRL, OURS):
        runs[side] = [memory.run_side(side, arguments)]
    # The others are those of algorithm 1.
    for spec in memory.SUMMARIES[:2]:
        yield beside_trl(memory.summary_row(spec, runs), work)


def plan_cases(size: str) -> list[plan.Case]:
    """Return the runs whose memory is foretold: plain, with checkpointing, and in 4 bits."""
    rows, group, prompt, completion = (16, 16, 256, 48) if size == FULL else (4, 4, 32, 8)
    settings = {
        "per_device_train_batch_size": rows,
        "num_generations": group,
        "max_completion_length": completion,
        "lora_dropout": 0.0,
    }
    cases = []
    for name, own in (
        ("plain", {}),
        ("checkpointing", {"gradient_checkpointing": True}),
        ("4-bit", {"load_in_4bit": True}),
    ):
        title = f"{SMALL}, {name}, G={group}"
        given = {"gradient_checkpointing": False, **settings, **own}
        cases.append(plan.Case(name, title, tiny=False, prompt=prompt, settings=given))
    return cases


def plans(work: Work) -> Iterator[Row]:
    """Compare what `grpo-hf plan` foretells with the peak of a run."""
    model = _model(work, SMALL)
    for case in plan_cases(work.size):

        def row(case: plan.Case = case) -> Row:
            free_memory()
            found = plan.case_row(case, [plan.one_case(case, model)])
            sizes = []
            for side in ("foretold", "measured"):
                largest = max(found["runs"][0][side].values())
                sizes.append(f"{side} {largest / MEBIBYTE:,.0f} MiB")
            bar = plan.BAR if work.size == FULL else None
            note = ", ".join(sizes) + "; within 15% of 1"
            return verdict(case.title, found["value"], bar, met=found["met"], note=note)

        yield guarded(case.title, row)


def vllm_by_adapter(work: Work) -> Iterator[Row]:
    """Train two steps with vLLM beside the training; then time its rollout and ours."""
    if find_spec("vllm") is None:
        yield left_out("vLLM by adapter", "vllm is not installed")
        return
    model = _model(work, SMALL)
    settings = {"max_completion_length": 64 if work.size == FULL else 8}
    trainer = make_trainer(
        OURS,
        model,
        # Training begins with a fresh adapter, which moves at once.
        max_steps=2,
        learning_rate=1e-3,
        logging_steps=1,
        save_strategy="no",
        reward_workers=0,
        use_vllm=True,
        vllm_max_model_length=640,
        fresh=True,
        **settings,
    )
    yield guarded("two steps with a LoRA", partial(_trained_with_vllm, trainer))
    plain = make_trainer(OURS, model, **settings)
    prompts = [[7, 8, 9] * 40] * 16
    sides: dict[str, Callable[[], list[list[int]]]] = {
        "transformers": lambda: plain._generate_single_turn(prompts, None, {}, 8)[0],
        "vLLM": partial(by_vllm, trainer, prompts),
    }
    for name, sample in sides.items():
        yield guarded(f"rollout by {name}", partial(_rate, name, sample))


def _trained_with_vllm(trainer: Any) -> Row:
    """Return how far vLLM's log-probabilities were from the policy's; the base must not move."""
    base = [weight for name, weight in trainer.model.named_parameters() if "lora_" not in name]
    before = digest_of(base)
    trainer.train()
    key, bar = VLLM_BARS[dtype()]
    gaps = [row[key] for row in trainer.state.log_history if key in row]
    stays = digest_of(base) == before
    value = torch.tensor(gaps).max().item()
    note = f"log-probabilities, {len(gaps)} steps; base {'unchanged' if stays else 'changed'}"
    is_met = stays and len(gaps) == 2 and value <= bar
    return verdict("two steps with a LoRA", value, bar, met=is_met, unit=" nats", note=note)


def _rate(name: str, sample: Callable[[], list[list[int]]]) -> Row:
    """Return tokens per second of wall time."""
    sample()
    written: list[list[int]] = []
    time = timed(lambda: written.extend(sample()))
    tokens = sum(map(len, written))
    note = f"{tokens} tokens of {len(written)} completions"
    return verdict(f"rollout by {name}", tokens / time.wall, None, unit=" tokens/s", note=note)


def unsloth(work: Work) -> Iterator[Row]:
    """Time steps of TRL, grpo-hf and Unsloth's trainer, each in a process of its own."""
    try:
        found = version("unsloth")
    except PackageNotFoundError:
        yield left_out("Unsloth", "unsloth is not installed")
        return
    model = _model(work, SMALL)
    for side in ("unsloth", OURS, TRL):
        # What Unsloth does not take is no failure of this library.
        other = left_out if side == "unsloth" else failed
        command = [sys.executable, "-m", "benchmarks.gpu_unsloth", side, model, work.size]
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            yield other(f"steps of {side}", f"it ended with code {done.returncode}; see the log")
            continue
        measured = json.loads(done.stdout.splitlines()[-1])
        note = f"peak {measured['peak'] / MEBIBYTE:,.0f} MiB; beside Unsloth {found}"
        yield verdict(f"steps of {side}", measured["seconds"], None, unit=" s", note=note)


def two_processes(work: Work) -> Iterator[Row]:
    """Compare the gradient of two processes (DDP) with that of one, by `accelerate launch`."""
    name = "DDP on two GPUs against one"
    if work.device == "cuda" and torch.cuda.device_count() < 2:
        yield left_out(name, f"this machine has {torch.cuda.device_count()} GPU")
        return
    if work.device == "cpu":
        name = "DDP of two processes against one"

    def row() -> Row:
        one, two = (_launched(work, count) for count in (1, 2))
        value = ((one - two).norm() / one.norm()).item()
        return verdict(name, value, PRECISE_BAR, note="gradient, float32")

    yield guarded(name, row)


def _launched(work: Work, count: int) -> torch.Tensor:
    """Return the gradient that so many processes compute.

    Raises:
        RuntimeError: a process failed.
    """
    output = work.folder / f"gradient-{count}.pt"
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_machines", "1"]
    command += ["--num_processes", str(count), *(["--multi_gpu"] if count > 1 else [])]
    command += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    command += ["-m", "benchmarks.gpu_processes", str(work.folder), work.device, work.size]
    variables = {"ACCELERATE_USE_CPU": "true"} if work.device == "cpu" else {}
    if work.device == "cuda" and count == 1:
        variables = one_gpu()
    done = subprocess.run([*command, str(output)], cwd=ROOT, env=os.environ | variables)
    if done.returncode:
        raise RuntimeError(f"{count} processes ended with code {done.returncode}; see the log")
    gradient: torch.Tensor = torch.load(output, weights_only=True)
    return gradient


PARTS: dict[str, Callable[[Work], Iterator[Row]]] = {
    "environment": environment,
    "kernel": kernel,
    "update": updates,
    "rollout": rollouts,
    "step": steps,
    "memory": peaks,
    "plan": plans,
    "vllm": vllm_by_adapter,
    "unsloth": unsloth,
    "two GPUs": two_processes,
}
