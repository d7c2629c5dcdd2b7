# Everything sets itself up: `make demo` and `make test` need make and Python 3.11 or later with venv and pip.
#   make demo    explain the shipped classifier; writes stylex-demo/report.html
#   make test    install what the tests need and run them all
#   make lint    formatting, lint and types, as CI and pre-commit run them
#   make clean   remove the environment, caches and the demo's folder
# Options: PYTHON=python3.12, DEMO_ARGS="--images 60", PYTEST_ARGS="-k selection", JOBS=4

PYTHON ?= python3
JOBS ?= 2
DEMO_ARGS ?=
PYTEST_ARGS ?=
VENV := .venv
RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip --disable-pip-version-check

.DELETE_ON_ERROR:
.PHONY: help demo test lint clean

help:
	@sed -n 's/^#   //p' Makefile

demo: $(VENV)/.web-installed
	$(RUN) -m stylex demo $(DEMO_ARGS)

# One thread a worker: two workers that each used all cores would wait for each other.
test: $(VENV)/.test-installed
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n $(JOBS) --dist worksteal $(PYTEST_ARGS)

lint: $(VENV)/.dev-installed
	$(RUN) -m ruff format --check src tests scripts
	$(RUN) -m ruff check src tests scripts
	$(RUN) -m mypy

clean:
	rm -rf $(VENV) build dist stylex-demo .pytest_cache .mypy_cache .ruff_cache
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp stands for a finished installation; it is older than pyproject.toml when the dependencies have changed.
$(VENV)/.made:
	@command -v "$(PYTHON)" >/dev/null || \
	  { echo "stylex: no '$(PYTHON)' here; install Python 3.11 or later, or say which: make PYTHON=..." >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "stylex: '$(PYTHON)' is `"$(PYTHON)" -V 2>&1`, 3.11 or later is needed: make PYTHON=..." >&2; exit 1; }
	@"$(PYTHON)" -c 'import venv, ensurepip' 2>/dev/null || \
	  { echo "stylex: '$(PYTHON)' comes without venv; on Debian: apt install python3-venv" >&2; exit 1; }
	"$(PYTHON)" -m venv $(VENV)
	@touch $@

# With what `stylex view` and `stylex study serve` need: they are the next things to look at.
$(VENV)/.web-installed: $(VENV)/.made pyproject.toml
	$(PIP) install -e '.[web]'
	@touch $@

$(VENV)/.test-installed: $(VENV)/.made pyproject.toml
	$(PIP) install -e '.[test]'
	@touch $@ $(VENV)/.web-installed

$(VENV)/.dev-installed: $(VENV)/.made pyproject.toml
	$(PIP) install -e '.[dev]'
	@touch $@ $(VENV)/.web-installed $(VENV)/.test-installed
