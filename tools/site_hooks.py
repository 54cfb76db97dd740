"""What mkdocs is told beside mkdocs.yml: pages of the site that lie beside ``docs/``.

They are linked as ``../ARCHITECTURE.md``, so that links work where the repository is read, too. On
the site all pages are in one folder; what is not on it is named without a link.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

BESIDE = ("ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")

_LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)\s]+)\)")


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that lie beside ``docs/``."""
    root = Path(config["docs_dir"]).parent
    for name in BESIDE:
        files.append(File.generated(config, name, abs_src_path=str(root / name)))
    return files


def on_page_markdown(markdown: str, files: Any, **_: Any) -> str:
    """Links as they are on the site."""

    def link(match: re.Match[str]) -> str:
        text, target = match.groups()
        page, mark, anchor = target.removeprefix("../").partition("#")
        if "://" in page or not page or files.get_file_from_path(page) is not None:
            return f"[{text}]({page}{mark}{anchor})"
        return text

    return _LINK.sub(link, markdown)
