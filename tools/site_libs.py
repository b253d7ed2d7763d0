"Scripts and fonts that the site serves itself, so that no request leaves a page: fetched once from npm, checked, cached."
import base64, hashlib, io, shutil, subprocess, tarfile, tempfile, urllib.request
from fnmatch import fnmatch
from pathlib import Path

CACHE = Path(".site-libs")
# package: (version, the registry's sha512, what the site needs of it: path in the tarball -> path in site_libs)
PACKAGES = {
    "katex": ("0.16.47", "Eeo8Ys1doU1z+x8AZsPpQu+p/QcZBI5PeOo7QGQdy2x2m0MU/hYagBbGOmXwr5KVbEfVuWv9LpnQWeehogurjg==",
        {"dist/katex.min.css": "katex/", "dist/katex.min.js": "katex/", "dist/contrib/auto-render.min.js": "katex/contrib/", "dist/fonts/*.woff2": "katex/fonts/", "LICENSE": "katex/"}),
    "requirejs": ("2.3.8", "7/cTSLOdYkNBNJcDMWf+luFvMriVm7eYxp4BcFCsAX0wF421Vyce5SXP17c+Jd5otXKGNehIonFlyQXSowL6Mw==",
        {"require.js": "widgets/"}),
    "@jupyter-widgets/html-manager": ("1.0.15", "5thBIV6ymNgmPVOHvzx+gGy8ZSKmSazhtGw4/c4xJDVzRhG9PTeQsRjF3FUTopvFi//SABeNz1yp47bCrJ3CQA==",
        {"dist/embed-amd.js": "widgets/", "dist/*.woff2": "widgets/"}),
    "@fontsource-variable/source-serif-4": ("5.3.1", "4Rtay22SC4lMvw11r/+9kxANB6P3M0X8s1NudBC2v0J1KU2y3DcMoNcT3lBoZ/CqLirzf+StlO6UlJilyrvaUg==",
        {"files/source-serif-4-*latin*-wght-*.woff2": "fonts/", "files/source-serif-4-greek-wght-*.woff2": "fonts/", "LICENSE": "fonts/"}),
}

def tarball(name, version, sha512):
    "The package as bytes: from the cache, else from npm (by its client where there is one). Another content than the pinned one is refused."
    kept = CACHE/f"{name.replace('/', '-').lstrip('@')}-{version}.tgz"
    if not kept.exists():
        CACHE.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            if npm := shutil.which("npm"):
                subprocess.run([npm, "pack", f"{name}@{version}", "--pack-destination", folder], check=True, capture_output=True, timeout=120)
                found = next(Path(folder).glob("*.tgz"))
            else: found = Path(urllib.request.urlretrieve(f"https://registry.npmjs.org/{name}/-/{name.split('/')[-1]}-{version}.tgz", Path(folder)/"package.tgz")[0])
            found.replace(kept)
    data = kept.read_bytes()
    if base64.b64encode(hashlib.sha512(data).digest()).decode() != sha512:
        kept.unlink()
        raise OSError(f"{name} {version} is not the file whose hash tools/site_libs.py holds; it was thrown away")
    return data

def unpack(data, wanted, target):
    "Write the wanted files of a tarball below `target`."
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        for member in filter(tarfile.TarInfo.isfile, archive):
            path = Path(*Path(member.name).parts[1:])
            folder = next((folder for pattern, folder in wanted.items() if fnmatch(path.as_posix(), pattern)), None)
            if folder is None: continue
            (target/folder).mkdir(parents=True, exist_ok=True)
            (target/folder/path.name).write_bytes(archive.extractfile(member).read())

def install(target):
    "Put every package into `target`; return a sentence for each that could not be had."
    missing = []
    for name, (version, sha512, wanted) in PACKAGES.items():
        try: unpack(tarball(name, version, sha512), wanted, Path(target))
        except (OSError, subprocess.SubprocessError) as error:
            missing.append(f"{name} {version} is neither in {CACHE}/ nor to be had from npm ({type(error).__name__}): the site is built without it. With a network, `make docs` fetches it once.")
    return missing
