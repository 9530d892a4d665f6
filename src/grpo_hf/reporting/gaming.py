"""Is a run gaming its reward? What it learned to do for it, told by samples that show it.

Each sign has a rule with a threshold, and speaks where its effect is large and beyond noise: the
interval of a change from the first to the last third of the run, or of a share, is on one side. So
honest runs are not flagged. docs/gaming.md has the rules, their reasons, and what to do.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..evaluation.cut_answers import ANSWERS_THAT_END
from ..run_files import GAMING_FILE, write_or_say
from . import gaming_places, gaming_rewards, gaming_several, gaming_texts
from .run_evidence import Evidence, Sample, read_evidence

# Samples of a finding: enough to see it, few enough to read.
_SHOWN = 4


@dataclass(frozen=True)
class Finding:
    """A sign that a run games its reward.

    Args:
        name: of the sign.
        text: what is the case, in one sentence.
        strength: the size of the effect: a share, a correlation, or a change in standard deviations
            of single completions.
        samples: completions that show it: step, prompt, completion and rewards.
        steps: the first and the last step that it is about.
        advice: what to try first, in one sentence.
    """

    name: str
    text: str
    strength: float
    samples: list[dict[str, Any]]
    steps: list[int]
    advice: str = ""


# What to try first, by the name of a sign; docs/gaming.md has more.
REMEDIES = {
    "another reward rises instead": "Lower its weight, or pay it only where the answer is right.",
    "reward from form": "Pay for form only where the answer is right.",
    "held-out answers no better": "Read them beside those of the training, or use more prompts.",
    "length": "Take out what grows with length, or add the reward overlong.",
    "repetition": "Add the reward repetition with a negative weight.",
    "one answer everywhere": "Take examples out of the prompt, have right "
    "answers evenly in the data, and do not pay for guesses.",
    "answer by place": "Train longer, or with easier prompts; deal the right place evenly.",
    "several answers": "Compare the answer alone, e.g. its last word or a final line, and not "
    "whether it contains the right one; grpo-hf rewards check shows it.",
    ANSWERS_THAT_END: "Compare both with more room: grpo-hf eval RUN --max_completion_length N.",
    "answers without reasoning": "Ask for the reasoning in the prompt, unless none is wanted.",
}

# A sign returns its sentence, its strength and its samples, or None.
Sign = Callable[[Evidence], tuple[str, float, Sequence[Sample]] | None]

SIGNS: dict[str, Sign] = {
    "another reward rises instead": gaming_rewards.components_part,
    "reward from form": gaming_rewards.reward_from_form,
    "held-out answers no better": gaming_rewards.held_out_no_better,
    "length": gaming_texts.length_pays,
    "repetition": gaming_texts.repeats_itself,
    "one answer everywhere": gaming_texts.one_answer,
    "answer by place": gaming_places.answer_by_place,
    "several answers": gaming_several.several_answers,
    ANSWERS_THAT_END: gaming_rewards.answers_end,
    "answers without reasoning": gaming_texts.no_working,
}


def findings(run: Path) -> list[Finding]:
    """Return the signs that a run games its reward, the strongest first.

    Args:
        run: the output folder of a run, which may be training.
    """
    evidence = read_evidence(run)
    found = []
    for name, sign in SIGNS.items():
        seen = sign(evidence)
        if seen is not None:
            text, strength, samples = seen
            shown = [_shown(sample) for sample in samples[:_SHOWN]]
            steps = list(evidence.span)
            size = round(float(strength), 3)
            found.append(Finding(name, text, size, shown, steps, REMEDIES[name]))
    return sorted(found, key=lambda finding: -finding.strength)


def _shown(sample: Sample) -> dict[str, Any]:
    return {
        "step": sample.step,
        "prompt": sample.prompt,
        "completion": sample.completion,
        "rewards": sample.rewards,
    }


def write_findings(run: Path) -> list[Finding]:
    """Write the findings of a run to `gaming.json`.

    Returns:
        Those that the file did not have before.
    """
    before = {finding.name for finding in read_findings(run)}
    found = findings(run)
    rows = [asdict(finding) for finding in found]
    write_or_say(run / GAMING_FILE, json.dumps(rows, ensure_ascii=False, indent=1) + "\n")
    return [finding for finding in found if finding.name not in before]


def read_findings(run: Path) -> list[Finding]:
    """Return what `gaming.json` of a run holds; nothing where there is none, or another file."""
    try:
        rows = json.loads((run / GAMING_FILE).read_text(encoding="utf-8"))
        return [Finding(**row) for row in rows]
    except (OSError, ValueError, TypeError):
        return []
