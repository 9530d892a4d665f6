r"""Pay for the right final answer of a competition problem (MATH, arXiv 2103.03874).

The answer of a completion is what its text after `</think>` boxes. Without a box it is what stands
in `<answer>...</answer>`. Without these tags, and also between them, it is what follows the last
`####`, `Answer:` or `answer is` on its line. Nothing else is searched. An empty box is no answer,
nor is one that the prompt contains, if there is another. If there is more than one box (or pair of
answer tags), every one has to be right, or all of them together, as the parts of a list: "\boxed{1}
or \boxed{2}" scores 0.0 whichever is meant, unless both are, and a model learns not to box a result
before it is sure.

`_math_answer.py` says when two answers are the same: 0.5 and \frac12, or 5 and x=5. So an
expression that is left to be worked out is right too, and units are not compared. No comparison
takes long, whatever a model wrote: there is no computer algebra that could.
"""

import re
from fractions import Fraction
from typing import Any

from grpo_hf.data.completions import Completion, completion_text
from grpo_hf.rewards._boxes import BOX, boxes_of
from grpo_hf.rewards._math_answer import same_answer
from grpo_hf.scoring.reward import reward_settings

# MATH's longest answer has 53 characters. A page of LaTeX is no answer.
_MAX_ANSWER_CHARACTERS = 500

_MARKER = re.compile(r"####|\banswer(?: is\b|:|\*\*:|:\*\*)", re.IGNORECASE)
_FORMULA = re.compile(r"(?<!\\)\$((?:\\.|[^$\\])++)\$|\\\(((?:(?!\\[()]).)++)\\\)")
_DELIMITERS = re.compile(r"(?<!\\)(?:\$|\\[()\[\]])")


def final_answers(texts: list[str]) -> list[str | None]:
    r"""Return the final answer of each text, spelled as the first one that means the same.

    >>> final_answers([r"\boxed{0.5}", r"\boxed{\frac12}", r"\boxed{2}", "I do not know."])
    ['0.5', '0.5', '2', None]
    """
    known: list[str] = []
    answers: list[str | None] = []
    for text in texts:
        answer = ", ".join(dict.fromkeys(_answers(text, [])))
        if not answer:
            answers.append(None)
            continue
        same = [other for other in known if same_answer(other, answer)]
        if not same:
            known.append(answer)
        answers.append(same[0] if same else answer)
    return answers


@reward_settings(
    batched=False, in_process=False, imports=("mpmath",), answers=final_answers, gold="answer"
)
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
    prompts = columns.get("prompts") or [""] * len(completions)
    for completion, gold, prompt in zip(completions, answer, prompts, strict=True):
        gold_answer = _gold_answer(gold)
        if gold_answer:
            answers = _answers(completion_text(completion), _prompt_boxes(prompt))
            rewards.append(float(_all_right(gold_answer, answers)))
        else:
            rewards.append(None)
    return rewards


def _all_right(gold: str, answers: list[str]) -> bool:
    """Say whether there are answers and each, or all of them together, equal the gold answer."""
    wrong = []
    # Each distinct answer is compared once.
    for answer in dict.fromkeys(answers):
        if not same_answer(gold, answer):
            wrong.append(answer)
    if not wrong:
        return bool(answers)
    parts = ", ".join(wrong)
    return len(wrong) > 1 and "" not in wrong and same_answer(gold, _bare(parts))


def _gold_answer(gold: Any) -> str:
    """Return the LaTeX of a gold answer, or "" if there is none."""
    if not isinstance(gold, str):
        try:
            # By way of text, as in `gsm8k`. Fraction refuses what is not a finite number.
            return str(Fraction(str(gold)))
        except ValueError:
            return ""
    if BOX.search(gold):
        boxes = boxes_of(gold)
        return _bare(boxes[-1]) if boxes else ""
    # The whole text if it has no marker.
    return _bare(gold.rpartition("####")[2])


def _answers(text: str, prompt_boxes: list[str]) -> list[str]:
    """Return what the completion gives as its answers, each as LaTeX without delimiters."""
    text = text.rpartition("</think>")[2]
    boxes = boxes_of(text)
    # The completion may repeat the problem before it boxes its own answer.
    own = [box for box in boxes if not box or box not in prompt_boxes]
    answers = own or boxes or _tagged(text) or _marked(text)
    return list(map(_bare, answers))


def _prompt_boxes(prompt: Any) -> list[str]:
    """Return what a prompt boxes, which is a text or a list of messages."""
    if isinstance(prompt, str):
        return boxes_of(prompt)
    # completion_text leaves out what others than the assistant wrote.
    said = [{**message, "role": "assistant"} for message in prompt]
    return boxes_of(completion_text(said))


def _tagged(text: str) -> list[str]:
    """Return what stands in each pair of answer tags; "" where the second tag is missing."""
    contents = []
    for part in text.split("<answer>")[1:]:
        content, closing, _ = part.partition("</answer>")
        # "The answer is 5." may stand between the tags, too.
        marked = _marked(content) or [content]
        contents.append(marked[0] if closing else "")
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
