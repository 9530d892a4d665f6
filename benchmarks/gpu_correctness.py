"""Compare what grpo-hf and TRL learn from the same completions, for gpu_check.py.

Each side makes a trainer of its own from the same weights and trains one step by `train()`, with
autocast, checkpointing and compilation as a run has them. The rollout is replaced by crafted
completions. Compared are the policy's log-probabilities, the loss and the gradient.

In float32 they have to agree to 1e-5. In bf16 the bar is twice what rounding alone does to TRL's
own numbers: its distance from itself with more padding, and from its own result in float32. The
adapter on a base in 4 bits is in bf16 as well, because TRL casts it.
"""

import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, TrainerCallback
from trl.trainer.utils import use_adapter

from .batches import crafted, ragged, to_batch
from .common import OURS, TRL, Row
from .gpu_models import FAMILIES, FULL, LARGE, SMALL, checkpoint, config_of, random_model
from .gpu_rows import Work, guarded, left_out, verdict
from .sides import make_trainer, set_adapter
from .update import gradient

# How far numbers may be apart in float32, and how many times rounding's own distance in bf16.
PRECISE_BAR = 1e-5
ROUNDING_FACTOR = 2.0

# Where numbers round, the bars are at least these: by chance, rounding may change nothing. The
# gradient's is a unit in the last place of bf16.
FLOORS = {"gradient": 2.0**-8, "log-probabilities": PRECISE_BAR, "loss": 1e-3}

# Columns of padding that the other padding has more, in front of prompts and behind completions.
PADDING = (37, 11)

GROUPS = 2
SIZE = 4

Distances = dict[str, float]


@dataclass(frozen=True)
class Mode:
    """Mode is how a step is computed.

    Attributes:
        dtype: of the weights.
        settings: of the trainers.
        changes: of the model's configuration.
        four_bit: whether the base is quantised; the products are then in `dtype`.
    """

    name: str
    dtype: torch.dtype = torch.float32
    settings: dict[str, Any] = field(default_factory=dict)
    changes: dict[str, Any] = field(default_factory=dict)
    four_bit: bool = False

    @property
    def rounds(self) -> bool:
        """Whether bf16 rounds some of the numbers."""
        in_bf16 = self.dtype == torch.bfloat16 or bool(self.settings.get("bf16"))
        return in_bf16 or self.four_bit


@dataclass(frozen=True)
class Numbers:
    """Numbers are what a side computed: log-probabilities (B, C), 0 on padding, loss, gradient."""

    log_probs: Tensor
    loss: Tensor
    gradient: Tensor


FP32 = Mode("fp32")
BF16 = Mode("bf16", torch.bfloat16)
AUTOCAST = Mode("bf16 autocast", settings={"bf16": True})
CHECKPOINTED = Mode(
    "bf16, checkpointing",
    torch.bfloat16,
    {
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
    },
)


def windows(size: str) -> Mode:
    """Return the mode in which every layer sees a part of the prompt only."""
    window = 64 if size == FULL else 12
    changes = {
        "use_sliding_window": True,
        "sliding_window": window,
        "max_window_layers": 0,
        "layer_types": None,
    }
    return Mode("fp32, windows", changes=changes)


def batch_for(config: Any, device: str, *, padded: bool = False) -> dict[str, Tensor]:
    """Return two groups of completions; prompts are longer than the model's window, if any.

    Args:
        padded: whether to add columns of padding.
    """
    window = getattr(config, "sliding_window", None) or 0
    groups = crafted(window + 48, ragged(GROUPS * SIZE, 40), GROUPS, config.vocab_size)
    batch = to_batch(groups, config.pad_token_id, device)
    if padded:
        left, right = PADDING
        for name in ("prompt_ids", "prompt_mask"):
            batch[name] = nn.functional.pad(batch[name], (left, 0), value=0)
        for name in ("completion_ids", "completion_mask"):
            batch[name] = nn.functional.pad(batch[name], (0, right), value=0)
    return batch


class _Gradient(TrainerCallback):
    """_Gradient keeps the gradient that a step is made with."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.found: Tensor | None = None

    def on_pre_optimizer_step(self, *positional: Any, **named: Any) -> None:
        self.found = gradient(self.trainer).float().clone()


def train_once(trainer: Any, batch: dict[str, Tensor]) -> Numbers:
    """Train one step on completions that are given; return what it computed."""
    losses: list[Tensor] = []
    watch = _Gradient(trainer)
    trainer.add_callback(watch)
    compute_loss = trainer.compute_loss

    def rollout(_: Any) -> dict[str, Tensor]:
        # Before training, the adapter has to be a fresh one, as the guard of the reference demands.
        set_adapter(trainer)
        with torch.no_grad(), use_adapter(trainer.accelerator.unwrap_model(trainer.model), None):
            return {**batch, "ref_per_token_logps": _log_probs(trainer, batch)}

    def recorded_loss(*positional: Any, **named: Any) -> Tensor:
        loss = compute_loss(*positional, **named)
        losses.append(loss.detach().float())
        return loss

    set_adapter(trainer, 0.0)
    trainer._generate_and_score_completions = rollout
    trainer.compute_loss = recorded_loss
    trainer.train()
    with torch.no_grad():
        log_probs = _log_probs(trainer, batch) * batch["completion_mask"]
    if watch.found is None or len(losses) != 1:
        raise RuntimeError(f"the run made {len(losses)} steps, not one")
    return Numbers(log_probs.float(), losses[0], watch.found)


def _log_probs(trainer: Any, batch: dict[str, Tensor]) -> Tensor:
    input_ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    scored: Tensor = trainer._get_per_token_logps_and_entropies(
        trainer.model, input_ids, mask, batch["completion_ids"].shape[1], batch_size=len(input_ids)
    )[0]
    return scored


def distances(expected: Numbers, actual: Numbers) -> Distances:
    """Return how far numbers are apart: relative norms, and the difference of the losses."""
    columns = expected.log_probs.shape[1]
    # More padding has more columns, which are 0.
    log_probs = actual.log_probs[:, :columns]
    return {
        "gradient": _relative(expected.gradient, actual.gradient),
        "log-probabilities": _relative(expected.log_probs, log_probs),
        "loss": (expected.loss - actual.loss).abs().item(),
    }


def _relative(expected: Tensor, actual: Tensor) -> float:
    return ((expected - actual).norm() / expected.norm()).item()


class Comparison:
    """Comparison computes the numbers of both sides for one family of models."""

    def __init__(self, work: Work, family: str) -> None:
        self.work = work
        self.family = family
        self._rounding: dict[tuple[Any, ...], Distances] = {}

    def row(self, mode: Mode) -> Row:
        """Return the row of a mode."""
        expected = self.numbers(TRL, mode)
        found = distances(expected, self.numbers(OURS, mode))
        bars = self.bars(mode, expected)
        # Written with <=, so that NaN misses every bar.
        is_met = all(found[name] <= bars[name] for name in found)
        notes = []
        for name in ("log-probabilities", "loss"):
            notes.append(f"{name} {found[name]:.1e}, bar {bars[name]:.1e}")
        return verdict(
            f"{self.family}, {mode.name}",
            found["gradient"],
            bars["gradient"],
            met=is_met,
            note="gradient; " + "; ".join(notes),
            checks=found,
            bars=bars,
        )

    def bars(self, mode: Mode, expected: Numbers) -> Distances:
        """Return the bar of each distance.

        Args:
            expected: TRL's numbers in this mode.
        """
        if not mode.rounds:
            return dict.fromkeys(FLOORS, PRECISE_BAR)
        bars = {}
        # Checkpointing computes the same again, and rounds as it does without.
        kind = (mode.dtype, mode.four_bit, mode.settings.get("bf16"))
        if kind not in self._rounding:
            self._rounding[kind] = self.rounding(mode, expected)
        for name, distance in self._rounding[kind].items():
            bars[name] = max(ROUNDING_FACTOR * distance, FLOORS[name])
        return bars

    def rounding(self, mode: Mode, expected: Numbers) -> Distances:
        """Return what rounding alone does to TRL's numbers."""
        padded = distances(expected, self.numbers(TRL, mode, padded=True))
        precise = distances(expected, self.numbers(TRL, mode, precise=True))
        return {name: max(padded[name], precise[name]) for name in padded}

    def numbers(
        self, side: str, mode: Mode, *, padded: bool = False, precise: bool = False
    ) -> Numbers:
        """Make a trainer of a side, train it once, and free it.

        Args:
            padded: whether the batch has more padding.
            precise: whether the same weights compute in float32.
        """
        config = config_of(self.family, self.work.size, **mode.changes)
        settings: dict[str, Any] = {
            "num_generations": SIZE,
            "per_device_train_batch_size": GROUPS * SIZE,
            "max_completion_length": 64,
            "optim": "sgd",
            # The numbers of a step are wanted, and the same weights after it.
            "learning_rate": 1e-12,
            "max_grad_norm": 0.0,
            "logging_steps": 1,
            "save_strategy": "no",
        }
        settings |= mode.settings
        if precise:
            settings["bf16"] = False
        if side == OURS:
            # No reward is called here.
            settings["reward_workers"] = 0
        policy = self.policy(config, mode)
        if precise:
            policy = _in_float32(policy)
        trainer = make_trainer(side, self.work.tokenizer(), policy=policy, **settings)
        try:
            return train_once(trainer, batch_for(config, self.work.device, padded=padded))
        finally:
            del policy, trainer
            free_memory()

    def policy(self, config: Any, mode: Mode) -> Any:
        """Return the model with the weights that all sides have."""
        if not mode.four_bit:
            return random_model(config, mode.dtype, self.work.device)
        quantised = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=mode.dtype,
        )
        folder = checkpoint(
            self.work.folder, self.family, self.work.size, torch.bfloat16, self.work.device
        )
        return AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=mode.dtype,
            quantization_config=quantised,
            device_map={"": 0 if self.work.device == "cuda" else "cpu"},
        )


def _in_float32(policy: Any) -> Any:
    """Let a model compute in float32, with the weights that it has."""
    for module in policy.modules():
        # Layers of bitsandbytes hold bytes, and say in what they compute.
        if hasattr(module, "compute_dtype"):
            module.compute_dtype = torch.float32
        for weight in [*module.parameters(recurse=False), *module.buffers(recurse=False)]:
            if weight.is_floating_point():
                weight.data = weight.data.float()
    policy.config.dtype = torch.float32
    return policy


def free_memory() -> None:
    """Free what trainers held, which refer to themselves."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def correctness(family: str, work: Work) -> Iterator[Row]:
    """Compare a family in float32, bf16 and with checkpointing, the small one also with windows."""
    torch.set_float32_matmul_precision("highest")
    modes = [FP32, BF16, CHECKPOINTED]
    if family == LARGE:
        modes = [BF16]
    if family == SMALL:
        modes += [windows(work.size), AUTOCAST]
    comparison = Comparison(work, family)
    for mode in modes:
        yield guarded(f"{family}, {mode.name}", partial(comparison.row, mode))


def four_bit(work: Work) -> Iterator[Row]:
    """Compare steps on a base in 4 bits."""
    names = {torch.float32: "4-bit, fp32 products", torch.bfloat16: "4-bit, bf16 products"}
    try:
        import bitsandbytes  # noqa: F401
    # A build for another CUDA raises what it likes.
    except Exception as error:
        yield left_out("4-bit", f"bitsandbytes cannot be imported: {error}")
        return
    comparison = Comparison(work, SMALL)
    for dtype, name in names.items():
        mode = Mode(name, dtype, four_bit=True)
        if work.device == "cpu" and dtype == torch.bfloat16:
            yield left_out(
                f"{SMALL}, {name}", "a CPU updates TRL's way there: products depend on the rows"
            )
        else:
            yield guarded(f"{SMALL}, {name}", partial(comparison.row, mode))


def compiled(work: Work) -> Iterator[Row]:
    """Compare steps with `torch_compile=True`, on the first layers: each is compiled alike."""
    # On a CPU it is the flag that is tried, not the compiler, which takes long.
    backend = {"torch_compile_backend": "eager"} if work.device == "cpu" else {}
    # transformers would turn TF32 on with it, and both sides would round.
    settings = {"torch_compile": True, "tf32": False, **backend}
    changes: dict[str, Any] = {"num_hidden_layers": 2, "layer_types": None}
    comparison = Comparison(work, SMALL)
    mode = Mode("fp32, torch_compile, 2 layers", settings=settings, changes=changes)
    yield guarded(f"{SMALL}, {mode.name}", partial(comparison.row, mode))


PARTS: dict[str, Callable[[Work], Iterator[Row]]] = {
    **{f"correctness: {family}": partial(correctness, family) for family in (*FAMILIES, LARGE)},
    "4-bit": four_bit,
    "compile": compiled,
}
