# Each target sets up .venv first if it is not there yet.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test check docs bench clean

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $(STAMP)

demo: $(STAMP)  ## 16 labelled synthetic chest X-rays and a contact sheet in demo/
	$(BIN)/medgen sample medfusion-cxr -n 16 --label "No Finding,Pneumonia" --seed 0 --out demo --grid true

test: $(STAMP)  ## the whole test suite
	$(BIN)/python -m pytest

check: $(STAMP)  ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(STAMP)  ## HTML in docs/_build/html; warnings are errors
	$(BIN)/sphinx-build -W --keep-going -b html docs docs/_build/html

bench: $(STAMP)  ## every performance claim, each beside its peer
	for script in benchmarks/*.py; do $(BIN)/python $$script || exit 1; done

clean:  ## everything the targets above made
	rm -rf $(VENV) demo docs/_build .mypy_cache .ruff_cache .pytest_cache
