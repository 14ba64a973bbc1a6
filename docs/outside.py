"""Put pages of the repository that lie outside docs/ into the site, under the path that they have in the repository.

mkdocs calls both functions (`hooks` in mkdocs.yml). Links stay what they are on a code host: `../CONTRIBUTING.md` in
a page of docs/, `docs/masks.md` in a page outside.
"""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/RESULTS.md")
EXAMPLES = sorted(path for path in (ROOT / "examples").rglob("*") if path.is_file() and path.suffix != ".pyc")
FILES = ("benchmarks/motion.png", *(str(path.relative_to(ROOT)) for path in EXAMPLES))


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages and files to those of docs/."""
    for path in (*PAGES, *FILES):
        files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Return the page with its links to the repository turned into links of the site."""
    prefix = "docs/" if page.file.src_uri in PAGES else r"\.\./"
    return re.sub(rf"\]\({prefix}", "](", markdown)
