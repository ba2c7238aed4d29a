# Everything runs from .venv, which the targets make when it is missing or when its inputs change.
# Another Python gets another environment: make test PYTHON=python3.13 VENV=.venv-3.13
PYTHON ?= python3
VENV ?= .venv
LOWEST := .venv-lowest
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# No GPU is needed, no usage statistics leave the machine, and BLAS does not fight Ray for the
# cores.
export RAY_USAGE_STATS_ENABLED := 0
export TOKENIZERS_PARALLELISM := false
# Tests start hundreds of processes: each would compile this package anew where bytecode may not be
# kept.
unexport PYTHONDONTWRITEBYTECODE
# Three at a time on two cores: many tests wait for processes that they started. A file's tests stay
# together, and files are handed out in the order of tests/conftest.py.
SIDE_BY_SIDE := -n 3 --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-nightly test-quick test-lowest audit lock install install-lowest install-trackers lint format house bench clean

demo: install
	$(BIN)/milp-ray demo

test: install
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) -m "not nightly" --durations=25

test-nightly: install install-trackers
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) -m nightly

test-quick: install
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) -m "not slow and not nightly"

install: $(STAMP)

# Packages come by hash, with three exceptions. torch has one version and other files for CPUs and
# for CUDA; what it requires, setuptools, wheel and ninja come with it, since deepspeed's build
# looks for all of them.
$(STAMP): setup.cfg pyproject.toml constraints.txt requirements.lock stores.lock triton.lock
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "milp_ray needs Python 3.11 or newer: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt setuptools wheel ninja torch
	$(BIN)/python -m pip install -q --no-deps --no-build-isolation --require-hashes -r requirements.lock
	$(BIN)/python -m pip install -q --no-deps --no-build-isolation -e .
	$(BIN)/python -m pip check -q
	# Object stores for the tests, servers in an environment of their own: moto's botocore needs an
	# older python-dateutil.
	test -x $(VENV)/stores/bin/python || $(BIN)/python -m venv $(VENV)/stores
	$(VENV)/stores/bin/python -m pip install -q --no-deps --require-hashes -r stores.lock
	# Beside the environment: torch for CPUs does without it, and so does everything that looks for it.
	$(BIN)/python -m pip install -q --no-deps --require-hashes --upgrade --target $(VENV)/triton -r triton.lock
	touch $(STAMP)

# Clients of experiment trackers, stores of studies and optuna-dashboard, for the tests that read back
# what docs/tracking.md promises. Beside the environment, 190 MB: those tests are skipped without.
install-trackers: $(VENV)/trackers/.installed

$(VENV)/trackers/.installed: trackers.lock $(STAMP)
	$(BIN)/python -m pip install -q --no-deps --require-hashes --upgrade --target $(VENV)/trackers -r trackers.lock
	touch $@

# The quick tests with the lowest versions that setup.cfg allows, in an environment of their own: a
# bound that is too low is found here. torch is then the lowest one's build for CUDA (several GB),
# also where there is no GPU.
test-lowest: $(LOWEST)/.installed
	$(LOWEST)/bin/python -m pytest $(SIDE_BY_SIDE) -m "not slow and not nightly" --ignore tests/cluster

install-lowest: $(LOWEST)/.installed

$(LOWEST)/.installed: setup.cfg pyproject.toml constraints-lowest.txt
	test -x $(LOWEST)/bin/python || $(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install -q -c constraints-lowest.txt setuptools wheel ninja torch
	$(LOWEST)/bin/python -m pip install -q --no-deps --no-build-isolation -r constraints-lowest.txt
	$(LOWEST)/bin/python -m pip install -q --no-deps --no-build-isolation -e .
	$(LOWEST)/bin/python -m pip check -q
	touch $@

# Published vulnerabilities of what is locked; without a network, of a file: make audit OSV=all.zip
# (osv.dev, PyPI).
audit: install
ifdef OSV
	$(BIN)/python .ci/audit.py $(OSV) constraints.txt constraints-stores.txt constraints-triton.txt constraints-trackers.txt
else
	$(BIN)/uv tool run pip-audit@2.10.1 --strict --disable-pip --no-deps -r constraints.txt
endif

# After a change of constraints*.txt or of the bounds in setup.cfg: the hashes, and the lowest
# versions.
UV = $(BIN)/uv pip compile -q --upgrade --no-header --no-annotate --python-version 3.11 --index-strategy unsafe-best-match
lock:
	grep -v '^torch==' constraints.txt | $(UV) --no-deps --generate-hashes -o requirements.lock -
	$(UV) --no-deps --generate-hashes -o stores.lock constraints-stores.txt
	$(UV) --no-deps --generate-hashes -o triton.lock constraints-triton.txt
	$(UV) --no-deps --generate-hashes -o trackers.lock constraints-trackers.txt
	$(BIN)/python .ci/lowest.py | $(UV) --resolution lowest-direct -o constraints-lowest.txt -

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The picture in docs/architecture.md, from the imports.
house: install
	$(BIN)/python -m tests.house

bench: install
	@ls benchmarks/*.py >/dev/null 2>&1 || echo "no benchmarks yet"
	@for script in $(wildcard benchmarks/*.py); do echo "== $$script"; $(BIN)/python $$script || exit 1; done

clean:
	rm -rf $(VENV) $(LOWEST) .venv-3.13 .cache build *.egg-info .mypy_cache .ruff_cache .pytest_cache
