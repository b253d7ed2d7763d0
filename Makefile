# vdistill. On a machine with Python 3.11 or newer: `make demo` or `make test`; each installs what it needs, once.
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := $(VENV)/bin
METADATA := settings.ini setup.py pyproject.toml constraints.txt
INSTALL := $(if $(shell command -v uv),uv pip install --python $(BIN)/python,$(BIN)/python -m pip install --disable-pip-version-check) -q -c $(CONSTRAINTS)
# Notebooks and files of tests run two at a time on one thread each; spinning threads would take the other's core.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 NUMBA_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE

.PHONY: help demo test test-slow test-browser test-matrix install-check fresh lab docs bench clean check notebooks pytest
help:
	@echo "make demo     train, evaluate and draw on the embedded synthetic set (3 minutes on 2 cores)"
	@echo "make test     notebooks clean, library and README in sync, every chapter runs, pytest"
	@echo "make test-browser  JupyterLab and the site in a real browser"
	@echo "make test-matrix  make test with the oldest and the newest versions, each in a fresh clone (hours)"
	@echo "make install-check  build, install into an empty environment, run the demo there"
	@echo "make fresh    run the notebooks whose outputs are older than their code"
	@echo "make lab      open JupyterLab at the start page (as root in a container: make lab LAB=--allow-root)"
	@echo "make docs     build the documentation site into _docs/"
	@echo "make bench    measure speeds on this machine"
	@echo "make clean    remove what was built (the environment stays; rm -r $(VENV) removes it)"

demo: $(VENV)/.installed-demo
	@$(BIN)/vdistill demo

test: check notebooks pytest

check: $(VENV)/.installed-dev
	@$(BIN)/python tools/check.py

notebooks: $(VENV)/.installed-dev check
	@echo "Running every chapter ..."
	@$(ONE_THREAD) $(BIN)/nbdev-test --n-workers 2 --pause 0.5 --timing

pytest: $(VENV)/.installed-dev notebooks
	@$(ONE_THREAD) $(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow and not browser"

fresh: $(VENV)/.installed-dev
	@$(ONE_THREAD) $(BIN)/python tools/fresh.py

test-slow: $(VENV)/.installed-dev
	@$(BIN)/python -m pytest -m slow

test-browser: $(VENV)/.installed-browser
	@$(foreach b,chromium chromium-browser google-chrome,command -v $(b) >/dev/null ||) { echo "Installing Chromium ..."; apt-get install -y -qq chromium >/dev/null || { echo "make: no Chromium found; install one (Debian: apt-get install chromium)"; exit 2; }; }
	@$(BIN)/python -m pytest -m browser

# CELLS="oldest newest", OPTIONS=--busy: see tools/matrix.py.
test-matrix:
	@$(PYTHON) tools/matrix.py $(CELLS) $(OPTIONS)

install-check: $(VENV)/.installed-dev
	@$(BIN)/python tools/check_install.py

lab: $(VENV)/.installed-notebook
	@$(BIN)/vdistill lab $(LAB)

docs: $(VENV)/.installed-dev
	@$(BIN)/python tools/docs.py

bench: $(VENV)/.installed-demo
	@$(BIN)/vdistill bench

clean:
	@rm -rf _proc _docs build dist *.egg-info nbs/_quarto.yml nbs/nbdev.yml .hypothesis .pytest_cache
	@find nbs vdistill tests tools -name __pycache__ -o -name .ipynb_checkpoints | xargs rm -rf

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11 or newer found; install one, or call make PYTHON=/path/to/python3"; exit 2; }
	@$(if $(shell command -v uv),uv venv -q --python $(PYTHON) $(VENV),$(PYTHON) -m venv $(VENV))

# torch and torchvision are installed in one go, so that their builds fit each other.
$(VENV)/.installed-%: $(METADATA) | $(VENV)/bin/python
	@echo "Installing into $(VENV) (PyTorch is several GB; once) ..."
	@$(INSTALL) -e ".[$(EXTRAS_$*)]"
	@touch $@
EXTRAS_demo := plots,baselines
EXTRAS_notebook := notebook,baselines
EXTRAS_browser := dev,notebook,baselines,backbones,browser
EXTRAS_dev := dev,notebook,baselines,backbones
