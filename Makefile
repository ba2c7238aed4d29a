# Everything runs from .venv, which the targets make when it is missing or when its inputs change.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# No GPU is needed, no usage statistics leave the machine, and BLAS does not fight Ray for the cores.
export RAY_USAGE_STATS_ENABLED := 0
export TOKENIZERS_PARALLELISM := false
# Two at a time: many tests wait for processes that they started. A file's tests stay together.
SIDE_BY_SIDE := -n 2 --dist loadfile

.PHONY: demo test test-quick install lint format bench clean

demo: install
	$(BIN)/milp-ray demo

test: install
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) --durations=25

test-quick: install
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) -m "not slow"

install: $(STAMP)

$(STAMP): setup.cfg pyproject.toml constraints.txt constraints-stores.txt constraints-triton.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "milp_ray needs Python 3.11 or newer: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	# torch first: deepspeed's build looks for it, and other packages then take this version.
	$(BIN)/python -m pip install -q -c constraints.txt setuptools wheel ninja torch
	$(BIN)/python -m pip install -q -c constraints.txt --no-build-isolation -e '.[dev,deepspeed]'
	# Object stores for the tests, servers in an environment of their own: moto's botocore needs an older
	# python-dateutil.
	test -x $(VENV)/stores/bin/python || $(BIN)/python -m venv $(VENV)/stores
	$(VENV)/stores/bin/python -m pip install -q -r constraints-stores.txt
	# Beside the environment: torch for CPUs does without it, and so does everything that looks for it.
	$(BIN)/python -m pip install -q --no-deps --upgrade --target $(VENV)/triton -r constraints-triton.txt
	touch $(STAMP)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: install
	@ls benchmarks/*.py >/dev/null 2>&1 || echo "no benchmarks yet"
	@for script in $(wildcard benchmarks/*.py); do echo "== $$script"; $(BIN)/python $$script || exit 1; done

clean:
	rm -rf $(VENV) .cache build *.egg-info .mypy_cache .ruff_cache .pytest_cache
