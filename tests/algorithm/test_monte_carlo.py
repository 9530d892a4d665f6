"""Monte-Carlo step values: which beginnings are continued, and who shares what they are worth."""

from typing import Any

from grpo_hf.algorithm.monte_carlo import Sampler, step_values


def values_of(
    groups: list[int], ids: list[list[int]], ends: list[list[int]], earned: list[float]
) -> Any:
    """Values where a continuation earns ten times what the whole of its row does."""
    sampler = Sampler(lambda asked, limit: [[7]] * len(asked), limit=8, at_once=4)
    prompts = [[1, 2]] * len(ids)
    return step_values(
        prompts,
        ids,
        ends,
        earned,
        groups=groups,
        n=2,
        sampler=sampler,
        judge=lambda _, rows: [10 * earned[r] for r in rows],
    )


def test_rows_share_values_within_their_group_alone() -> None:
    ids, ends = [[3, 4, 5], [3, 4, 6]] * 2, [[0, 1, 2]] * 4
    found = values_of([0, 0, 1, 1], ids, ends, [1.0, 1.0, 0.0, 0.0])
    assert found.of_steps == [[10.0, 10.0, 1.0]] * 2 + [[0.0, 0.0, 0.0]] * 2
    assert (found.beginnings, found.tokens) == (4, 8)


def test_a_step_that_ends_with_the_last_token_is_worth_what_the_whole_is() -> None:
    """Another row of the group goes on from there; only for that one it is a beginning."""
    for order in (slice(None), slice(None, None, -1)):
        found = values_of([0, 0], [[3, 4], [3]][order], [[0, 1], [0, 0]][order], [1.0, 1.0])
        assert found.of_steps[order] == [[10.0, 1.0], [1.0, 1.0]]
        assert found.beginnings == 1
