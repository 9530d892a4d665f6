r"""Find what a text boxes: the content of `\boxed{...}` and `\fbox{...}`."""

import re

# Without a brace, TeX boxes one character: \boxed 5. Nothing says what \boxed 52 or \boxed 5.2
# means.
BOX = re.compile(
    r"\\(?:f?boxed|fbox)(?:\s*+\{|(?:\s*+(?=[0-9])|\s++(?=[A-Za-z]))(?P<bare>[0-9A-Za-z])"
    r"(?=[ \t]*+(?:$|[\n$}]|\\[)\]]|\*\*(?![ \t]*[\w(])|[.,;:]++(?![ \t]*[-+]?[0-9]))))"
)
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

    >>> boxes_of(r"Thus $x = \boxed 5$ or $\boxed{6}$."), boxes_of(r"\boxed 56")
    (['5', '6'], [])
    >>> boxes_of(r"What belongs into \boxed{\phantom{00}}? It is \boxed{\frac{1}{2}}.")
    ['\\frac{1}{2}']
    """
    contents = []
    # The search goes on behind the box, so each character is read once.
    end = 0
    while box := BOX.search(text, end):
        end = box.end()
        if box["bare"]:
            contents.append(box["bare"])
            continue
        closing = _closing_brace(text, end)
        if closing is None:
            contents.append("")
            break
        content = text[end:closing]
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
