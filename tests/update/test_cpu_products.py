"""Linear layers that multiply by oneDNN: the numbers of torch's own, and their limits."""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from support.models import VOCABULARY, decoder, lora
from torch import Tensor, nn

from grpo_hf import torch_seam
from grpo_hf.rollout.merged_weights import _layers as layers_while_sampling
from grpo_hf.update import cpu_lora, cpu_products

pytestmark = pytest.mark.skipif(
    not torch_seam.has_onednn(), reason="this build of torch has no oneDNN"
)

# The fixture below replaces it.
_has_same_bits = cpu_products._has_same_bits


@pytest.fixture(autouse=True)
def on_any_processor(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Multiply by oneDNN whatever the processor; the list has the shape of each product's input."""
    shapes = []
    # Before its products are counted.
    assert cpu_products._is_right()

    def counted(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        shapes.append(tuple(x.shape))
        return torch_seam.onednn_linear(x, weight, bias)

    monkeypatch.setattr(cpu_products, "has_faster_products", lambda: True)
    monkeypatch.setattr(cpu_products, "onednn_linear", counted)
    monkeypatch.setattr(cpu_products, "_has_same_bits", lambda *shape: True)
    return shapes


def linear_layer(out: int = 20, *, bias: bool = True, trains: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    layer = nn.Linear(12, out, bias=bias).requires_grad_(trains)
    cpu_products.multiply_faster(layer)
    return layer


def results(forward: Callable[[Tensor], Tensor], layer: nn.Linear, x: Tensor) -> list[Any]:
    """Output, and the gradients of a weighted sum of it, of the input and of the weights."""
    x = x.detach().clone().requires_grad_()
    layer.zero_grad()
    y = forward(x)
    (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum().backward()
    return [y.detach(), x.grad, *(weight.grad for weight in layer.parameters())]


@pytest.mark.parametrize("trains", [True, False])
@pytest.mark.parametrize(("out", "bias"), [(20, True), (5, False)])
@pytest.mark.parametrize("shape", [(12,), (7, 12), (2, 70, 12), (0, 12)])
def test_output_and_gradients(
    shape: tuple[int, ...],
    out: int,
    bias: bool,
    trains: bool,
    on_any_processor: list[tuple[int, ...]],
) -> None:
    layer = linear_layer(out, bias=bias, trains=trains)
    x = torch.randn(shape)
    ours = results(layer, layer, x)
    # By MKL for very few rows.
    forward = x[..., 0].numel() >= cpu_products.fewest_rows()
    assert len(on_any_processor) == forward + 1 + (trains and x.numel() > 0)
    exact = nn.Linear(12, out, bias=bias).double().requires_grad_(trains)
    exact.load_state_dict(layer.state_dict())
    for got, expected in zip(ours, results(exact, exact, x.double()), strict=True):
        assert (got is None) == (expected is None)
        if expected is not None:
            torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", ["bfloat16", "autocast", "a forward of its own", "a subclass"])
def test_what_is_more_than_a_float32_product_stays(
    case: str, on_any_processor: list[tuple[int, ...]]
) -> None:
    class Halved(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) / 2

    torch.manual_seed(0)
    layer = Halved(12, 20) if case == "a subclass" else nn.Linear(12, 20)
    if case == "a forward of its own":
        layer.forward = lambda x: nn.functional.linear(x, layer.weight) * 3
    layer.to(torch.bfloat16 if case == "bfloat16" else torch.float32)
    x = torch.randn(5, 12, dtype=layer.weight.dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=case == "autocast"):
        expected = layer(x)
        cpu_products.multiply_faster(layer)
        assert torch.equal(layer(x), expected)
    assert not on_any_processor


def test_hooks_run_and_a_copy_has_weights_of_its_own() -> None:
    layer = linear_layer()
    twin = copy.deepcopy(layer)
    twin.weight.data.zero_()
    seen = []
    layer.register_forward_hook(lambda *given: seen.append(1))
    x = torch.randn(3, 12)
    assert layer(x).ne(layer.bias).any()
    assert torch.equal(twin(x), twin.bias.expand(3, -1))
    assert seen == [1]


@pytest.mark.parametrize("trains", [True, False])
def test_forwards_that_nothing_is_learned_from(
    trains: bool, on_any_processor: list[tuple[int, ...]]
) -> None:
    layer = linear_layer(trains=trains)
    x = torch.randn(2, 7, 12)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), nn.functional.linear(x, layer.weight, layer.bias))
    assert on_any_processor == [(14, 12)]


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


# MKL has kernels of its own for Intel's processors, which add in another order.
only_where_it_is_used = pytest.mark.skipif(
    not torch_seam.has_faster_products(), reason="MKL is fast on this processor"
)


@only_where_it_is_used
@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("out", [40, 700])
@pytest.mark.parametrize("features", [12, 192, 200, 383, 384, 500, 576, 1536])
def test_a_forward_that_is_learned_from_has_torchs_bits(
    features: int, out: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_products, "_has_same_bits", _has_same_bits)
    torch.manual_seed(0)
    layer = nn.Linear(features, out)
    for rows in (*range(1, 20), 64, 300):
        x = torch.randn(rows, features)
        expected = nn.functional.linear(x, layer.weight, layer.bias)
        got = cpu_products.linear_to_the_bit(x, layer.weight, layer.bias)
        assert torch.equal(got, expected)


@only_where_it_is_used
def test_sums_in_parts_are_torchs_for_usual_widths() -> None:
    for shape in ((1536, 576), (576, 1536), (4864, 896), (896, 4864), (2048, 2048)):
        assert _has_same_bits(*shape)
    # These are halved by MKL.
    assert not _has_same_bits(64, 256)


def test_an_output_may_be_written_into() -> None:
    layer = linear_layer()
    x = torch.randn(2, 3, 12, requires_grad=True)
    y = layer(x)
    y += 1
    y.sum().backward()
    torch.testing.assert_close(x.grad, layer.weight.sum(0).expand(2, 3, -1))


def test_a_layer_is_saved_and_read_as_a_whole(tmp_path: Path) -> None:
    layer = linear_layer()
    torch.save(layer, tmp_path / "layer.pt")
    read = torch.load(tmp_path / "layer.pt", weights_only=False)
    x = torch.randn(3, 12)
    expected = layer(x)
    layer.weight.data.zero_()
    assert torch.equal(read(x), expected)


def test_a_gradient_of_a_gradient_is_that_of_torchs_products() -> None:
    layer, x = linear_layer(), torch.randn(3, 12)
    found = []
    for forward in (layer, lambda x: nn.functional.linear(x, layer.weight, layer.bias)):
        layer.zero_grad()
        given = x.clone().requires_grad_()
        (first,) = torch.autograd.grad(forward(given).pow(3).sum(), given, create_graph=True)
        first.pow(2).sum().backward()
        found.append([given.grad, *(weight.grad for weight in layer.parameters())])
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


def test_products_that_are_others_are_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cpu_products, "onednn_linear", lambda x, w, b: torch.zeros(len(x), len(w)))
    monkeypatch.setattr(cpu_products, "_is_right", cpu_products._is_right.__wrapped__)
    layer = linear_layer()
    assert "forward" not in vars(layer)
    assert "oneDNN's are others on this machine" in caplog.text


def test_layers_that_are_not_float32_stay_as_they_are() -> None:
    layer = nn.Linear(12, 20, dtype=torch.bfloat16)
    cpu_products.multiply_faster(layer)
    assert "forward" not in vars(layer)


def test_it_is_no_forward_of_a_users_own() -> None:
    """Sampling folds adapters into such layers, and LoRA's two products may pass by them."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].forward = lambda x: x
    assert layers_while_sampling(model) == [model[0]]
    cpu_products.multiply_faster(model)
    assert layers_while_sampling(model) == [model[0]]
    assert [cpu_lora._is_intercepted(layer) for layer in model] == [False, True]


def test_elsewhere_nothing_is_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_products, "has_faster_products", lambda: False)
    assert "forward" not in vars(linear_layer())
    x, weight = torch.randn(3, 12), torch.randn(5, 12)
    assert torch.equal(cpu_products.linear(x, weight), nn.functional.linear(x, weight))


def test_long_sums_are_added_in_parts(on_any_processor: list[tuple[int, ...]]) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(300, 3000), torch.randn(20, 3000)
    exact = x.double() @ weight.double().T
    # As weights lie in a backward.
    apart = (cpu_products.linear(x, weight.T.contiguous().T) - exact).norm()
    assert apart < 1.5 * (x @ weight.T - exact).norm()
    assert len(on_any_processor) == 16


@pytest.mark.parametrize("architecture", ["Llama", "Qwen3", "Mistral", "Gemma3Text", "Phi3"])
def test_a_model_has_the_gradients_of_torchs_products(
    architecture: str,
    on_any_processor: list[tuple[int, ...]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of the adapter, of a layer without one that trains, and through layers that are frozen."""
    adapter = lora(target_modules=["o_proj", "down_proj"], modules_to_save=["lm_head"])
    model: Any = get_peft_model(decoder(architecture), adapter)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight, std=0.2)
    cpu_products.multiply_faster(model)
    cpu_lora.join_products(model)
    ids = torch.randint(3, VOCABULARY, (2, 20))
    weights = torch.linspace(-1, 1, ids.numel()).view_as(ids)
    gradients = []
    for faster in (True, False):
        on_any_processor.clear()
        monkeypatch.setattr(cpu_products, "has_faster_products", lambda faster=faster: faster)
        model.zero_grad()
        log_probs = model(input_ids=ids).logits.log_softmax(-1)
        (log_probs.gather(2, ids[..., None])[..., 0] * weights).sum().backward()
        trained = [weight.grad.flatten() for weight in model.parameters() if weight.requires_grad]
        gradients.append(torch.cat(trained))
        # On some processors the two libraries give the same bits.
        assert bool(on_any_processor) == faster
    apart = (gradients[0] - gradients[1]).norm()
    assert apart <= 1e-5 * gradients[1].norm()
    assert gradients[1].norm() > 0
