"""A hook of mkdocs: links from a page to a file of the repository work on the site too.

In the repository ``[dpo.py](../lit_align/losses/dpo.py)`` is a file beside the page. A site has only what
lies under docs/, so every file that a page links to is put on it, under ``source/``, as text.
"""

import os
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

_LINK = re.compile(r"\]\((?P<target>\.\./[^)#\s]+)(?P<anchor>#[^)\s]*)?\)")
_FOLDER = "source"


def on_files(files: Files, config: Any) -> Files:
    """Add the linked files to the site."""
    docs = Path(config["docs_dir"])
    for page in list(files.documentation_pages()):
        text = Path(page.abs_src_path).read_text(encoding="utf-8")
        for match in _LINK.finditer(text):
            source = _outside(page.src_uri, match["target"], docs)
            if source is not None and source.is_file():
                name = _site_name(source, docs)
                if files.get_file_from_path(name) is None:
                    files.append(File.generated(config, name, content=source.read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Point the links at them."""
    docs = Path(config["docs_dir"])

    def moved(match: re.Match[str]) -> str:
        source = _outside(page.file.src_uri, match["target"], docs)
        if source is None or not source.is_file():
            return match[0]
        start = Path(page.file.src_uri).parent
        return f"]({os.path.relpath(_site_name(source, docs), start)})"

    return _LINK.sub(moved, markdown)


def _outside(page: str, target: str, docs: Path) -> Path | None:
    """The file a link leads to, ``None`` where it stays among the pages."""
    path = (docs / page).parent.joinpath(target).resolve()
    return None if path.is_relative_to(docs.resolve()) else path


def _site_name(source: Path, docs: Path) -> str:
    # .txt, so that every server sends it as text and no browser runs or saves it; and so that a
    # Markdown file outside of docs/ does not become a page.
    return f"{_FOLDER}/{source.relative_to(docs.resolve().parent).as_posix()}.txt"
