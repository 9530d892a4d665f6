"""What rewards read from a completion that holds code: the block that counts."""

from collections.abc import Collection

_FENCE = "```"


def last_block(text: str, languages: Collection[str]) -> str:
    r"""The last closed fence in one of `languages`; without one, the last that names none; without a fence, the text.

    >>> last_block("First\n```python\nx = 1\n```\nbetter\n```python\nx = 2\n```\nprints\n```text\n2\n```", {"python"})
    'x = 2\n'
    >>> last_block("x = 1", {"python"}), last_block("```python\nx = 1", {"python"})
    ('x = 1', '')
    """
    wanted, unnamed = None, None
    language, lines = None, list[str]()
    # Not splitlines(): a form feed inside a string literal ends no line of Python or Rust.
    for line in text.replace("\r\n", "\n").split("\n"):
        mark = line.strip(" \t")
        if language is None:
            if mark.startswith(_FENCE) and "`" not in mark.lstrip("`"):
                language, lines = mark.lstrip("`").strip().partition(" ")[0].lower(), []
        elif mark == _FENCE:
            if language in languages:
                wanted = "".join(lines)
            elif not language:
                unnamed = "".join(lines)
            language = None
        else:
            lines.append(line + "\n")
    if wanted is None and unnamed is None and _FENCE not in text:
        return text
    return (unnamed or "") if wanted is None else wanted
