"Build the documentation site into _docs/: with Quarto where it is installed, else with smalldocs."
import shutil, subprocess, sys
from pathlib import Path
from nbdev.quarto import refresh_quarto_yml
from nbdev.serve import proc_nbs

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
    print("The site is in _docs/; open _docs/index.html")

if __name__ == "__main__": build()   # notebooks are processed in other processes, which import this file
