"""What the documentation site has beside this folder: pages that live elsewhere in the tree, and the API's.

A hook of MkDocs (mkdocs.yml). Every page stays where a reader of the source looks for it, with links that work there;
on the site they are turned to its own pages, and a link to what is no page becomes plain text.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "checkpoints/small/MODEL_CARD.md": "models/small.md",
    "checkpoints/nano/MODEL_CARD.md": "models/nano.md",
    "recipes/order_desk/README.md": "order_desk.md",
}
PACKAGES = ("speech_xl", "torch_backend", "mlx_backend", "converters", "training", "evaluation", "server")
SOURCES = {uri: source for source, uri in PAGES.items()}
LINK = re.compile(r"\[([^\]]*)\]\(([^)\s]+)\)")


def modules(package: str) -> list[str]:
    """Dotted names of a package's modules that hold something, itself and what lies in its folders included."""
    files = [path for path in (ROOT / package).rglob("*.py") if path.name != "__main__.py" and path.stat().st_size]
    names = (".".join(path.relative_to(ROOT).with_suffix("").parts) for path in files)
    return sorted(name.removesuffix(".__init__") for name in names)


def api_page(package: str) -> str:
    """Markdown of a package's page: mkdocstrings fills in what each module holds."""
    return "\n\n".join([f"# {package}", *(f"::: {name}" for name in modules(package))])


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages from outside this folder."""
    for source, uri in PAGES.items():
        files.append(File.generated(config, uri, abs_src_path=str(ROOT / source)))
    for package in PACKAGES:
        files.append(File.generated(config, f"api/{package}.md", content=api_page(package)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links within the source tree to the site's pages."""
    here = page.file.src_uri
    folder = posixpath.dirname(SOURCES.get(here, f"docs/{here}"))

    def turned(link: re.Match[str]) -> str:
        text, target = link.groups()
        path, hash_sign, anchor = target.partition("#")
        if not path or ":" in path:  # of this page, or of the web
            return link[0]
        found = posixpath.normpath(posixpath.join(folder, path))
        uri = PAGES.get(found) or PAGES.get(f"{found}/README.md") or found.removeprefix("docs/")
        if files.get_file_from_path(uri) is None:
            return text
        return f"[{text}]({posixpath.relpath(uri, posixpath.dirname(here) or '.')}{hash_sign}{anchor})"

    return LINK.sub(turned, markdown)
