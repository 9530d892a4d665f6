"""LoRA layers with joined products: PEFT's numbers, and PEFT's own way wherever a layer is more
than that.
"""

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn

from grpo_hf.update import cpu_lora as lora


class Net(nn.Module):
    def __init__(self, *, bias: bool = True) -> None:
        super().__init__()
        self.proj = nn.Linear(12, 20, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)


def adapted(
    *, bias: bool = True, name: str = "default", **settings: Any
) -> tuple[nn.Module, LoraLinear]:
    torch.manual_seed(0)
    config = LoraConfig(target_modules=["proj"], r=4, lora_alpha=6, **settings)
    model = get_peft_model(Net(bias=bias), config, adapter_name=name)
    for weight in model.parameters():
        nn.init.normal_(weight)
    (layer,) = (module for module in model.modules() if isinstance(module, LoraLinear))
    return model, layer


def results(layer: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Output, and the gradients of a weighted sum of it."""
    x = x.detach().clone().requires_grad_()
    layer.zero_grad()
    y = layer(x)
    (y.float() * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
    weights = {
        name: weight.grad.clone()
        for name, weight in layer.named_parameters()
        if weight.grad is not None
    }
    return {"y": y.detach(), "x": x.grad, **weights}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(7, 12), (2, 7, 12), (1, 1, 12)])
@pytest.mark.parametrize("name", ["default", "policy"])
def test_output_and_gradients_are_pefts(shape: tuple[int, ...], bias: bool, name: str) -> None:
    model, layer = adapted(bias=bias, name=name)
    x = torch.randn(shape)
    expected = results(
        layer.double(), x.double()
    )  # PEFT's own products, without rounding to speak of
    layer.float()
    lora.join_products(model)
    got = results(layer, x)
    assert (
        got.keys()
        == expected.keys()
        == {"y", "x", f"lora_A.{name}.weight", f"lora_B.{name}.weight"}
    )
    for name, value in expected.items():
        torch.testing.assert_close(got[name].double(), value, rtol=1e-5, atol=1e-4)


def test_an_input_without_gradient_gets_none() -> None:
    model, layer = adapted()
    lora.join_products(model)
    layer(torch.randn(3, 12)).sum().backward()
    assert layer.lora_A["default"].weight.grad is not None


@pytest.mark.parametrize(
    ("settings", "dtype"),
    [
        ({"lora_dropout": 0.5}, torch.float32),
        ({"lora_bias": True}, torch.float32),
        ({"use_dora": True}, torch.float32),
        ({}, torch.bfloat16),
    ],
    ids=["dropout", "bias", "dora", "bfloat16"],
)
def test_what_is_more_than_two_products_is_pefts(
    settings: dict[str, Any], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, layer = adapted(**settings)
    model.to(dtype)
    monkeypatch.setattr(lora, "_LoraLinear", None)  # to use it would be an error
    x = torch.randn(5, 12, dtype=dtype)
    torch.manual_seed(1)
    expected = results(layer, x)
    lora.join_products(model)
    torch.manual_seed(1)
    got = results(layer, x)
    assert all(torch.equal(got[name], value) for name, value in expected.items())


@pytest.mark.parametrize("part", ["base_layer", "lora_A.default", "lora_B.default"])
@pytest.mark.parametrize("kind", ["a hook", "a backward hook", "a forward of its own"])
def test_what_is_put_on_a_part_of_a_layer_runs(part: str, kind: str) -> None:
    model, layer = adapted()
    lora.join_products(model)
    module = layer.get_submodule(part)
    calls = []
    own = module.forward
    if kind == "a hook":
        module.register_forward_hook(lambda *given: calls.append(1))
    elif kind == "a backward hook":
        module.register_full_backward_hook(lambda *given: calls.append(1))
    else:
        module.forward = lambda x: calls.append(1) or own(x)
    layer(torch.randn(5, 12, requires_grad=True)).sum().backward()
    assert calls == [1]


def test_switching_adapters_is_pefts() -> None:
    model, layer = adapted()
    model.add_adapter("second", LoraConfig(target_modules=["proj"], r=2, init_lora_weights=False))
    lora.join_products(model)
    x = torch.randn(5, 12)
    for adapters in (["second"], ["default"], ["default", "second"]):
        model.base_model.set_adapter(adapters)
        torch.testing.assert_close(layer(x), LoraLinear.forward(layer, x), rtol=1e-5, atol=1e-5)
    with model.disable_adapter():
        assert torch.equal(layer(x), layer.base_layer(x))
