"""The seam to torch: every operator without a public function does what its docstring says."""

import ast
from inspect import getsource
from pathlib import Path

import pytest
import torch

from grpo_hf import torch_seam


def test_every_function_of_the_seam_is_tested_here():
    tests = Path(__file__).read_text(encoding="utf-8")
    for node in ast.parse(getsource(torch_seam)).body:
        if isinstance(node, ast.FunctionDef) and node.name[0] != "_":
            assert f"torch_seam.{node.name}" in tests, f"no test calls torch_seam.{node.name}"


def test_the_kernel_of_a_cpu_returns_its_normaliser():
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(1, 4, 6, 8, generator=generator, requires_grad=True)
    key = torch.randn(1, 2, 6, 8, generator=generator, requires_grad=True)
    value = torch.randn(1, 2, 6, 8, generator=generator, requires_grad=True)
    states = tuple(tensor.detach() for tensor in (query, key, value))
    output, normaliser = torch_seam.cpu_attention(*states, 0.3, is_causal=True)
    scores = query @ key.repeat_interleave(2, 1).mT * 0.3
    scores = scores.masked_fill(torch.ones(6, 6).triu(1).bool(), -torch.inf)
    expected = scores.softmax(-1) @ value.repeat_interleave(2, 1)
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(normaliser, scores.logsumexp(-1))
    gradient = torch.randn(expected.shape, generator=generator)
    expected.backward(gradient)
    found = torch_seam.cpu_attention_backward(
        gradient, states, (output, normaliser), 0.3, is_causal=True
    )
    for got, wanted in zip(found, (query.grad, key.grad, value.grad), strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="this build of torch has no oneDNN"
)
def test_an_arranged_product_is_the_product():
    assert torch_seam.has_arranged_products(), "_linear_pointwise, _reorder_linear_weight moved"
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(12, 8, generator=generator)
    bias = torch.randn(12, generator=generator)
    rows = torch.randn(3, 8, generator=generator)
    arranged = torch_seam.arrange_weight(weight, 16)
    torch.testing.assert_close(
        torch_seam.arranged_linear(rows, arranged, bias), rows @ weight.T + bias
    )
