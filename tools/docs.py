"""Build the documentation site into _docs/: prepare pages in _proc/, render them (Quarto where it is installed, else smalldocs), finish, check.

Nothing is run: pages show the outputs that the notebooks hold. What a page needs of others (mathematics, widgets, fonts) lies in the site."""
import ast, html, importlib, io, json, re, shutil, subprocess, sys, time
from base64 import b64decode
from pathlib import Path, PurePosixPath
import yaml
from PIL import Image
import check_site, site_libs

PAGES = (".ipynb", ".md", ".qmd")
WIDGET = "application/vnd.jupyter.widget-view+json"
STATE = "application/vnd.jupyter.widget-state+json"
# section of the sidebar: what its reader wants, and where to begin
READERS = {
    "How do I …": ("Seven questions, each answered by a page that runs.", "guides/losses_in_my_trainer.ipynb", "guides/my_own_pairs.ipynb"),
    "Theory": ("What the three losses are, equation by equation, and which claims survive exact systems.", "information/03_distillation.ipynb", "experiments/claims.ipynb"),
    "Practice on a Re-ID set": ("From a folder of visible and infrared images to a trained network, its scores and its failures.", "cli/30_cli.ipynb", "reid/10c_archives.ipynb", "reid/16_training.ipynb"),
    "Estimation": ("Mutual information in nats: which numbers are bounds, of what, and when not to believe them.", "information/04_bounds.ipynb", "information/05_estimation.ipynb"),
    "Experiments": ("One question a page, with seeds, intervals and negative results.", "experiments/does_it_help.ipynb", "experiments/can_z_pass_v.ipynb"),
    "Looking up": ("Every picture, every public name, speeds, and what changed.", "looking/20_plots.ipynb", "bench/24_benchmark.ipynb"),
}

# ---------------------------------------------------------------- a notebook becomes a page

def text_of(value): return "".join(value) if isinstance(value, list) else value or ""

def plain(markdown):
    "A line of Markdown as text: no links, marks or headings."
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", markdown)
    return re.sub(r"\s+", " ", re.sub(r"[*`#>|]+|\$+", "", text)).strip()

def sentence(markdown, last=False):
    "The first (or last) sentence of the prose in a Markdown cell, as plain text; empty where there is none."
    prose = [block for block in re.split(r"\n\s*\n", markdown) if not re.match(r"\s*(#|\||```|\$\$|:::|<|[-*] |\d+\. )", block)]
    found = re.split(r"(?<=[.!?:])\s+(?=[A-ZΑ-Ω$`\"])", plain(prose[-1 if last else 0])) if prose else [""]
    return found[-1 if last else 0][:300]

def unfold(markdown):
    "Blank lines within <details>, without which its Markdown and mathematics stay as they are typed."
    return re.sub(r"([ \t]*)<details>\s*<summary>(.*?)</summary>\s*(.*?)\s*</details>", lambda m: f"\n{m[1]}<details><summary>{m[2]}</summary>\n\n{m[1]}{m[3]}\n\n{m[1]}</details>\n", markdown, flags=re.S)

def options(source):
    "A code cell in three: Quarto's options (`key: value`), nbdev's directives, and the code below them."
    lines = re.findall(r"^\s*#\|[ \t]*(.*?)[ \t]*$", source, re.M)
    keys = dict(line.split(":", 1) for line in lines if re.match(r"[\w-]+:\s", line))
    return {k: v.strip() for k, v in keys.items()}, {line.split()[0] for line in lines if line and line.split(":")[0] not in keys}, re.sub(r"^\s*#\|.*\n?", "", source, flags=re.M).strip("\n")

def defined(code):
    "Names of the functions and classes at the top level of a piece of code."
    try: return [node.name for node in ast.parse(code).body if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef))]
    except SyntaxError: return []

def alternative(cells, i, heading):
    "What a picture shows, for who cannot see it: its caption, else the heading over it and the sentence that comes next (or before)."
    after = next((c for c in cells[i+1:i+3] if c["cell_type"] == "markdown"), None)
    before = next((c for c in reversed(cells[:i]) if c["cell_type"] == "markdown"), None)
    said = after and not text_of(after["source"]).lstrip().startswith("#") and sentence(text_of(after["source"])) or before and sentence(text_of(before["source"]), last=True)
    return f"{heading}: {said}" if said else heading

def shown(output):
    "An output as a static page can show it. A widget is only its view: where its state is not stored, the checker says so."
    view = output.get("data", {}).get(WIDGET)
    return {**output, "data": {"text/html": f'<script type="{WIDGET}">{json.dumps(view)}</script>'}} if view else output

def widget_scripts(state, depth):
    "The stored state of a page's widgets and what brings it to life. Deferred, so that require.js comes after KaTeX, which would else hide in it."
    for model in state["state"].values(): # the manager looks for a description wherever there is a tooltip, and shows nothing where there is none
        if model["state"].get("tooltip"): model["state"].setdefault("description", "")
    libs = "../"*depth + "site_libs/widgets"
    paths = json.dumps({"paths": {"@jupyter-widgets": libs, "@jupyter-widgets/html-manager/dist": libs}}) # where the manager looks for its fonts
    scripts = "".join(f'<script defer src="{libs}/{name}"></script>' for name in ("require.js", "embed-amd.js"))
    return f'<script type="{STATE}">{json.dumps(state).replace("</", "<" + chr(92) + "/")}</script><script>window.require = {paths}</script>{scripts}'

class Page:
    "One notebook on its way to the site: its cells as the site shows them, its names and its pictures."
    def __init__(self, path, name):
        notebook = json.loads(Path(path).read_text(encoding="utf-8"))
        self.name, self.module, self.names, self.pictures = PurePosixPath(name), None, {}, []
        cells = notebook["cells"]
        self.title, self.subtitle, cells[0]["source"] = self.head(text_of(cells[0]["source"]))
        state = notebook["metadata"].get("widgets", {}).get(STATE, {})
        heading, self.cells = self.title, []
        for i, cell in enumerate(cells):
            source = text_of(cell["source"])
            if cell["cell_type"] == "markdown":
                heading = next((plain(line) for line in reversed(source.splitlines()) if line.startswith("#")), heading)
                self.cells.append({"cell_type": "markdown", "metadata": {}, "source": source})
            elif cell["cell_type"] == "code" and (made := self.code(cells, i, source, heading)): self.cells.append(made)
        if state: self.cells.append({"cell_type": "markdown", "metadata": {}, "source": f"```{{=html}}\n{widget_scripts(state, len(self.name.parts) - 1)}\n```"})

    def head(self, source):
        "Title, subtitle and the rest of the first cell."
        found = re.match(r"#\s+(.+?)\s*(?:\n\s*>\s*(.+?))?\s*(?:\n\s*\n|\Z)", source, re.S)
        return (found[1], re.sub(r"\n>?\s*", " ", found[2] or ""), source[found.end():]) if found else (self.name.stem, "", source)

    def code(self, cells, i, source, heading):
        "A code cell without nbdev's directives, named after what it defines or draws; None for one that readers need not see."
        keys, directives, code = options(source)
        exported = re.search(r"^\s*#\|\s*default_exp\s+(\S+)", source, re.M)
        if exported: self.module = exported[1]
        outputs = [] if "hide_output" in directives else [shown(o) for o in cells[i].get("outputs", [])]
        if directives & {"hide", "default_exp"} or not (code or outputs): return None
        names = defined(code) if directives & {"export", "exporti", "exports"} else []
        images = [o["data"] for o in outputs if {"image/png", "image/svg+xml"} & set(o.get("data", {}))]
        if images:
            alt = (keys.get("fig-alt") or keys.get("fig-cap") or "").strip("\"'") or alternative(cells, i, heading)
            keys |= {"label": f"picture-{i}", "fig-alt": json.dumps(alt, ensure_ascii=False)}
            self.pictures += [(f"picture-{i}", heading, alt, data) for data in images]
        elif names: keys["label"] = f"def-{names[0]}"
        self.names |= {name: keys["label"] for name in names}
        head = "".join(f"#| {key}: {value}\n" for key, value in keys.items())
        return {"cell_type": "code", "metadata": {}, "execution_count": None, "source": head + code, "outputs": outputs}

    def write(self, site, above=""):
        "The page as a notebook: front matter, what leads on from it, its cells. The notebook itself lies beside it, to be taken home."
        back = "../"*(len(self.name.parts) - 1)
        links = [f"[API](/api/{site.stems[self.module]}.qmd)", f"[source](/source/{site.stems[self.module]}.qmd)"] if self.module in site.modules else []
        links += [f'<a href="{back}notebooks/{self.name}" download>this chapter as a notebook</a>']
        front = f"---\ntitle: {json.dumps(self.title, ensure_ascii=False)}\n" + (f"description: {json.dumps(self.subtitle, ensure_ascii=False)}\n" if self.subtitle else "") + "---\n"
        first = [{"cell_type": "raw", "metadata": {}, "source": front}, {"cell_type": "markdown", "metadata": {}, "source": above or f"::: {{.leads}}\n{' · '.join(links)}\n:::"}]
        relink = lambda text: re.sub(r"(\]\()((?:[^()\s]|\([^()\s]*\))+)", lambda m: m[1] + site.bring(m[2], self.name), re.sub(r'(<a href="[^":]+)\.ipynb', r"\1.html", text))
        for cell in self.cells:
            if cell["cell_type"] == "markdown": cell["source"] = unfold(relink(cell["source"]))
            for data in (o["data"] for o in cell.get("outputs", []) if "text/markdown" in o.get("data", {})): data["text/markdown"] = relink(text_of(data["text/markdown"]))
        kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
        write(site.proc/self.name, json.dumps({"cells": first + self.cells, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}, ensure_ascii=False))

def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")

# ---------------------------------------------------------------- all pages

class Site:
    "The folder of prepared pages: chapters, the API, sources, the gallery, the changelog."
    def __init__(self, root=".", proc="_proc", package="vdistill"):
        self.root, self.proc, self.package = Path(root).resolve(), Path(root)/proc, package
        self.nbs = self.root/"nbs"
        self.settings = yaml.safe_load((self.root/"_quarto.yml").read_text(encoding="utf-8"))
        files = sorted(p for p in self.nbs.rglob("*.ipynb") if not any(part.startswith((".", "_")) for part in p.relative_to(self.nbs).parts))
        self.chapters = [Page(p, p.relative_to(self.nbs).as_posix()) for p in files]
        self.modules = {page.module: page for page in self.chapters if page.module and not page.module.startswith("_")}
        last = [module.rpartition(".")[2] for module in self.modules] # what a module's pages are called, where one alone has the name
        self.stems = {m: name if last.count(name) == 1 else f"{package}.{m}" for m, name in zip(self.modules, last)}

    def bring(self, link, page):
        "A link that leaves nbs/ leads to a copy of its file within the site; a heading is named as renderers name it, not as JupyterLab does."
        if re.match(r"[a-z]+:|/", link): return link
        path, _, anchor = link.partition("#")
        anchor = re.sub(r"^[\W\d_]+|[^\w.-]", "", anchor.lower())
        file = (self.nbs/page.parent/path).resolve()
        if not path or not file.is_relative_to(self.root) or file.is_relative_to(self.nbs) or not file.is_file(): return path + (f"#{anchor}" if anchor else "")
        name = f"repository/{file.relative_to(self.root).as_posix()}"
        if file.suffix == ".md": name = file.relative_to(self.root).as_posix().lower().replace("/readme", "/index")
        elif not (self.proc/name).exists(): write(self.proc/name, file.read_text(encoding="utf-8"))
        return f"/{name}" + (f"#{anchor}" if anchor else "")

    def texts(self):
        "CHANGELOG.md and its like as pages; what they link to comes along."
        for file in [self.root/name for name in ("CHANGELOG.md", "CONTRIBUTING.md", "ARCHITECTURE.md", "data/README.md")]:
            if not file.exists(): continue
            name = file.relative_to(self.root).as_posix().lower().replace("/readme", "/index")
            text = file.read_text(encoding="utf-8").replace("](nbs/", "](/")
            write(self.proc/name, re.sub(r"\]\(([A-Z]+\.md)\)", lambda m: f"](/{m[1].lower()})", text))

    def cards(self):
        "The way in, on the first page: a card for each kind of reader, from the sidebar's sections and the sentences in READERS."
        titles = {str(page.name): page.title for page in self.chapters}
        cards = []
        for section in self.settings["website"]["sidebar"]["contents"]:
            if not isinstance(section, dict) or "contents" not in section: continue
            pages = [p for p in section["contents"] if isinstance(p, str) and p in titles]
            if not pages: continue
            more = READERS.get(section["section"], ("", pages[0]))
            links = [f"[{titles[p].strip('`')}](/{p})" for p in more[1:] if p in titles]
            cards.append(f"::: {{.card-entry}}\n**[{section['section']}](/{pages[0]})**\n\n{more[0]}\n\n{' · '.join(links)} · {len(pages)} chapters\n:::\n")
        if "claims_and_evidence.ipynb" in titles: cards.append("::: {.card-entry}\n**[Claims and evidence](/claims_and_evidence.ipynb)**\n\nEach claim of the two papers: how it was checked, what came out, what nobody has measured yet.\n:::\n")
        return "::: {.cards}\n" + "\n".join(cards) + ":::\n"

    def gallery(self):
        "Every stored picture as a thumbnail that leads to where it is made."
        parts = ["---\ntitle: Gallery\ndescription: Every figure of the site, each beside the cell that draws it.\ntoc-depth: 2\n---\n"]
        for page in [p for p in self.ordered() if p.pictures]:
            parts.append(f"## {page.title}\n\n::: {{.gallery}}")
            for n, (label, heading, alt, data) in enumerate(page.pictures):
                file = thumbnail(data, self.proc/"gallery", f"{'-'.join(page.name.with_suffix('').parts)}-{n}")
                target = f"{page.name.with_suffix('.html')}#{label}"
                parts.append(f'```{{=html}}\n<a href="{target}"><img src="gallery/{file}" alt="{html.escape(alt)}" loading="lazy"><span>{html.escape(heading)}</span></a>\n```')
            parts.append(":::\n")
        write(self.proc/"gallery.qmd", "\n".join(parts))

    def ordered(self):
        "Chapters in the order of the sidebar; those that it does not name come last (and the checker names them)."
        places = {name: i for i, name in enumerate(re.findall(r"[\w/]+\.ipynb", yaml.safe_dump(self.settings["website"]["sidebar"], sort_keys=False)))}
        return sorted(self.chapters, key=lambda page: places.get(str(page.name), len(places)))

    def sources(self):
        "A page per module: its code as it is installed, each piece with the names that it defines."
        for module, page in self.modules.items():
            name = f"{self.package}/{module.replace('.', '/')}.py"
            text = (self.root/name).read_text(encoding="utf-8")
            pieces = [re.sub(r"^# %% .*\n", "", piece).strip() for piece in re.split(r"^(?=# %% )", text, flags=re.M)]
            head = f'---\ntitle: "{name}"\ndescription: "Exported from its chapter."\ntoc: false\nsearch: false\n---\n\n::: {{.leads}}\n[chapter: {page.title}](/{page.name}) · [API](/api/{self.stems[module]}.qmd)\n:::\n'
            body = [f"{''.join(f'[]{{#{name}}}' for name in defined(piece))}\n\n````python\n{piece}\n````\n" for piece in pieces if piece and not piece.startswith("# AUTOGENERATED")]
            write(self.proc/f"source/{self.stems[module]}.qmd", head + "\n" + "\n".join(body))

    def api(self):
        "A page per module by smalldocs, from signatures, docstrings and docments; each entry leads to its cell in the chapter and to its source."
        from smalldocs import api
        api.build(api.Settings(self.proc, [f"{self.package}.{module}" for module in self.modules], "api", self.root, "SOURCE"))
        for module, page in self.modules.items():
            file = self.proc/f"api/{self.stems[module]}.qmd"
            front, body = re.match(r"(---\n.*?\n---\n)(.*)", file.read_text(encoding="utf-8"), re.S).groups()
            front = re.sub(r"^description:.*$", lambda _: f"description: {json.dumps(page.subtitle, ensure_ascii=False)}", front, flags=re.M)
            lead = f"\n::: {{.leads}}\n[chapter: {page.title}](/{page.name}) · [source](/source/{self.stems[module]}.qmd)\n:::\n"
            body = re.sub(r"^```python$", "```{.python .signature}", body, flags=re.M)
            write(file, front + lead + re.sub(r"\{#(\S+)\}\n\n\[source\]\(\S+\)\{\.source-link\}", lambda m: f"{{#{m[1]}}}\n\n{self.whence(m[1], module, page)}", body))
        rows = [f"| [{self.package}.{m}](/api/{self.stems[m]}.qmd) | {page.subtitle.replace('|', '/')} | [{page.title}](/{page.name}) |" for m, page in sorted(self.modules.items())]
        write(self.proc/"api/index.qmd", "---\ntitle: API\ndescription: Every public name, module by module. Results are in nats, logits are `(B, C)`.\n---\n\n| module | what it holds | chapter |\n|---|---|---|\n" + "\n".join(rows) + "\n")

    def whence(self, name, module, page):
        "Where a name is derived, and where its code is."
        top = name.split(".")[0]
        cell = f"#{page.names[top]}" if top in page.names else ""
        return f"[in its chapter](/{page.name}{cell}){{.whence}} [source](/source/{self.stems[module]}.qmd#{top}){{.whence}}"

    def prepare(self):
        "Write everything that is to be rendered."
        shutil.rmtree(self.proc, ignore_errors=True)
        skip = shutil.ignore_patterns("*.ipynb", ".*", "_*", "nbdev.yml")
        shutil.copytree(self.nbs, self.proc, ignore=skip)
        shutil.copy(self.root/"_quarto.yml", self.proc/"_quarto.yml")
        self.texts()
        for page in self.chapters: page.write(self, above=self.cards() if str(page.name) == "index.ipynb" else "")
        self.gallery()
        if self.modules:
            self.sources()
            self.api()

def thumbnail(data, folder, stem, width=520):
    "A small picture in `folder`; its file name. A drawing (SVG) is kept whole."
    folder.mkdir(parents=True, exist_ok=True)
    if "image/png" not in data:
        (folder/f"{stem}.svg").write_text(text_of(data["image/svg+xml"]), encoding="utf-8")
        return f"{stem}.svg"
    picture = Image.open(io.BytesIO(b64decode(text_of(data["image/png"])))).convert("RGBA")
    picture.thumbnail((width, width))
    picture.save(folder/f"{stem}.webp", quality=82)
    return f"{stem}.webp"

# ---------------------------------------------------------------- rendering and finishing

def render(proc, target):
    "Quarto where it is installed, else smalldocs; the site moves to `target`."
    if shutil.which("quarto"): subprocess.run(["quarto", "render", str(proc)], check=True)
    else:
        from smalldocs import site
        for warning in site.build(proc, quiet=True).warnings:
            if "html-math-method" not in warning: print("smalldocs:", warning) # a setting for Quarto: smalldocs knows KaTeX only
    shutil.rmtree(target, ignore_errors=True)
    shutil.move(proc/"_site", target)

def unbroken(table):
    "A table whose short cells stay on one line."
    return re.sub(r"(<t[dh]\b[^>]*>)([^<]{1,20})(?=</t)", lambda m: m[1] + m[2].strip().replace(" ", "&nbsp;"), table)

def lines_that_wrap(code):
    "Highlighted code with each line in a block of its own, so that one too long for the screen goes on below, further in."
    lines, open_spans = [""], []
    for piece in re.findall(r"<[^>]+>|\n|[^<\n]+", code):
        if piece == "\n":
            lines[-1] += "</span>"*len(open_spans)
            lines.append("".join(open_spans))
            continue
        if piece.startswith("</"): open_spans.pop()
        elif piece.startswith("<"): open_spans.append(piece)
        lines[-1] += piece
    indents = [len(text) - len(text.lstrip(" ")) for text in (re.sub(r"<[^>]+>", "", line) for line in lines)]
    return "".join(f'<span class="code-line" style="--in: {n + 4}ch">{line}\n</span>' for n, line in zip(indents, lines))

def finish(target, nbs):
    "What neither renderer does: libraries from the site itself, tables that scroll, code that wraps, notebooks to take home, an index that is found without a server."
    for sentence in site_libs.install(target/"site_libs"): print(sentence)
    for file in target.rglob("*.css"):
        style = file.read_text(encoding="utf-8")
        if "@import url(http" in style: file.write_text(re.sub(r"@import url\(http[^)]*\);?", "", style), encoding="utf-8")
    for file in target.rglob("*.html"):
        page, libs = file.read_text(encoding="utf-8"), "../"*(len(file.relative_to(target).parts) - 1) + "site_libs/"
        page = re.sub(r"https://cdn\.jsdelivr\.net/npm/katex@[\d.]+/dist/", f"{libs}katex/", page)
        page = re.sub(r'<(?:script|link)\b[^>]*?(?:src|href)="([^"]*site_libs/(?:katex|widgets)/[^"]*)"[^>]*>(?:</script>)?', lambda m: m[0] if (file.parent/m[1]).exists() else "", page)
        page = re.sub(r"<table\b.*?</table>", lambda m: f'<div class="table-scroll" tabindex="0">{unbroken(m[0])}</div>', page, flags=re.S)
        page = re.sub(r'(<pre class="sourceCode python[^>]*><code[^>]*>)(.*?)(?=</code></pre>)', lambda m: m[1] + lines_that_wrap(m[2]), page, flags=re.S)
        file.write_text(page, encoding="utf-8")
    if (target/"search.json").exists(): write(target/"search.js", f"window.siteIndex = {(target/'search.json').read_text(encoding='utf-8')};")
    for notebook in nbs.rglob("*.ipynb"):
        if ".ipynb_checkpoints" in notebook.parts: continue
        kept = target/"notebooks"/notebook.relative_to(nbs)
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(notebook, kept)

def build(root=".", target="_docs", package="vdistill"):
    "The whole site; the faults that the checker finds in it."
    began, site = time.perf_counter(), Site(root, package=package)
    site.prepare()
    prepared = time.perf_counter()
    render(site.proc, Path(root)/target)
    rendered = time.perf_counter()
    finish(Path(root)/target, site.nbs)
    faults, outside = check_site.check(Path(root)/target)
    faults += [f"_quarto.yml: {page.name} is not in the sidebar" for page in site.chapters if str(page.name) not in yaml.safe_dump(site.settings["website"]["sidebar"])]
    write(Path(root)/target/"external_links.txt", "\n".join(outside) + "\n")
    print(f"{len(list((Path(root)/target).rglob('*.html')))} pages: prepared in {prepared - began:.0f} s, rendered in {rendered - prepared:.0f} s, finished and checked in {time.perf_counter() - rendered:.0f} s")
    return faults

if __name__ == "__main__":
    sys.path.insert(0, ".")
    faults = build()
    print(*faults, sep="\n")
    if faults: sys.exit(f"The site is in _docs/, with {len(faults)} faults.")
    print("The site is in _docs/; open _docs/index.html")
