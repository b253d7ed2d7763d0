"Write README.md from nbs/index.ipynb: python tools/readme.py [INDEX README]"
import re, sys
from pathlib import Path
import nbformat

def text_of(output):
    "A cell's output as text, where it has one."
    if output.output_type == "stream": return output.text
    return output.get("data", {}).get("text/plain", "")

def relink(markdown):
    "Links beside the notebook become links from the top folder."
    return re.sub(r"(\]\()(?!https?:|#|mailto:|\.\./)([^)]+)", r"\1nbs/\2", markdown).replace("](../", "](")

def readme(notebook):
    "The notebook's visible cells as Markdown."
    parts = []
    for cell in notebook.cells:
        directives = re.findall(r"^#\|[ \t]*(\S+)(?:[ \t]+(\S+))?", cell.source, re.M)
        if ("hide", "") in directives: continue
        if cell.cell_type == "markdown": parts.append(relink(cell.source)); continue
        source = re.sub(r"^#\|.*\n?", "", cell.source, flags=re.M).strip()
        if source and ("echo:", "false") not in directives: parts.append(f"```python\n{source}\n```")
        output = "".join(map(text_of, cell.get("outputs", []))).rstrip()
        if output: parts.append(f"```text\n{output}\n```")
    return "<!-- Made from nbs/index.ipynb by tools/readme.py; change it there. -->\n\n" + "\n\n".join(parts) + "\n"

if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:] or ("nbs/index.ipynb", "README.md"))
    target.write_text(readme(nbformat.read(source, 4)), encoding="utf-8")
