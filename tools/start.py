"Write the cards of nbs/start.ipynb from the sidebar in _quarto.yml and the titles of the notebooks: python tools/start.py"
import re
from pathlib import Path
import nbformat, yaml

CARD = "display:inline-block; vertical-align:top; width:31%; min-width:220px; min-height:130px; margin:0 10px 12px 0; padding:10px 14px 2px; border:1px solid rgba(128,128,128,.4); border-radius:8px; box-sizing:border-box; font-size:90%"

def about(path):
    "Title and first sentence of the subtitle of a notebook."
    title, subtitle = re.match(r"# (.+?)\n+> (.+)", nbformat.read(Path("nbs")/path, 4).cells[0].source).groups()
    return title.replace("_", " "), re.split(r"(?<=[.?]) ", subtitle)[0]

def card(path):
    "A notebook's card: a frame with Markdown in it."
    title, subtitle = about(path)
    return f'<div style="{CARD}">\n\n**[{title}]({path})**\n\n{subtitle}\n\n</div>'

def section(name, paths):
    "A heading and the cards below it."
    return f"## {name}\n\n" + "\n\n".join(map(card, paths))

def sections(sidebar):
    "Sections of the sidebar with their notebooks; what stands alone comes first."
    alone = [entry for entry in sidebar if isinstance(entry, str) and entry.endswith(".ipynb") and entry != "start.ipynb"]
    named = [(entry["section"], [path for path in entry["contents"] if isinstance(path, str) and path.endswith(".ipynb")]) for entry in sidebar if isinstance(entry, dict)]
    return [("The whole, in short", alone), *named]

if __name__ == "__main__":
    sidebar = yaml.safe_load(Path("_quarto.yml").read_text("utf-8"))["website"]["sidebar"]["contents"]
    start = nbformat.read("nbs/start.ipynb", 4)
    start.cells = [cell for cell in start.cells if not cell["id"].startswith("cards")]
    for i, (name, paths) in enumerate(sections(sidebar)):
        start.cells.append(nbformat.v4.new_markdown_cell(section(name, paths), id=f"cards{i}"))
    nbformat.write(start, "nbs/start.ipynb")
