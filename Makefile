# demo · docs · check · test · lint · bench. CI calls lint and test, and nothing else.
# Needed beforehand: Python 3.11+ with venv, and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DOCS_STAMP := $(VENV)/.installed-docs
TEST_WORKERS ?= 2
# What `make check` leaves out beside tests marked slow: whole commands, matrices, fuzzing, random histories, processes
# that have to start.
LONG_TESTS := tests/e2e \
	tests/htc_model/network/test_batch_invariance.py \
	tests/htc_model/network/test_switches.py \
	tests/htc_model/training \
	tests/jobs/maintenance/test_prune_histories.py \
	tests/jobs/results/test_damage_matrix.py \
	tests/jobs/scheduling/test_damage.py \
	tests/jobs/scheduling/test_no_torch.py \
	tests/jobs/scheduling/test_service.py \
	tests/pipeline/inputs/formats/test_tiff.py \
	tests/pipeline/inputs/test_fuzz_readers.py \
	tests/pipeline/planning/test_background.py \
	tests/pipeline/planning/test_incremental_histories.py \
	tests/pipeline/runs/test_lease_histories.py \
	tests/pipeline/test_signals.py \
	tests/pipeline/training

# One thread per process: torch's intra-op threads collapse when several processes share few cores.
export OMP_NUM_THREADS ?= 1
export RAY_USAGE_STATS_ENABLED = 0

.PHONY: help setup demo docs check check-code check-tests test lint format bench chaos screenshots clean
.DEFAULT_GOAL := help

help:
	@echo "make setup  the virtual environment .venv, which the others set up by themselves"
	@echo "make demo   set up and segment the bundled photos into build/demo/"
	@echo "make docs   the documentation as a site, build/site/index.html"
	@echo "make check  before a commit: ruff, mypy, import-linter and the quick tests, in a few minutes"
	@echo "make test   set up and run every test"
	@echo "make lint   ruff, mypy --strict, import-linter, bandit, hadolint, pip-audit"
	@echo "make format let ruff repair and format the code"
	@echo "make bench  the CPU benchmarks, one JSON line each"
	@echo "make screenshots  remake the pictures of README and docs (needs a browser)"
	@echo "make chaos  faults on purpose, many rounds, and whether the tables came out the same"

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "htc-batch needs Python 3.11 or newer; name one with: make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	# kubectl and helm, for tests; without them these say so.
	-$(BIN)/python infra/kuberay/get_tools.py
	# A browser, for tests of pages; likewise.
	-$(BIN)/python infra/get_browser.py
	@touch $@

demo: $(STAMP)
	rm -rf build/demo
	$(BIN)/htc run examples/photos build/demo/masks --shard-images 4 --run demo
	$(BIN)/htc query build/demo/masks "SELECT parse_filename(uri) AS photo, width, height, status, instances FROM images ORDER BY uri"
	$(BIN)/htc show build/demo/masks --to build/demo/overlays

# mkdocs-material has a newer program to recommend; it does so on every build.
docs: export NO_MKDOCS_2_WARNING = 1
docs: $(DOCS_STAMP)
	$(BIN)/mkdocs build --strict --quiet
	$(BIN)/python infra/site/check_site.py build/site

$(DOCS_STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	@touch $@

check: check-code check-tests

check-code: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# xdist_group marks tests that need a server for a store; their start alone takes seconds.
check-tests: $(STAMP)
	$(BIN)/pytest -q -n $(TEST_WORKERS) -m "not slow and not xdist_group" $(addprefix --ignore=,$(LONG_TESTS))

test: $(STAMP)
	$(BIN)/pytest -n $(TEST_WORKERS) --dist loadgroup --max-worker-restart 0

lint: check-code
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

screenshots: $(STAMP)
	$(BIN)/python -m tests.support.programs.screenshots

clean:
	rm -rf build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
