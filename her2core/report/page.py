"""All executed notebooks of a cohort as one HTML page:  python -m her2core.report.page COHORT

The page stands alone: pictures are inside it, and it loads nothing and runs no script.  Prose, tables and figures
are open, code is folded.  The same notebooks give the same bytes.
"""

import base64
import io
import re
import sys
from fnmatch import fnmatch
from html.parser import HTMLParser
from itertools import count, groupby
from pathlib import Path

import nbformat
from jinja2 import Environment
from markdown_it import MarkdownIt
from markupsafe import Markup
from PIL import Image
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

from her2core.config import BANNER, Study, steady_dependencies
from her2core.records import whole

_PATTERN = "0[0-9]_*.ipynb"  # the study; 10_predict_case is somebody's own examination
_LIMIT = 4_000_000  # bytes of the page; larger, and its images are reduced to 256 colours
_FOREIGN = set("script iframe frame object embed base form link meta".split())  # tags that load, run or send
_ESCAPE_CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_OVERWRITTEN = re.compile(r"[^\n]*\r(?!\n)")  # a progress bar's earlier states

_ENVIRONMENT = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
_FORMATTER = HtmlFormatter(style="default", cssclass="highlight")
_MARKDOWN = MarkdownIt("commonmark", {"html": False}).enable("table")


def _slug(text):
    return re.sub(r"\W+", "-", text.lower()).strip("-")


# --- one notebook -------------------------------------------------------------------------------------------


class _Page:
    """One notebook on its way to HTML; of a notebook that several runs share, one run.

    palette: pictures in 256 colours.  After `render`: body, and headings as (level, id, text).
    """

    def __init__(self, path, palette):
        self.path, self.palette = path, palette
        notebook, _, self.run = path.stem.partition("-")
        self.notebook, self.id = _slug(notebook), _slug(path.stem)
        self.headings, self.figures = [], 0

    def render(self):
        notebook = nbformat.read(self.path, as_version=4)
        parts = [self.prose(c.source) if c.cell_type == "markdown" else self.code(c) for c in notebook.cells]
        self.body = Markup("\n".join(part for part in parts if part))
        return self

    @property
    def title(self):
        return self.headings[0][2] if self.headings else self.run or self.notebook

    @property
    def contents(self):
        """(id, text) of its sections; none of a run, whose closed box hides them."""
        return [(anchor, text) for level, anchor, text in self.headings if level == 2 and not self.run]

    def prose(self, source):
        """Markdown with headings that sink, have ids, and are remembered."""
        tokens = _MARKDOWN.parse(source)
        for number, token in enumerate(tokens):
            if token.type == "heading_open":
                self.open_heading(token, tokens[number + 1])
                tokens[number + 2].tag = token.tag
            for child in token.children or ():
                if child.type == "link_open":
                    child.attrs["href"] = self.link(child.attrs["href"])
        return _scrolling(_MARKDOWN.renderer.render(tokens, _MARKDOWN.options, {}))

    def open_heading(self, token, inline):
        level = int(token.tag[1])
        text = "".join(c.content for c in inline.children if c.type in ("text", "code_inline")).strip()
        token.tag = f"h{min(level + (2 if self.run else 1), 6)}"
        name, taken = f"{self.id}--{_slug(text)}", {known for _, known, _ in self.headings}
        names = (f"{name}-{number}" if number > 1 else name for number in count(1))
        token.attrs["id"] = next(n for n in names if n not in taken)
        self.headings.append((level, token.attrs["id"], text))

    def link(self, href):
        """Where a notebook's link leads from the page, which stands in results/<cohort>/."""
        if re.match(r"[a-z]+:", href):
            return href
        if href.startswith("#"):
            return f"#{self.id}--{_slug(href)}"
        if fnmatch(Path(href).name, _PATTERN):
            return f"#{_slug(Path(href).stem)}"
        return f"../../{href.removeprefix('../')}" if href.startswith("../") else f"../../notebooks/{href}"

    def code(self, cell):
        folded = ""
        if cell.source.strip():
            source = highlight(cell.source, PythonLexer(), _FORMATTER)
            folded = f'<details class="code"><summary>code</summary>{source}</details>'
        return "\n".join([folded, *(self.output(o) for o in cell.outputs)])

    def output(self, output):
        if output.output_type == "stream":
            return _preformatted(output.text)
        if output.output_type == "error":
            raise ValueError(f"{self.path.name}: a cell failed with {output.ename}: the notebook is half-run")
        data = output.data
        if "text/html" in data:
            return _scrolling(re.sub(r"<style.*?</style>", "", data["text/html"], flags=re.S))
        if "image/png" in data:
            return self.figure(data["image/png"], output.metadata.get("image/png", {}).get("width"))
        return _preformatted(data.get("text/plain", ""))

    def figure(self, png, width):
        """A picture inside the page; its text alternative is the heading above it."""
        self.figures += 1
        png = "".join(png.split())
        if self.palette:
            png = base64.b64encode(in_256_colours(base64.b64decode(png))).decode()
        above = self.headings[-1][2] if self.headings else self.title
        size = f' width="{int(width)}"' if width else ""
        alt = Markup.escape(f"{above} (figure {self.figures} of {self.path.stem})")
        return f'<p><img src="data:image/png;base64,{png}" alt="{alt}"{size}></p>'


def _preformatted(text):
    text = _OVERWRITTEN.sub("", _ESCAPE_CODES.sub("", text)).rstrip()
    return f"<pre>{Markup.escape(text)}</pre>" if text else ""


def _scrolling(html):
    """Every table in a box of its own that scrolls sideways."""
    return re.sub(r"<table.*?</table>", r'<div class="scroll" tabindex="0">\g<0></div>', html, flags=re.S)


def in_256_colours(png: bytes) -> bytes:
    """A PNG with a palette, on white; as it was, where that is no smaller."""
    image = Image.open(io.BytesIO(png)).convert("RGBA")
    flat = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    smaller = io.BytesIO()
    flat.quantize(256, dither=Image.Dither.NONE).save(smaller, "PNG", optimize=True)
    return min(png, smaller.getvalue(), key=len)


# --- the page -----------------------------------------------------------------------------------------------


class _Inspection(HTMLParser):
    """Anchors of a page, and what in it would load or run something."""

    def __init__(self, html):
        super().__init__()
        self.ids, self.targets, self.foreign = [], [], []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            value = value or ""
            loads = name in ("src", "srcset", "poster", "background") or (name.endswith("href") and tag != "a")
            runs = name.startswith("on") or (name == "style" and "url(" in value)
            if runs or (loads and not value.startswith("data:")):
                self.foreign.append(f"<{tag} {name}={value[:60]!r}>")
            if name == "id":
                self.ids.append(value)
            if (tag, name) == ("a", "href") and value.startswith("#"):
                self.targets.append(value[1:])
        if tag in _FOREIGN:
            self.foreign.append(f"<{tag}>")


def _check(html, pages):
    """Raise ValueError unless the page stands alone, its ids are unique and its anchors lead somewhere."""
    for page in pages:
        if foreign := _Inspection(page.body).foreign:
            raise ValueError(f"{page.path.name}: the report must stand alone, found {foreign[0]}")
    found = _Inspection(html)
    if double := {i for i in found.ids if found.ids.count(i) > 1}:
        raise ValueError(f"the report has an id twice: {min(double)}")
    if lost := set(found.targets) - set(found.ids):
        raise ValueError(f"the report has a link to #{min(lost)}, which is nowhere in it")


def _compose(folder: Path, title: str, synthetic: bool, palette: bool = False) -> str:
    """The report as text; folder: of the executed notebooks.  palette: pictures in 256 colours."""
    paths = sorted(p for p in Path(folder).glob(_PATTERN) if not p.name.endswith(".part.ipynb"))
    if not paths:
        raise ValueError(f"{folder}: no executed notebook; run the study first")
    pages = [_Page(path, palette).render() for path in paths]
    groups = [list(runs) for _, runs in groupby(pages, key=lambda page: page.notebook)]
    html = _ENVIRONMENT.from_string(Path(__file__).with_name("page.html.jinja").read_text()).render(
        title=title,
        banner=BANNER if synthetic else "",
        style=Markup(_FORMATTER.get_style_defs(".highlight")),
        groups=groups,
    )
    _check(html, pages)
    return html


def write_page(folder: Path, title: str, out: Path, synthetic: bool, limit: int = _LIMIT) -> int:
    """Write the report of the executed notebooks in `folder` to `out`; returns its size in bytes.

    Pictures stay as they are unless the page would exceed `limit`; then they get 256 colours.  ValueError where
    that is not enough, where a notebook failed, or where something in it would be loaded from elsewhere.
    """
    html = _compose(folder, title, synthetic)
    if len(html.encode()) > limit:
        html = _compose(folder, title, synthetic, palette=True)
    if (size := len(html.encode())) > limit:
        raise ValueError(f"{out}: expected at most {limit} bytes, found {size} even with pictures in 256 colours")
    with whole(out) as part:
        part.write_text(html)
    return size


def main(arguments: list[str]) -> None:
    """The stage `page`."""
    if len(arguments) != 1:
        sys.exit(__doc__)
    try:
        study = Study.open(arguments[0])
        with steady_dependencies("her2core/report/page.py", study):
            title = f"HER2 on breast DCE-MRI: the study on the {study.name} cohort"
            write_page(study.results / "executed", title, study.results / "report.html", study.is_synthetic)
    except (ValueError, OSError) as error:
        sys.exit(f"\nreport: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
