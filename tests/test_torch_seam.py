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
    assert torch_seam.has_onednn(), "_linear_pointwise, _reorder_linear_weight moved"
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(12, 8, generator=generator)
    bias = torch.randn(12, generator=generator)
    rows = torch.randn(3, 8, generator=generator)
    arranged = torch_seam.arrange_weight(weight, 16)
    torch.testing.assert_close(
        torch_seam.onednn_linear(rows, arranged, bias), rows @ weight.T + bias
    )


@pytest.mark.parametrize(
    ("processor", "faster"),
    [
        ({"cpu_name": "AMD EPYC", "avx512_f": True}, True),
        ({"cpu_name": "AMD EPYC", "avx512_f": False}, False),
        ({"cpu_name": "INTEL(R) XEON(R) PLATINUM", "avx512_f": True}, False),
        ({}, False),
    ],
)
def test_onednn_is_faster_where_mkl_has_no_avx512(processor, faster, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: processor, raising=False)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    monkeypatch.setattr(torch_seam, "has_onednn", lambda: True)
    assert torch_seam.has_faster_products.__wrapped__() == faster


@pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="this build of torch has no oneDNN"
)
@pytest.mark.parametrize("columns", [False, True])
def test_onednn_takes_a_weight_as_it_lies(columns):
    x, weight = torch.randn(2, 3, 8), torch.randn(12, 8)
    weight = weight.T.contiguous().T if columns else weight
    torch.testing.assert_close(torch_seam.onednn_linear(x, weight, None), x @ weight.T)
