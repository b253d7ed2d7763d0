from configparser import ConfigParser
from setuptools import setup

parser = ConfigParser(delimiters=["="])
parser.read("settings.ini", encoding="utf-8")
settings = parser["DEFAULT"]
suffix = "_requirements"

setup(
    version=settings["version"],
    install_requires=settings["requirements"].split(),
    extras_require={key.removesuffix(suffix): value.split() for key, value in settings.items() if key.endswith(suffix)},
    entry_points={"console_scripts": settings["console_scripts"].split()},
)
