r"""Pay for the right final answer of a competition problem (MATH, arXiv 2103.03874).

The answer of a completion is what its text after `</think>` boxes. Without a box it is what stands
in `<answer>...</answer>`; without these tags it is what follows the last `####`, `Answer:` or
`answer is` on its line. Nothing else is searched. If there is more than one box (or pair of answer
tags), every one has to be right: "\boxed{1} or \boxed{2}" scores 0.0 whichever is meant, and a
model learns not to box a result before it is sure.

Two answers are equal if their LaTeX is equal apart from its spelling, or if math-verify finds the
same value: 0.5 and \frac12, or 5 and x=5. So an expression that is left to be worked out is right
too, and units are not compared. math-verify's own time limits need the main thread and its signals.
They are off, because a reward is called in a process that can be killed.
"""

import logging
import re
from fractions import Fraction
from functools import lru_cache
from typing import Any

from grpo_hf.data.completions import Completion, completion_text
from grpo_hf.scoring.reward import reward_settings

# MATH's longest answer has 53 characters. A page of LaTeX is no answer, and it can keep a computer
# algebra system busy.
_MAX_ANSWER_CHARACTERS = 500

_BOX = re.compile(r"\\f?boxed\s*+\{|\\fbox\s*+\{")
# A backslash and its character are read together, so that the brace of `\{` is not counted.
_BRACE = re.compile(r"\\.|([{}])", re.DOTALL)
_MARKER = re.compile(r"####|\banswer(?: is\b|:|\*\*:|:\*\*)", re.IGNORECASE)
_FORMULA = re.compile(r"(?<!\\)\$((?:\\.|[^$\\])++)\$|\\\(((?:(?!\\[()]).)++)\\\)")
_DELIMITERS = re.compile(r"(?<!\\)(?:\$|\\[()\[\]])")

# What changes the look of LaTeX and not its meaning. The space between two digits stays, because
# 4 2 is not 42.
_DECORATION = re.compile(
    r"\\(?:left|right|displaystyle|limits)(?![A-Za-z])|(?<!\\)\\[!,;: $]|(?<=\d)\{,\}(?=\d)"
)
_GROUPED_NUMBER = re.compile(r"[+-]?[1-9][0-9]{0,2}(?:,[0-9]{3})+(?:\.[0-9]+)?")
# Letters in another font or in upright type.
_STYLED = re.compile(
    r"\\(?:text|mbox|textbf|textit|textrm|mathrm|mathbf|mathit|operatorname)\s*\{([^{}]*)\}"
)
_FRACTION = re.compile(r"\\[dt]frac(?![A-Za-z])")
_SPACE = re.compile(r"(?<!\d)\s+|\s+(?!\d)")
_INTEGER = re.compile(r"[+-]?[0-9]+")
# A number with its base, like 52_8.
_BASE = re.compile(r"[0-9A-Za-z]\s*_\s*\{?\s*([0-9]+)\s*\}?")

# Every completion of a group has the same gold answer, and many of them give the same answer. The
# caches are bounded, because a run reads new answers without end.
_CACHE_SIZE = 4096


@reward_settings(imports=("math_verify",))
def math(completions: list[Completion], answer: list[Any], **columns: Any) -> list[float | None]:
    r"""Return 1.0 where the completion's final answer equals the gold answer, else 0.0.

    Args:
        completions: texts, or lists of messages.
        answer: gold answers: bare LaTeX as in MATH's column `answer`, a solution that boxes it (its
            last box counts), a GSM8K solution that ends in `#### n`, or a number.

    Returns:
        One reward per completion; None where the gold answer cannot be read.

    >>> completions = [r"So \boxed{\dfrac{1}{2}}.", r"\boxed{0.5}", r"\boxed{1} or \boxed{0.5}"]
    >>> math(completions, answer=[r"\frac{1}{2}"] * 3)
    [1.0, 1.0, 0.0]
    >>> math(["The answer is $x = 5$.", r"\boxed{7}"], answer=["#### 5", ""])
    [1.0, None]
    """
    rewards: list[float | None] = []
    for completion, gold in zip(completions, answer, strict=True):
        gold_answer = _gold_answer(gold)
        if _is_readable(gold_answer):
            answers = _answers(completion_text(completion))
            rewards.append(float(_all_right(gold_answer, answers)))
        else:
            rewards.append(None)
    return rewards


def _all_right(gold: str, answers: list[str]) -> bool:
    """Say whether there are answers and each equals the gold answer."""
    # From the last to the first: if the last one is wrong, no other is compared. Each distinct
    # answer is compared once.
    for answer in dict.fromkeys(reversed(answers)):
        if not _equal(gold, answer):
            return False
    return bool(answers)


def _gold_answer(gold: Any) -> str:
    """Return the LaTeX of a gold answer, or "" if there is none."""
    if not isinstance(gold, str):
        try:
            # By way of text, as in `gsm8k`. Fraction refuses what is not a finite number.
            return str(Fraction(str(gold)))
        except ValueError:
            return ""
    boxes = _boxes(gold)
    if boxes:
        return _bare(boxes[-1])
    # The whole text if it has no marker.
    return _bare(gold.rpartition("####")[2])


def _answers(text: str) -> list[str]:
    """Return what the completion gives as its answers, each as LaTeX without delimiters."""
    text = text.rpartition("</think>")[2]
    answers = _boxes(text) or _tagged(text) or _marked(text)
    return list(map(_bare, answers))


def _boxes(text: str) -> list[str]:
    """Return the content of each outermost box, in order.

    A box that is not closed belongs to a completion that was cut off. Its content is "", which is a
    wrong answer.
    """
    contents = []
    # The search goes on behind the box, so each character is read once.
    end = 0
    while box := _BOX.search(text, end):
        closing = _closing_brace(text, box.end())
        if closing is None:
            contents.append("")
            break
        contents.append(text[box.end() : closing])
        end = closing + 1
    return contents


def _closing_brace(text: str, start: int) -> int | None:
    """Return the position of the brace that closes one opened before `start`."""
    depth = 1
    for brace in _BRACE.finditer(text, start):
        if brace[1] == "{":
            depth += 1
        elif brace[1] == "}":
            depth -= 1
        if depth == 0:
            return brace.start()
    return None


def _tagged(text: str) -> list[str]:
    """Return what stands in each pair of answer tags; "" where the second tag is missing."""
    contents = []
    for part in text.split("<answer>")[1:]:
        content, closing, _ = part.partition("</answer>")
        contents.append(content if closing else "")
    return contents


def _marked(text: str) -> list[str]:
    """Return what follows the last marker on its line; nothing if there is no marker."""
    markers = list(_MARKER.finditer(text))
    if not markers:
        return []
    line = text[markers[-1].end() :].partition("\n")[0]
    formulas = _FORMULA.findall(line)
    if len(formulas) == 1:
        # The pattern has one group for each kind of delimiter, and one of the groups is empty.
        return ["".join(formulas[0])]
    # In "$x$ is $5$" nothing says which formula is meant, so the line is read as a whole.
    return [line]


def _bare(answer: str) -> str:
    """Return the answer without math delimiters, and without stars and a full stop around it."""
    if len(answer) > _MAX_ANSWER_CHARACTERS:
        return ""
    answer = " ".join(_DELIMITERS.sub(" ", answer).split())
    # Markdown's bold type may enclose the full stop or end before it.
    return answer.strip("*").removesuffix(".").strip("* ")


@lru_cache(maxsize=_CACHE_SIZE)
def _plain(latex: str) -> str:
    """Return one spelling for LaTeX that means the same at a glance."""
    latex = _DECORATION.sub("", latex)
    latex = _STYLED.sub(r"\1", latex)
    latex = _FRACTION.sub(r"\\frac", latex)
    latex = _SPACE.sub("", latex).strip()
    if _GROUPED_NUMBER.fullmatch(latex):
        return latex.replace(",", "")
    return latex


def _equal(gold: str, answer: str) -> bool:
    plain_gold = _plain(gold)
    plain_answer = _plain(answer)
    if plain_gold == plain_answer:
        return True
    if not plain_answer:
        return False
    # Integers need no computer algebra.
    if _INTEGER.fullmatch(plain_gold) and _INTEGER.fullmatch(plain_answer):
        return int(plain_gold) == int(plain_answer)
    # math-verify drops the base of a number, so that 52_8 would equal 52_9. An answer may leave the
    # base out, not change it.
    bases = _BASE.findall(plain_answer)
    if bases and bases != _BASE.findall(plain_gold):
        return False
    from math_verify import verify

    return verify(list(_parsed(gold)), list(_parsed(answer)), timeout_seconds=None)


@lru_cache(maxsize=_CACHE_SIZE)
def _is_readable(gold: str) -> bool:
    # math-verify returns the text alone if it is no expression.
    return any(not isinstance(value, str) for value in _parsed(gold))


@lru_cache(maxsize=_CACHE_SIZE)
def _parsed(latex: str) -> tuple[Any, ...]:
    """Return math-verify's reading.

    It is an expression and its text, the text alone if it is no expression, or nothing.
    """
    from math_verify import LatexExtractionConfig, parse

    if not latex:
        return ()
    # math-verify warns, once per process, that its time limits are off. They are off on purpose.
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    config = LatexExtractionConfig(boxed_match_priority=-1)
    return tuple(parse(f"${latex}$", extraction_config=[config], parsing_timeout=None))
