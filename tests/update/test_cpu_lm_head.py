"""The head against log_softmax in float64, and against TRL's fused head."""

import pytest
import torch
from trl.trainer.utils import _ChunkedLogProbFunction

from grpo_hf.update import cpu_lm_head as head
from grpo_hf.update.cpu_lm_head import selected_log_probs


@pytest.fixture
def problem():
    torch.manual_seed(0)
    return (
        torch.randn(11, 16, requires_grad=True),
        torch.randn(50, 16),
        torch.randint(0, 50, (11,)),
        torch.randn(11),
    )


@pytest.mark.parametrize("tile", [1, 4, 11, 100])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_values_entropies_and_gradients(problem, tile, temperature, monkeypatch):
    monkeypatch.setattr(head, "TILE", tile)
    hidden, weight, labels, upstream = problem
    log_probs, entropy = selected_log_probs(
        hidden, weight, labels, temperature=temperature, entropy=True
    )
    exact = hidden.detach().double().requires_grad_()
    log_p = (exact @ weight.double().T / temperature).log_softmax(1)
    expected = log_p.gather(1, labels[:, None])[:, 0]
    torch.testing.assert_close(log_probs.double(), expected, rtol=0, atol=1e-5)
    of_exact = -(log_p.exp() * log_p).sum(1)
    torch.testing.assert_close(entropy.double(), of_exact, rtol=0, atol=1e-5)
    # The entropy's gradient is TRL's as well: a loss of a subclass may use it.
    for ours, theirs in (
        ((log_probs,), (expected,)),
        ((entropy,), (of_exact,)),
        ((log_probs, entropy), (expected, of_exact)),
    ):
        (gradient,) = torch.autograd.grad(ours, hidden, [upstream] * len(ours), retain_graph=True)
        upstreams = [upstream.double()] * len(theirs)
        (wanted,) = torch.autograd.grad(theirs, exact, upstreams, retain_graph=True)
        torch.testing.assert_close(gradient.double(), wanted, rtol=1e-5, atol=1e-5)


def test_it_is_trls_head(problem):
    hidden, weight, labels, upstream = problem
    theirs = _ChunkedLogProbFunction.apply(
        hidden, weight, None, labels, 0.7, 32768, None, 1.0, ("log_probs", "entropy")
    )
    ours = selected_log_probs(hidden, weight, labels, temperature=0.7, entropy=True)
    torch.testing.assert_close(ours[0], theirs[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(ours[1], theirs[1], rtol=0, atol=1e-5)
    for part in (0, 1):
        gradients = []
        for values in (ours, theirs):
            of_part = torch.autograd.grad(values[part], hidden, upstream, retain_graph=True)
            gradients.append(of_part[0])
        torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-5)


def test_a_token_next_to_impossible_keeps_its_log_probability():
    """exp underflows at -104 in float32; the logarithm must not pass through it."""
    log_probs, _ = selected_log_probs(
        torch.tensor([[300.0]]), torch.tensor([[1.0], [0.0]]), torch.tensor([1])
    )
    assert log_probs.item() == -300.0


def test_a_large_vocabulary_is_summed_without_bias():
    """torch's log_softmax loses 1e-6 of the sum over 50,000 terms, always downwards; over many
    tokens that adds up, and was ten times TRL's error in the gradient of real completions.
    """
    torch.manual_seed(0)
    hidden, weight, labels = torch.randn(256, 16) * 0.75, torch.randn(49_152, 16), torch.arange(256)
    log_probs, _ = selected_log_probs(hidden, weight, labels)
    exact = (hidden.double() @ weight.double().T).log_softmax(1).gather(1, labels[:, None])[:, 0]
    assert abs((log_probs.double() - exact).mean()) < 2e-7


def test_what_is_not_asked_for_is_not_kept(problem):
    hidden, weight, labels, _ = problem
    with torch.no_grad():
        log_probs, entropy = selected_log_probs(hidden, weight, labels)
    assert entropy is None and log_probs.grad_fn is None
