"""The packed row: every distinct token once, each where the block had it."""

import torch
from support.models import block

from grpo_hf.update.packing import IGNORED, PackedGroups


def test_the_row_of_a_small_block():
    layout = PackedGroups.pack(*block([[5, 6, 7], [5, 6, 7], [8, 9]], [[1, 2], [3], [4, 5]]))
    assert layout.input_ids.tolist() == [[8, 5, 6, 9, 4, 7, 1, 7]]  # the shorter prompt sorts first
    assert layout.position_ids.tolist() == [[0, 0, 1, 1, 2, 2, 3, 2]]
    assert layout.labels.tolist() == [[4, 5, 1, 2, 3]]
    assert layout.shared == 3
    assert layout.groups == [
        (slice(0, 1), slice(3, 5), [slice(3, 5)]),
        (slice(1, 3), slice(5, 8), [slice(5, 7), slice(7, 8)]),
    ]
    assert layout.unpack(layout.labels).tolist() == [[1, 2], [3, 0], [4, 5]]


def test_rows_share_by_tokens_wherever_they_lie():
    """The same prompt in two groups is one prompt; two prompts that differ in their first token
    are two.
    """
    layout = PackedGroups.pack(*block([[5, 6], [7, 6], [5, 6], [7, 6]], [[1], [2], [3], [4]]))
    assert layout.input_ids.tolist() == [[5, 7, 6, 6, 6, 6]]
    assert layout.labels.tolist() == [[1, 3, 2, 4]]
    assert layout.unpack(layout.labels.float()).tolist() == [[1], [2], [3], [4]]


def test_a_prompt_that_is_the_end_of_another_is_its_own():
    """Padding is not a token, whatever its id."""
    layout = PackedGroups.pack(*block([[0, 5, 6], [5, 6]], [[1], [2]]))
    assert layout.input_ids.tolist() == [
        [5, 0, 5, 6, 6]
    ]  # distinct prompts in the order of their padded rows


def test_prompts_of_one_token_leave_nothing_to_share():
    layout = PackedGroups.pack(*block([[5], [6]], [[1, 2], [3]]))
    assert (layout.shared, layout.input_ids.tolist()) == (0, [[5, 1, 6]])


def test_masked_completions_cost_nothing():
    """TRL masks truncated completions as a whole."""
    ids, mask, longest = block([[5, 6], [5, 6], [7, 8]], [[1, 2], [3, 4], [1, 2]])
    mask[1:, -longest:] = 0
    layout = PackedGroups.pack(ids, mask, longest)
    assert layout.input_ids.tolist() == [[5, 6, 1]]
    assert layout.unpack(torch.ones(1, 2)).tolist() == [[1, 1], [0, 0], [0, 0]]


def test_a_block_without_a_token_keeps_one_that_is_not_scored():
    ids, mask, longest = block([[5, 6], [7, 8]], [[1, 2], [3, 4]])
    mask[:, -longest:] = 0
    layout = PackedGroups.pack(ids, mask, longest)
    assert layout.input_ids.tolist() == [[5, 6]]
    assert layout.labels.tolist() == [[IGNORED]]
