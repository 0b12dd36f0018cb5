"""One page that stands alone: nothing is loaded, every link arrives, every picture has a text alternative."""

import base64
import io
from html.parser import HTMLParser
from pathlib import Path

import nbformat.v4 as v4
import numpy as np
import pytest
from nbformat import write
from PIL import Image

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
    names = {"html": "text/html", "png": "image/png", "plain": "text/plain"}
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


def assert_stands_alone(text):
    tags = Tags(text)
    assert not {"script", "iframe", "object", "embed"} & {t for t, _ in tags.tags}
    assert all(i["src"].startswith("data:image/png;base64,") for i in tags.of("img"))
    assert all(link["href"] == "data:," for link in tags.of("link"))
    assert "url(" not in text.split("</style>")[0] and "@import" not in text.split("</style>")[0]
    assert all(i["alt"].strip() for i in tags.of("img"))
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
    contents = page[page.index("<nav") : page.index("</nav>")]
    assert '<a href="#02_training">2. Training</a>' in contents and "vit" not in contents
    assert '<a href="#00_cohort--counts-more-2">Counts &amp; more</a>' in contents


@pytest.mark.parametrize(("synthetic", "count"), [(True, 1 + 4), (False, 0)])
def test_every_notebook_of_a_synthetic_cohort_carries_the_banner_and_no_other_does(
    folder, tmp_path, synthetic, count
):
    write_page(folder, "The study", tmp_path / "report.html", synthetic)
    text = (tmp_path / "report.html").read_text()
    assert text.count('<p class="banner">embedded synthetic cohort') == count
    for section in text.split("<section")[1:]:
        assert ("banner" in section) == (synthetic and 'id="02_training">' not in section[:30])


def test_code_is_folded_escaped_and_prose_is_not(page):
    folded = page[page.index('<details class="code">') :]
    assert "&lt;b&gt;" in folded[: folded.index("</details>")]
    assert page.count('<details class="code">') == 4  # the empty cell has none
    assert "<pre>100 %\nred &lt;i&gt;</pre>" in page and "<pre>&#39;a &lt;tag&gt;&#39;</pre>" in page


def test_tables_scroll_in_their_own_box_and_bring_no_style(page):
    assert page.count('<div class="scroll" tabindex="0"><table') == 2
    assert "scoped" not in page


def test_a_picture_is_described_by_the_heading_above_it(page):
    alts = [i["alt"] for i in Tags(page).of("img")]
    assert alts == ["Counts & more (figure 1 of 00_cohort)", "5. Elsewhere (figure 1 of 08_external)"]


def test_headings_sink_below_the_title_so_that_there_is_one_first_heading(page):
    assert page.count("<h1") == 1 and '<h2 id="00_cohort--0-who-what">0. Who &amp; what</h2>' in page
    assert page.count("<h4") == page.count("</h4>") == 2  # `## Data` of both runs


def test_headings_of_one_name_get_ids_of_their_own(tmp_path):
    page = html_report._Page(tmp_path / "00_x.ipynb", False)
    page.prose("## Seed 2\n## Seed\n## Seed\n## `Seed`")
    assert [i for _, i, _ in page.headings] == ["00_x--seed-2", "00_x--seed", "00_x--seed-3", "00_x--seed-4"]


def test_a_link_out_of_the_notebooks_folder_leads_there_from_the_reports(tmp_path):
    page = html_report._Page(tmp_path / "09_report.ipynb", False)
    assert page.link("../results/x.md") == "../../results/x.md"
    assert page.link("10_predict_case.ipynb") == "../../notebooks/10_predict_case.ipynb"
    assert page.link("06_normalization_study.ipynb") == "#06_normalization_study"
    assert page.link("https://arxiv.org/abs/2510.13897") == "https://arxiv.org/abs/2510.13897"


def test_ones_own_case_and_half_run_notebooks_stay_out(folder, tmp_path, page):
    save(folder, "10_predict_case-me", "# Private")
    save(folder, "09_report.part", "# Half")
    write_page(folder, "The study", tmp_path / "again.html", synthetic=True)
    assert (tmp_path / "again.html").read_text() == page


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (cell("1", data(html="<script>alert(1)</script>")), "<script>"),
        (cell("1", data(html="<img src='https://example.org/a.png'>")), r"<img src='https://example.org"),
        (cell("1", data(html="<p onclick='x()'>")), "<p onclick="),
        (cell("1", data(html="<p style='background: url(x)'>")), "<p style="),
        ("![a figure](roc.png)", "<img src='roc.png'>"),
    ],
    ids=["script", "image elsewhere", "handler", "style", "image beside"],
)
def test_what_would_be_loaded_or_run_is_refused_with_the_notebooks_name(folder, tmp_path, content, found):
    save(folder, "03_study", "# 3", content)
    with pytest.raises(ValueError, match=f"03_study.ipynb: the report must stand alone, found {found}"):
        write_page(folder, "The study", tmp_path / "report.html", synthetic=True)
    assert not (tmp_path / "report.html").exists()


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


def test_pictures_get_256_colours_only_when_the_page_is_too_large(folder, tmp_path):
    big, out = png(128), tmp_path / "report.html"
    save(folder, "03_study", "# 3", cell("1", data(png=big)))
    whole = write_page(folder, "The study", out, synthetic=True)
    assert big in out.read_text()
    smaller = write_page(folder, "The study", out, synthetic=True, limit=whole - 1)
    assert smaller < whole and big not in out.read_text()
    inlined = [i["src"] for i in Tags(out.read_text()).of("img")][1].split(",")[1]
    image = Image.open(io.BytesIO(base64.b64decode(inlined)))
    assert (image.mode, image.size) == ("P", (128, 128))
    assert_stands_alone(out.read_text())
    with pytest.raises(ValueError, match="expected at most 1000 bytes, found"):
        write_page(folder, "The study", out, synthetic=True, limit=1000)


def test_a_transparent_picture_stands_on_white():
    buffer = io.BytesIO()
    Image.new("RGBA", (64, 64), (0, 0, 0, 0)).save(buffer, "PNG", compress_level=0)
    image = Image.open(io.BytesIO(html_report.in_256_colours(buffer.getvalue()))).convert("RGB")
    assert np.asarray(image).min() == 255


def test_the_command_writes_the_report_of_the_study_it_is_given(folder, tmp_path, monkeypatch):
    (tmp_path / "params.yaml").write_text("name: tiny\nacquire: {source: phantom}\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="report: .*no executed notebook; run the study first"):
        html_report.main(["tiny"])
    (tmp_path / "results/tiny").mkdir(parents=True)
    folder.rename(tmp_path / "results/tiny/executed")
    html_report.main(["tiny"])
    text = (tmp_path / "results/tiny/report.html").read_text()
    assert "the study on the tiny cohort</title>" in text and "embedded synthetic cohort" in text


def test_the_command_needs_the_name_of_a_study_that_there_is(tmp_path, monkeypatch):
    (tmp_path / "params.yaml").write_text("name: tiny\nacquire: {source: phantom}\n")
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
    notebooks = [p for p in EXECUTED.glob("0[0-9]*.ipynb") if ".part." not in p.name]
    assert text.count('<p class="banner">embedded synthetic cohort') == 1 + len(notebooks)
    assert size == (tmp_path / "report.html").stat().st_size <= 10_000_000
