# demo · test · lint · bench. CI calls these and nothing else. Needed beforehand: Python 3.11+ with venv, and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TEST_WORKERS ?= 2

# One thread per process: torch's intra-op threads collapse when several processes share few cores.
export OMP_NUM_THREADS ?= 1
export RAY_USAGE_STATS_ENABLED = 0

.PHONY: setup demo test lint format bench chaos clean
.DEFAULT_GOAL := help

help:
	@echo "make demo   set up and segment the bundled photos into build/demo/"
	@echo "make test   set up and run every test"
	@echo "make lint   ruff, mypy --strict, import-linter, bandit, pip-audit"
	@echo "make bench  the CPU benchmarks, one JSON line each"
	@echo "make chaos  faults on purpose, many rounds, and whether the tables came out the same"

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "htc-batch needs Python 3.11 or newer; name one with: make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(STAMP)
	rm -rf build/demo
	$(BIN)/htc run examples/photos build/demo --shard-images 4 --run demo
	$(BIN)/htc query build/demo "SELECT parse_filename(uri) AS photo, width, height, status, instances FROM images ORDER BY uri"
	$(BIN)/htc show build/demo --to build/demo/overlays

test: $(STAMP)
	$(BIN)/pytest -n $(TEST_WORKERS) --dist loadgroup

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/bandit --quiet --recursive -ll -ii htc_batch htc_model pipeline jobs
	$(BIN)/hadolint infra/docker/Dockerfile
	$(BIN)/python infra/audit.py

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)
	$(BIN)/python benchmarks/masks.py
	$(BIN)/python benchmarks/model_cpu.py

chaos: $(STAMP)
	$(BIN)/python benchmarks/chaos.py

clean:
	rm -rf build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
