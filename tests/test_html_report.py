"""One page that stands alone and is harmless: nothing acts or loads, every link arrives, no patient is named."""

import base64
import csv
import hashlib
import html
import io
import os
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import nbformat.v4 as v4
import numpy as np
import pandas as pd
import pytest
from house import BARE
from nbformat import write
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from her2core.records import alias
from her2core.report import page as html_report
from her2core.report.page import write_page

TOP = Path(__file__).resolve().parents[1]
EXECUTED = TOP / "results/embedded/executed"
TABLE = "<div><style scoped>th {x: y}</style><table border='1'><tr><th>auc</th></tr></table></div>"


def png(side=8, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 255, (side, side, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def cell(source, *outputs):
    return v4.new_code_cell(source, outputs=list(outputs))


def data(**kinds):
    names = {"html": "text/html", "png": "image/png", "plain": "text/plain", "markdown": "text/markdown"}
    return v4.new_output("display_data", {names[k]: v for k, v in kinds.items()}, metadata={})


def save(folder, name, *cells):
    notebook = v4.new_notebook(cells=[v4.new_markdown_cell(c) if isinstance(c, str) else c for c in cells])
    for number, c in enumerate(notebook.cells):
        c["id"] = f"c{number}"
    folder.mkdir(exist_ok=True)
    write(notebook, folder / f"{name}.ipynb")


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "executed"
    save(
        folder,
        "00_cohort",
        "# 0. Who & what\n\nSee [training](02_training.ipynb) and [below](#Counts & more).",
        "## Counts & more\n\n| a | b |\n|---|---|\n| 1 | 2 |",
        cell("x = '<b>'", v4.new_output("stream", text="10 %\r100 %\n\x1b[31mred <i>\x1b[0m\n"), data(html=TABLE)),
        "## Counts & more",
        cell("plot()", data(png=png(), plain="<Figure>")),
    )
    for run in ("vit-q98-raw", "thda-q98-raw"):
        save(folder, f"02_training-{run}", "# 2. Training", "## Data", cell("1", data(plain="'a <tag>'")))
    save(folder, "08_external", "# 5. Elsewhere", cell("", data(png=png(seed=1))))
    return folder


@pytest.fixture
def page(folder, tmp_path):
    write_page(folder, "The study", tmp_path / "report.html", synthetic=True)
    return (tmp_path / "report.html").read_text()


class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def of(self, name):
        return [attributes for tag, attributes in self.tags if tag == name]


def sha256(text):
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def assert_stands_alone(text):
    tags = Tags(text)
    assert not {"iframe", "object", "embed", "base"} & {t for t, _ in tags.tags}
    assert all(i["src"].startswith("data:image/png;base64,") for i in tags.of("img"))
    assert all(link["href"] == "data:," for link in tags.of("link"))
    (style,), (script,) = (re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.S) for tag in ("style", "script"))
    assert text.count("<script") == text.count("<style") == 1
    assert not re.search(r"url\(|@import|image-set|fetch|innerHTML|eval", style + script)
    assert tags.of("meta")[1] == {
        "http-equiv": "Content-Security-Policy",
        "content": f"default-src 'none'; img-src data:; style-src 'sha256-{sha256(style)}'; "
        f"script-src 'sha256-{sha256(script)}'; base-uri 'none'; form-action 'none'",
    }
    acting = [(t, n) for t, a in tags.tags for n in a if n.startswith("on") or n == "style"]
    assert not acting and all(i["alt"].strip() for i in tags.of("img"))
    ids = [a["id"] for _, a in tags.tags if "id" in a]
    assert len(set(ids)) == len(ids)
    targets = [a["href"][1:] for a in tags.of("a") if a["href"].startswith("#")]
    assert targets and set(targets) <= set(ids)


def test_the_page_stands_alone_and_every_link_arrives(page):
    assert_stands_alone(page)


def test_the_same_notebooks_give_the_same_bytes(folder, page, tmp_path):
    write_page(folder, "The study", tmp_path / "again.html", synthetic=True)
    assert (tmp_path / "again.html").read_text() == page
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again.html", "executed", "report.html"]


def test_notebooks_stand_in_order_and_the_runs_of_one_are_folded_away(page):
    places = [page.index(f'<section id="{name}">') for name in ("00_cohort", "02_training", "08_external")]
    assert places == sorted(places)
    runs = page[page.index('<details class="runs">') : page.index('<section id="08_external">')]
    assert runs.index(">thda-q98-raw</h3>") < runs.index(">vit-q98-raw</h3>")
    assert "2 runs of this notebook" in runs and page.count('class="runs"') == 1
    contents = page[page.index('<ul id="contents">') : page.index("</nav>")]
    assert '<a href="#02_training">2. Training</a>' in contents and "vit" not in contents
    assert '<a href="#00_cohort--counts-more-2">Counts &amp; more</a>' in contents


@pytest.mark.parametrize(("synthetic", "count"), [(True, 1 + 3), (False, 0)])
def test_the_page_and_every_section_of_a_synthetic_cohort_carry_the_banner_once(folder, tmp_path, synthetic, count):
    write_page(folder, "The study", tmp_path / "report.html", synthetic)
    text = (tmp_path / "report.html").read_text()
    assert text.count('<p class="banner">synthetic cohort: phantom images') == count
    for section in text.split('<section id="')[1:]:
        assert section.count('<p class="banner">') == synthetic


def test_code_is_folded_once_per_notebook_and_escaped_and_prose_is_not(page):
    assert page.count('<input type="checkbox" class="show"') == 3
    assert ".show:not(:checked) ~ * .code:not(:target) { display: none; }" in page
    folded = page[page.index('<div class="code" id="00_cohort-code-1">') :]
    assert "&lt;b&gt;" in folded[: folded.index("</div>")]
    assert page.count('<div class="code"') == 4  # the empty cell has none
    assert "<pre>100 %\nred &lt;i&gt;</pre>" in page and "<pre>&#39;a &lt;tag&gt;&#39;</pre>" in page


def test_tables_scroll_in_their_own_named_box_and_bring_neither_style_nor_empty_headings(page):
    box = '<div class="scroll" role="group" aria-label="Table: Counts &amp; more" tabindex="0"><table>'
    assert page.count(box) == page.count("<table>") == 2
    assert "scoped" not in page and "<th></th>" not in page


def test_a_column_has_a_human_heading(tmp_path):
    html = "<table border='1' class='x'><tr style='text-align: right;'><th></th><th>hr_missing</th></tr></table>"
    cleaned = html_report._Page(tmp_path / "00_x.ipynb").clean(html)
    assert cleaned.endswith("<table><tbody><tr><td></td><th>HR missing</th></tr></tbody></table></div>")


@pytest.mark.parametrize(
    ("index", "kept"),
    [([0, 1], False), ([7, 3], False), (["vit", "7"], True), (pd.Index([0, 1], name="seed"), True)],
)
def test_row_numbers_are_left_out_and_every_other_index_stays(tmp_path, index, kept):
    html = pd.DataFrame({"auc": [0.5, 0.75], "p_holm": [1, 1]}, index).to_html()
    cleaned = html_report._Page(tmp_path / "00_x.ipynb").clean(html)
    assert "<th>AUC</th>" in cleaned and "<th>p (Holm)</th>" in cleaned
    assert (f"<th>{index[0]}</th>" in cleaned) == kept == ("<td></td>" in cleaned)
    assert [len(re.findall("<t[hd]", row)) for row in cleaned.split("<tr>")[1:]] == [2 + kept] * (
        4 if getattr(index, "name", "") else 3
    )


def test_a_picture_is_described_by_the_heading_and_the_paragraph_above_it(folder, tmp_path):
    save(
        folder, "03_x", "# 3\n\n## Loss\n\nOf *all*\nruns.", cell("1", data(png=png())), cell("2", data(png=png()))
    )
    write_page(folder, "The study", tmp_path / "report.html", synthetic=True)
    text = (tmp_path / "report.html").read_text()
    alts = [i["alt"] for i in Tags(text).of("img")]
    assert alts == ["Counts & more", "Loss: Of all runs.", "Loss: Of all runs.", "5. Elsewhere"]
    assert "<figcaption>Figure 0.1. Counts &amp; more " in text and "<figcaption>Figure 3.2. Loss " in text


def test_a_picture_leads_to_its_pdf_its_table_and_its_code(tmp_path):
    folder = tmp_path / "tiny" / "executed"
    folder.parent.mkdir()
    drawn = 'found = pd.read_csv(results / "forest.csv")\ndrawn["models"] = plot(found)'
    sources = "roc_figure = plot()", drawn, "gate_figure = plot()", "plot()"
    saving = 'figures.save(roc_figure, "roc", study.figures)\ndrawn = {"gates": gate_figure}'
    save(folder, "09_report", "# 9", *(cell(source, data(png=png())) for source in sources), cell(saving))
    write_page(folder, "The study", tmp_path / "report.html", synthetic=True)
    captions = re.findall("<figcaption>(.*?)</figcaption>", (tmp_path / "report.html").read_text())
    assert [[a["href"] for a in Tags(caption).of("a")] for caption in captions] == [
        ["../../figures/tiny/roc.pdf", "#09_report-code-1"],
        ["../../figures/tiny/models.pdf", "forest.csv", "#09_report-code-2"],
        ["../../figures/tiny/gates.pdf", "#09_report-code-3"],
        ["#09_report-code-4"],
    ]


def test_headings_sink_below_the_title_so_that_there_is_one_first_heading(page):
    assert page.count("<h1") == 1 and '<h2 id="00_cohort--0-who-what">0. Who &amp; what</h2>' in page
    assert page.count("<h4") == page.count("</h4>") == 2  # `## Data` of both runs


def test_headings_of_one_name_get_ids_of_their_own(tmp_path):
    page = html_report._Page(tmp_path / "00_x.ipynb")
    page.prose("## Seed 2\n## Seed\n## Seed\n## `Seed`")
    assert [i for _, i, _ in page.headings] == ["00_x--seed-2", "00_x--seed", "00_x--seed-3", "00_x--seed-4"]


def test_a_link_out_of_the_notebooks_folder_leads_there_from_the_reports(tmp_path):
    page = html_report._Page(tmp_path / "09_report.ipynb")
    assert page.link("../results/x.md") == "../../results/x.md"
    assert page.link("10_predict_case.ipynb") == "../../notebooks/10_predict_case.ipynb"
    assert page.link("06_normalization_study.ipynb") == "#06_normalization_study"
    assert page.link("https://arxiv.org/abs/2510.13897") == "https://arxiv.org/abs/2510.13897"


def test_ones_own_case_and_half_run_notebooks_stay_out(folder, tmp_path, page):
    save(folder, "10_predict_case-me", "# Private")
    save(folder, "09_report.part", "# Half")
    write_page(folder, "The study", tmp_path / "again.html", synthetic=True)
    assert (tmp_path / "again.html").read_text() == page


REFUSED = {
    "<script>alert(1)</script>": "<script>",
    "<img src='https://example.org/a.png'>": "<img src='https://example.org",
    "<p onclick='x()'>": "<p onclick=",
    "<p style='background: url(x)'>": "<p style=",
    "<p style=\"background:image-set('https://example.org/a' 1x)\">": "<p style=",
    "<table><tr><td><a href='javascript:x()'>a</a></td></tr></table>": "<a href='javascript:x",
    "<a href='&#106;avascript:x()'>a</a>": "<a href='javascript:x",
    "<a href=' java\nscript:x()'>a</a>": "<a href=' java",
    "<a href='data:text/html,x'>a</a>": "<a href='data:text",
    "<a href='//example.org'>a</a>": "<a href='//example.org'",
    "<a href='#top' ping='https://example.org'>a</a>": "<a ping=",
    "<svg><a xlink:href='javascript:x()'><text>a</text></a></svg>": "<svg>",
    "<math><mtext></mtext></math>": "<math>",
    "<p>x</p><style>@import url(https://example.org/x.css);": "<style>",
    "<STYLE>body {color: red}</STYLE>": "<style>",
    "<style scoped>x</style ><style scoped><img src=x></style>": "<style scoped=",
    "<button formaction='javascript:x()'>a</button>": "<button formaction=",
    "<iframe srcdoc='<script>1</script>'></iframe>": "<iframe srcdoc=",
    "<meta http-equiv='refresh' content='0'>": "<meta http-equiv=",
    "<base href='https://example.org'>": "<base href=",
    "<p id='wanted'>": "<p id=",
    "<input name='x'>": "<input name=",
    "<th colspan='x'>": "<th colspan=",
    "</section></main><section>": "<section>",
}


@pytest.mark.parametrize(("html", "found"), REFUSED.items(), ids=range(len(REFUSED)))
def test_html_outside_the_list_is_refused_with_the_notebooks_name(folder, tmp_path, html, found):
    save(folder, "03_study", "# 3", cell("1", data(html=html)))
    with pytest.raises(ValueError, match=f"03_study.ipynb: the report must stand alone, found {found}"):
        write_page(folder, "The study", tmp_path / "report.html", synthetic=True)
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    "html",
    [
        "<!--><img src=x onerror=x()>-->",
        "<!-- a --!><img src=x onerror=x()><!-- -->",
        "<p><!-- <script> --> a </main></body></p>",
        "<![CDATA[<script>x()</script>]]>",
        "<?php <img src=x onerror=x()> ?>",
        "</p <script>x()</script>",
        "<p/onclick=x()>a</p>",
        "<p title='</p><img src=x onerror=x()>'>a</p>",
    ],
)
def test_html_that_parsers_read_differently_is_refused_or_loses_what_acts(folder, tmp_path, html):
    save(folder, "03_study", "# 3", cell("1", data(html=html)))
    try:
        write_page(folder, "The study", tmp_path / "report.html", synthetic=True)
    except ValueError as error:
        assert "03_study.ipynb: the report must stand alone, found <" in str(error)
        return
    text = (tmp_path / "report.html").read_text()
    assert_stands_alone(text)
    assert not re.search("<[^<>]*onerror", text) and text.count("</main>") == 1


def test_markdown_of_cells_and_of_outputs_brings_no_html_no_image_and_no_script(folder, tmp_path):
    out = tmp_path / "report.html"
    answer = "**Answer.** <b onclick='x()'>0.83</b> [x](javascript:y) [paper](https://arxiv.org)"
    save(folder, "03_study", "# 3\n\n<script>x()</script>", cell("1", data(markdown=answer, plain="<Markdown>")))
    write_page(folder, "The study", out, synthetic=True)
    text = out.read_text()
    assert_stands_alone(text)
    assert "&lt;script&gt;x()&lt;/script&gt;" in text
    assert "<strong>Answer.</strong> &lt;b onclick='x()'&gt;0.83" in text and '<a href="https://arxiv.org">' in text
    save(folder, "03_study", "# 3\n\n![a figure](roc.png)")
    with pytest.raises(ValueError, match="03_study.ipynb: the report must stand alone, found <img src='roc.png'>"):
        write_page(folder, "The study", out, synthetic=True)


@pytest.mark.parametrize("picture", ['"><script>x()</script>', base64.b64encode(b"GIF89a").decode(), png()[:90]])
def test_a_picture_that_is_no_png_is_refused(folder, tmp_path, picture):
    save(folder, "03_study", "# 3", cell("1", data(png=picture)))
    with pytest.raises(ValueError, match="03_study.ipynb: .*, expected a PNG as picture 1$"):
        write_page(folder, "The study", tmp_path / "report.html", synthetic=True)


def digest(patient):
    return f"patient {hashlib.sha256(patient.encode()).hexdigest()[:8]}"


def test_patients_get_names_that_are_the_same_in_the_whole_report_and_in_figures(folder, tmp_path):
    table = pd.DataFrame({"patient": ["ISPY1_1001", "Jane"], "label": [1, 0]})
    save(
        folder,
        "03_study",
        "# 3",
        cell("1", data(html=table.to_html())),
        cell("2", data(html=table.set_index("patient").to_html())),
        cell("3", data(html=table.groupby(["label", "patient"])[["label"]].agg(["min", "max"]).to_html())),
        cell(
            "4",
            v4.new_output("stream", text="ISPY1_1001, ACRIN-6698-102212 of ACRIN-6698; 1.3.6.1.4.1.14519.5.2\n"),
        ),
        cell("5", data(html="<p>ISPY1&#95;1001</p>"), data(markdown="| pid |\n|--:|\n| AMBL-001 |\n| x |")),
    )
    write_page(folder, "The study", tmp_path / "report.html", synthetic=True)
    text = (tmp_path / "report.html").read_text()
    assert not re.search("1001|Jane|102212|14519|AMBL", text)
    first, jane, acrin, ambl, x = map(digest, ("ISPY1_1001", "Jane", "ACRIN-6698-102212", "AMBL-001", "x"))
    assert f"<pre>{first}, {acrin} of ACRIN-6698; (UID)</pre>" in text
    assert f"<p>{first}</p>" in text and f"<td>{ambl}</td>" in text and f"<td>{x}</td>" in text
    assert [text.count(f"{name}<") for name in (first, jane)] == [4, 3]
    assert first == alias("ISPY1_1001")


def with_texts(**texts):
    """A PNG that carries texts."""
    info, buffer = PngInfo(), io.BytesIO()
    for key, text in texts.items():
        info.add_text(key, text)
    Image.new("RGB", (4, 4)).save(buffer, "PNG", pnginfo=info)
    return base64.b64encode(buffer.getvalue()).decode()


@pytest.mark.parametrize(
    "patient", ["ISPY2-427321", "ACRIN-6698-102212", "ISPY1_1001", "Breast_MRI_001", "AMBL-632"]
)
def test_no_place_of_a_notebook_brings_a_patients_identifier_or_path_into_the_report(folder, tmp_path, patient):
    """A hand-run notebook's name, prose, headings, links, sources, outputs of all kinds, pictures' own texts."""
    escaped, picture = patient.replace("_", "&#95;"), with_texts(Title=patient, Source=f"/data/{patient}")
    save(
        folder,
        f"05_network-{patient}",
        f"# 5. About {patient}\n\nThe network of {patient}, [see](../data/{patient}/1.dcm).",
        cell(f"patient = '{patient}'", data(plain=f"'{patient}_dce_0.nii.gz'")),
        f"## {patient}",
        cell("draw()", data(png=picture, plain=f"<Figure of {patient}>")),
        cell("1", v4.new_output("stream", text=f"/mnt/x/{patient}/1.dcm, x{patient}y, data\\{patient}\\1\r\n")),
        cell("2", data(html=f"<p title='{patient}'>{escaped}</p>"), data(markdown=f"# {patient}")),
        cell("3", data(html=pd.DataFrame({"file": [f"acquire/{patient}/1.dcm"], patient: 1}).to_html())),
    )
    save(folder, "06_x", f"# 6. Windows\n\nSee [the notebook](05_network-{patient}.ipynb).")
    write_page(folder, "The study", tmp_path / "report.html", synthetic=False)
    text = (tmp_path / "report.html").read_text()
    assert_stands_alone(text)
    pictures = [base64.b64decode(i["src"].split(",")[1]) for i in Tags(text).of("img")]
    everything = text + html.unescape(text) + b"".join(pictures).decode("latin-1")
    assert patient.lower() not in everything.lower() and "/mnt" not in everything
    assert len(pictures) == 3 and text.count(digest(patient)) > 10


def test_every_patient_of_the_manifests_is_known_by_the_look_of_the_identifier():
    paths = [path for path in (TOP / "manifests").glob("*.csv") if path.stem != "releases"]
    patients = {row["patient"] for path in paths for row in rows_of(path)}
    assert len(patients) > 1000
    told = {patient: html_report._unnamed(f"{patient}, {patient}_dce.nii.gz") for patient in patients}
    assert told == {patient: f"{digest(patient)}, {digest(patient)}_dce.nii.gz" for patient in patients}


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("name", ["04_preparation_seen", "05_network", "08_external_validation"])
def test_what_a_notebook_draws_of_a_patient_is_not_titled_with_the_identifier(name):
    """Pictures cannot be searched, so this is held where their words are made."""
    notebook = nbformat.read(TOP / "notebooks" / f"{name}.ipynb", as_version=4)
    lines = [line.strip() for c in notebook.cells if c.cell_type == "code" for line in c.source.splitlines()]
    told = [line for line in lines if re.search(r'f".*\{[^}]*(patient\b|idxmax)', line)]
    assert told and all("alias(" in line for line in told if not line.startswith("raise "))
    assert not [line for line in lines if re.search(r"figures\.\w+\([^)]*, patient,", line)]


def test_the_figure_of_failures_names_nobody():
    from her2core.report import figures

    table = pd.DataFrame([{"patient": "AMBL-001", "label": 1, "lowest": 0.1, "probability": 0.2, "highest": 0.3}])
    figure = figures.failures(np.zeros((1, 3, 8, 8), np.uint8), table, (1, 9), "patients", 2.0, "a cohort")
    words = " ".join(t.get_text() for t in figure.findobj(match=lambda artist: hasattr(artist, "get_text")))
    assert digest("AMBL-001") in words and "AMBL" not in words


@pytest.mark.parametrize("folder", ["results", "figures", "manifests"])
def test_nothing_committed_tells_on_which_computer_it_was_made(folder):
    paths = [path for path in (TOP / folder).rglob("*") if path.is_file() and path.suffix not in (".png", ".pyc")]
    assert paths
    places = b"home|root|Users|tmp|mnt|media|var|opt|srv|scratch"
    absolute = re.compile(rb"(?<![\w./~+=-])/(?:%s)/[\w.-]|\b[A-Z]:\\+Users" % places)
    for path in paths:
        content = re.sub(rb'"image/png": "[^"]*"|base64,[\w+/=]*', b"", path.read_bytes())
        assert not absolute.search(content) and str(TOP).encode() not in content, path


@pytest.mark.parametrize(
    ("told", "kept"),
    [
        ("read /home/jane/data/x.npy", "read …/x.npy"),
        ("'/mnt/pacs/DOE^J/1.dcm'", "'…/DOE^J/1.dcm'"),
        (r"C:\Users\jane\x.nii and \\pacs\share\y", "…/x.nii and …/y"),
        ("file:///data/x.csv: 3", "…/x.csv: 3"),
        (
            "and/or, 3/4, results/tiny/x.csv, https://arxiv.org/abs/1",
            "and/or, 3/4, results/tiny/x.csv, https://arxiv.org/abs/1",
        ),
    ],
)
def test_absolute_paths_in_outputs_lose_their_folders(tmp_path, told, kept):
    assert html_report._Page(tmp_path / "00_x.ipynb").anonymous(told) == kept


def test_a_link_to_nowhere_a_failed_cell_and_an_empty_folder_are_refused(folder, tmp_path):
    out = tmp_path / "report.html"
    save(folder, "03_study", "# 3\n\n[x](#gone)")
    with pytest.raises(ValueError, match="a link to #03_study--gone, which is nowhere"):
        write_page(folder, "The study", out, synthetic=True)
    save(folder, "03_study", cell("1", v4.new_output("error", ename="KeyError", evalue="x", traceback=[])))
    with pytest.raises(ValueError, match="03_study.ipynb: a cell failed with KeyError"):
        write_page(folder, "The study", out, synthetic=True)
    with pytest.raises(ValueError, match="no executed notebook"):
        write_page(tmp_path / "none", "The study", out, synthetic=True)


def test_pictures_get_256_colours(folder, tmp_path, monkeypatch):
    big, out = png(128), tmp_path / "report.html"
    save(folder, "03_study", "# 3", cell("1", data(png=big)))
    size = write_page(folder, "The study", out, synthetic=True)
    pictures = [i["src"].split(",")[1] for i in Tags(out.read_text()).of("img")]
    image = Image.open(io.BytesIO(base64.b64decode(pictures[1])))
    assert (image.mode, image.size) == ("P", (128, 128))
    assert size == out.stat().st_size < size - len(pictures[1]) + len(big)
    monkeypatch.setattr(html_report, "_LIMIT", 1000)
    with pytest.raises(ValueError, match=f"expected at most 1000 bytes, found {size}; draw smaller figures"):
        write_page(folder, "The study", out, synthetic=True)


def test_a_transparent_picture_stands_on_white():
    buffer = io.BytesIO()
    Image.new("RGBA", (64, 64), (0, 0, 0, 0)).save(buffer, "PNG", compress_level=0)
    image = Image.open(io.BytesIO(html_report.in_256_colours(buffer.getvalue()))).convert("RGB")
    assert np.asarray(image).min() == 255


def test_the_command_writes_the_report_of_the_study_it_is_given(folder, tmp_path, monkeypatch):
    (tmp_path / "params.yaml").write_text(BARE.format("tiny"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="report: .*summary.md is not there yet; run first: dvc repro report"):
        html_report.main(["tiny"])
    (tmp_path / "results/tiny").mkdir(parents=True)
    (tmp_path / "results/tiny/summary.md").write_text("- **Above THDA?** ViT −0.10\n")
    with pytest.raises(SystemExit, match="report: .*no executed notebook; run the study first"):
        html_report.main(["tiny"])
    folder.rename(tmp_path / "results/tiny/executed")
    html_report.main(["tiny"])
    text = (tmp_path / "results/tiny/report.html").read_text()
    assert "the study on the tiny cohort</title>" in text and "synthetic cohort: phantom images" in text
    assert '<a href="../../README.md">Repository</a>' in text
    first = text.partition("<header>")[2].partition("</header>")[0]
    assert "<li><strong>Above THDA?</strong> ViT −0.10</li>" in first


def test_the_summary_on_the_first_screen_brings_no_html_and_no_patient(folder, tmp_path):
    summary = "**Found.** PHANTOM-SPY1-0781 <b>x</b>\n"
    write_page(folder, "The study", tmp_path / "report.html", synthetic=False, summary=summary)
    text = (tmp_path / "report.html").read_text()
    assert_stands_alone(text)
    assert "SPY1-0781" not in text and "<strong>Found.</strong>" in text and "&lt;b&gt;x&lt;/b&gt;" in text


def test_the_first_screen_leads_to_the_repository_and_the_paper(tmp_path):
    cited = tmp_path / "CITATION.cff"
    paper = "references:\n- {title: a, url: 'https://arxiv.org/abs/2510.13897'}\n- {title: b}\n"
    cited.write_text(paper)
    arxiv = ("arxiv.org/abs/2510.13897", "https://arxiv.org/abs/2510.13897")
    assert html_report._links(cited) == [("Repository", "../../README.md"), arxiv]
    cited.write_text(f"repository-code: https://example.org/r\n{paper}")
    assert html_report._links(cited) == [("Repository", "https://example.org/r"), arxiv]


def test_the_command_needs_the_name_of_a_study_that_there_is(tmp_path, monkeypatch):
    (tmp_path / "params.yaml").write_text(BARE.format("tiny"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="python -m her2core.report.page COHORT"):
        html_report.main([])
    with pytest.raises(SystemExit, match="report: no study 'other'; there are tiny"):
        html_report.main(["other"])


@pytest.mark.skipif(not EXECUTED.is_dir(), reason="no executed notebooks here")
def test_the_committed_notebooks_make_one_page_of_reasonable_size(tmp_path):
    size = write_page(EXECUTED, "The study", tmp_path / "report.html", synthetic=True)
    text = (tmp_path / "report.html").read_text()
    assert_stands_alone(text)
    notebooks = {p.stem.partition("-")[0] for p in EXECUTED.glob("0[0-9]*.ipynb") if ".part." not in p.name}
    assert text.count('<p class="banner">synthetic cohort: phantom images') == 1 + len(notebooks)
    assert not re.search(r"PHANTOM-\w+-\d", text)
    assert size == (tmp_path / "report.html").stat().st_size <= 6_000_000


@pytest.fixture
def browser():
    """Chromium, driven by selenium; both are no dependencies of the compendium."""
    webdriver = pytest.importorskip("selenium.webdriver")
    if not (chromium := shutil.which("chromium")):
        pytest.skip("no chromium here")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in "--headless=new --no-sandbox --disable-gpu --disable-background-networking".split():
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.chrome.service.Service(shutil.which("chromedriver"))
    driver = webdriver.Chrome(options=options, service=service)
    driver.set_script_timeout(300)  # axe on a busy machine
    driver.command_executor.client_config.timeout = 300
    yield driver
    driver.quit()


@pytest.mark.slow
@pytest.mark.skipif("AXE" not in os.environ, reason="npm install axe-core; AXE=node_modules/axe-core/axe.min.js")
@pytest.mark.skipif(not EXECUTED.is_dir(), reason="no executed notebooks here")
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 420])
def test_in_a_browser_all_is_accessible_and_the_search_leads_to_what_was_looked_for(
    tmp_path, browser, width, scheme
):
    write_page(EXECUTED, "The study", tmp_path / "report.html", synthetic=True)
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    preference = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", preference)
    browser.get((tmp_path / "report.html").as_uri())
    browser.execute_script(
        "document.querySelectorAll('input[type=checkbox]').forEach((box) => { box.checked = true; });"
        "document.querySelectorAll('details').forEach((box) => { box.open = true; });"
    )
    browser.execute_script(Path(os.environ["AXE"]).read_text())
    run = "axe.run({resultTypes: ['violations']}).then((found) => arguments[0](found.violations.map((v) => v.id)))"
    assert browser.execute_async_script(run) == []
    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    wanted = browser.find_element("id", "wanted")
    wanted.send_keys("most CONFIDENT mistakes\n")
    assert browser.find_element("id", "told").text == "place 1 of 1"
    assert [a.text for a in browser.find_elements("css selector", "#results a")] == ["Failures (1)"]
    place = "document.getElementById('08_external_validation--failures').getBoundingClientRect()"
    assert 0 < browser.execute_script(f"return {place}.top") < 900
    assert browser.get_log("browser") == []
