"""MkDocs: README is the site's first page, and what pages link to outside ``docs/`` is part of the site.

On GitHub a link such as ``../plugins/README.md`` leads to the file; the site has its copy under ``repository/``.
"""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
OUTSIDE = re.compile(r"\]\(\.\./([^)#]+)")
FOLDER = "repository"


def on_files(files: Files, config: Any) -> Files:
    """Add the first page, and a copy of every file that a page links to outside this folder."""
    files.append(File.generated(config, "index.md", content=_first_page()))
    pages = [
        _first_page(),
        *(path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))),
    ]
    for name in sorted({name for page in pages for name in OUTSIDE.findall(page)}):
        files.append(File.generated(config, f"{FOLDER}/{name}", abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Lead links outside this folder to the copies; the copies have no links of their own."""
    return markdown if page.file.src_uri.startswith(FOLDER) else OUTSIDE.sub(rf"]({FOLDER}/\1", markdown)


def _first_page() -> str:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    links = re.sub(r"\]\((?!docs/|\w+:|#)", "](../", readme)
    return links.replace("](docs/", "](")
