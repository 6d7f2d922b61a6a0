"""What lies outside docs/ and is part of the site: results, notebooks, examples, and the texts at the top.

In: the repository.  Out: files of the site, and links that lead to the same files there as in the repository.
"""

import json
import os
import re
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
MOUNTED = ["*.md", "LICENSE", "CITATION.cff", "results/**/*", "examples/*.py", "examples/slurm/*", "docs/pictures/*"]
NOTEBOOKS = "examples/*.ipynb"
LINK = re.compile(r'(\]\(|<img src=")([^)"\s#]+)')


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what lies outside docs/, under the path that it has in the repository."""
    for pattern in MOUNTED:
        for path in sorted(ROOT.glob(pattern)):
            uri = path.relative_to(ROOT).as_posix().removeprefix("docs/")
            if path.is_file() and uri != "README.md" and files.get_file_from_path(uri) is None:
                files.append(File.generated(config, uri, abs_src_path=str(path)))
    for path in sorted(ROOT.glob(NOTEBOOKS)):
        uri = path.relative_to(ROOT).with_suffix(".md").as_posix()
        files.append(File.generated(config, uri, content=as_markdown(json.loads(path.read_text(encoding="utf-8")))))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links within the repository into links within the site."""
    here = PurePosixPath(page.file.src_uri)
    source = (ROOT if (ROOT / here).exists() or page.file.generated_by else ROOT / "docs") / here

    def turned(match: re.Match[str]) -> str:
        before, link = match.groups()
        target = Path(os.path.normpath(source.parent / link))
        if ":" in link or not target.is_relative_to(ROOT) or not target.exists():
            return match[0]
        target = target / "README.md" if target.is_dir() else target
        target = target.with_suffix(".md") if target.suffix == ".ipynb" else target
        uri = target.relative_to(ROOT).as_posix().removeprefix("docs/")
        return before + Path(os.path.relpath(uri, here.parent)).as_posix()

    return LINK.sub(turned, markdown)


def on_post_build(config: MkDocsConfig) -> None:
    """Refuse a page that would fetch a script, a style or a font from elsewhere."""
    fetched = re.compile(r'<(?:script|link|img)[^>]+(?:src|href)="?(?:https?:)?//')
    for path in Path(config.site_dir).rglob("*.html"):
        found = fetched.search(path.read_text(encoding="utf-8"))
        assert found is None, f"{path} fetches {found and found[0]}"


def as_markdown(notebook: dict[str, Any]) -> str:
    """Return a notebook's cells with their printed text and pictures."""
    return "\n\n".join(part for cell in notebook["cells"] for part in _parts(cell))


def _parts(cell: dict[str, Any]) -> list[str]:
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        return [source]
    parts = [f"```python\n{source}\n```"]
    for output in cell["outputs"]:
        data = output.get("data", {"text/plain": output.get("text", "")})
        if "image/png" in data:
            parts.append(f"![](data:image/png;base64,{''.join(data['image/png']).strip()})")
        elif text := "".join(data.get("text/plain", "")).strip():
            parts.append(f"```text\n{text}\n```")
    return parts
