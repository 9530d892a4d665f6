r"""Pays for the right final answer of a competition problem (MATH, arXiv 2103.03874), judged by math-verify.

The answer of a completion is what its text after `</think>` boxes. Without a box it is what stands in
`<answer>...</answer>`, without those what follows the last `####`, `Answer:` or `answer is` on its line. Nothing else
is searched. If there is more than one box (or pair of answer tags), every one has to be right: so "\boxed{1} or
\boxed{2}" scores 0.0 whichever is meant, and a model learns not to box a result before it is sure.

Two answers are equal if their LaTeX is, spelling aside, or if math-verify finds the same value: 0.5 and \frac12, or 5
and x=5. So an expression that is left to be worked out is right too, and units are not compared. math-verify's own time
limits need the main thread and its signals; they are off, because a reward is called in a process that can be killed.
"""

import logging
import re
from collections.abc import Iterator
from fractions import Fraction
from functools import lru_cache
from typing import Any

from grpo_hf.data.completions import Completion, completion_text
from grpo_hf.scoring.reward import reward_settings

# MATH's longest answer has 53 characters. A page of LaTeX is no answer, and can keep a computer algebra system busy.
_MAX_ANSWER_CHARACTERS = 500

_BOX = re.compile(r"\\f?boxed\s*+\{|\\fbox\s*+\{")
_BRACE = re.compile(r"\\.|([{}])", re.DOTALL)
_MARKER = re.compile(r"####|\banswer(?: is\b|:|\*\*:|:\*\*)", re.IGNORECASE)
_FORMULA = re.compile(r"(?<!\\)\$((?:\\.|[^$\\])++)\$|\\\(((?:(?!\\[()]).)++)\\\)")
_DELIMITERS = re.compile(r"(?<!\\)(?:\$|\\[()\[\]])")

# What changes the look of LaTeX and not its meaning. The space between two digits stays: 4 2 is not 42.
_DECORATION = re.compile(
    r"\\(?:left|right|displaystyle|limits)(?![A-Za-z])|(?<!\\)\\[!,;: $]|(?<=\d)\{,\}(?=\d)"
)
_GROUPED_NUMBER = re.compile(r"[+-]?[1-9][0-9]{0,2}(?:,[0-9]{3})+(?:\.[0-9]+)?")
_STYLED = re.compile(
    r"\\(?:text|mbox|textbf|textit|textrm|mathrm|mathbf|mathit|operatorname)\s*\{([^{}]*)\}"
)
_FRACTION = re.compile(r"\\[dt]frac(?![A-Za-z])")
_SPACE = re.compile(r"(?<!\d)\s+|\s+(?!\d)")
_INTEGER = re.compile(r"[+-]?[0-9]+")
_BASE = re.compile(r"[0-9A-Za-z]\s*_\s*\{?\s*([0-9]+)\s*\}?")


@reward_settings(imports=("math_verify",))
def math(completions: list[Completion], answer: list[Any], **columns: Any) -> list[float | None]:
    r"""1.0 where the completion's final answer equals the gold answer, else 0.0.

    Args:
        completions: texts, or lists of messages.
        answer: gold answers: bare LaTeX as in MATH's column `answer`, a solution that boxes it (its last box counts), a
            GSM8K solution that ends in `#### n`, or a number.

    Returns:
        One reward per completion; None where the gold answer cannot be read.

    >>> math([r"So \boxed{\dfrac{1}{2}}.", r"\boxed{0.5}", r"\boxed{1} or \boxed{0.5}"], answer=[r"\frac{1}{2}"] * 3)
    [1.0, 1.0, 0.0]
    >>> math(["The answer is $x = 5$.", r"\boxed{7}"], answer=["#### 5", ""])
    [1.0, None]
    """
    rewards: list[float | None] = []
    for completion, gold in zip(completions, answer, strict=True):
        gold_answer = _gold_answer(gold)
        if not _is_readable(gold_answer):
            rewards.append(None)
        else:
            # A wrong last answer settles it, and a repeated one needs no second look.
            answers = list(dict.fromkeys(reversed(_answers(completion_text(completion)))))
            rewards.append(
                float(bool(answers) and all(_equal(gold_answer, given) for given in answers))
            )
    return rewards


def _gold_answer(gold: Any) -> str:
    """The LaTeX of a gold answer; nothing if there is none."""
    if not isinstance(gold, str):
        try:
            # By way of text, as in `gsm8k`: it refuses what is no finite number.
            return str(Fraction(str(gold)))
        except ValueError:
            return ""
    _, hash_marker, after_hash = gold.rpartition("####")
    boxes = list(_boxes(gold))
    return _bare(boxes[-1] if boxes else after_hash if hash_marker else gold)


def _answers(text: str) -> list[str]:
    """What the completion gives as its answer, each as LaTeX without delimiters."""
    text = text.rpartition("</think>")[2]
    # A box or a tag that is never closed belongs to a completion that was cut off: an empty answer, which is wrong.
    answers = list(_boxes(text)) or list(_tagged(text))
    if not answers and (markers := list(_MARKER.finditer(text))):
        line = text[markers[-1].end() :].partition("\n")[0]
        formulas = _FORMULA.findall(line)
        # In "$x$ is $5$" nothing says which formula is meant: the line is then read as a whole.
        answers = ["".join(formulas[0]) if len(formulas) == 1 else line]
    return [_bare(answer) for answer in answers]


def _boxes(text: str) -> Iterator[str]:
    """The content of each outermost box, in order; "" for one that does not close. Each character is read once."""
    end = 0
    while box := _BOX.search(text, end):
        depth, end = 1, len(text)
        for brace in _BRACE.finditer(text, box.end()):
            depth += {"{": 1, "}": -1}.get(brace[1], 0)
            if depth == 0:
                end = brace.end()
                break
        yield text[box.end() : end - 1] if depth == 0 else ""


def _tagged(text: str) -> Iterator[str]:
    """What stands in each pair of answer tags, in order; "" where the second tag is missing."""
    for part in text.split("<answer>")[1:]:
        content, closing, _ = part.partition("</answer>")
        yield content if closing else ""


def _bare(answer: str) -> str:
    """The answer without math delimiters, Markdown's stars and a full stop around it."""
    if len(answer) > _MAX_ANSWER_CHARACTERS:
        return ""
    return " ".join(_DELIMITERS.sub(" ", answer).split()).strip("*").removesuffix(".").strip("* ")


@lru_cache(maxsize=4096)
def _plain(latex: str) -> str:
    """One spelling for LaTeX that means the same at a glance."""
    latex = _FRACTION.sub(r"\\frac", _STYLED.sub(r"\1", _DECORATION.sub("", latex)))
    latex = _SPACE.sub("", latex).strip()
    return latex.replace(",", "") if _GROUPED_NUMBER.fullmatch(latex) else latex


def _equal(gold: str, given: str) -> bool:
    plain_gold, plain_given = _plain(gold), _plain(given)
    if plain_gold == plain_given:
        return True
    if not plain_given:
        return False
    if _INTEGER.fullmatch(plain_gold) and _INTEGER.fullmatch(plain_given):
        return int(plain_gold) == int(plain_given)
    # math-verify drops a number's base, so that 52_8 would equal 52_9; an answer may leave the base out, not change it.
    bases = _BASE.findall(plain_given)
    if bases and bases != _BASE.findall(plain_gold):
        return False
    from math_verify import verify

    return verify(list(_parsed(gold)), list(_parsed(given)), timeout_seconds=None)


@lru_cache(maxsize=4096)
def _is_readable(gold: str) -> bool:
    return any(not isinstance(value, str) for value in _parsed(gold))


# Every completion of a group has the same gold answer, and many of them give the same answer.
@lru_cache(maxsize=4096)
def _parsed(latex: str) -> tuple[Any, ...]:
    """math-verify's reading: an expression and its text, the text alone if it is no expression, or nothing."""
    from math_verify import LatexExtractionConfig, parse

    # They warn that time limits are off, once per process; that is meant.
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    config = LatexExtractionConfig(boxed_match_priority=-1)
    return (
        tuple(parse(f"${latex}$", extraction_config=[config], parsing_timeout=None))
        if latex
        else ()
    )
