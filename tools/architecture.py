"""Draw the rooms of the library and their arrows, as the code has them: python tools/architecture.py

Writes nbs/images/rooms.svg and the table between the marks in ARCHITECTURE.md. The rules that the tests hold
(no circle, a room is entered from above) read the same graph."""
import ast, html, sys, textwrap
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# From the top down: a room may use what stands below it.
ROOMS = {"cli": "the command line", "bench": "how fast", "looking": "pictures, reports, audits, comparisons",
    "studies": "experiments that export something", "reid": "images, networks, runs, scores",
    "theory": "bottlenecks, losses, bounds, estimation", "core": "errors, seeds, files: used by every room"}
# The floors of the largest room.
FLOORS = {"reid": {
    "images": "findings images names records tables views pairs manifests layouts archives fakes drawing synthetic "
        "data doctor cache pixels augmentation batches",
    "networks": "networks pretrained pooling backbones models identity_losses metric_losses objective",
    "runs": "config guard parallel checkpoints seen runs weight_files weights training foreign",
    "scores": "retrieval protocols reranking evaluation"}}
BEGIN, END = "<!-- rooms -->", "<!-- end of rooms -->"

def modules(root=ROOT):
    "Name of each module -> its file; packages and what stands for them are no modules here."
    files = sorted((root/"vdistill").rglob("*.py"))
    names = {".".join(f.relative_to(root/"vdistill").with_suffix("").parts): f for f in files}
    return {name: file for name, file in names.items() if not name.rpartition(".")[2].startswith("_")}

def room_of(module):
    "The room that a module is in."
    if "." in module: return module.partition(".")[0]
    return "core" if module == "core" else "theory"

def imported(module, file, known):
    "The modules of this package that a module imports anywhere, within functions too."
    found, here = set(), ["vdistill", *module.split(".")]
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import): found |= {alias.name for alias in node.names}
        if not isinstance(node, ast.ImportFrom): continue
        base = ".".join([*(here[:len(here) - node.level] if node.level else []), *([node.module] if node.module else [])])
        found |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    return {name.removeprefix("vdistill.") for name in found} & known - {module}

def graph(root=ROOT):
    "Each module -> the modules that it imports."
    files = modules(root)
    return {name: imported(name, file, set(files)) for name, file in files.items()}

def circle(links):
    "Modules that import each other in rings, and what lies between them; empty where there is none."
    left = dict(links)
    while True:
        used = set().union(*left.values())
        outside = [name for name in left if name not in used or not left[name] & set(left)]
        if not outside: return sorted(left)
        left = {name: below for name, below in left.items() if name not in outside}

def arrows(links):
    "(room, room below or above it) -> how many imports lead from the one to the other."
    return Counter((room_of(a), room_of(b)) for a, used in links.items() for b in used if room_of(a) != room_of(b))

def longest(links):
    "The longest way down: how many modules one passes at most; 0 where one goes round in a circle."
    if circle(links): return 0
    depth = {}
    def below(name):
        if name not in depth: depth[name] = 1 + max(map(below, links[name]), default=0)
        return depth[name]
    return max(map(below, links))

def floors(links, room):
    "The modules of a room, in words; the largest one floor by floor."
    names = [name.rpartition(".")[2] for name in links if room_of(name) == room]
    if room not in FLOORS: return [", ".join(names)]
    placed = {name: floor for floor, some in FLOORS[room].items() for name in some.split()}
    if lost := set(names) ^ set(placed):
        sys.exit(f"tools/architecture.py: {', '.join(sorted(lost))} on no floor of {room}, or gone")
    return [f"{floor}: {', '.join(name for name in placed if placed[name] == floor)}" for floor in FLOORS[room]]

def picture(links, width=860, box=560):
    "The rooms as boxes, the arrows as curves on their right; the number is that of imports."
    shown, y, parts = {}, 10, []
    for room, what in ROOMS.items():
        lines = [line for floor in floors(links, room) for line in textwrap.wrap(floor, 84)]
        height = 34 + 17*len(lines)
        parts.append(f'<rect x="10" y="{y}" width="{box}" height="{height}" rx="6" fill="#f4f6fa" stroke="#5b6b8c"/>')
        parts.append(f'<text x="22" y="{y + 20}" font-weight="bold">{room}</text>')
        parts.append(f'<text x="{box}" y="{y + 20}" text-anchor="end" fill="#5b6b8c">{html.escape(what)}</text>')
        parts += [f'<text x="22" y="{y + 40 + 17*i}" font-size="12.5">{line}</text>' for i, line in enumerate(lines)]
        shown[room], y = (y, height), y + height + 22
    order = list(ROOMS).index
    lanes = sorted(((pair, n) for pair, n in arrows(links).items() if "core" not in pair), # everybody uses core
        key=lambda item: (order(item[0][1]) - order(item[0][0]), item[0]))
    for i, ((a, b), n) in enumerate(lanes):
        far, count = box + 32 + 18*i, len(lanes)
        start = shown[a][0] + shown[a][1]*(i + 1)/(count + 1)
        end = shown[b][0] + shown[b][1]*(i + 1)/(count + 1)
        colour = "#c0392b" if order(b) < order(a) else "#5b6b8c" # red: upwards
        parts.append(f'<path d="M{box + 10},{start:.0f} H{far} V{end:.0f} H{box + 14}" fill="none" stroke="{colour}" '
            f'stroke-width="{1 + min(n, 40)/16:.1f}" marker-end="url(#tip)"/>')
        parts.append(f'<text x="{far + 2}" y="{(start + end)/2:.0f}" font-size="10.5" fill="{colour}">{n}</text>')
    head = (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {y}" font-family="sans-serif" font-size="14">'
        f'<rect width="{width}" height="{y}" fill="#ffffff"/><defs><marker id="tip" viewBox="0 0 8 8" refX="6" refY="4" '
        'markerWidth="8" markerHeight="8" markerUnits="userSpaceOnUse" orient="auto">'
        '<path d="M0,0 L8,4 L0,8 z" fill="#5b6b8c"/></marker></defs>')
    return head + "\n" + "\n".join(parts) + "\n</svg>\n"

def table(links):
    "The rooms and what they use, as Markdown."
    used, rows = arrows(links), ["| room | modules | uses (imports) |", "|---|---|---|"]
    for room in ROOMS:
        uses = sorted((-n, b) for (a, b), n in used.items() if a == room) # the most used first
        below = ", ".join(f"{b} ({-n})" for n, b in uses)
        rows.append(f"| {room} | {sum(room_of(name) == room for name in links)} | {below} |")
    total = f"{len(links)} modules, {sum(map(len, links.values()))} imports between them"
    return "\n".join(rows) + f"\n\n{total}; the longest way down passes {longest(links)} modules."

def sizes(links, root=ROOT):
    "Lines of each room, for who wants to know; not written down, since every change changes them."
    lines = {name: len(file.read_text("utf-8").splitlines()) for name, file in modules(root).items()}
    rooms = {room: sum(n for name, n in lines.items() if room_of(name) == room) for room in ROOMS}
    return ", ".join(f"{room} {n:,}" for room, n in rooms.items()) + f"; {sum(lines.values()):,} lines in all"

def main():
    links = graph()
    (ROOT/"nbs/images/rooms.svg").write_text(picture(links), "utf-8")
    page = ROOT/"ARCHITECTURE.md"
    text = page.read_text("utf-8")
    if BEGIN not in text or END not in text: sys.exit(f"{page.name} has lost its marks {BEGIN} and {END}")
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    page.write_text(f"{before}{BEGIN}\n{table(links)}\n{END}{after}", "utf-8")
    print(sizes(links))

if __name__ == "__main__": main()
