r"""Give the LaTeX of an answer one spelling, and take it apart at the outermost level."""

import re
from functools import lru_cache

_CACHE_SIZE = 4096

# The full-width characters of Chinese and Japanese texts, by the ASCII characters that they are.
_FULL_WIDTH = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz.,:;+-=<>()[]/%|!"
_UNICODE = str.maketrans(
    {
        **{ord(character) + 0xFEE0: character for character in _FULL_WIDTH},
        "\u2212": "-",
        "\u2013": "-",
        "×": r"\times ",
        "·": r"\cdot ",
        "⋅": r"\cdot ",
        "÷": r"\div ",
        "π": r"\pi ",
        "θ": r"\theta ",
        "∞": r"\infty ",
        "≤": r"\le ",
        "≥": r"\ge ",
        "≠": r"\ne ",
        "≈": r"\approx ",
        "±": r"\pm ",
        "∪": r"\cup ",
        "∈": r"\in ",
        "√": r"\sqrt ",
        "°": r"^\circ",
        "²": "^2",
        "³": "^3",
        "\u2126": "Ω",
        "\xa0": " ",
        "\u2009": " ",
        "\u202f": " ",
        "\u3000": " ",
    }
)
# What holds no brace.
_PLAIN = r"(?:[^{}\\]|\\[^{}])"
# \mathrm{k}, \text{M} or k.
_PREFIX = r"(?:\\(?:text|mathrm)\{\s*([kMm])\s*\}|([kMm]))?\s*"


def _fraction_of_over(fraction: re.Match[str]) -> str:
    r"""Return {\binom{5}{2}} of {5 \choose 2}, and {\frac{1}{2}} of {1 \over 2}."""
    command = "binom" if fraction[2] == "choose" else "frac"
    return rf"{{\{command}{{{fraction[1].strip()}}}{{{fraction[3].strip()}}}}}"


def _ohms(unit: re.Match[str]) -> str:
    r"""Return 5 \text{kohm} of 5\,\mathrm{k}\Omega."""
    return rf" \text{{{unit[1] or unit[2] or ''}ohm}}"


# What is written in several ways. In this order, because some work on what others leave.
_SPELLINGS = [
    (r"\\(?:left|right|[bB]ig+[lr]?)(?![A-Za-z])\s*\.?", ""),
    (r"\\f?boxed(?![A-Za-z])\s*", ""),
    (r"\\(?:display|text|script)style(?![A-Za-z])|\\(?:no)?limits(?![A-Za-z])|(?<!\\)\\!\s*", ""),
    (
        rf"(?<!\\)\{{({_PLAIN}*?)\\(choose|over)(?![A-Za-z])({_PLAIN}*)\}}",
        _fraction_of_over,
    ),
    # The whole formula belongs to a \choose without braces.
    (r"^([\w+ -]+)\\(choose|over)(?![A-Za-z])([\w+ -]+)$", _fraction_of_over),
    # Behind a space, or upright, \Omega is a unit; 5\Omega may be five times a variable.
    (rf"(?<=[0-9])\s*(?:\\[,;: ]|~)\s*{_PREFIX}\\Omega(?![A-Za-z])", _ohms),
    (rf"(?<=[0-9])\s*(?:\\[,;: ]|~)?\s*{_PREFIX}Ω", _ohms),
    (
        r"(?<=[0-9])\s*(?:\\[,;: ]|~)?\s*\\(?:text|mathrm)\{\s*([kMm])?()\s*(?:\\Omega|Ω)\s*\}",
        _ohms,
    ),
    # The thin space of 10\,080.
    (r"(?<=[0-9])\\,(?=[0-9]{3}(?![0-9]))", ""),
    (r"(?<=[0-9])\s*\{([,:])\}\s*(?=[0-9])", r"\1"),
    (r"(?<!\\)\\[,;:> ]|~|\\q?quad(?![A-Za-z])|\\hspace\s*\{[^{}]*\}", " "),
    (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
    (r"\\[dt]binom(?![A-Za-z])", r"\\binom"),
    (r"\\l(?:eq|eqslant|e)(?![A-Za-z])|<=", r"\\le "),
    (r"\\g(?:eq|eqslant|e)(?![A-Za-z])|>=", r"\\ge "),
    (r"\\lt(?![A-Za-z])", "<"),
    (r"\\gt(?![A-Za-z])", ">"),
    (r"\\neq?(?![A-Za-z])|!=", r"\\ne "),
    (r"\\(?:approx|simeq|sim|doteq)(?![A-Za-z])", r"\\approx "),
    (r"\\(?:mid|vert)(?![A-Za-z])", "|"),
    (r"\\lbrace(?![A-Za-z])", r"\\{"),
    (r"\\rbrace(?![A-Za-z])", r"\\}"),
    (r"\\(?:langle|lparen)(?![A-Za-z])", "("),
    (r"\\(?:rangle|rparen)(?![A-Za-z])", ")"),
    (r"\\(?:lor|vee)(?![A-Za-z])", r" \\text{or} "),
    (r"\\varnothing(?![A-Za-z])|\\\{\s*\\\}", r"\\emptyset "),
    (r"\\backslash(?![A-Za-z])", r"\\setminus "),
    (r"\\(?:mathbb|mathbf)\s*\{?R\}?|\\(?:R|Reals?)(?![A-Za-z])", r"\\reals "),
    (r"\\degree(?![A-Za-z])|\^\s*\{\s*\\circ\s*\}|\^\s*\\circ", r"^\\circ "),
    (r"\\operatorname\*?\s*\{\s*((?:arc)?(?:sin|cos|tan)|ln|log|exp)\s*\}", r"\\\1 "),
    (r"\\(?:mathrm|text|rm)\s*\{\s*pi\s*\}", r" \\pi "),
    # e and i are numbers in any font. Other upright letters behind a number are units.
    (r"\\(?:mathrm|text|rm)\s*\{\s*([ei])\s*\}", r" \1"),
    (r"\\(?:mathbf|mathit|boldsymbol|bm|mathcal|mathsf)\s*\{\s*([A-Za-z])\s*\}", r" \1"),
    (r"(?<![0-9}\s])\\mathrm\s*\{\s*([A-Za-z])\s*\}", r" \1"),
    (r"\\(?:mbox|text[a-z]*|math(?:rm|bf|it|sf)|operatorname)\s*\{", r"\\text{"),
    (r"(?<![A-Za-z])(?:np|math)\.(?=[a-z])", ""),
    # 3.5e-07. But 2e-1 may be Euler's 2e - 1.
    (
        r"(?<![A-Za-z0-9.])([0-9]+\.[0-9]+|1(?=[eE])|[0-9]+(?=E|e[0-9]|e[-+]0))"
        r"[eE]\+?(-?)0*([0-9]+)(?![0-9.])",
        r"\1 \\times 10^{\2\3}",
    ),
]
_RULES = [(re.compile(pattern), replacement) for pattern, replacement in _SPELLINGS]

_GROUPED_NUMBER = re.compile(r"(?<![0-9.,])[1-9][0-9]{0,2}(?:,[0-9]{3})+(?![0-9,])")
# 1 000 000, but not 3 100/200.
_SPACED_NUMBER = re.compile(
    r"(?<![\w.,}^/])(?<![\w.,}^/] )[1-9][0-9]{0,2}(?: [0-9]{3})+(?! ?[0-9/:^!_])"
)
_ISO_INTERVAL = r"[\[\]][^\[\](),;]+[,;][^\[\](),;]+[\[\]]"
_ISO_INTERVALS = re.compile(
    rf"(?:[^\[\](),;]*\\in(?![A-Za-z])\s*)?{_ISO_INTERVAL}(?:\s*\\cup\s*{_ISO_INTERVAL})*"
)
# A space between two digits stays, because 4 2 is not 42.
_SPACE = re.compile(r"(?<![0-9])\s+|\s+(?![0-9])")
_TEXT = re.compile(r"\\text\{([^{}]*)\}")
_ALIGNED = re.compile(r"\\begin\{(cases|aligned|gathered)\}(.*?)\\end\{\1\}")
_REPEATING = re.compile(r"([0-9]*)\.([0-9]*)\\overline\{([0-9]+)\}")
_BRACED_ATOM = re.compile(r"(?<=[_^])\{([A-Za-z0-9])\}")

_BRACKET = re.compile(r"\\begin|\\end|\\[lr](?:floor|ceil|vert)|\\[{}]|\\.|[(){}\[\]]", re.DOTALL)
_OPENING = ("(", "[", "{", "\\{", "\\begin", "\\lfloor", "\\lceil", "\\lvert")
_CLOSING = (")", "]", "}", "\\}", "\\end", "\\rfloor", "\\rceil", "\\rvert")
_LIST = re.compile(
    r",?\s*(?:\\text\{\s*(?:and|or|,)\s*\}|(?<![A-Za-z])(?:and|or)(?![A-Za-z]))|[,;]"
)
_MATRIX = re.compile(
    r"(?P<factor>[^&=<>,]*?)\[?\s*\\begin\{(?P<kind>[bpv]?(?:small)?matrix|array)\}(?:\{[lcr|\s]*\})?"
    r"(?P<body>.*)\\end\{(?P=kind)\}\s*\]?"
)


@lru_cache(maxsize=_CACHE_SIZE)
def spelled(latex: str) -> str:
    """Return the LaTeX in one spelling, with the spaces that part words."""
    latex = latex.translate(_UNICODE)
    for pattern, replacement in _RULES:
        latex = pattern.sub(replacement, latex)
    latex = _ALIGNED.sub(_list_of_lines, latex)
    if _ISO_INTERVALS.fullmatch(latex.strip()):
        latex = re.sub(_ISO_INTERVAL, _usual_interval, latex)
    # Inside of brackets a comma parts coordinates.
    if not re.search(r"[(\[]|\\\{", latex):
        latex = _GROUPED_NUMBER.sub(lambda number: number[0].replace(",", ""), latex)
        latex = _SPACED_NUMBER.sub(lambda number: number[0].replace(" ", ""), latex)
    return _REPEATING.sub(_fraction_of_repeating, latex).strip()


def _usual_interval(interval: re.Match[str]) -> str:
    """Return [0, 1) of [0, 1[."""
    opening = "(" if interval[0][0] == "]" else "["
    closing = ")" if interval[0][-1] == "[" else "]"
    return opening + interval[0][1:-1] + closing


def _list_of_lines(aligned: re.Match[str]) -> str:
    r"""Return x = 1, y = 2 of equations one below the other."""
    # The & of cases parts a value from its condition: such a function stays as it is.
    if aligned[1] == "cases" and "&" in aligned[2]:
        return aligned[0]
    return aligned[2].replace("&", "").replace("\\\\", ", ").strip().removesuffix(",")


def _fraction_of_repeating(decimal: re.Match[str]) -> str:
    r"""Return 0.1\overline{6} as \frac{15}{90}."""
    start = decimal[1] + decimal[2]
    numerator = int(start + decimal[3]) - int(start or "0")
    return rf"(\frac{{{numerator}}}{{{'9' * len(decimal[3])}{'0' * len(decimal[2])}}})"


@lru_cache(maxsize=_CACHE_SIZE)
def squeezed(text: str) -> str:
    """Return spelled LaTeX without what nobody sees: spaces, fonts and needless braces."""
    text = _BRACED_ATOM.sub(r"\1", _TEXT.sub(r"\1", text))
    return _SPACE.sub("", text).replace("\\$", "").strip()


def outermost(text: str, pattern: re.Pattern[str]) -> list[tuple[int, int]]:
    """Return where the pattern matches outside of brackets."""
    depths = _depths(text)
    spans = []
    for match in pattern.finditer(text):
        if depths[match.start()] == 0:
            spans.append(match.span())
    return spans


def split(text: str, pattern: re.Pattern[str]) -> list[str]:
    """Return the parts of the text between the outermost matches."""
    parts = []
    start = 0
    for match_start, match_end in outermost(text, pattern):
        parts.append(text[start:match_start].strip())
        start = match_end
    return [*parts, text[start:].strip()]


def listed(text: str) -> list[str]:
    r"""Return the items of a list that commas, semicolons, `and` or `or` part.

    >>> listed(r"x = 1 \text{ or } (2, 3)")
    ['x = 1', '(2, 3)']
    """
    items = []
    for item in split(text, _LIST):
        # An empty item stands before the "and" of "1, 2, and 3".
        if item:
            items.append(item)
    return items


def bracketed(text: str) -> tuple[str, str, str] | None:
    """Return the bracket that encloses the whole text, the content, and the closing bracket."""
    opening = text[:2] if text.startswith("\\{") else text[:1]
    closing = text[-2:] if text.endswith("\\}") else text[-1:]
    if opening not in ("(", "[", "{", "\\{") or closing not in (")", "]", "}", "\\}"):
        return None
    inside = len(text) - len(closing)
    # The first bracket may close before the last one opens, as in (1)(2).
    if len(text) < 2 or 0 in _depths(text)[len(opening) : inside]:
        return None
    return opening, text[len(opening) : inside].strip(), closing


def matrix(text: str) -> tuple[str, str, list[list[str]]] | None:
    """Return the kind of a matrix (a determinant's is "v"), the factor before it, and its rows."""
    match = _MATRIX.fullmatch(text)
    if match is None or "\\begin" in match["body"]:
        return None
    rows = []
    for row in re.split(r"\\\\", match["body"].strip().removesuffix("\\\\")):
        rows.append([cell.strip() for cell in row.replace("\\hline", "").split("&")])
    return "v" if match["kind"].startswith("v") else "", match["factor"].strip(), rows


@lru_cache(maxsize=_CACHE_SIZE // 8)
def _depths(text: str) -> list[int]:
    """Return how many brackets enclose each character; an opening one is not inside itself."""
    depths = [0] * (len(text) + 1)
    depth = 0
    position = 0
    for bracket in _BRACKET.finditer(text):
        depths[position : bracket.start()] = [depth] * (bracket.start() - position)
        if bracket[0] in _CLOSING:
            depth = max(depth - 1, 0)
        depths[bracket.start() : bracket.end()] = [depth] * len(bracket[0])
        if bracket[0] in _OPENING:
            depth += 1
        position = bracket.end()
    depths[position:] = [depth] * (len(depths) - position)
    return depths
