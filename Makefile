# Each target sets up .venv first if it is not there yet.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Tests run in two processes of one thread each. A file stays in one of them, as its tests share models they train.
WORKERS ?= 2
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile

.PHONY: demo fast test test-long check docs bench clean

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $(STAMP)

demo: $(STAMP)  ## 16 labelled synthetic chest X-rays and a contact sheet in demo/
	$(BIN)/medgen sample medfusion-cxr -n 16 --label "No Finding,Pneumonia" --seed 0 --out demo --grid true

fast: $(STAMP)  ## under 2 minutes: unit tests, contracts on tiny models, no training to the end
	$(PYTEST) -m "not slow and not ddp and not long"

test: $(STAMP)  ## the whole test suite but for the long tests
	$(PYTEST) -m "not long"

test-long: $(STAMP)  ## the long tests; where there are none, pytest exits with 5
	$(PYTEST) -m long || [ $$? -eq 5 ]

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
