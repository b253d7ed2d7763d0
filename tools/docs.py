"Build the documentation site into _docs/: with Quarto where it is installed, else with smalldocs."
import json, shutil, subprocess, sys
from pathlib import Path
from nbdev.quarto import refresh_quarto_yml
from nbdev.serve import proc_nbs

WIDGETS = ("https://cdn.jsdelivr.net/npm/requirejs@2.3.6/require.min.js", "https://cdn.jsdelivr.net/npm/@jupyter-widgets/html-manager@1.0.15/dist/embed-amd.js")

def embed_widgets(site):
    "Give pages whose notebook stores widgets their state, and what shows it (smalldocs leaves both out)."
    kind = "application/vnd.jupyter.widget-state+json"
    for notebook in Path("nbs").rglob("*.ipynb"):
        page = site/notebook.relative_to("nbs").with_suffix(".html")
        state = json.loads(notebook.read_text(encoding="utf-8"))["metadata"].get("widgets", {}).get(kind)
        if state is None or not page.exists(): continue
        scripts = "".join(f'<script src="{url}"></script>' for url in WIDGETS)
        text = json.dumps(state).replace("</", "<\\/")
        head, _, tail = page.read_text(encoding="utf-8").rpartition("</body>")
        page.write_text(f'{head}<script type="{kind}">{text}</script>{scripts}</body>{tail}', encoding="utf-8")

def build():
    "Put the settings where nbdev looks for them, process the notebooks, render."
    scripts = Path(sys.executable).parent
    shutil.copy("_quarto.yml", "nbs/_quarto.yml")
    if shutil.which("quarto"): sys.exit(subprocess.call([scripts/"nbdev-docs"]))
    refresh_quarto_yml()
    shutil.rmtree("_proc", ignore_errors=True)
    proc_nbs()
    subprocess.run([scripts/"smalldocs", "render", "_proc"], check=True)
    site = next(p for p in (Path("_proc/_docs"), Path("_proc/_site"), Path("_docs"), Path("_site")) if p.is_dir())
    if site != Path("_docs"):
        shutil.rmtree("_docs", ignore_errors=True)
        shutil.move(site, "_docs")
    embed_widgets(Path("_docs"))
    print("The site is in _docs/; open _docs/index.html")

if __name__ == "__main__": build()   # notebooks are processed in other processes, which import this file
