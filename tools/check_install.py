"""Does the package work where nothing else is? Builds sdist and wheel without network, installs the wheel into an empty environment, and there imports every module and runs the command.
Modules that need the extra `notebook` have to say so; then it is installed too, and they are imported.

    python tools/check_install.py                          # this Python, the newest of everything
    python tools/check_install.py --pins oldest            # the lower bounds of settings.ini
    python tools/check_install.py --python python3.12 --pins torch==2.8.0 torchvision==0.23.0
"""
import argparse, configparser, os, re, shutil, subprocess, sys, tempfile, zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ALONE = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} # so that no checkout is imported
SHORT = ("epochs=2", "width=8", "features=32", "z_features=32", "hidden=[32]", "validate_every=1", "identities_per_batch=8", "data.identities=[24, 8, 12]", "data.images_per_camera=2")

def call(*command, **options):
    "Run; what it printed, or the end of it as an error."
    done = subprocess.run(list(map(str, command)), capture_output=True, encoding="utf-8", errors="replace", **options)
    if done.returncode: sys.exit(f"{' '.join(map(str, command))} failed\n{(done.stdout + done.stderr)[-3000:]}")
    return done.stdout

def requirements(
    extra="", # name of an extra; "": what everybody gets
): # list of strings
    "What settings.ini asks for."
    settings = configparser.ConfigParser(delimiters=["="])
    settings.read(ROOT/"settings.ini", encoding="utf-8")
    return settings["DEFAULT"][f"{extra}_requirements" if extra else "requirements"].split()

def oldest(extra=""): return [r.replace(">=", "==") for r in requirements(extra)]

def build(
    folder, # where both go
    source=None, # an unpacked sdist; None: a copy of this checkout, so that nothing built before can slip in
): # sdist and wheel; the wheel is made from the sdist, as an index's users would
    "Build with what is installed here, and from no index."
    folder, offline = Path(folder), os.environ | dict(PIP_NO_INDEX="1", SOURCE_DATE_EPOCH="1700000000")
    if source is None: source = shutil.copytree(ROOT, folder/"source", ignore=shutil.ignore_patterns(".git", ".venv*", "__pycache__", "build", "dist", "*.egg-info", "_docs", "_proc", "runs"))
    call(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder/"dist", source, env=offline)
    return next((folder/"dist").glob("*.tar.gz")), next((folder/"dist").glob("*.whl"))

def modules(wheel):
    names = [Path(name) for name in zipfile.ZipFile(wheel).namelist() if name.startswith("vdistill/") and name.endswith(".py")]
    return sorted(".".join(name.with_suffix("").parts) for name in names if "__" not in name.stem)

def unpack(
    wheel,
    folder, # for the package, as `--target` names one
):
    "The wheel in a folder, without what it asks for: a wheel without compiled code is a zip of what goes there."
    with zipfile.ZipFile(wheel) as archive: archive.extractall(folder)

def install(
    folder, # of the new environment
    wheel,
    pins=(), # requirements beside the wheel's own
    python=sys.executable,
): # folder of its programs
    "An environment with nothing but the wheel and what it asks for."
    call(python, "-m", "venv", folder)
    programs = Path(folder)/("Scripts" if os.name == "nt" else "bin")
    pip_install(programs, wheel, *pins)
    return programs

def pip_install(programs, *what): call(programs/"python", "-m", "pip", "install", "-q", "--disable-pip-version-check", *what)

def commands(helped): return re.findall(r"^  (\w+)  ", helped.partition("Commands:")[2], re.M) # of `vdistill --help`

def import_all(
    programs, # of the environment
    names, # modules
    folder, # an empty one, to work in
): # the versions in words, and the modules that ask for an extra
    "Import modules; one that fails has to say which extra it needs."
    code = f"""import importlib, sys, torch, torchvision, vdistill
print('Python', sys.version.split()[0], 'torch', torch.__version__, 'torchvision', torchvision.__version__, 'vdistill', vdistill.__version__, 'from', vdistill.__path__[0])
for name in {names}:
    try: importlib.import_module(name)
    except ImportError as e:
        if "pip install 'vdistill[notebook]'" not in str(e): raise
        print(name)"""
    versions, *asking = call(programs/"python", "-W", "error::SyntaxWarning", "-c", code, cwd=folder, env=ALONE).splitlines()
    if str(ROOT/"vdistill") in versions: sys.exit(f"the checkout was imported, not the installed package: {versions}")
    return versions, asking

def use(
    programs, # of the environment
    names, # modules to import
    folder, # an empty one, to work in
): # what to tell, and the modules that ask for the extra `notebook`
    "Import every module, ask for help, run a short demo: from a folder that knows nothing of the checkout."
    versions, asking = import_all(programs, names, folder)
    helped = call(programs/"vdistill", "--help", cwd=folder, env=ALONE)
    for command in commands(helped): call(programs/"vdistill", command, "--help", cwd=folder, env=ALONE)
    forgotten = subprocess.run([programs/"vdistill", "embed", "run", "image.png"], capture_output=True, encoding="utf-8", errors="replace", cwd=folder, env=ALONE)
    if forgotten.returncode != 2 or "Missing option" not in forgotten.stderr: sys.exit(f"a command without an option that it needs should be refused, not run:\n{forgotten.stdout}{forgotten.stderr}")
    shown = call(programs/"vdistill", "demo", *[x for s in SHORT for x in ("--set", s)], cwd=folder, env=ALONE)
    for text, words in ((helped, ("demo", "train", "evaluate", "mi")), (shown, ("rank-1", "chance", "ceiling", "full"))):
        if missing := [w for w in words if w not in text]: sys.exit(f"{missing} is missing from\n{text}")
    return f"{versions}\n{len(names) - len(asking)} modules imported, vdistill demo and the help of {len(commands(helped))} commands ran", asking

def check(
    folder, # an empty one; the environment is made here
    wheel,
    pins=(), # requirements beside the wheel's own; `["oldest"]`: the lower bounds of settings.ini
    python=sys.executable,
    environment=None, # where else to make it
): # what to tell
    "All of it, first with what everybody gets, then with the extra `notebook`."
    folder, names = Path(folder), modules(wheel)
    pins, notebook_pins = (oldest(), oldest("notebook")) if list(pins) == ["oldest"] else (list(pins), [])
    programs = install(environment or folder/"environment", wheel, pins, python)
    (folder/"empty").mkdir()
    said, asking = use(programs, names, folder/"empty")
    pip_install(programs, f"{wheel}[notebook]", *pins, *notebook_pins)
    if missing := import_all(programs, names, folder/"empty")[1]: sys.exit(f"with the extra notebook there is still something missing for {', '.join(missing)}")
    return f"{said}; with the extra notebook {', '.join(asking) or 'nothing'} as well"

def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable, help="of the empty environment; default: this one")
    parser.add_argument("--pins", nargs="*", default=[], help="`oldest`: the lower bounds of settings.ini; or requirements, as torch==2.8.0")
    parser.add_argument("--environment", help="use this environment, which is kept, in place of a new one that goes")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sdist, wheel = build(folder)
        print(f"built {sdist.name} and {wheel.name} without network", flush=True)
        print(check(folder, wheel, args.pins, args.python, args.environment))

if __name__ == "__main__": main()
