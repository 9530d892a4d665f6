r"""Find what a text boxes: the content of `\boxed{...}` and `\fbox{...}`."""

import re

BOX = re.compile(r"\\f?boxed\s*+\{|\\fbox\s*+\{")
# A backslash and its character are read together, so that the brace of `\{` is not counted.
_BRACE = re.compile(r"\\.|([{}])", re.DOTALL)
_MAX_BLANK_CHARACTERS = 100
# What is only a place for an answer.
_PHANTOM = re.compile(
    r"\\[hv]?phantom\s*\{[^{}]*\}|\\(?:rule|hspace|vspace)\*?\s*(?:\{[^{}]*\}\s*)+"
)
_BLANK = re.compile(
    r"(?:\\(?:text|mbox|mathrm)\s*\{\s*\}|\\(?:q?quad|square|Box|[l]?dots|_)(?![A-Za-z])"
    r"|\\[!,;:> ]|[\s~_.?{}])*"
)


def boxes_of(text: str) -> list[str]:
    r"""Return the content of each outermost box that is not empty, in order.

    A box that is not closed belongs to a completion that was cut off. Its content is "", which is a
    wrong answer.

    >>> boxes_of(r"What belongs into \boxed{\phantom{00}}? It is \boxed{\frac{1}{2}}.")
    ['\\frac{1}{2}']
    """
    contents = []
    # The search goes on behind the box, so each character is read once.
    end = 0
    while box := BOX.search(text, end):
        closing = _closing_brace(text, box.end())
        if closing is None:
            contents.append("")
            break
        content = text[box.end() : closing]
        end = closing + 1
        if not _is_blank(content):
            contents.append(content)
    return contents


def _is_blank(content: str) -> bool:
    # A long text is no blank, and the patterns do not have to read it.
    if len(content) > _MAX_BLANK_CHARACTERS:
        return False
    return _BLANK.fullmatch(_PHANTOM.sub("", content)) is not None


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
