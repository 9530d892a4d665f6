"""Attention by variable-length calls against dense attention in float64, on the operator that has
the kernel's signature; and that no layer waits for its device.
"""

import random
from inspect import signature
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import get_peft_model
from support.models import block, decoder, lora, moved
from support.varlen_reference import ReferenceOperator

from grpo_hf.torch_seam import FlashAttention
from grpo_hf.update import kernel_check, packed_attention, packing, varlen_attention
from grpo_hf.update.cpu_lora import join_products
from grpo_hf.update.kernel_check import seen_in
from grpo_hf.update.packed_states import read_layouts_of_states
from grpo_hf.update.packing import PackedGroups
from grpo_hf.update.varlen_attention import attend_by_calls

LAYOUTS = 500


def random_block(draw: random.Random) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Groups of 1 to 5 completions of 0 to 7 tokens, of prompts of 1 to 9; some prompts twice."""
    prompts = []
    for _ in range(draw.randint(1, 4)):
        prompts.append([draw.randint(1, 3) for _ in range(draw.choice([1, 1, 2, 5, 9]))])
    rows = []
    for prompt in [*prompts, draw.choice(prompts)]:
        for _ in range(draw.randint(1, 5)):
            rows.append((prompt, draw.choice([0, 1, 2, 4, 7])))
    widest = max(len(prompt) for prompt, _ in rows)
    longest = max(1, *(length for _, length in rows))
    ids = torch.zeros(len(rows), widest + longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, (prompt, length) in enumerate(rows):
        ids[row, widest - len(prompt) : widest] = torch.tensor(prompt)
        ids[row, widest:] = 5
        mask[row, widest - len(prompt) : widest + length] = 1
    return ids, mask, longest


def dense(states, seen, scaling):
    """Softmax over everything, with what is not seen hidden: (1, heads, T, D) -> (1, T, H, D)."""
    query, key, value = states
    copies = query.shape[1] // key.shape[1]
    key, value = (each.repeat_interleave(copies, dim=1) for each in (key, value))
    scores = (query @ key.mT) * scaling
    return (scores.masked_fill(~seen, -torch.inf).softmax(-1) @ value).transpose(1, 2)


@pytest.mark.parametrize("part", range(5))
def test_calls_are_dense_attention(part: int):
    """Values and all gradients, to 1e-6, over random layouts, grouped queries and windows."""
    draw = random.Random(part)
    generator = torch.Generator().manual_seed(part)
    shapes = set()
    for _ in range(LAYOUTS // 5):
        layout = PackedGroups.pack(*random_block(draw))
        heads, key_heads = draw.choice([(4, 4), (4, 2), (6, 3), (3, 1)])
        window = draw.choice([None, None, 1, 2, 3, 8, 100])
        tokens = layout.input_ids.shape[1]
        states = [
            torch.randn(1, tokens, count, 8, generator=generator, dtype=torch.float64)
            .transpose(1, 2)
            .requires_grad_()
            for count in (heads, key_heads, key_heads)
        ]
        operator = ReferenceOperator()
        ours = attend_by_calls(operator, layout, tuple(states), window, 0.4)
        expected = dense(states, seen_in(layout, window), 0.4)
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6)
        upstream = torch.randn(ours.shape, generator=generator, dtype=torch.float64)
        for got, wanted in zip(
            torch.autograd.grad(ours, states, upstream),
            torch.autograd.grad(expected, states, upstream),
            strict=True,
        ):
            torch.testing.assert_close(got, wanted, rtol=0, atol=1e-6)
        alone = layout.spans.first > layout.shared
        shapes.add((layout.shared > 0, alone, len(operator.calls), window is None))
    # Prompts with and without a shared part, beside each other and alone, in every way.
    assert {(True, True, 2, True), (True, False, 1, False), (False, False, 1, True)} <= shapes


def test_what_a_token_sees():
    layout = PackedGroups.pack(*block([[5, 6, 7], [5, 6, 7], [8]], [[1, 2], [3], [4, 5]]))
    # The prompt of one token sorts first; shared: 5 6; suffixes: 8 4, 7 1, 7.
    assert layout.input_ids.tolist() == [[5, 6, 8, 4, 7, 1, 7]]
    sees = [{0}, {0, 1}, {2}, {2, 3}, {0, 1, 4}, {0, 1, 4, 5}, {0, 1, 6}]
    in_window = [{0}, {0, 1}, {2}, {2, 3}, {1, 4}, {4, 5}, {1, 6}]
    for window, expected in ((None, sees), (2, in_window)):
        seen = seen_in(layout, window)
        assert [set(row.nonzero()[:, 0].tolist()) for row in seen] == expected


class Wrong(ReferenceOperator):
    def __init__(self, part: str) -> None:
        super().__init__()
        self.part = part

    def forward(self, states, call, scaling):
        if self.part == "it raises":
            raise RuntimeError("FlashAttention only supports Ampere GPUs or newer.")
        output, normaliser = super().forward(states, call, scaling)
        return output, normaliser + (self.part == "normaliser")

    def backward(self, gradient, states, results, call, scaling):
        if self.part == "own normaliser":
            results = self.forward(states, call, scaling)
        grads = super().backward(gradient, states, results, call, scaling)
        return (grads[0] * float("nan"), *grads[1:]) if self.part == "NaN" else grads


DEVICE = torch.device("cpu")


def test_a_kernel_is_measured_before_it_is_trusted(caplog):
    for window in (None, 1, 3, 100):
        right = kernel_check.distance_from_softmax(
            ReferenceOperator(), DEVICE, torch.float64, (4, 2, 8), window
        )
        assert right < 1e-12
    assert kernel_check.kernel_works(ReferenceOperator(), DEVICE, torch.bfloat16, (4, 2, 8))
    for part in ("normaliser", "own normaliser", "NaN", "it raises"):
        assert not kernel_check.kernel_works(Wrong(part), DEVICE, torch.float32, (4, 2, 8))
    assert "does not serve this device (FlashAttention only supports Ampere" in caplog.text


def test_the_measurement_draws_none_of_the_run_s_numbers():
    before = torch.get_rng_state()
    kernel_check.distance_from_softmax(ReferenceOperator(), DEVICE, torch.float32, (2, 1, 8), None)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("dtype", "size", "of_values", "served"),
    [
        (torch.bfloat16, 64, 64, True),
        (torch.float16, 256, 256, True),
        (torch.float32, 64, 64, False),
        (torch.bfloat16, 60, 60, False),
        (torch.bfloat16, 264, 264, False),
        (torch.bfloat16, 64, 32, False),
    ],
)
def test_states_without_a_kernel_are_padded(dtype, size, of_values, served, monkeypatch):
    monkeypatch.setattr(kernel_check, "kernel_works", lambda *_: True)
    cuda = torch.device("cuda")
    query = SimpleNamespace(shape=(1, 4, 9, size), dtype=dtype, device=cuda)
    key = SimpleNamespace(shape=(1, 2, 9, size))
    value = SimpleNamespace(shape=(1, 2, 9, of_values))
    assert (kernel_check.operator_for(query, key, value) is not None) == served
    on_cpu = torch.empty(1, 4, 9, 64, dtype=torch.bfloat16)
    assert kernel_check.operator_for(on_cpu, on_cpu, on_cpu) is None


# A layer that asks its device for a number waits for it, and the device runs dry. Tensors of the
# meta device have no numbers: whoever asks for one gets an error. The kernels themselves know it.


def on_meta(architecture: str) -> Any:
    """The layers of a policy with its adapter, checkpointed, in bf16 without any number."""
    model = get_peft_model(decoder(architecture), lora(task_type=None))
    join_products(model)
    model.train()
    model.gradient_checkpointing_enable()
    for module in model.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                empty = torch.empty_like(weight, dtype=torch.bfloat16, device="meta")
                module._parameters[name] = torch.nn.Parameter(empty, weight.requires_grad)
        for name, buffer in module._buffers.items():
            module._buffers[name] = buffer.to("meta")
    return model.base_model.model.base_model


def layout_on_meta() -> PackedGroups:
    layout = PackedGroups.pack(*block([[5, 6, 7, 8, 9]] * 3 + [[4]] * 2, [[1, 2]] * 5))
    values = {"counts": layout._counts}
    for name in signature(PackedGroups).parameters.keys() - values.keys():
        value = getattr(layout, name)
        values[name] = value.to("meta") if isinstance(value, torch.Tensor) else value
    return PackedGroups(**values)


def through_layers(layers: Any, layout: PackedGroups) -> None:
    states = layers(
        input_ids=layout.input_ids,
        position_ids=layout.position_ids,
        attention_mask=layout.input_ids.new_ones(1, 1, 1, 1),
        layout=layout,
        use_cache=False,
    ).last_hidden_state
    states.float().sum().backward()


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("architecture", ["Llama", "Gemma3Text", "Qwen3", "Qwen3_5Text"])
def test_no_layer_waits_for_its_device(architecture: str, padded: bool, monkeypatch):
    operator = None if padded else FlashAttention()
    monkeypatch.setattr(packed_attention, "operator_for", lambda *_: operator)
    packed_attention.read_layouts("sdpa")
    layers = on_meta(architecture)
    read_layouts_of_states(layers)
    layout = layout_on_meta()
    built = []
    monkeypatch.setattr(packing, "ends_of", lambda lengths: built.append(1) or ENDS(lengths))
    through_layers(layers, layout)
    assert len({module for module, _ in layout.readers}) >= 1
    once = len(built)
    through_layers(layers, layout)
    # Index tensors are built once per micro-batch, for all layers and both directions.
    assert len(built) == once <= 4


ENDS = packing.ends_of
WAITS = {
    "item": lambda states: states.sum().item(),
    "tolist": lambda states: states.tolist(),
    "bool": lambda states: bool(states.any()),
    "nonzero": lambda states: states.nonzero(),
    "boolean index": lambda states: states[states > 0],
    "unique": lambda states: states.unique(),
    "masked_select": lambda states: states.masked_select(states > 0),
    "to the host": lambda states: states.cpu(),
    "repeats of a size that is not known": lambda states: torch.repeat_interleave(
        states[0, 0].long()
    ),
}


@pytest.mark.parametrize("what", WAITS)
@pytest.mark.parametrize("way", [varlen_attention._TwoCalls, varlen_attention._CallInWindow])
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_a_layer_that_waits_is_found(what: str, way: Any, direction: str, monkeypatch):
    original = getattr(way, direction)

    def planted(self: Any, *positional: Any) -> Any:
        WAITS[what](positional[-1][0])
        return original(self, *positional)

    monkeypatch.setattr(way, direction, planted)
    monkeypatch.setattr(packed_attention, "operator_for", lambda *_: FlashAttention())
    packed_attention.read_layouts("sdpa")
    with pytest.raises((RuntimeError, NotImplementedError)):
        through_layers(on_meta("Gemma3Text"), layout_on_meta())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the kernel is one of CUDA")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(4, 4, 64), (8, 2, 128), (4, 1, 256), (14, 2, 64)])
@pytest.mark.parametrize("window", [None, 1, 3, 100])
def test_the_kernel_on_cuda(dtype, shape, window):
    distance = kernel_check.distance_from_softmax(
        FlashAttention(), torch.device("cuda"), dtype, shape, window
    )
    assert distance < 0.02


@pytest.mark.parametrize("architecture", ["Llama", "Gemma3Text", "Qwen3", "Mistral", "Qwen3_5Text"])
def test_a_model_learns_by_calls_what_it_learns_by_parts(
    architecture: str, module_trainer: Any, monkeypatch: pytest.MonkeyPatch
):
    """The CPU's own way, which is held against TRL's numbers elsewhere, is the oracle."""
    trainer = moved(module_trainer(model=decoder(architecture), peft_config=lora()))
    assert trainer.packs
    rows = block([[5, 6, 7, 8, 9]] * 3 + [[4]] * 2, [[21, 22, 23], [31], [41, 42], [51], [61] * 4])
    operator = ReferenceOperator()
    results = []
    for by_calls in (False, True):
        if by_calls:
            monkeypatch.setattr(packed_attention, "_goes_by_parts", lambda *_: False)
            monkeypatch.setattr(packed_attention, "operator_for", lambda *_: operator)
        trainer.model.zero_grad()
        scored = trainer._get_per_token_logps_and_entropies(trainer.model, *rows)[0]
        (scored * torch.linspace(-1, 1, scored.numel()).view_as(scored)).sum().backward()
        grads = [each.grad.flatten() for each in trainer.model.parameters() if each.requires_grad]
        results.append((scored.detach(), torch.cat(grads)))
    assert operator.calls
    torch.testing.assert_close(results[1][0], results[0][0], rtol=0, atol=1e-5)
    difference = (results[1][1] - results[0][1]).norm()
    assert difference <= 1e-5 * results[0][1].norm()
