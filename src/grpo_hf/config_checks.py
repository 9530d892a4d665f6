"""Checks of the training settings: values, and settings that contradict each other.

Each check takes a `GRPOConfig` before TRL fills in what was left out. `check_geometry` also takes a
configuration of TRL's own class.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from math import inf, lcm
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from .errors import ConfigError

# TRL 1.16 would refuse other values of these only in the middle of the first step.
_CHOICES = {
    "reference": ("initial", "base"),
    # TRL also takes true for "group" and false for "none".
    "scale_rewards": ("group", "batch", "none", True, False),
    "importance_sampling_level": ("token", "sequence"),
    "multi_objective_aggregation": ("sum_then_normalize", "normalize_then_sum"),
    "non_finite": ("stop", "skip"),
    "vllm_sync": (None, "adapter", "merged"),
    "advantage_estimator": ("group", "reward", "gae"),
}
_planned: ContextVar[int] = ContextVar("planned", default=0)
# Settings that have to be above 0. None is accepted: it turns a setting off, or TRL fills it in.
_POSITIVE = (
    "target_kl",
    "reference_reset_every",
    "critic_learning_rate",
    "max_refills",
    "max_tokens_per_forward",
    "reward_timeout",
    "temperature",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "num_iterations",
    "max_completion_length",
    "logging_steps",
    "repetition_penalty",
)
# Settings from 0 on, and those of a range: the lowest and the highest value.
_RANGES = {
    "learning_rate": (0.0, inf),
    "weight_decay": (0.0, inf),
    "adam_epsilon": (0.0, inf),
    "adam_beta1": (0.0, 1.0),
    "adam_beta2": (0.0, 1.0),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
}

# Of vLLM's settings, which TRL 1.16 would hand on, or refuse in the middle of the first step.
_ENGINE_CHOICES = {
    "vllm_mode": ("colocate", "server"),
    "vllm_model_impl": ("vllm", "transformers", "auto", "terratorch"),
    "vllm_importance_sampling_mode": (
        "token_truncate",
        "token_mask",
        "sequence_truncate",
        "sequence_mask",
    ),
}
_PORTS = (1, 65535)
# By mode, or for both; a share of a GPU, a length and a clip are above 0.
_TINY = 1e-12
_ENGINE_RANGES: dict[str | None, dict[str, tuple[float, float]]] = {
    None: {
        "vllm_importance_sampling_clip_max": (_TINY, inf),
        "vllm_importance_sampling_clip_min": (0.0, inf),
    },
    "colocate": {
        "vllm_gpu_memory_utilization": (_TINY, 1.0),
        "vllm_tensor_parallel_size": (1, inf),
    },
    "server": {
        "vllm_server_port": _PORTS,
        "vllm_group_port": _PORTS,
        "vllm_server_timeout": (0.0, inf),
    },
}


def check_values(args: Any) -> None:
    """Check each setting that has a fixed set of values or a range.

    Raises:
        ConfigError: a value is not possible.
    """
    for name, known in _CHOICES.items():
        value = getattr(args, name)
        if value not in known:
            raise ConfigError(
                f"{name} is {value!r}; expected one of {', '.join(map(repr, known))}."
            )
    for name in _POSITIVE:
        value = getattr(args, name)
        # `not value > 0` instead of `value <= 0`, because NaN has to be refused as well.
        if value is not None and not value > 0:
            raise ConfigError(f"{name} is {value}; expected a number above 0.")
    for name, (lowest, highest) in _RANGES.items():
        value = getattr(args, name)
        if value is not None and not lowest <= value <= highest:
            expected = (
                f"from {lowest:g} to {highest:g}" if highest < inf else "that is not negative"
            )
            raise ConfigError(f"{name} is {value}; expected a number {expected}.")
    if not (args.max_steps > 0 or args.num_train_epochs > 0):
        raise ConfigError(
            f"max_steps is {args.max_steps} and num_train_epochs {args.num_train_epochs}, so there "
            "is nothing to train. Set one of them above 0."
        )
    if not 0 <= args.max_reward_failures <= 1 or (args.reward_workers or 0) < 0:
        raise ConfigError(
            f"max_reward_failures is {args.max_reward_failures} and reward_workers "
            f"{args.reward_workers}; expected a share from 0 to 1, and a number of processes that "
            "is not negative."
        )
    if args.mask_truncated_completions and (args.generation_kwargs or {}).get("stop_strings"):
        raise ConfigError(
            "mask_truncated_completions leaves out completions without an end-of-sequence token, "
            "so every one that ends at one of the stop_strings. Leave out one of the two."
        )


def check_engine(args: Any) -> None:
    """Check vLLM's settings, where it is used, and those of its mode alone.

    Raises:
        ConfigError: a value is not possible, or an address is none.
    """
    if not args.use_vllm:
        return
    for name, known in _ENGINE_CHOICES.items():
        value = getattr(args, name)
        if value not in known:
            raise ConfigError(
                f"{name} is {value!r}; expected one of {', '.join(map(repr, known))}."
            )
    for name, (lowest, highest) in (_ENGINE_RANGES[None] | _ENGINE_RANGES[args.vllm_mode]).items():
        value = getattr(args, name)
        if value is not None and not lowest <= value <= highest:
            raise ConfigError(f"{name} is {value}; expected {_range_text(lowest, highest)}.")
    if args.vllm_mode == "server":
        server_addresses(args)
        return
    length = args.vllm_max_model_length
    # At -1 vLLM takes the longest that there is memory for.
    if length is not None and length != -1 and length < 1:
        raise ConfigError(f"vllm_max_model_length is {length}; expected a number of tokens.")
    processes = processes_planned() or int(os.environ.get("WORLD_SIZE", "1"))
    if processes % args.vllm_tensor_parallel_size:
        raise ConfigError(
            f"vllm_tensor_parallel_size is {args.vllm_tensor_parallel_size}, and {processes} "
            f"process{'es train' if processes > 1 else ' trains'}: each engine takes so many of "
            "them. Set one that divides their number, as --vllm_tensor_parallel_size 1."
        )


def _range_text(lowest: float, highest: float) -> str:
    start = "above 0" if lowest == _TINY else f"from {lowest:g} on"
    if highest == inf:
        return f"a number {start}"
    return f"a number {start.removesuffix(' on')} up to {highest:g}"


def server_addresses(args: Any) -> list[str]:
    """Return the addresses of the servers that a run samples at.

    Raises:
        ConfigError: one is no address of a server.
    """
    given = args.vllm_server_base_url
    name = "vllm_server_host" if given is None else "vllm_server_base_url"
    if given is None:
        given = f"http://{args.vllm_server_host}:{args.vllm_server_port}"
    addresses = given.replace(",", " ").split()
    for address in addresses or [given]:
        try:
            parts = urlsplit(address)
            is_one = parts.scheme in ("http", "https") and bool(parts.hostname)
            # A port that is no number raises when it is read, and 0 is none.
            is_one = is_one and parts.port != 0 and "//" not in parts.path
        except ValueError:
            is_one = False
        if not is_one:
            raise ConfigError(
                f"{name}: {address!r} is no address of a server; expected one as "
                "http://localhost:8000, and several with commas between them."
            )
    return [address.rstrip("/") for address in addresses]


def check_kl_term(args: Any) -> None:
    """Check that there is a KL term to steer, and that its reference may move.

    Raises:
        ConfigError: `target_kl` or `reference_reset_every` is set with beta 0, or the reference is
            the base and should be reset.
    """
    for name in ("target_kl", "reference_reset_every"):
        value = getattr(args, name)
        if value is not None and not args.beta > 0:
            raise ConfigError(
                f"beta is {args.beta:g}, so there is no KL term, and {name} {value} would do "
                f"nothing. Set --beta 0.04, or leave {name} out."
            )
    if args.reference_reset_every is not None and args.reference == "base":
        raise ConfigError(
            f"reference_reset_every {args.reference_reset_every} moves the reference, and "
            "reference 'base' holds it to the base. Set --reference initial, or leave "
            "reference_reset_every out."
        )


def check_estimator(args: Any) -> None:
    """Check that no other setting needs another kind of advantages.

    Raises:
        ConfigError: λ or γ is outside [0, 1], or a setting about groups is used with an estimator
            that does not compare groups.
    """
    for name in ("gae_lambda", "gae_gamma"):
        value = getattr(args, name)
        if not 0 <= value <= 1:
            raise ConfigError(f"{name} is {value}; expected a number from 0 to 1.")
    if args.advantage_estimator == "group":
        return
    required: dict[str, Any] = {
        "process_reward": None,
        "multi_objective_aggregation": "sum_then_normalize",
    }
    # With a critic every completion has a signal, so no group has to be replaced.
    if args.advantage_estimator == "gae":
        required["dynamic_sampling"] = False
    for name, needed in required.items():
        value = getattr(args, name)
        if value != needed:
            raise ConfigError(
                f"advantage_estimator is {args.advantage_estimator!r}, which does not go with "
                f"{name} {value!r}. Use --advantage_estimator group, or {name}={needed!r}."
            )


def check_geometry(args: Any) -> None:
    """Check that a generation batch holds whole groups.

    TRL checks it later, with a message that names no settings that work.

    Raises:
        ConfigError: G < 2, or processes x batch x accumulation is not a multiple of G.
    """
    group = args.num_generations
    if group is None or group < 2:
        raise ConfigError(
            f"num_generations is {group}; a group needs at least 2 completions, because the "
            "advantage of one compares it with the others. Set --num_generations 8, for example."
        )
    # Set by the launcher; asking accelerate would start the process group.
    processes = processes_planned() or int(os.environ.get("WORLD_SIZE", "1"))
    geometry = _geometry(args, group, processes)
    rows = geometry.rows
    if rows % group == 0:
        return
    second = geometry.second_advice
    # Where the rows can be cut into groups of another size, memory and speed stay as they are.
    if rows > 1 and rows % (processes * args.per_device_train_batch_size) == 0:
        second = f"--num_generations {_nearest_divisor(rows, group)}"
    raise ConfigError(
        f"{geometry.description}: not a multiple of num_generations {group}, so a group would be "
        f"torn. Two settings that work: {geometry.first_advice}, or {second}."
    )


@contextmanager
def planned_processes(count: int) -> Iterator[None]:
    """Read settings in a `with` block as those of a run on so many processes."""
    token = _planned.set(count)
    try:
        yield
    finally:
        _planned.reset(token)


def processes_planned() -> int:
    """Return the processes of a run that is planned and not made; 0 where there is none."""
    return _planned.get()


class _Geometry(NamedTuple):
    """The size of a generation batch, and two settings that would make it a multiple of G."""

    rows: int
    description: str
    first_advice: str
    second_advice: str


def _geometry(args: Any, group: int, processes: int) -> _Geometry:
    """Return the geometry from `generation_batch_size`, or from the sizes that it follows from."""
    batch = args.per_device_train_batch_size
    if args.generation_batch_size is not None:
        rows = args.generation_batch_size
        # TRL 1.16 requires that a generation batch holds whole micro-batches, too.
        unit = lcm(group, processes * batch)
        whole = _round_up(rows, unit)
        return _Geometry(
            rows,
            f"generation_batch_size {rows}",
            f"--generation_batch_size {whole}",
            f"--generation_batch_size {whole + unit}",
        )
    # TRL 1.16 takes the accumulation steps where the steps of a generation are not given.
    label = "gradient_accumulation_steps"
    if args.steps_per_generation:
        label = "steps_per_generation"
    steps = getattr(args, label)
    rows = processes * batch * steps
    plural = "es" if processes > 1 else ""
    return _Geometry(
        rows,
        f"{processes} process{plural} x per_device_train_batch_size {batch} x {label} {steps} = "
        f"{rows} completions",
        f"--per_device_train_batch_size {_round_up(batch, group)}",
        f"--{label} {group}",
    )


def _round_up(number: int, unit: int) -> int:
    """Return the smallest multiple of `unit` that is not below `number`."""
    return -(-number // unit) * unit


def _nearest_divisor(rows: int, group: int) -> int:
    """Return the divisor of `rows` from 2 on that is nearest to `group`; of two, the smaller."""
    nearest = rows
    for divisor in range(rows, 1, -1):
        if rows % divisor == 0 and abs(divisor - group) <= abs(nearest - group):
            nearest = divisor
    return nearest
