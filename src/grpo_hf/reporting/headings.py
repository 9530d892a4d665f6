"""What the charts of a run are called, and what to look for: on its page and on its card."""

from pathlib import PurePath
from typing import NamedTuple


class Heading(NamedTuple):
    """The words above and below a chart.

    Args:
        caption: what to look for.
    """

    title: str
    caption: str


# By the name of a chart, those that matter most first.
HEADINGS = {
    "accuracy": Heading(
        "Accuracy of base and adapter",
        "Greedy answers to the same prompts, with 95% intervals.",
    ),
    "at_k": Heading(
        "pass@k",
        "Sampled answers with 95% bands, before and after. pass@k: one of k is right; maj@k, where "
        "answers can be counted: the most frequent answer of k is.",
    ),
    "rewards": Heading(
        "Reward",
        "The mean of each reward over the completions of a step.",
    ),
    "held_out": Heading(
        "Reward on held-out prompts",
        "The same rewards in evaluations during the training. Where training rises and this does "
        "not, the run learns its prompts by heart.",
    ),
    "kl": Heading(
        "KL divergence from the reference",
        "How far the policy has moved, per token. A steady climb is learning; a single peak is a "
        "few tokens.",
    ),
    "entropy": Heading(
        "Entropy",
        "How open the choice of the next token is. Close to 0 nothing new is tried any more.",
    ),
    "lengths": Heading(
        "Length of completions",
        "In tokens. Length that grows with the reward deserves a look at the samples.",
    ),
    "signal": Heading(
        "Shares of what is sampled",
        "Groups whose rewards differ have a signal; completions at the length limit are cut off.",
    ),
    "clipping": Heading(
        "Clipped tokens",
        "The share of tokens whose ratio to the sampling policy left the trust region.",
    ),
    "gradient": Heading(
        "Gradient norm",
        "Before clipping. Peaks that grow announce a run that falls apart.",
    ),
    "schedule": Heading(
        "Learning rate",
        "As the schedule set it.",
    ),
    "judged": Heading(
        "Completions that could be judged",
        "A completion on which a reward failed is left out of the update.",
    ),
    "tools": Heading(
        "Calls of tools",
        "Per completion, and the share of them that failed.",
    ),
    "time": Heading(
        "Where the time goes",
        "Seconds of a step, over the last four logged ones. What is neither rollout nor scoring "
        "nor reference pass is the update.",
    ),
    "throughput": Heading(
        "Tokens per second",
        "Tokens of prompts and completions, over the last four logged steps.",
    ),
}


def heading_of(picture: str) -> tuple[int, Heading]:
    """Return the place of a picture among those of a run, and its heading.

    Args:
        picture: its file, whose name may say more than that of its chart: `at_k_svamp.png`.

    >>> heading_of("report/kl.png")[1].title, heading_of("report/kl_mean.png")[1].title
    ('KL divergence from the reference', 'KL divergence from the reference: mean')
    """
    stem = PurePath(picture).stem
    for place, (name, heading) in enumerate(HEADINGS.items()):
        rest = stem.removeprefix(name)
        if rest == "" or (rest != stem and rest.startswith("_")):
            more = f": {rest[1:].replace('_', ' ')}" if rest else ""
            return place, heading._replace(title=heading.title + more)
    return len(HEADINGS), Heading(stem.replace("_", " "), "")
