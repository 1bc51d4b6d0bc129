# Every target sets up what it needs; a second call goes straight to work.
#   PYTHON       interpreter that creates the environment (3.11 or newer)
#   WORKERS      processes of the tests
#   AT_ONCE      notebooks that `make run` runs side by side (one: their timings are then fair)
#   TORCH_FLAGS  extra pip flags for torch alone, such as a CPU-only index:
#                make run TORCH_FLAGS="--index-url https://download.pytorch.org/whl/cpu"
PYTHON ?= python3
TORCH_FLAGS ?=
WORKERS ?= 2
PY := .venv/bin/python
STAMP := .venv/.installed
COLAB := .venv-colab/bin/python

# Spinning OpenMP threads stall each other on a shared machine; forked tokenizers only warn.
export OMP_WAIT_POLICY := passive
export TOKENIZERS_PARALLELISM := false

.DEFAULT_GOAL := help
.PHONY: help .venv run test check coverage test-colab test-newest test-wheel types lab bench doctor smollm2
.PHONY: address clean site

help:  ## this list
	@sed -n 's/^\([-.a-z0-9]*\):[^#]*## /\1|/p' Makefile | awk -F'|' '{ printf "make %-11s %s\n", $$1, $$2 }'

.venv: $(STAMP)  ## the environment, from requirements.lock
	@:

# -qq: pip's words on package sources that a machine names but does not have alarm newcomers; its
# errors are still printed.
# A file and not the folder: a folder's date changes whenever something is written into it.
$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; sys.version_info >= (3, 11) or sys.exit("specnb needs Python 3.11 or newer, this is " + v + ": make PYTHON=python3.12 ...")'
	@echo "installing the packages of requirements.lock into .venv: about 2 GB, some minutes"
	@$(PYTHON) -m venv .venv
	@$(PY) -m pip install -qq $(TORCH_FLAGS) $$(grep '^torch==' requirements.lock)
	@$(PY) -m pip install -qq -r requirements.lock
	@$(PY) -m pip install -qq --no-deps -e .
	@touch $@

run: $(STAMP)  ## every notebook by papermill, results in runs/<timestamp>/ or OUT=folder
	@$(PY) -m specnb.batch run $(if $(OUT),--out "$(OUT)")$(if $(AT_ONCE), --workers $(AT_ONCE))

# A process per core. Outside the heart each takes whole files, so that models are loaded once; the
# longest come first (tests/conftest.py). The slowest tests are listed.
REST := $(filter-out tests/heart/ tests/__pycache__/,$(wildcard tests/*/))
test: coverage  ## the tests, those of the heart with its coverage
	$(PY) -m pytest -q -n $(WORKERS) --dist worksteal -m slow tests/heart
	$(PY) -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --durations=25 \
		tests/heart/test_planted_bugs.py $(REST)

# What a change needs at once; about a minute on two cores.
check: $(STAMP)  ## form, types, and the tests without weights, notebooks and a browser
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(PY) -m pytest -q -n $(WORKERS) --dist loadfile \
		-m "not slow and not notebook and not weights"

# Without the slow tests, which are long enumerations that coverage makes half as long again.
coverage: $(STAMP)  ## how much of the heart its own tests walk through; fails below 95 %
	$(PY) -m pytest -q -n $(WORKERS) --dist worksteal --cov --cov-report=term-missing \
		-m "not slow" tests/heart --ignore=tests/heart/test_planted_bugs.py

# The packages that Colab has, older than those of the lock: there, nothing is installed.
.venv-colab/.installed: requirements-colab.txt
	$(PYTHON) -m venv .venv-colab
	$(COLAB) -m pip install -qq $(TORCH_FLAGS) $$(grep '^torch==' requirements.lock)
	$(COLAB) -m pip install -qq -r requirements-colab.txt
	@touch $@

test-colab: .venv-colab/.installed  ## every notebook with the older packages of Colab
	$(COLAB) -m specnb.batch run --out runs/colab --workers $(WORKERS)

# The newest transformers that was tried; the lock holds what everything else runs with.
NEWEST := transformers==5.24.0
.venv-newest/.installed: $(STAMP)
	$(PY) -m pip install -qq --no-deps --target .venv-newest $(NEWEST)
	@touch $@

test-newest: .venv-newest/.installed  ## tests of models with the newest transformers
	PYTHONPATH=.venv-newest $(PY) -m pytest -q -n $(WORKERS) --dist loadfile tests/models/test_gate.py \
		tests/models/test_certificate.py tests/models/test_prompts.py tests/bench/test_speed.py

types: $(STAMP)  ## the types, read by mypy
	$(PY) -m mypy

test-wheel: $(STAMP)  ## the wheel: built, installed apart, used from another folder
	$(PY) -m pytest -q tests/frame/test_wheel.py

# RUN: the folder of an earlier `make run`; without it the lessons are executed first.
site: $(STAMP)  ## the pages to read, in runs/pages/ (RUN=folder of an earlier run)
	$(if $(RUN),,$(PY) -m specnb.batch run --out runs/site)
	$(PY) docs/build.py --run "$(or $(RUN),runs/site)" --out runs/pages

lab: $(STAMP)  ## JupyterLab on this machine only, its token on
	$(PY) -m jupyterlab --ip=127.0.0.1 --notebook-dir=.

bench: $(STAMP)  ## real time, against plain decoding and transformers (20 minutes)
	$(PY) -m specnb.bench speed

doctor: $(STAMP)  ## versions, data and one short speculative run
	$(PY) -m specnb.doctor

.venv/.gguf: $(STAMP)
	$(PY) -m pip install -qq -c requirements.lock -e '.[gguf]'
	@touch $@

smollm2: .venv/.gguf  ## a first real model, SmolLM2-135M, for target=smollm2 (downloads 93 MB)
	$(PY) -m specnb.smollm2

address: $(STAMP)  ## writes the repository's address of pyproject.toml into notebooks and README
	$(PY) -m specnb.notebook

clean:  ## remove environment and caches; runs/ stays
	rm -rf .venv .venv-colab .venv-newest .pytest_cache .ruff_cache .mypy_cache .hypothesis build *.egg-info
	find specnb tests notebooks -name __pycache__ -o -name .ipynb_checkpoints | xargs rm -rf
