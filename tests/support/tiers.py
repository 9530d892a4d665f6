"""The tiers of the sandbox that this machine allows, as parameters of tests."""

import pytest

from grpo_hf.scoring import sandbox, sandbox_tiers


def fault(tier):
    return sandbox_tiers.fault(tier, sandbox._attempt)


def _or_skip(tier):
    if not fault(tier):
        return tier
    return pytest.param(tier, marks=pytest.mark.skip(reason=f"{tier}: {fault(tier)}"))


TIERS = [_or_skip(tier) for tier in sandbox_tiers.TIERS]
WORKING = [tier for tier in sandbox_tiers.TIERS if not fault(tier)]
BEST = WORKING[0] if WORKING else "none"
every_tier = pytest.mark.parametrize("level", TIERS)
every_level = pytest.mark.parametrize("level", [*TIERS, "none"])
needs_a_tier = pytest.mark.skipif(
    not WORKING, reason="no tier of the sandbox works on this machine"
)
