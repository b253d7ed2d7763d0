"Is a built site whole? python tools/check_site.py [_docs] names every file and its fault, and exits 1 if there is one."
import json, re, sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}
LOADS = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src", "video": "src", "audio": "src", "object": "data"}
CODE, INLINE = {"code", "pre", "script", "style"}, {"a", "b", "code", "em", "i", "mark", "span", "strong", "sub", "sup"}

class Page(HTMLParser):
    "What a page holds: ids, links, what it loads, its text, and what is wrong within it."
    def __init__(self, file):
        super().__init__()
        self.ids, self.links, self.loads, self.faults, self.open = set(), [], [], [], []
        self.text, self.prose, self.models, self.views = [], [], set(), []
        self.feed(file.read_text(encoding="utf-8"))
        text, prose = "".join(self.text), "".join(self.prose)
        self.faults += [f"raw directive: {line.strip()[:60]}" for line in re.findall(r"^\s*#\|.*", text, re.M)]
        self.faults += [f"raw {what}: {line.strip()[:60]}" for what, mark in (("mathematics", r"(?:\$\$|\$[^$\n]*[\\_^{][^$\n]*\$)"), ("division", r"^\s*:::"), ("attribute", r"\{=html\}")) for line in re.findall(rf".*{mark}.*", prose, re.M)]
        self.faults += [f"widget {view} has no stored state" for view in self.views if view not in self.models]

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.ids |= {given[k] for k in ("id", "name") if given.get(k)}
        if tag == "a" and given.get("href"): self.links.append(given["href"])
        if given.get(LOADS.get(tag)) and given.get("rel") not in ("canonical", "next", "prev"): self.loads.append(given[LOADS[tag]])
        if tag == "img" and not (given.get("alt") or "").strip(): self.faults.append(f"image without alt text: {given.get('src', '')[:60]}")
        if tag == "table" and not any("table-scroll" in c for _, c, _ in self.open): self.faults.append("table without a scroll of its own")
        if tag not in INLINE: # a block begins a line
            self.text.append("\n")
            self.prose.append("\n")
        if tag not in VOID: self.open.append((tag, given.get("class") or "", given.get("type") or ""))

    def handle_endtag(self, tag):
        while self.open and self.open.pop()[0] != tag: pass

    def handle_data(self, data):
        tags, kind = {tag for tag, _, _ in self.open}, self.open[-1][2] if self.open else ""
        if "widget-state" in kind: self.models |= set(json.loads(data)["state"])
        elif "widget-view" in kind: self.views.append(json.loads(data)["model_id"])
        elif not tags & {"script", "style"}: self.text.append(data)
        if not tags & CODE: self.prose.append(data)

def target_of(link, file, site):
    "The file that a link within the site leads to, and the anchor in it; None for a link out of it."
    parts = urlsplit(link)
    if parts.scheme or parts.netloc: return None
    path = (site/parts.path.lstrip("/") if parts.path.startswith("/") else file.parent/unquote(parts.path)).resolve() if parts.path else file
    return (path/"index.html" if path.is_dir() else path), unquote(parts.fragment)

def check(site):
    "Every fault of a site as `file: fault`, and the links out of it, which are only listed."
    site = Path(site).resolve()
    pages = {file: Page(file) for file in sorted(site.rglob("*.html"))}
    faults, outside, reached = [], set(), {site/"index.html"}
    for file, page in pages.items():
        found = list(page.faults)
        for link in page.links + page.loads:
            if link.startswith(("data:", "javascript:", "mailto:")): continue
            target = target_of(link, file, site)
            if target is None:
                outside.add(link)
                if link in page.loads: found.append(f"loads from elsewhere: {link}")
            elif not target[0].is_file(): found.append(f"broken link: {link}")
            elif target[1] and target[0] in pages and target[1] not in pages[target[0]].ids: found.append(f"broken anchor: {link}")
            elif target[0] != file: reached.add(target[0])
        faults += [f"{file.relative_to(site)}: {fault}" for fault in dict.fromkeys(found)]
    for file in sorted(site.rglob("*.css")):
        faults += [f"{file.relative_to(site)}: loads from elsewhere: {url}" for url in re.findall(r"(?:url\(|@import )['\"]?(https?:[^'\")]+)", file.read_text(encoding="utf-8"))]
        if file.name == "styles.css" and not re.search(r"\.table-scroll[^{]*\{[^}]*overflow-x:\s*auto", file.read_text(encoding="utf-8")): faults.append(f"{file.relative_to(site)}: .table-scroll does not scroll")
    return faults + [f"{file.relative_to(site)}: no page leads to it" for file in pages if file not in reached], sorted(outside)

if __name__ == "__main__":
    faults, outside = check(sys.argv[1] if len(sys.argv) > 1 else "_docs")
    print(*faults, sep="\n")
    print(f"{len(faults)} faults; {len(outside)} links lead out of the site")
    sys.exit(bool(faults))
