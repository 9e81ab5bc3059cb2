"""What `make docs` adds to docs/: CONTRIBUTING, the report of a run where there is one, and formulas as MathML."""

import html
import re
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
REPORT = ROOT / "reports" / "index.html"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").replace("](docs/", "](")
    files.append(File.generated(config, "contributing.md", content=text))
    if REPORT.is_file():
        files.append(File.generated(config, "report.html", abs_src_path=str(REPORT)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links that lead out of docs/ in the repository lead to what was added."""
    if REPORT.is_file() and page.file.src_uri == "index.md":
        markdown = markdown.replace("`reports/index.html`", "[`reports/index.html`](report.html)")
    return markdown.replace("](../CONTRIBUTING.md", "](contributing.md")


def on_page_content(text: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Browsers show MathML by themselves: no script, nothing from the web."""

    def formula(found: re.Match[str]) -> str:
        return convert(html.unescape(found["tex"]), display={"span": "inline", "div": "block"}[found["tag"]])

    return re.sub(
        r'<(?P<tag>span|div) class="arithmatex">\\[(\[](?P<tex>.*?)\\[)\]]</(?P=tag)>', formula, text, flags=re.DOTALL
    )
