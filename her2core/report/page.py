"""All executed notebooks of a cohort as one HTML page:  python -m her2core.report.page COHORT

The page stands alone: pictures are inside it, it loads nothing, and its content security policy lets no script run
but its own, without which all of it can be read.  What notebooks bring is held to a list of tags and attributes;
patients are named as in figures, absolute paths lose their folders.  The same notebooks give the same bytes.
"""

import base64
import hashlib
import io
import re
import sys
from collections.abc import Sequence
from fnmatch import fnmatch
from html.parser import HTMLParser
from itertools import count, groupby
from pathlib import Path

import nbformat
import nh3
from jinja2 import Environment
from markdown_it import MarkdownIt
from markupsafe import Markup
from PIL import Image
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

from her2core.config import BANNER, Study, read_yaml, steady_dependencies
from her2core.formats.boundary import reading
from her2core.records import alias, whole

_PATTERN = "0[0-9]_*.ipynb"  # the study; 10_predict_case is somebody's own examination
_LIMIT = 6_000_000  # bytes of the page
_ESCAPE_CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_OVERWRITTEN = re.compile(r"[^\n]*\r(?!\n)")  # a progress bar's earlier states

# What notebooks may bring: the tags of Markdown and of pandas' tables, with attributes that are kept and attributes
# that are left out without a word; and what a value must be.  All else is an error.
_TAGS = "p div br hr em strong code pre blockquote ul ol li table caption thead tbody tr".split()
_KEPT = dict.fromkeys(_TAGS, set()) | dict.fromkeys(("h2", "h3", "h4", "h5", "h6"), {"id"})
_KEPT |= dict.fromkeys(("th", "td"), {"colspan", "rowspan"}) | {"a": {"href"}}
_LEFT_OUT = {"class", "border", "halign", "valign", "start", "title", "style"}
_VALUES = {"href": r"https?:|mailto:|#|(?![\s/\\])[^:]*$", "style": r"text-align:[\w ;]+$", "colspan": r"\d+$"}
_PANDAS_STYLE = re.compile(r"<style scoped>[^<]*</style>")

# What the page does not tell: folders, UIDs, patients as archives name them, and what stands in such a column.
_FOLDERS = re.compile(r"(?:file://|(?<![\w/\\.:<+=-]))(?:/|\\\\|[A-Za-z]:[/\\]+)(?:[\w.+@~-]+[/\\]+)+")
_UID = re.compile(r"\b\d+(?:\.\d+){6,}\b")
_PATIENT = re.compile(r"(?:ISPY[12]?|ACRIN-6698|AMBL|DUKE|Breast_MRI|PHANTOM-[A-Z0-9]+)[-_]\d{3,}")
_NAMING = {"patient", "pid", "patient_id", "patientid", "mrn", "series_uid", "seriesinstanceuid"}
_WORDS = {"auc": "AUC", "auprc": "AUPRC", "sd": "SD", "se": "standard error", "low": "from", "high": "to"}
_WORDS |= {"holm": "(Holm)", "delong": "(DeLong)", "q1": "25 %", "q3": "75 %", "hr": "HR", "her2": "HER2"}
_WORDS |= {"spy1": "I-SPY1", "spy2": "I-SPY2", "ambl": "AMBL", "pid": "patient", "sha256": "SHA-256"}
_WORDS |= {"mflops": "MFLOPs"}
_CELL = re.compile(r'(<t[hd](?: (?:colspan="(\d+)"|rowspan="[^"]*"))*>)(.*?)</t[hd]>', re.S)

# How notebooks name a figure's files, after its variable or when they collect it, and the tables that it shows.
_SAVED = re.compile(r'figures\.save\((\w+), "(\w+)"|"(\w+)": (\w+_figure)\b')
_DRAWN = re.compile(r'^(?:drawn\["(\w+)"\]|(\w+)) = ', re.M)
_READ = re.compile(r'results / "(\w+\.csv)"')

_MARKDOWN = MarkdownIt("commonmark", {"html": False}).enable("table")
_LIGHT, _DARK = (HtmlFormatter(style=style, cssclass="highlight") for style in ("default", "github-dark"))
_ENVIRONMENT = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
_ENVIRONMENT.filters["hash"] = lambda text: base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
_FIGURE = Markup("""<figure>
<img src="data:image/png;base64,{source}" alt="{alt}">
<figcaption>{caption} {links}</figcaption>
</figure>""")


def _slug(text):
    return re.sub(r"\W+", "-", text.lower()).strip("-")


class _Page:
    """One notebook on its way to HTML; of a notebook that several runs share, one run.

    After `render`: title, body, headings (level, id, text).
    """

    def __init__(self, path):
        self.path, stem = path, _unnamed(path.stem)
        notebook, _, self.run = stem.partition("-")
        self.notebook, self.id = _slug(notebook), _slug(stem)
        self.headings, self.said, self.figures, self.cells = [], "", 0, 0
        self.title = self.above = self.run or self.notebook

    def render(self):
        with reading(self.path, "an executed notebook", "run the study again"):
            notebook = nbformat.reads(_unnamed(self.path.read_text("utf-8")), as_version=4)
        saved = _SAVED.findall("\n".join(c.source for c in notebook.cells))
        self.saved = {variable or figure: name or title for variable, name, title, figure in saved}
        parts = [self.prose(c.source) if c.cell_type == "markdown" else self.code(c) for c in notebook.cells]
        self.body = Markup("\n".join(part for part in parts if part))
        self.title = self.headings[0][2] if self.headings else self.title
        return self

    def prose(self, source):
        """Markdown with headings that sink, have ids, and are remembered, as is the last paragraph."""
        tokens, self.said = _MARKDOWN.parse(source), ""
        for number, token in enumerate(tokens):
            if token.type == "heading_open":
                self.open_heading(token, tokens[number + 1])
                tokens[number + 2].tag = token.tag
            if token.type == "paragraph_open":
                self.said = _text(tokens[number + 1])
            for child in token.children or ():
                if child.type == "link_open":
                    child.attrs["href"] = self.link(child.attrs["href"])
        return self.clean(_MARKDOWN.renderer.render(tokens, _MARKDOWN.options, {}))

    def open_heading(self, token, inline):
        level, self.above = int(token.tag[1]), _text(inline)
        token.tag = f"h{min(level + (2 if self.run else 1), 6)}"
        name, taken = f"{self.id}--{_slug(self.above)}", {known for _, known, _ in self.headings}
        names = (f"{name}-{number}" if number > 1 else name for number in count(1))
        token.attrs["id"] = next(n for n in names if n not in taken)
        self.headings.append((level, token.attrs["id"], self.above))

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
            self.cells += 1
            source = highlight(cell.source, PythonLexer(), _LIGHT)
            folded = f'<div class="code" id="{self.id}-code-{self.cells}">{source}</div>'
        names = filter(None, (name or self.saved.get(variable) for name, variable in _DRAWN.findall(cell.source)))
        return "\n".join([folded, *(self.output(o, cell.source, names) for o in cell.outputs)])

    def output(self, output, source, names):
        if output.output_type == "error":
            raise ValueError(f"{self.path.name}: a cell failed with {output.ename}: the notebook is half-run")
        data = output.data if "data" in output else {"text/plain": output.text}
        if "text/html" in data:
            return self.anonymous(self.clean(data["text/html"]))
        if "text/markdown" in data:
            return self.prose(self.anonymous(data["text/markdown"]))
        if "image/png" in data:
            return self.figure(data["image/png"], next(names, None), _READ.findall(source))
        return _preformatted(self.anonymous(data.get("text/plain", "")))

    def figure(self, png, name, tables):
        """A picture inside the page, described by what stands above it, with links to its files."""
        self.figures += 1
        with reading(self.path, f"a PNG as picture {self.figures}"):
            png = in_256_colours(base64.b64decode("".join(png.split()), validate=True))
        files = [("PDF", f"../../figures/{self.path.parents[1].name}/{name}.pdf")] if name else []
        files += [(table, table) for table in tables]
        files += [("code", f"#{self.id}-code-{self.cells}")] if self.cells else []
        return _FIGURE.format(
            source=base64.b64encode(png).decode(),
            alt=f"{self.above}: {self.said}" if self.said else self.above,
            caption=f"Figure {int(self.path.name[:2])}.{self.figures}. {self.above}",
            links=Markup(" · ").join(Markup('<a href="{}">{}</a>').format(to, text) for text, to in files),
        )

    def clean(self, html):
        """HTML held to what is allowed: what acts or loads is an error; tables scroll in a box of their own."""
        html = _PANDAS_STYLE.sub("", html)
        if foreign := _Inspection(html).foreign:
            raise ValueError(f"{self.path.name}: the report must stand alone, found {foreign[0]}")
        html = nh3.clean(html, tags=set(_KEPT), attributes=_KEPT | {"*": set()}, link_rel=None)
        return re.sub(r"<table>(?:(?!<table>).)*?</table>", self.table, html, flags=re.S)

    def table(self, match):
        naming, label = set(), Markup.escape(f"Table: {self.above}")
        rows = re.sub(r"<tr>(.*?)</tr>", lambda row: self.row(row[1], naming), match[0], flags=re.S)
        if re.search(r"<thead>\s*<tr><td></td>", rows) and not re.search(r"<tr><th>(?!\d+</th><td)", rows):
            rows = re.sub(r"<tr><t[hd]>\d*</t[hd]>", "<tr>", rows)  # row numbers, which pandas adds
        return f'<div class="scroll" role="group" aria-label="{label}" tabindex="0">{rows}</div>'

    def row(self, row, naming):
        """A row with human headings and, in columns that name patients, stand-ins; counted from the right."""
        at, cells = sum(int(span or 1) for _, span, _ in _CELL.findall(row)), []
        for start, span, text in _CELL.findall(row):
            if "<td" not in row:
                naming |= {at} if text.lower() in _NAMING else set()
                start, text = start if text else start.replace("<th", "<td"), _in_words(text)
            elif at in naming and text and not text.startswith("patient "):
                text = alias(text)
            at -= int(span or 1)
            cells.append(f"{start}{text}</{start[1:3]}>")
        return f"<tr>{''.join(cells)}</tr>"

    def anonymous(self, text):
        """Without folders, which lead to somebody's computer, and without identifiers."""
        return _unnamed(_UID.sub("(UID)", _FOLDERS.sub("…/", text)))


def _in_words(heading):
    return " ".join(_WORDS.get(word, word) for word in heading.replace("_", " ").split(" "))


def _unnamed(text):
    """With each patient's identifier replaced; base64 holds none, as it has no hyphen and no underscore."""
    return _PATIENT.sub(lambda patient: alias(patient[0]), text)


def _text(inline):
    """The words of a heading or paragraph, without markup."""
    return "".join(" " if c.type == "softbreak" else c.content for c in inline.children).strip()


def _preformatted(text):
    text = _OVERWRITTEN.sub("", _ESCAPE_CODES.sub("", text)).rstrip()
    return f"<pre>{Markup.escape(text)}</pre>" if text else ""


def in_256_colours(png: bytes) -> bytes:
    """A PNG with a palette, on white, and without the texts that a PNG may carry."""
    image = Image.open(io.BytesIO(png), formats=["PNG"]).convert("RGBA")
    flat = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    smaller = io.BytesIO()
    flat.quantize(256, dither=Image.Dither.NONE).save(smaller, "PNG", optimize=True)
    return smaller.getvalue()


class _Inspection(HTMLParser):
    """Ids and anchors of some HTML, and what in it no notebook may bring."""

    def __init__(self, html):
        super().__init__()
        self.ids, self.targets, self.foreign = [], [], []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            value = value or ""
            if name not in _KEPT.get(tag, set()) | _LEFT_OUT or not re.match(_VALUES.get(name, ""), value):
                self.foreign.append(f"<{tag} {name}={value[:60]!r}>")
            if name == "id":
                self.ids.append(value)
            if (tag, name) == ("a", "href") and value.startswith("#"):
                self.targets.append(value[1:])
        if tag not in _KEPT:
            self.foreign.append(f"<{tag}>")


def _check(html):
    """Raise ValueError unless the ids of the page are unique and its anchors lead somewhere."""
    found = _Inspection(html)
    if double := {i for i in found.ids if found.ids.count(i) > 1}:
        raise ValueError(f"the report has an id twice: {min(double)}")
    if lost := set(found.targets) - set(found.ids):
        raise ValueError(f"the report has a link to #{min(lost)}, which is nowhere in it")


def _links(citation):
    """(text, address) of what the first screen leads to; citation: the path of CITATION.cff."""
    known = read_yaml(citation) if citation.is_file() else {}
    papers = [work["url"] for work in known.get("references", ()) if "url" in work]
    return [("Repository", known.get("repository-code", "../../README.md")), *((url[8:], url) for url in papers)]


def write_page(
    folder: Path,
    title: str,
    out: Path,
    synthetic: bool,
    links: Sequence[tuple[str, str]] = (),
    summary: str = "",
) -> int:
    """Write the report of the executed notebooks in `folder` to `out`; returns its size in bytes.

    summary, links: what the first screen says, as Markdown, and (text, address) of what it leads to.  Pictures get
    256 colours.
    ValueError where a notebook failed or brings what would load or run something, or the page is too large.
    """
    paths = sorted(p for p in Path(folder).glob(_PATTERN) if not p.name.endswith(".part.ipynb"))
    if not paths:
        raise ValueError(f"{folder}: no executed notebook; run the study first")
    first = _Page(Path("summary.md"))
    html = _ENVIRONMENT.from_string(Path(__file__).with_name("page.html.jinja").read_text("utf-8")).render(
        title=title,
        banner=BANNER if synthetic else "",
        links=links,
        summary=Markup(first.prose(first.anonymous(summary))),
        light=Markup(_LIGHT.get_style_defs(".highlight")),
        dark=Markup(_DARK.get_style_defs(".highlight")),
        groups=[list(runs) for _, runs in groupby((_Page(p).render() for p in paths), lambda page: page.notebook)],
    )
    _check(html)
    if (size := len(html.encode())) > _LIMIT:
        raise ValueError(f"{out}: expected at most {_LIMIT} bytes, found {size}; draw smaller figures")
    with whole(out) as part:
        part.write_bytes(html.encode())
    return size


def main(arguments: list[str]) -> None:
    """The stage `page`."""
    if len(arguments) != 1:
        sys.exit(__doc__)
    try:
        study = Study.open(arguments[0])
        with steady_dependencies("her2core/report/page.py", study):
            out, links = study.results / "report.html", _links(study.top / "CITATION.cff")
            study.need("report", study.results / "summary.md")
            summary = (study.results / "summary.md").read_text("utf-8")
            title = f"{study.title.endpoint.words} on breast DCE-MRI: the study on the {study.name} cohort"
            write_page(study.results / "executed", title, out, study.is_synthetic, links, summary)
    except (ValueError, OSError) as error:
        sys.exit(f"\nreport: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
