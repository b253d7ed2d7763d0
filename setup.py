from configparser import ConfigParser
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo
from setuptools import setup
from setuptools.command.build_py import build_py

parser = ConfigParser(delimiters=["="])
parser.read("settings.ini", encoding="utf-8")
settings = parser["DEFAULT"]
suffix = "_requirements"

class WithNotebooks(build_py):
    "The modules, and one archive of the notebooks and the tables that they read, for `vdistill lab`."
    def run(self):
        super().run()
        if self.editable_mode: return # a checkout has them
        files = [*Path("nbs").rglob("*.ipynb"), *Path("nbs").rglob("*.yaml"), *Path("nbs/images").glob("*"), *Path("data").rglob("*.*")]
        with ZipFile(Path(self.build_lib)/"vdistill"/"chapters.zip", "w", ZIP_DEFLATED) as archive:
            for name in sorted(p.as_posix() for p in files if p.is_file() and ".ipynb_checkpoints" not in p.parts):
                archive.writestr(ZipInfo(name), Path(name).read_bytes(), ZIP_DEFLATED) # without a date: equal sources, equal wheels

setup(
    version=settings["version"],
    cmdclass=dict(build_py=WithNotebooks),
    install_requires=settings["requirements"].split(),
    extras_require={key.removesuffix(suffix): value.split() for key, value in settings.items() if key.endswith(suffix)},
    entry_points={"console_scripts": settings["console_scripts"].split()},
)
