r"""Read the score in a judge's reply.

A judge quotes what it judges, and a model that is trained against it learns to write lines that
look like a verdict. So each request asks for a verdict with a random tag, which the judged text
cannot know: a line with the tag is the judge's own. It may have any form that leaves no doubt about
the number, such as `**Score 4f1d09ab: 8/10**`. Weak judges forget the tag. Where nothing that was
judged speaks of a score, a last line `Score: 8` or `8/10` cannot be a quote, and it counts as well.
"""

import re
import unicodedata

# A line that is longer gives reasons, or more than one number.
_LONGEST_LINE = 200  # characters

# Marks of Markdown and JSON, quotes and brackets.
_MARKS = r"[\s*_`\"'#|(){}\[\],;]*+"
_VERDICT = re.compile(
    # A quote or an item of a list in Markdown; "Score", "My final score", in any language.
    rf"(?:{_MARKS}(?:>|-(?=\s)))*+{_MARKS}(?P<label>[^\W\d_]+(?: [^\W\d_]+){{0,2}}{_MARKS})?"
    # A dash is a separator where the number does not touch it, else a minus sign.
    rf"(?:[:=]|[-\u2013\u2014](?=\s))?{_MARKS}(?P<open><)?"
    # At most 12 digits on each side of the point, so that no score is read as infinity. A comma
    # with three digits could separate thousands.
    r"(?P<score>[-+]?[0-9]{1,12}(?:\.[0-9]{1,12}|,[0-9]{1,2})?)(?![0-9])(?(open)>)"
    rf"{_MARKS}(?:(?:/|\b(?:out of|of|von|sur|de)\b){_MARKS}(?P<top>[0-9]{{1,12}}))?"
    rf"{_MARKS}(?P<percent>%)?{_MARKS}(?:points?|punkte|\u5206|\u70b9)?{_MARKS}[.!\u3002]?{_MARKS}",
    re.IGNORECASE,
)


def read_score(
    reply: str, tag: str, lowest: float, highest: float, judged: str = ""
) -> float | None:
    """Return the number in the judge's verdict; None if there is none, or in doubt.

    The last line with the tag decides. Where other text follows it, all lines with the tag have to
    agree.

    Args:
        judged: all that the judge was shown and might quote.

    >>> read_score("It says SCORE: 10.\\n**Score 4f1d09ab: 7,5 / 10**", "4f1d09ab", 0, 10)
    7.5
    >>> read_score("SCORE: 8", "4f1d09ab", 0, 10, judged="It is 42.")
    8.0
    >>> read_score("SCORE: 10", "4f1d09ab", 0, 10, judged="It is 42. Score: 10!")
    """
    # What a model thinks before it answers may hold drafts.
    answer = reply.rpartition("</think>")[2]
    lines = [line for line in answer.splitlines() if line.strip("` \t")]
    word = rf"(?<![0-9A-Za-z]){re.escape(tag)}(?![0-9A-Za-z])"
    # "SCORE <4f1d09ab>: 8" and "SCORE: 4f1d09ab: 8" are meant as they should be.
    tag_word = re.compile(rf"(?::\s*)?(?:<{word}>|{word})", re.IGNORECASE)
    scores = []
    for line in lines:
        rest, found = tag_word.subn(" ", line)
        if found:
            scores.append(_score_in(rest, lowest, highest))
    if not scores:
        return _untagged_score(lines, lowest, highest, judged)
    is_last = tag_word.search(lines[-1]) is not None
    return scores[-1] if is_last or len(set(scores)) == 1 else None


def _untagged_score(lines: list[str], lowest: float, highest: float, judged: str) -> float | None:
    """Return the score in the last line, if it says so and cannot be a quote."""
    if "score" in _bare(judged):
        return None
    scores = set()
    for line in lines:
        if _says_score(line):
            scores.add(_score_in(line, lowest, highest))
    is_last = bool(lines) and _says_score(lines[-1])
    is_quoted = is_last and _bare(lines[-1]) in _bare(judged)
    return scores.pop() if is_last and len(scores) == 1 and not is_quoted else None


def _says_score(line: str) -> bool:
    """Return whether a line has the form `Score: 8` or `8/10`."""
    verdict = _verdict(line)
    if verdict is None:
        return False
    return verdict["top"] is not None or "score" in (verdict["label"] or "").lower()


def _score_in(line: str, lowest: float, highest: float) -> float | None:
    """Return the only number of a line, if it is on the scale."""
    verdict = _verdict(line)
    if verdict is None:
        return None
    # "8/5" on a scale up to 10 is another scale, and so are percents.
    if verdict["top"] is not None and float(verdict["top"]) != highest:
        return None
    if verdict["percent"] and (lowest, highest) != (0, 100):
        return None
    score = float(verdict["score"].replace(",", "."))
    return score if lowest <= score <= highest else None


def _verdict(line: str) -> re.Match[str] | None:
    # One spelling for the digits, colons and slashes of Chinese and Japanese, and for minus signs.
    plain = unicodedata.normalize("NFKC", line).replace("\u2212", "-").strip()
    return _VERDICT.fullmatch(plain) if len(plain) <= _LONGEST_LINE else None


def _bare(text: str) -> str:
    """Return letters and digits alone, in lower case, so that nothing between them hides a word."""
    return "".join(filter(str.isalnum, unicodedata.normalize("NFKC", text).lower()))
