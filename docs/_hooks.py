"""What the site has beside the pages of this folder: a page of all settings, and links that work.

The pages are read in the repository, too. There a link may lead to the code, which the site does
not hold: on the site it becomes the file's name.
"""

import posixpath
import re
from typing import Any

from mkdocs.structure.files import File

SETTINGS_PAGE = "all_settings.md"
# Files of the repository that the site has, too, to be taken away.
SERVED = {"../recipes/first_run.ipynb": "first_run.ipynb"}
_LINK = re.compile(r"\[([^\]]*)\]\(((?!https?:|#)[^)#\s]+)(#[^)]*)?\)")
_FENCE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
_SETTINGS_HEAD = """# All settings

The {count} keys of a recipe by topic, as `grpo-hf settings NAME` prints them. Each is also a flag
of `grpo-hf train`, and flags win. The texts are those of TRL, transformers and this library. A
default is what a recipe gets that trains a new adapter; where the Python API has another one, it
stands beside it, and [settings](settings.md) says why.
"""


def on_files(files: Any, config: Any, **_: Any) -> Any:
    """Add the page of all settings, which is made of the docstrings, and the files to take away."""
    files.append(File.generated(config, SETTINGS_PAGE, content=_settings_page()))
    for path, name in SERVED.items():
        source = posixpath.join(config.docs_dir, path)
        files.append(File.generated(config, name, abs_src_path=source))
    return files


def on_page_markdown(markdown: str, page: Any, files: Any, **_: Any) -> str:
    """Rewrite a page's links to what is outside of the site."""
    folder = posixpath.dirname(page.file.src_uri)

    def rewritten(link: re.Match[str]) -> str:
        label, target, _ = link.groups()
        inside = posixpath.normpath(posixpath.join(folder, target))
        if files.get_file_from_path(inside) is not None:
            return link.group(0)
        if inside in SERVED:
            return f"[{label}]({posixpath.relpath(SERVED[inside], folder or '.')})"
        path = posixpath.normpath(posixpath.join("docs", inside))
        # The name says enough where it is the file's own.
        return label if label.strip("`") in path else f"{label} (`{path}`)"

    parts = _FENCE.split(markdown)
    # Code between fences stays as it is: every second part.
    parts[::2] = [_LINK.sub(rewritten, part) for part in parts[::2]]
    return "".join(parts)


def on_page_content(html: str, page: Any, **_: Any) -> str:
    """Leave the topics alone in the contents of the page of all settings: names are too many."""
    if page.file.src_uri == SETTINGS_PAGE:
        for title in page.toc:
            for topic in title.children:
                topic.children = []
    return html


def _settings_page() -> str:
    # Imported where it is needed: it imports TRL.
    from grpo_hf.runs.settings import all_settings, by_topic

    settings = all_settings()
    parts = [_SETTINGS_HEAD.format(count=len(settings))]
    for topic, members in by_topic(settings).items():
        parts.append(f"## {topic}\n")
        parts += [_entry(setting) for setting in members]
    return "\n".join(parts)


def _entry(setting: Any) -> str:
    """Return heading, type, default and text of a setting."""
    kind = f"`{setting.kind}`"
    if setting.choices:
        kind = " or ".join(f"`{choice}`" for choice in setting.choices)
    default = f"default `{setting.default}`"
    if setting.default != setting.default_in_python:
        default += f", in Python `{setting.default_in_python}`"
    return f"### `{setting.name}`\n\n{kind}; {default}\n\n{setting.text}\n"
