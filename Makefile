PYTHON ?= python3
URL ?=
WORKERS ?= 2
N ?=
SUBMISSIONS ?=

PY := .venv/bin/python
READY := .venv/.ready
TOOLS := .venv/.tools
SITE := .venv/.site

.PHONY: help setup tools run lab notebooks check test test-real coverage bench release site accessible slides grade check-assignment address lint

help:  ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 18

setup: $(READY)  ## make .venv with the exact versions of requirements-lock.txt: all that the notebooks and commands need

tools: $(TOOLS)  ## add those of requirements-tools-lock.txt: tests, style, nbgrader, export, methods to compare with

$(READY): requirements-lock.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("error: the course needs Python 3.11 or newer, this is %d.%d; say make PYTHON=/path/to/python3.11" % sys.version_info[:2])'
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet -r requirements-lock.txt
	$(PY) -m pip install --quiet --no-deps -e .
	touch $@

$(TOOLS): requirements-tools-lock.txt $(READY)
	$(PY) -m pip install --quiet -r requirements-lock.txt -r requirements-tools-lock.txt
	touch $@

run: $(READY)  ## train on the built-in cohort (6 minutes) and measure the result
	$(PY) -m course_utils train --dataset synthetic --minutes 6 --out runs/synthetic
	$(PY) -m course_utils evaluate --model runs/synthetic/best.pt --dataset synthetic --out runs/synthetic/metrics.csv

lab: $(READY)  ## open the notebooks in JupyterLab
	$(PY) -m jupyterlab --ServerApp.root_dir=. notebooks/00_start_here.ipynb

notebooks: $(TOOLS)  ## write every notebook anew from its source, executed
	$(PY) -m notebooks.build build

check: $(TOOLS) lint  ## style, types and the quick tests, in minutes
	OMP_NUM_THREADS=1 $(PY) -m pytest -n $(WORKERS) --dist loadfile -m "not slow" tests

test: $(TOOLS) lint  ## every test, and every notebook from top to bottom
	OMP_NUM_THREADS=1 $(PY) -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

test-real: $(TOOLS)  ## every page on real people, where the data folder (or shared/data beside the repository) holds them
	OMP_NUM_THREADS=1 $(PY) -m pytest -n $(WORKERS) --dist load tests/notebooks/real_pages.py

# The deselected test forbids files to grow, those of coverage too.
coverage: $(TOOLS)  ## the share of the package's lines and branches that the tests run, which must not fall
	OMP_NUM_THREADS=1 $(PY) -m pytest -n $(WORKERS) --dist loadfile --cov --cov-report=term tests --deselect tests/scans/test_registration.py::test_a_full_disk_leaves_all_files_or_none

lint: $(TOOLS)  ## style and types of the code, style of the notebooks' sources, spelling
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m ty check --quiet
	$(PY) -m codespell_lib

bench: $(TOOLS)  ## speed, memory and accuracy beside MONAI's VoxelMorph and voxelmorph
	$(PY) -m tests.benchmarks

release: $(READY)  ## the students' bundle in release/: lectures, assignments without solutions, the package
	$(PY) -m notebooks.build release

site: $(SITE)  ## the executed pages, the documents and the docstrings as a web site in site/
	$(PY) -m sphinx -q -W --keep-going -b html -c docs/site . site
	@echo "open site/docs/site/index.html"

accessible: $(TOOLS) site  ## whether everybody can read the site, light and dark: axe, in a real browser
	$(PY) -m pytest -q tests/accessible_site.py

$(SITE): requirements-site-lock.txt $(READY)
	$(PY) -m pip install --quiet -r requirements-lock.txt -r requirements-site-lock.txt
	touch $@

slides: $(READY)  ## slides for lectures in slides/, made of the executed pages
	$(PY) -m notebooks.slides

grade: $(READY)  ## grade what students handed in: make grade SUBMISSIONS=folder-or-zip
	$(PY) -m course_utils grade "$(SUBMISSIONS)" --out grades

check-assignment: $(READY)  ## points of your own solutions, on the visible checks: make check-assignment N=2
	$(PY) -m course_utils check notebooks/assignments/0$(N)_*.ipynb

address: $(READY)  ## carry the repository's address everywhere: make address URL=https://github.com/me/fork
	$(PY) -m notebooks.build address "$(URL)"
