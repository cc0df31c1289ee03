# make install   the library and its experiments, in .venv
# make demo      one comparison of four methods; ARGS="seeds=[0]" adds overrides
# make test      everything, against learn2learn and higher as well; ARGS="tests/laws -x" narrows it;
#                one process for each processor; with CI set, what would be skipped fails
# make lint      ruff and mypy
# make docs      the documentation as a site, in build/docs
# make browser   its pages and a report in Chromium, light and dark, on a screen and a phone; needs `chromium`
PYTHON ?= python3
VENV ?= .venv
ARGS ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: install peers demo test lint docs browser clean
.DELETE_ON_ERROR:

install: $(VENV)/.installed
peers: $(VENV)/.peers

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, not " + sys.version if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --upgrade pip setuptools
	PYTHONWARNINGS=ignore $(PIP) --editable '.[experiments]'
	@touch $@

$(VENV)/.tools: $(VENV)/.installed
	PYTHONWARNINGS=ignore $(PIP) --editable '.[test]'
	@touch $@

# learn2learn ships C files that current Pythons cannot compile; Cython writes them anew. Its
# companions are installed one by one because, left to themselves, they pull numpy and torch back
# (and gym, without its notices, does not print one on import).
$(VENV)/.peers: $(VENV)/.installed
	@$(BIN)/python -c 'import os, shutil, sysconfig as s; \
	  cc = os.environ.get("CC", s.get_config_var("CC") or "cc").split()[0]; \
	  h = os.path.join(s.get_path("include"), "Python.h"); \
	  lack = [w for w, ok in (("a C compiler (" + cc + ")", shutil.which(cc)), (h, os.path.exists(h))) if not ok]; \
	  raise SystemExit("make peers builds learn2learn from source and needs " + " and ".join(lack) + \
	    "; install them, or test without the peers: $(BIN)/python -m pytest" if lack else 0)'
	$(PIP) higher wheel Cython cloudpickle cvxpy pillow requests scipy tqdm
	$(PIP) --no-deps gym qpth torchvision
	CYTHON_FORCE_REGEN=1 $(PIP) --no-deps --no-build-isolation --use-pep517 \
	  --config-settings=--global-option=build_ext learn2learn
	@$(BIN)/python -W ignore -c 'import higher, learn2learn' || \
	  { echo 'make peers: higher or learn2learn is installed but cannot be imported (see above). If the error names' \
	    'torchvision: install the torchvision that belongs to the installed torch, with --no-deps and from the same' \
	    'index as torch; then run make again' >&2; exit 1; }
	@touch $@

demo: install
	$(BIN)/python -m experiments.compare experiment=glyphs_5way_1shot 'recipes=[mtl,anil,maml,protonet]' steps=100 validate.tasks=20 select.tasks=50 test.tasks=100 $(ARGS)

test: $(VENV)/.tools $(VENV)/.peers
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal $(ARGS)

lint: $(VENV)/.tools
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.tools
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs build/docs

browser: docs
	$(PIP) --editable '.[browser]'
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/browser/check_pages.py $(ARGS)

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
