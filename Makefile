# Two commands on a fresh clone: `make demo` and `make test`. Both set themselves up.
PYTHON ?= python3
ARGS ?=
# Processes that run tests: most of what a test does is wait for other processes. tests/conftest.py says which
# tests share one; more than three gain nothing.
JOBS ?= 3
BIN := .venv/bin

# Hundreds of processes import rayvisor in the tests: where Python is told not to keep what it has compiled, each
# compiles it anew, a quarter of a second of a core.
test test-web demo faults: export PYTHONDONTWRITEBYTECODE :=

.PHONY: help setup lock demo check test test-web faults docs clean
.DEFAULT_GOAL := help

help:
	@echo "make demo    the main job: a real vLLM engine is killed mid-stream, nothing is lost"
	@echo "             (ARGS='--fault kill-host --requests 8', see .venv/bin/rayvisor demo --help)"
	@echo "make test    all checks and tests (JOBS=2 test processes instead of 3, ARGS='-k name' for some of them)"
	@echo "make test-web  tests with a real browser, Mermaid, Graphviz and SCXML tools, and the site of make docs: installs"
	@echo "             what it can, names the rest, leaves pictures of the live page in build/web (CHROMIUM=... names a"
	@echo "             browser; ARGS='--require chromium,graphviz' fails where one of these checks does not run)"
	@echo "make faults  injects every fault of the matrix into the real thing and prints what came of it"
	@echo "             (ARGS='--engine sim' is quicker; ARGS='--only host' plays some)"
	@echo "make docs    the documentation site, in build/docs; every warning is an error"
	@echo "make check   lint, format, types, import directions"
	@echo "make setup   the virtual environment .venv; the commands above call it (PYTHON=... names another Python)"
	@echo "make lock    renews constraints.txt, the exact versions that make setup installs (PYTHON=... as there)"
	@echo "make clean   removes .venv, caches and what was built"

setup:
	@$(PYTHON) tools/setup.py

lock:
	@$(PYTHON) tools/setup.py --lock

demo: setup
	@$(BIN)/rayvisor demo $(ARGS)

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict
	$(BIN)/lint-imports

test: check
	$(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadgroup $(ARGS)

test-web: setup
	@$(BIN)/python tools/web_tests.py $(ARGS)

faults: setup
	@$(BIN)/python -m benchmarks faults --engine vllm $(ARGS)

docs:
	@$(PYTHON) tools/setup.py docs
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet --builder html docs build/docs
	@echo "the site is build/docs/index.html"
	$(BIN)/python -m pytest tests/site $(ARGS)

clean:
	rm -rf .venv .cache build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
