"""Sums that stand for the bytes of weights on an accelerator: any change is seen, and no weight
leaves its device.
"""

import pytest
import torch
from support.waits import Waits

from grpo_hf.models import digests
from grpo_hf.models.digests import byte_sums, digest_of


def weight(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    if dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(dtype)
    return torch.randint(0, 100, shape, generator=generator, dtype=torch.int32).to(dtype)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16, torch.uint8, torch.int8, torch.bool]
)
@pytest.mark.parametrize("shape", [(), (1,), (3,), (5, 7), (64, 3)])
def test_every_flipped_bit_is_seen(dtype: torch.dtype, shape: tuple[int, ...]):
    tensor = weight(dtype, *shape)
    before = byte_sums(tensor)
    assert torch.equal(byte_sums(tensor.clone()), before)
    seen = {tuple(before.tolist())}
    flat = tensor.reshape(-1).view(torch.uint8)
    for byte in range(0, len(flat), 1 + len(flat) // 16):
        for bit in (1, 128):
            flat[byte] ^= bit
            seen.add(tuple(byte_sums(flat.view(dtype).view(shape)).tolist()))
            flat[byte] ^= bit
    assert len(seen) == 1 + 2 * len(range(0, len(flat), 1 + len(flat) // 16))
    assert torch.equal(byte_sums(tensor), before)


def test_changes_that_plain_sums_do_not_see():
    tensor = torch.arange(64, dtype=torch.int32)
    before = byte_sums(tensor)
    exchanged = tensor.clone()
    exchanged[[3, 40]] = exchanged[[40, 3]]
    cancelling = tensor.clone()
    # Equal second differences: places themselves as weights would add up to the same.
    cancelling[[10, 11, 12]] += torch.tensor([1, -2, 1], dtype=torch.int32)
    for changed in (exchanged, cancelling, tensor.roll(1), tensor.view(8, 8).T):
        assert (byte_sums(changed) != before).all()


def test_parts_are_one_sum(monkeypatch):
    tensor = weight(torch.bfloat16, 1000, 3)
    whole = byte_sums(tensor)
    monkeypatch.setattr(digests, "PART", 64)
    assert torch.equal(byte_sums(tensor), whole)
    odd = torch.zeros(4001, dtype=torch.uint8)
    odd[1:] = 7
    assert torch.equal(byte_sums(odd[1:]), byte_sums(odd[1:].clone()))


class OnDevice(torch.Tensor):
    """A tensor that says it lies on a GPU."""

    device = torch.device("cuda:0")


def test_weights_stay_on_their_device(monkeypatch):
    """What leaves it is one small block, whatever the number of weights."""
    weights = [weight(torch.float32, 8, 8).as_subclass(OnDevice) for _ in range(5)]
    here = weight(torch.float32, 4)
    moved = []
    monkeypatch.setattr(digests, "byte_sums", lambda each: torch.ones(2) * each.sum())
    digest = digests._tensor_digest
    monkeypatch.setattr(
        digests, "_tensor_digest", lambda each: moved.append(each.shape) or digest(each)
    )
    first = digest_of([*weights, here])
    assert moved == [(4,), (5, 2)]
    weights[3][0, 0] += 1
    assert digest_of([*weights, here]) != first


def test_sums_ask_the_device_for_nothing():
    with Waits() as seen:
        byte_sums(weight(torch.float32, 300, 3))
    assert seen.found == []
    assert byte_sums(torch.empty(300, 3, device="meta")).shape == (2,)
