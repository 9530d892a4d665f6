"""Find the code in a completion."""

from collections.abc import Collection

_FENCE = "```"


def last_block(text: str, languages: Collection[str]) -> str:
    r"""Return the content of the last closed fence that names one of `languages`.

    Without such a fence, return the last closed fence that names no language, or "" if there is
    none. Without any fence, return the whole text.

    >>> first, last = "```python\nx = 1\n```", "```python\nx = 2\n```"
    >>> last_block(f"First\n{first}\nbetter\n{last}\nprints\n```text\n2\n```", {"python"})
    'x = 2\n'
    >>> last_block("x = 1", {"python"}), last_block("```python\nx = 1", {"python"})
    ('x = 1', '')
    """
    wanted = None
    unnamed = None
    # None outside a fence.
    language = None
    lines: list[str] = []
    # Not splitlines(): a form feed inside a string literal ends no line of Python or Rust.
    for line in text.replace("\r\n", "\n").split("\n"):
        mark = line.strip(" \t")
        if language is None:
            if _opens_fence(mark):
                language = mark.lstrip("`").strip().partition(" ")[0].lower()
                lines = []
        elif mark == _FENCE:
            if language in languages:
                wanted = "".join(lines)
            elif not language:
                unnamed = "".join(lines)
            language = None
        else:
            lines.append(line + "\n")
    if wanted is not None:
        return wanted
    if unnamed is not None:
        return unnamed
    # A fence of another language, or one that is not closed, is no code to run.
    return "" if _FENCE in text else text


def _opens_fence(mark: str) -> bool:
    # A backtick after the language means inline code, as in Markdown: ```x``` opens no fence.
    return mark.startswith(_FENCE) and "`" not in mark.lstrip("`")
