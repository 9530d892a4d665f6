"""What fits into a device, and the one change that makes a run fit."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from .memory import least_of_vllm, peak_of
from .precision import Precision
from .run_facts import RunFacts
from .terms import GIB

# Sizes of GPUs that are sold or rented, in GB.
DEVICES = (8, 16, 24, 48, 80, 141)
# What the driver and the libraries' kernels take, and the share that an allocator cannot use.
_CONTEXT = GIB * 3 // 4
_USABLE = 0.95
_GPUS = (2, 4, 8)


@dataclass(frozen=True)
class Fit:
    """Whether a run fits into a device.

    Args:
        device: bytes of its memory.
        needed: bytes that the run takes there at its peak.
        phase: the phase that takes most.
        fits: whether it does as it is.
        change: flags that make it fit: one change, or two where no single one does.
    """

    device: int
    needed: int
    phase: str
    fits: bool
    change: str | None


def fit_into(run: RunFacts, device: int) -> Fit:
    """Return whether a run fits into a device of so many bytes, and what makes it fit."""
    run = replace(run, capacity=usable(device, run.device))
    peak = peak_of(run)
    if _fits(run):
        return Fit(device, peak.size, peak.name, True, None)
    return Fit(device, peak.size, peak.name, False, _change_that_fits(run))


def _change_that_fits(run: RunFacts) -> str | None:
    """Return the first change that makes a run fit, or the first two where no single one does."""
    for flags, changed in changes(run):
        if _fits(changed):
            return flags
    # The later kind of the two is as early as possible.
    for last in range(1, len(_CHANGES)):
        for first in _CHANGES[:last]:
            for flags, changed in first(run):
                for more, both in _CHANGES[last](changed):
                    if _fits(both):
                        return f"{flags} and {more}"
    return None


def usable(device: int, kind: str = "cuda") -> int:
    """Return the bytes of a device that tensors can have."""
    if kind == "cpu":
        return device
    return int(device * _USABLE) - _CONTEXT


def _fits(run: RunFacts) -> bool:
    return peak_of(run).size <= run.capacity and _vllm_has_room(run)


def _vllm_has_room(run: RunFacts) -> bool:
    """Return whether a colocated vLLM's share holds the base and the states of some requests."""
    if run.engine.kind != "colocate":
        return True
    return run.engine.share * run.capacity >= least_of_vllm(run)


def changes(run: RunFacts) -> Iterator[tuple[str, RunFacts]]:
    """Yield single changes of a run, as flags, those that change least of what it learns first."""
    for change in _CHANGES:
        yield from change(run)


def _checkpointing(run: RunFacts) -> Iterator[tuple[str, RunFacts]]:
    if not run.checkpointing:
        yield "--gradient_checkpointing true", replace(run, checkpointing=True)


def _smaller_batches(run: RunFacts) -> Iterator[tuple[str, RunFacts]]:
    """Cut a rollout into more micro-batches, which add up to the same gradient."""
    g = run.geometry
    for factor in range(2, g.batch + 1):
        if g.batch % factor:
            continue
        smaller = replace(
            g, batch=g.batch // factor, parts=g.parts * factor, accumulation=g.accumulation * factor
        )
        flags = (
            f"--per_device_train_batch_size {smaller.batch} "
            f"--gradient_accumulation_steps {smaller.accumulation}"
        )
        if g.parts != g.accumulation:
            flags += f" --steps_per_generation {smaller.parts}"
        yield flags, replace(run, geometry=smaller)


def _smaller_rollouts(run: RunFacts) -> Iterator[tuple[str, RunFacts]]:
    """Sample an optimizer step's completions in several rollouts, of whole groups, one by one."""
    g = run.geometry
    if run.engine.kind != "generate":
        return
    for parts in range(g.parts - 1, 0, -1):
        rows = parts * g.batch * g.gpus
        if g.accumulation % parts == 0 and rows % g.group == 0:
            smaller = replace(g, parts=parts)
            yield f"--steps_per_generation {parts}", replace(run, geometry=smaller)


def _sleep(run: RunFacts) -> Iterator[tuple[str, RunFacts]]:
    if run.engine.kind == "colocate" and not run.engine.sleeps:
        yield "--vllm_enable_sleep_mode true", replace(run, engine=replace(run.engine, sleeps=True))


def _share(run: RunFacts) -> Iterator[tuple[str, RunFacts]]:
    if run.engine.kind != "colocate":
        return
    for tenths in (2, 3, 4, 5, 6, 7):
        engine = replace(run.engine, share=tenths / 10)
        yield f"--vllm_gpu_memory_utilization {tenths / 10}", replace(run, engine=engine)


def _half_weights(run: RunFacts) -> Iterator[tuple[str, RunFacts]]:
    p = run.precision
    if p.weights == 4 and run.device != "cpu":
        adapter = p.adapter if run.uses_adapter else 2
        half = Precision(2, p.quantized, 2, adapter, p.autocast)
        yield "--dtype bfloat16", replace(run, precision=half)


def _four_bits(run: RunFacts) -> Iterator[tuple[str, RunFacts]]:
    p = run.precision
    # A colocated vLLM would quantize the base another time.
    if run.uses_adapter and p.quantized is None and run.engine.kind != "colocate":
        four = Precision.four_bits(p.weights, autocast=p.autocast)
        yield "--load_in_4bit true", replace(run, precision=four)


def _shorter(run: RunFacts) -> Iterator[tuple[str, RunFacts]]:
    g = run.geometry
    for divisor in (2, 4):
        length = g.completion // divisor
        if length:
            shorter = replace(g, completion=length)
            yield f"--max_completion_length {length}", replace(run, geometry=shorter)


def _more_gpus(run: RunFacts) -> Iterator[tuple[str, RunFacts]]:
    """Split weights over GPUs; each has batches as large as before."""
    for gpus in _GPUS:
        if gpus > run.geometry.gpus or run.strategy not in ("fsdp", "zero3"):
            wider = replace(run.geometry, gpus=max(gpus, run.geometry.gpus))
            yield f"FSDP2 on {wider.gpus} GPUs", replace(run, geometry=wider, strategy="fsdp")


_CHANGES: tuple[Callable[[RunFacts], Iterator[tuple[str, RunFacts]]], ...] = (
    _checkpointing,
    _sleep,
    _share,
    _smaller_rollouts,
    _smaller_batches,
    _half_weights,
    _four_bits,
    _more_gpus,
    _shorter,
)
