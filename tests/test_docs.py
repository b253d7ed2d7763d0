"The documentation site: does the checker see each fault, and is a small site whole without Quarto and without a network?"
import base64, io, json, re, sys
from pathlib import Path
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent/"tools"))
smalldocs = pytest.importorskip("smalldocs", reason="the site is built by Quarto or smalldocs (extra dev)")
import check_site, docs, site_libs

WHOLE = '<a href="b.html#here">b</a><img src="p.png" alt="a picture"><div class="table-scroll"><table><tr><td>1</td></tr></table></div><a href="https://example.org">out</a>'

def site(folder, body, style=""):
    "Two pages that lead to each other, a picture, and whatever is to be found."
    folder.mkdir(exist_ok=True)
    (folder/"index.html").write_text(f"<html><body>{WHOLE}{body}</body></html>", encoding="utf-8")
    (folder/"b.html").write_text('<h2 id="here">b</h2><a href="index.html">a</a>', encoding="utf-8")
    (folder/"p.png").write_bytes(b"")
    (folder/"styles.css").write_text(style or ".table-scroll { overflow-x: auto; }", encoding="utf-8")
    return check_site.check(folder)

def test_a_whole_site_has_no_fault(tmp_path):
    assert site(tmp_path/"s", "") == ([], ["https://example.org"])

@pytest.mark.parametrize("body,fault", {
    '<a href="gone.html">x</a>': "index.html: broken link: gone.html",
    '<a href="b.html#gone">x</a>': "index.html: broken anchor: b.html#gone",
    '<a href="#gone">x</a>': "index.html: broken anchor: #gone",
    '<img src="gone.png" alt="x">': "index.html: broken link: gone.png",
    '<img src="p.png">': "index.html: image without alt text: p.png",
    '<img src="p.png" alt=" ">': "index.html: image without alt text: p.png",
    "<pre><code><span>#| export</span>\ndef f(): pass</code></pre>": "index.html: raw directive: #| export",
    "<p>see $$x^2$$</p>": "index.html: raw mathematics: see $$x^2$$",
    "<p>see $x_1$ there</p>": "index.html: raw mathematics: see $x_1$ there",
    "<p>\n::: {.note}\n</p>": "index.html: raw division: ::: {.note}",
    "<p>x {=html}</p>": "index.html: raw attribute: x {=html}",
    "<table><tr><td>1</td></tr></table>": "index.html: table without a scroll of its own",
    '<script src="https://cdn.example.org/x.js"></script>': "index.html: loads from elsewhere: https://cdn.example.org/x.js",
    '<link rel="stylesheet" href="//cdn.example.org/x.css">': "index.html: loads from elsewhere: //cdn.example.org/x.css",
    '<script type="application/vnd.jupyter.widget-view+json">{"model_id": "m1"}</script>': "index.html: widget m1 has no stored state",
}.items())
def test_each_fault_is_found(tmp_path, body, fault):
    assert site(tmp_path/"s", body)[0] == [fault]

def test_faults_between_pages_and_in_styles(tmp_path):
    (tmp_path/"s").mkdir()
    (tmp_path/"s"/"lost.html").write_text('<a href="index.html">one way</a><a href="lost.html">here</a>', encoding="utf-8")
    faults, _ = site(tmp_path/"s", "", "@import url(https://fonts.example.org/a.css); .table-scroll { color: red; }")
    assert faults == ["styles.css: loads from elsewhere: https://fonts.example.org/a.css", "styles.css: .table-scroll does not scroll", "lost.html: no page leads to it"]

def test_code_may_hold_dollars_and_a_stored_widget_is_no_fault(tmp_path):
    state = json.dumps(dict(state=dict(m1={})))
    view = json.dumps(dict(model_id="m1"))
    assert site(tmp_path/"s", f'<code>$a_1$ $b</code><script type="application/vnd.jupyter.widget-state+json">{state}</script><script type="application/vnd.jupyter.widget-view+json">{view}</script>')[0] == []

# ---------------------------------------------------------------- a small site

def png():
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), "white").save(buffer, "png")
    return base64.b64encode(buffer.getvalue()).decode()

def code(source, *outputs): return dict(cell_type="code", metadata={}, execution_count=None, source=source, outputs=[dict(output_type="display_data", metadata={}, data=d) for d in outputs])
def text(source): return dict(cell_type="markdown", metadata={}, source=source)

WIDGET = {docs.WIDGET: dict(model_id="m1", version_major=2, version_minor=0), "text/plain": "IntSlider()"}
TOOLTIP = dict(m1=dict(model_name="ImageModel", state=dict(tooltip="a picture")))
CHAPTER = [text("# maths\n\n> Adding, and $x^2$."), code("#| default_exp maths"), code("#| hide\nsecret = 1"), code('#| export\ndef add(\n    a: int, # nats\n    b: int = 0,\n) -> int: # nats\n    "The sum."\n    return a + b'),
           text("## A heading: with a colon\n\nThe log is in [changes](../../CHANGELOG.md), the start in [index](../index.ipynb#Two-Words)."), code("draw()", {"image/png": png()}), text("A curve goes up. Then down."),
           code("table", {"text/html": "<table><tr><td>1 ± 2</td></tr></table>", "text/plain": "1"}), code("slider", WIDGET),
           text("1. Why?\n<details><summary>Hint</summary>Because $a_1 = \\sqrt{2}$.</details>\n\nBack to [above](#A-heading:-with-a-colon), <a href=\"../index.ipynb\">out</a>, and `add()`.")]

@pytest.fixture
def project(tmp_path, monkeypatch):
    "A project of two notebooks and one module; no Quarto, no network, nothing in the cache."
    monkeypatch.setattr(docs.shutil, "which", lambda name: None)
    monkeypatch.setattr(site_libs, "CACHE", tmp_path/"cache")
    def refused(*args): raise OSError("no network")
    monkeypatch.setattr(site_libs.urllib.request, "urlretrieve", refused)
    monkeypatch.syspath_prepend(tmp_path)
    for name, cells, state in (("index", [text("# tiny\n\n> A small one."), text("## Two Words\n\nHello.")], {}), ("part/01_maths", CHAPTER, dict(widgets={docs.STATE: dict(version_major=2, version_minor=0, state=TOOLTIP)}))):
        docs.write(tmp_path/f"nbs/{name}.ipynb", json.dumps(dict(cells=cells, metadata=state, nbformat=4, nbformat_minor=5)))
    docs.write(tmp_path/"nbs/styles.css", ".table-scroll { overflow-x: auto; }")
    docs.write(tmp_path/"CHANGELOG.md", "# Changelog\n\n- first\n")
    docs.write(tmp_path/"tiny_docs_package/__init__.py", "")
    docs.write(tmp_path/"tiny_docs_package/maths.py", '__all__ = ["add"]\n\n# %% ../nbs/part/01_maths.ipynb #c\n' + CHAPTER[3]["source"].partition("\n")[2])
    (tmp_path/"_quarto.yml").write_text("""project: {type: website, resources: ["gallery/*", "repository/**"]}
format: {html: {theme: {light: cosmo, dark: darkly}, css: styles.css, toc: true}}
smalldocs: {linkify: true}
website:
  title: tiny
  sidebar:
    contents:
      - index.ipynb
      - section: Part
        contents: [part/01_maths.ipynb, gallery.qmd, changelog.md, "api/*.qmd"]
""", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path

def test_a_small_site_is_whole_without_a_network(project, capsys):
    assert docs.build(project, package="tiny_docs_package") == []
    said = capsys.readouterr().out
    assert said.count("the site is built without it") == len(site_libs.PACKAGES)
    page = (project/"_docs/part/01_maths.html").read_text(encoding="utf-8")
    assert "secret" not in page and "default_exp" not in page and "cdn.jsdelivr" not in page
    assert 'id="def-add"' in page and "add" in page and "../api/maths.html" in page and "../source/maths.html" in page
    assert 'alt="A heading: with a colon: A curve goes up."' in page
    assert "1&nbsp;±&nbsp;2" in page
    assert '<span class="code-line"' in page
    assert "../changelog.html" in page and "../index.html#two-words" in page
    assert "widget-view+json" in page and '"description": ""' in page
    assert '<a href="../notebooks/part/01_maths.ipynb" download' in page and (project/"_docs/notebooks/part/01_maths.ipynb").exists()
    api = (project/"_docs/api/maths.html").read_text(encoding="utf-8")
    assert "../part/01_maths.html#def-add" in api and "../source/maths.html#add" in api and "nats" in api and "The sum." in api
    gallery = (project/"_docs/gallery.html").read_text(encoding="utf-8")
    assert 'href="part/01_maths.html#picture-5"' in gallery and (project/"_docs/gallery/part-01_maths-0.webp").exists()
    assert "A small one" in (project/"_docs/search.js").read_text(encoding="utf-8") or "Hello" in (project/"_docs/search.js").read_text(encoding="utf-8")

def test_long_lines_of_code_go_on_below():
    "Nothing of the code is lost, each line is a block, and a string over two lines is coloured in both."
    code = 'if x:\n    <span class="bu">print</span>(<span class="st">"""a</span>\n<span class="st">  b"""</span>, <span class="st">"""c\n  d"""</span>)'
    made = docs.lines_that_wrap(code)
    words = lambda html: re.sub(r"<[^>]+>", "", html)
    assert words(made) == words(code) + "\n"
    lines = made.split('<span class="code-line"')[1:]
    assert [re.search(r"--in: (\d+)ch", line)[1] for line in lines] == ["4", "8", "6", "6"]
    assert all(('<span class="code-line"' + line).count("<span") == line.count("</span>") for line in lines)
    assert lines[3].count('<span class="st">') == 1

def test_a_chapter_that_the_sidebar_forgets_is_named(project):
    docs.write(project/"nbs/02_lost.ipynb", json.dumps(dict(cells=[text("# lost\n\n> Nobody leads here."), code("draw()", {"image/png": png()})], metadata={}, nbformat=4, nbformat_minor=5)))
    assert docs.build(project, package="tiny_docs_package") == ["_quarto.yml: 02_lost.ipynb is not in the sidebar"]

def test_a_widget_without_its_state_is_named(project):
    docs.write(project/"nbs/part/01_maths.ipynb", json.dumps(dict(cells=CHAPTER, metadata={}, nbformat=4, nbformat_minor=5)))
    assert docs.build(project, package="tiny_docs_package") == ["part/01_maths.html: widget m1 has no stored state"]

def test_a_package_with_another_content_is_refused(project):
    (project/"cache").mkdir()
    kept = project/"cache/requirejs-2.3.8.tgz"
    kept.write_bytes(b"something else")
    with pytest.raises(OSError, match="is not the file whose hash"): site_libs.tarball("requirejs", *site_libs.PACKAGES["requirejs"][:2])
    assert not kept.exists()

@pytest.mark.parametrize("before,after,alt", [
    ("## Here\n\nBefore it. And last.", "Shown is *this*. And more.", "Here: Shown is this."),
    ("## Here\n\nBefore it. And last.", "## Next", "Here: And last."),
    ("## Here", "", "Here"),
])
def test_what_a_picture_shows_in_words(before, after, alt):
    cells = [text(before), code("draw()"), text(after)]
    assert docs.alternative(cells, 1, "Here") == alt
