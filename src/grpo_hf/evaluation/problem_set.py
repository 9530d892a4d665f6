"""A set of problems to evaluate on, how it is answered, and one problem's answers."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from ..models import adapters
from ..rollout.conversations import ToolUse
from ..rollout.sampling import continuing
from ..rollout.vllm_answers import VllmAnswers
from ..scoring.gold import GOLD_COLUMNS
from ..scoring.reward import Reward
from ..scoring.scored_reward import ScoredReward
from .comparison import GreedyAnswers

SIDES = ("base", "adapter")


def gold_of(reward: Reward, row: dict[str, Any]) -> Any:
    """Return what a reward compares with: its column of a row, or its columns by name."""
    # Rewards that take any column do not say which of them is the gold answer.
    names = reward.columns or GOLD_COLUMNS
    gold = {name: row[name] for name in names if name in row}
    return next(iter(gold.values())) if len(gold) == 1 else gold or None


@dataclass(frozen=True)
class ProblemSet:
    """Problems with the rewards that judge their answers.

    Args:
        name: of the set, and of its files.
        rows: of the data, with `prompt` and the columns that the rewards read.
        rewards: an answer is right where the first of them gives its full mark.
        category: the column by which results are shown apart, if any.
        source: where the rows come from.
        answered: greedy answers that are there already, by side, judged by the first reward.
        trained: whether each prompt is in the training data, too; None if nobody knows.
    """

    name: str
    rows: list[dict[str, Any]]
    rewards: list[ScoredReward]
    category: str | None = None
    source: str = ""
    answered: Mapping[str, GreedyAnswers] = field(default_factory=dict)
    trained: Sequence[bool] | None = None

    @property
    def reward(self) -> ScoredReward:
        return self.rewards[0]

    def gold(self, row: dict[str, Any]) -> Any:
        """Return what the reward compares with."""
        return gold_of(self.reward.reward, row)

    def category_of(self, row: dict[str, Any]) -> str | None:
        """Return the category of a row, if it has one."""
        value = row.get(self.category) if self.category is not None else None
        return None if value is None else str(value)


@dataclass(frozen=True)
class Answering:
    """How problems are answered.

    Args:
        max_new_tokens: the limit of a completion.
        batch_size: completions per process that are written at a time.
        samples: sampled completions of each problem, beside the greedy one; 0 for none.
        sampling: settings of `generate` for the samples, such as the temperature.
        seed: of the samples.
        template_options: keyword arguments of the chat template.
        tool_use: what the model may call.
        engine: writes the answers in place of transformers.
    """

    max_new_tokens: int
    batch_size: int
    samples: int = 0
    sampling: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    template_options: dict[str, Any] | None = None
    tool_use: ToolUse | None = None
    engine: VllmAnswers | None = None

    @property
    def decoding(self) -> dict[str, Any]:
        """How prompts are answered, beside how tokens are drawn; see `completed_batches`."""
        return {
            "max_new_tokens": self.max_new_tokens,
            "batch_size": self.batch_size,
            "template_options": self.template_options,
            "tool_use": self.tool_use,
            "continues": self.engine.continuing if self.engine is not None else continuing,
        }

    @contextmanager
    def seen_as(self, side: str, model: Any) -> Iterator[None]:
        """Let the base or the adapter answer for a block.

        Args:
            model: the policy.
        """
        with ExitStack() as stack:
            if side == "base":
                stack.enter_context(adapters.as_base(model))
                if self.engine is not None:
                    stack.enter_context(self.engine.as_base())
            yield

    def settings(self) -> dict[str, Any]:
        """Return what decides the answers, in a form that JSON keeps."""
        settings: dict[str, Any] = {
            "max_new_tokens": self.max_new_tokens,
            "batch_size": self.batch_size,
            "samples": self.samples,
            "template_options": self.template_options,
        }
        # Greedy answers do not depend on these.
        if self.samples:
            settings |= {"sampling": dict(self.sampling), "seed": self.seed}
        # It rounds otherwise.
        if self.engine is not None:
            settings["engine"] = "vllm"
        if self.tool_use is not None:
            settings["tools"] = [tool.__name__ for tool in self.tool_use.tools]
        plain: dict[str, Any] = json.loads(json.dumps(settings, default=str))
        return plain


def digest_of(problems: ProblemSet) -> str:
    """Return a digest of the prompts and gold answers of a set."""
    known = []
    for row in problems.rows:
        known.append([row["prompt"], problems.gold(row), problems.category_of(row)])
    text = json.dumps(known, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode("utf-8", errors="replace")).hexdigest()[:16]
