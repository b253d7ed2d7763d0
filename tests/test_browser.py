"What a reader does, in a real browser: JupyterLab from the start page to an explorer, and the documentation site. `make test-browser`."
import functools, http.server, json, os, re, shutil, subprocess, sys, threading
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.browser
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


@pytest.fixture(scope="module")
def browser():
    sync = pytest.importorskip("playwright.sync_api").sync_playwright
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None: pytest.skip("no Chromium")
    with sync() as p:
        browser = p.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    "The project as a clone has it, for the reader to change."
    folder = tmp_path_factory.mktemp("project")/"main"
    names = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    for name in names:
        if not (ROOT/name).is_file(): continue
        (folder/name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT/name, folder/name)
    return folder


# ---- JupyterLab

@pytest.fixture(scope="module")
def server(copy, tmp_path_factory, served_lab):
    "The address of a JupyterLab that keeps all cells of a notebook in the page."
    home = tmp_path_factory.mktemp("jupyter")
    settings = home/"settings"/"@jupyterlab"
    for name, values in {"notebook-extension/tracker": dict(windowingMode="none"), "apputils-extension/notification": dict(fetchNews="false", checkForUpdates=False)}.items():
        (settings/name).parent.mkdir(parents=True, exist_ok=True)
        (settings/f"{name}.jupyterlab-settings").write_text(json.dumps(values))
    with served_lab(copy, home, "--LabApp.expose_app_in_browser=True", JUPYTERLAB_SETTINGS_DIR=str(home/"settings"), JUPYTERLAB_WORKSPACES_DIR=str(home/"workspaces"), XDG_CACHE_HOME=str(home/"cache")) as address: yield address


class Lab:
    "A browser window with JupyterLab."
    def __init__(self, page, address):
        self.page, self.faults = page, []
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.set_default_timeout(300000)
        page.goto(f"{address}&reset") # not where the test before left it
        page.wait_for_function("window.jupyterapp && jupyterapp.shell.currentWidget && jupyterapp.shell.currentWidget.context && jupyterapp.shell.currentWidget.context.isReady")
        page.evaluate("jupyterapp.restored.then(() => null)")

    @property
    def path(self): return self.page.evaluate("jupyterapp.shell.currentWidget.context.path")

    def open(self, path):
        self.page.evaluate("path => jupyterapp.commands.execute('docmanager:open', {path}).then(() => null)", path)
        self.page.wait_for_function("path => jupyterapp.shell.currentWidget.context?.path == path && jupyterapp.shell.currentWidget.context.isReady", arg=path)

    def run(self, seconds=180):
        "Run every cell; the errors among the outputs."
        self.page.wait_for_function("jupyterapp.shell.currentWidget.sessionContext.session?.kernel?.status == 'idle'")
        self.page.evaluate("jupyterapp.commands.execute('notebook:run-all-cells')")
        self.page.wait_for_function("""[...jupyterapp.shell.currentWidget.content.widgets].every(cell => cell.model.type != 'code' || !cell.model.sharedModel.getSource().trim() || cell.model.executionCount)""", timeout=seconds*1000)
        return self.page.evaluate("""[...jupyterapp.shell.currentWidget.content.widgets].filter(cell => cell.model.type == 'code').flatMap(cell => cell.model.outputs.toJSON()).filter(out => out.output_type == 'error').map(out => out.ename + ': ' + out.evalue)""")

    def close(self): self.page.evaluate("jupyterapp.commands.execute('notebook:shutdown-kernel')")


@pytest.fixture
def lab(browser, server):
    page = browser.new_page(viewport=dict(width=1400, height=1000))
    lab = Lab(page, server)
    yield lab
    page.close()


def test_from_the_start_page_to_a_chapter(lab):
    "The start page is open; a card leads to chapter 03, which runs from top to bottom."
    assert lab.path == "nbs/start.ipynb"
    assert not lab.run()
    lab.page.locator('.jp-RenderedMarkdown a', has_text=re.compile("^distillation$")).last.click()
    lab.page.wait_for_function("jupyterapp.shell.currentWidget.context?.path == 'nbs/information/03_distillation.ipynb' && jupyterapp.shell.currentWidget.context.isReady")
    assert not lab.run()
    assert lab.page.locator(".jp-RenderedMarkdown mjx-container").count() > 20 and not lab.faults
    lab.close()


def picture_of(control): return control.locator("xpath=ancestor::*[.//img][1]").locator("img").first


def test_a_slider_moves_and_the_picture_changes(lab):
    lab.open("nbs/looking/22_widgets.ipynb")
    assert not lab.run()
    slider = lab.page.locator(".jp-OutputArea .widget-slider [role=slider]").first
    slider.scroll_into_view_if_needed()
    picture = picture_of(slider)
    before = picture.get_attribute("src")
    slider.focus()
    for _ in range(4): slider.press("ArrowRight")
    lab.page.wait_for_function("([image, before]) => image.src != before", arg=[picture.element_handle(), before])
    assert not lab.faults
    lab.close()


def test_the_retrieval_explorer_answers_a_click(lab):
    lab.open("nbs/looking/22b_explorers.ipynb")
    assert not lab.run(300)
    query = lab.page.locator('button.widget-toggle-button[title^="query"]').nth(3)
    query.scroll_into_view_if_needed()
    picture = picture_of(query)
    before = picture.get_attribute("src")
    query.click()
    lab.page.wait_for_function("([image, before]) => image.src != before", arg=[picture.element_handle(), before])
    assert not lab.faults
    lab.close()


# ---- the site

@pytest.fixture(scope="module")
def site(copy):
    "The built site, served; its address."
    done = subprocess.run([sys.executable, "tools/docs.py"], cwd=copy, capture_output=True, text=True, env=dict(os.environ, PYTHONPATH=str(copy)))
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_): pass
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=copy/"_docs")) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{served.server_port}"
        served.shutdown()


@pytest.fixture
def page(browser, site):
    "A page that may ask this site only."
    page = browser.new_page(viewport=dict(width=1280, height=900))
    page.outside = []
    def only_here(route):
        if route.request.url.startswith((site, "data:", "blob:")): return route.continue_()
        page.outside.append(route.request.url)
        route.abort()
    page.route("**/*", only_here)
    yield page
    assert not page.outside
    page.close()


def test_search_finds(page, site):
    page.goto(f"{site}/index.html")
    page.keyboard.press("/") if not page.locator("input[type=search], .aa-Input, #search-input").first.is_visible() else None
    box = page.locator("input[type=search], input[type=text], .aa-Input").first
    box.fill("variational mutual learning")
    page.get_by_role("link", name=re.compile("distillation", re.I)).filter(visible=True).first.wait_for()


def test_a_symbol_and_its_mathematics(page, site):
    page.goto(f"{site}/api/distillation.html")
    page.locator("a[href*='03_distillation.html#def-vml_loss']").first.click()
    page.wait_for_url("**/03_distillation.html#def-vml_loss")
    page.wait_for_function("Math.abs(document.querySelector('#def-vml_loss').getBoundingClientRect().top) < 300") # it lands there
    page.wait_for_function("document.querySelectorAll('.katex-html').length > 20")
    assert not page.locator(".katex-error").count() and "$$" not in page.locator("main").inner_text()


def test_stored_widgets_move(page, site):
    page.goto(f"{site}/looking/22_widgets.html")
    slider = page.locator(".widget-slider [role=slider]").first
    slider.wait_for()
    shown = lambda: page.evaluate("[...document.querySelectorAll('img.widget-image')].map(image => image.src)")
    moved = 0
    for slider in page.locator(".widget-slider [role=slider]").all():
        before = shown()
        slider.scroll_into_view_if_needed()
        slider.focus()
        for _ in range(3): slider.press("ArrowRight")
        page.wait_for_timeout(300)
        moved += shown() != before
    assert moved == 4 # a flipbook for each explorer; the panels themselves need Python


@pytest.mark.parametrize("width, scheme", [(390, "light"), (1280, "dark")])
def test_every_page_fits(page, site, copy, width, scheme):
    "No page is wider than its window, lacks a picture, or reports a fault; on a phone and on a desk, by day and by night."
    names, faults = sorted(p.relative_to(copy/"_docs").as_posix() for p in (copy/"_docs").rglob("*.html")), []
    name = None
    page.on("pageerror", lambda error: faults.append(f"{name}: {error}"))
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size(dict(width=width, height=844))
    for name in names:
        page.goto(f"{site}/{name}")
        page.wait_for_load_state("networkidle")
        cut = page.evaluate("[...document.querySelectorAll('pre.sourceCode.python')].filter(c => c.scrollWidth > c.clientWidth + 1).length")
        if cut: faults.append(f"{name}: {cut} pieces of code do not fit")
        if (wide := page.evaluate("document.documentElement.scrollWidth")) > width: faults.append(f"{name}: {wide} wide")
        faults += [f"{name}: no picture {source}" for source in page.evaluate("[...document.images].filter(i => i.loading != 'lazy' && i.complete && !i.naturalWidth).map(i => i.src.slice(0, 80))")]
    assert len(names) > 100 and not faults
