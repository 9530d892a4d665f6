"""Links of the pages to files of the repository, which the site does not hold, become their names.

The pages are read in the repository, too, where these links lead to the code.
"""

import posixpath
import re
from typing import Any

_LINK = re.compile(r"\[([^\]]*)\]\(((?!https?:|#)[^)#\s]+)(#[^)]*)?\)")
_FENCE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)


def on_page_markdown(markdown: str, page: Any, files: Any, **_: Any) -> str:
    """Rewrite a page's links to what is outside of the site."""
    folder = posixpath.dirname(page.file.src_uri)

    def rewritten(link: re.Match[str]) -> str:
        label, target, _ = link.groups()
        inside = posixpath.normpath(posixpath.join(folder, target))
        if files.get_file_from_path(inside) is not None:
            return link.group(0)
        path = posixpath.normpath(posixpath.join("docs", inside))
        # The name says enough where it is the file's own.
        return label if label.strip("`") in path else f"{label} (`{path}`)"

    parts = _FENCE.split(markdown)
    # Code between fences stays as it is: every second part.
    parts[::2] = [_LINK.sub(rewritten, part) for part in parts[::2]]
    return "".join(parts)
