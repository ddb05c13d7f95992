"""Pages of the site that are files of the repository, so that nothing is written twice.

MkDocs calls `on_files` and `on_page_markdown`. Links are written as they work in the repository
(`../README.md`, `docs/protocol.md`); here they become links of the site.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

PAGES = {
    "README.md": "readme.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/RESULTS.md": "benchmarks.md",
    "coop_jax/assets/tiny_clip/README.md": "tiny_clip.md",
}
"""Files of the repository, and what they are called on the site."""

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"\]\((?!\w+:|#)([^)#\s]+)")


def on_files(files: Any, config: Any) -> Any:
    """Add the repository's pages to those of the folder docs."""
    for path, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / path).read_text("utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Let the links of a page point to where their targets are on the site."""
    return move_links(markdown, page.file.src_uri)


def move_links(markdown: str, page: str) -> str:
    """The text with its relative links as they must be on the site; `page` is its path there."""
    here = next((path for path, name in PAGES.items() if name == page), f"docs/{page}")

    def moved(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(here), match[1]))
        on_site = PAGES.get(target, target.removeprefix("docs/"))
        return "](" + posixpath.relpath(on_site, posixpath.dirname(page) or ".")

    return LINK.sub(moved, markdown)
