# Two commands set up everything they need: `make quickstart` and `make test`.
PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin/python

.PHONY: quickstart test evidence check clean

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade pip
	$(RUN) -m pip install --quiet -e ".[test]"
	touch $@

quickstart: $(VENV)/.installed ## world -> vision -> supervised -> reward and cost, with a table of held-out results
	$(RUN) -m safe_rlhf_v quickstart

evidence: $(VENV)/.installed ## the quickstart over three seeds and data sizes; writes docs/evidence/foundation.json
	$(RUN) benchmarks/evidence.py

check: $(VENV)/.installed ## format, lint and types
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m mypy

test: check ## everything CI runs
	$(RUN) -m pytest -q -n 2

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache
