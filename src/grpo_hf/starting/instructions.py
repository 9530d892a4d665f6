"""What a new recipe asks for below every prompt, guessed from the kind and the name of answers."""

import re

_LAST_LINE = "Think step by step. End with a line of the form: #### <number>"
_BY_KIND = {
    "number": "Answer with the number alone.",
    "choice": "Answer with the number alone.",
    "problem": _LAST_LINE,
    "gsm8k": _LAST_LINE,
    "math": "Think step by step. Put the final answer into \\boxed{}.",
    "short": "Answer with the right word or words alone.",
    "form": "Answer in one sentence.",
}
# With what a column is called, where its name says what is wanted.
_BY_NAME = {
    "number": "Answer with the {} alone, as a number.",
    "short": "Answer with the {} alone.",
}
# Words that call an answer an answer.
_SAY_NOTHING = {
    *("a", "an", "ans", "answer", "answers", "class", "code", "col", "column"),
    *("completion", "completions", "correct", "data", "expected", "field", "final", "gold"),
    *("golden", "ground", "is", "label", "labels", "out", "output", "outputs"),
    *("ref", "reference", "reply", "response", "responses", "result", "results", "right"),
    *("solution", "solutions", "string", "target", "targets", "text", "texts", "the"),
    *("true", "truth", "value", "values", "word", "words"),
}
# Words that say something only beside others: a `start_date` is one, and an `answer_start` a place.
_SAY_LITTLE = {"end", "id", "idx", "key", "no", "nr", "num", "start", "str", "x", "y"}
# A name of more words is a sentence.
_MOST_WORDS = 4
# Of the longest word of a name.
_LEAST_LETTERS = 3


def instruction_for(form: str, gold: str | None, labels: list[str]) -> str | None:
    """Return an instruction, or None where the right answers are longer texts.

    Args:
        form: what the right answers are, or `problem` for numbers that take working.
        gold: the column of the right answers, if there is one.
        labels: what can be answered, where that is a choice among few.
    """
    if form == "label":
        return f"Answer with one of these alone: {', '.join(labels)}."
    name = None if gold is None else _said_by(gold)
    if name is not None and form in _BY_NAME:
        return _BY_NAME[form].format(name)
    return _BY_KIND.get(form)


def _said_by(column: str) -> str | None:
    """Return the name of a column in words, or None where it does not say what its answers are.

    >>> _said_by("order_id"), _said_by("expectedCity"), _said_by("SKU"), _said_by("gold_answer")
    ('order id', 'city', 'SKU', None)
    """
    if re.fullmatch(r"[\w\s.-]+", column) is None:
        return None
    # `orderId` is two words, and so is `order_id`; numbers tell columns apart, and say nothing.
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", column)
    words = [word if word.isupper() else word.lower() for word in re.findall(r"[^\W\d_]+", apart)]
    while words and words[0].lower() in _SAY_NOTHING:
        words.pop(0)
    says = any(word.lower() not in _SAY_NOTHING | _SAY_LITTLE for word in words)
    # Two letters are an abbreviation that the model need not know.
    if not says or len(words) > _MOST_WORDS or max(map(len, words)) < _LEAST_LETTERS:
        return None
    return " ".join(words)
