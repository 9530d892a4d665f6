"""What fits, and the change that makes it fit."""

from dataclasses import replace

import pytest
from support.models import lora

from grpo_hf.planning.fitting import changes, fit_into, usable
from grpo_hf.planning.geometry import Geometry
from grpo_hf.planning.known_shapes import known_models
from grpo_hf.planning.memory import peak_of, phases_of
from grpo_hf.planning.model_shape import shape_of
from grpo_hf.planning.precision import Precision
from grpo_hf.planning.run_facts import Engine, RunFacts
from grpo_hf.planning.terms import GIB

BF16 = Precision(2, None, 2, 4, autocast=True)


def run_of(name: str = "Qwen2.5-7B", **settings: object) -> RunFacts:
    return replace(
        RunFacts(
            shape=shape_of(known_models()[name], lora(r=16)),
            geometry=Geometry(1, 8, 16, 4, 4, 1, 256, 512, packed=True),
            precision=BF16,
        ),
        **settings,
    )


def test_the_peak_is_the_largest_phase_and_not_the_sum() -> None:
    run = run_of()
    sizes = [phase.size for phase in phases_of(run)]
    assert peak_of(run).size == max(sizes) < sum(sizes)


def test_weights_of_the_base_are_two_bytes_each() -> None:
    run = run_of()
    weights = phases_of(run)[0].of_group("weights")
    assert weights == 2 * run.shape.parameters
    four = replace(run, precision=Precision.four_bits(2, autocast=True))
    # bitsandbytes leaves embeddings and head as they are.
    outside = 2 * run.shape.outside
    of_layers = phases_of(four)[0].of_group("weights") - outside
    assert of_layers / run.shape.total("matrices") == pytest.approx(0.5625, rel=1e-3)


@pytest.mark.parametrize("size", [8, 16, 24, 48, 80])
def test_a_change_makes_it_fit(size: int) -> None:
    run = run_of(checkpointing=False)
    fit = fit_into(run, size * GIB)
    room = usable(size * GIB)
    assert fit.fits == (fit.needed <= room)
    if fit.change and " and " not in fit.change:
        changed = dict(changes(replace(run, capacity=room)))[fit.change]
        assert peak_of(changed).size <= room


def test_checkpointing_comes_before_what_changes_more() -> None:
    fit = fit_into(run_of(checkpointing=False), 24 * GIB)
    assert fit.change == "--gradient_checkpointing true"


def test_batches_that_are_cut_keep_whole_groups_and_the_gradient() -> None:
    run = run_of(checkpointing=False)
    cut = [changed for flags, changed in changes(run) if "batch_size" in flags]
    smaller = [changed for flags, changed in changes(run) if flags.startswith("--steps_per")]
    assert cut
    assert smaller
    for changed in cut:
        assert changed.geometry.rollout_rows == run.geometry.rollout_rows
    for changed in smaller:
        assert changed.geometry.rollout_rows % run.geometry.group == 0
    for changed in cut + smaller:
        together = changed.geometry.batch * changed.geometry.accumulation
        assert together == run.geometry.batch * run.geometry.accumulation


def test_a_sleeping_engine_gives_its_share_back() -> None:
    engine = Engine("colocate", 0.5)
    capacity = 80 * GIB
    awake = run_of(engine=engine, capacity=capacity)
    asleep = run_of(engine=replace(engine, sleeps=True), capacity=capacity)
    update = next(phase for phase in phases_of(awake) if phase.name == "update")
    assert update.of_group("vLLM") == 40 * GIB
    update = next(phase for phase in phases_of(asleep) if phase.name == "update")
    assert update.of_group("vLLM") == 0
    assert phases_of(asleep)[0].of_group("vLLM") == 40 * GIB


def test_a_share_that_does_not_hold_the_base_is_too_small() -> None:
    fit = fit_into(run_of(engine=Engine("colocate", 0.1)), 80 * GIB)
    assert not fit.fits
    assert fit.change is not None and "--vllm_gpu_memory_utilization" in fit.change


def test_gpus_that_share_weights_need_less_each() -> None:
    alone = run_of("Llama-3.1-70B")
    eight = replace(alone, geometry=replace(alone.geometry, gpus=8))
    sharded = replace(eight, strategy="fsdp")
    assert peak_of(eight).size >= peak_of(alone).size
    assert peak_of(sharded).size < peak_of(alone).size / 2


def test_merged_weights_are_left_out_where_memory_lacks() -> None:
    run = run_of()
    small = replace(run, capacity=usable(24 * GIB))
    large = replace(run, capacity=usable(80 * GIB))
    assert phases_of(small)[0].of_group("merged weights") == 0
    assert phases_of(large)[0].of_group("merged weights") > 10 * GIB


def test_without_a_device_in_mind_vllm_needs_the_base_at_least() -> None:
    run = run_of(engine=Engine("colocate", 0.3))
    assert phases_of(run)[0].of_group("vLLM") > run.base_bytes
