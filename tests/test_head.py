"""The head against log_softmax in float64, and against TRL's fused head."""

import pytest
import torch
from trl.trainer.utils import _ChunkedLogProbFunction

from grpo_hf import head
from grpo_hf.head import selected_log_probs


@pytest.fixture
def problem():
    torch.manual_seed(0)
    return torch.randn(11, 16, requires_grad=True), torch.randn(50, 16), torch.randint(0, 50, (11,)), torch.randn(11)


@pytest.mark.parametrize("tile", [1, 4, 11, 100])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_values_entropies_and_gradients(problem, tile, temperature, monkeypatch):
    monkeypatch.setattr(head, "TILE", tile)
    hidden, weight, labels, upstream = problem
    log_probs, entropy = selected_log_probs(hidden, weight, labels, temperature=temperature, entropy=True)
    exact = hidden.detach().double().requires_grad_()
    log_p = (exact @ weight.double().T / temperature).log_softmax(1)
    expected = log_p.gather(1, labels[:, None])[:, 0]
    torch.testing.assert_close(log_probs.double(), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(entropy.double(), -(log_p.exp() * log_p).sum(1), rtol=0, atol=1e-5)
    (gradient,) = torch.autograd.grad(log_probs, hidden, upstream)
    (wanted,) = torch.autograd.grad(expected, exact, upstream.double())
    torch.testing.assert_close(gradient.double(), wanted, rtol=1e-5, atol=1e-5)


def test_it_is_trls_head(problem):
    hidden, weight, labels, upstream = problem
    theirs = _ChunkedLogProbFunction.apply(
        hidden, weight, None, labels, 0.7, 32768, None, 1.0, ("log_probs", "entropy")
    )
    ours = selected_log_probs(hidden, weight, labels, temperature=0.7, entropy=True)
    torch.testing.assert_close(ours[0], theirs[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(ours[1], theirs[1], rtol=0, atol=1e-5)
    gradients = [torch.autograd.grad(values[0], hidden, upstream)[0] for values in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-5)


def test_a_token_next_to_impossible_keeps_its_log_probability():
    """exp underflows at -104 in float32; the logarithm must not pass through it."""
    log_probs, _ = selected_log_probs(torch.tensor([[300.0]]), torch.tensor([[1.0], [0.0]]), torch.tensor([1]))
    assert log_probs.item() == -300.0


def test_sure_tokens_keep_their_small_gradients():
    """Where p is nearly 1, W_y - Σ p_v W_v is a difference of near equals; the factor 1 - p has to be taken first."""
    torch.manual_seed(0)
    weight = torch.randn(500, 32)
    labels = torch.arange(40)
    hidden = (weight[labels] * 1.2 + torch.randn(40, 32) * 0.05).requires_grad_()
    exact = hidden.detach().double().requires_grad_()
    expected = (exact @ weight.double().T).log_softmax(1).gather(1, labels[:, None])[:, 0]
    (wanted,) = torch.autograd.grad(expected.sum(), exact)
    assert expected.mean() > -1e-2  # sure indeed
    (gradient,) = torch.autograd.grad(selected_log_probs(hidden, weight, labels)[0].sum(), hidden)
    theirs = _ChunkedLogProbFunction.apply(hidden, weight, None, labels, 1.0, 32768, None, 1.0, ("log_probs",))[0]
    (of_trl,) = torch.autograd.grad(theirs.sum(), hidden)
    assert (gradient - wanted).norm() <= 2 * (of_trl - wanted).norm()


def test_what_is_not_asked_for_is_not_kept(problem):
    hidden, weight, labels, _ = problem
    with torch.no_grad():
        log_probs, entropy = selected_log_probs(hidden, weight, labels)
    assert entropy is None and log_probs.grad_fn is None
