# Both commands work on a machine that has Python 3.11+, git and make:
#   make demo    install, run the default benchmark, print the comparison table
#   make test    install, run the test suite
# PYTHON chooses the interpreter, EXTRAS and CONSTRAINTS what is installed, e.g. on a machine with a GPU:
#   make demo EXTRAS=gpu,demo,dev CONSTRAINTS=

PYTHON      ?= python3
VENV        ?= .venv
EXTRAS      ?= cpu,demo,dev
CONSTRAINTS ?= -c constraints-cpu.txt
PYTEST_ARGS ?=
BENCH_ARGS  ?=

BIN   := $(VENV)/bin
STAMP := $(VENV)/.installed

# One thread per process: the suite runs two processes, and results do not depend on the number of cores.
TEST_ENV := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false

.PHONY: help install demo test test-all bench bench-full docs dist lint format typecheck clean

help:
	@echo "make demo       install, run the default benchmark, print the comparison table"
	@echo "make test       the fast test suite"
	@echo "make test-all   every test, slow ones too"
	@echo "make bench      speed beside the released pipeline's cost, minutes on two cores; rewrites docs/speed.md"
	@echo "make bench-full the same at larger sizes"
	@echo "make docs       the docs site, in site/; a broken link fails"
	@echo "make dist       sdist and wheel, in dist/, checked; scripts/smoke.sh tries the wheel in an environment of its own"
	@echo "make lint       ruff: style, imports, formatting"
	@echo "make format     ruff: reformat and fix what can be fixed"
	@echo "make typecheck  mypy, strict"
	@echo "make clean      remove caches and build products, keep the environment"

install: $(STAMP)

$(STAMP): pyproject.toml setup.py constraints-cpu.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "make: Python 3.11 or newer is needed; name one with PYTHON=..., e.g. make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[$(EXTRAS)]' $(CONSTRAINTS)
	@touch $@

demo: $(STAMP)
	@HARNESS=$(BIN)/harness sh scripts/demo.sh

test: $(STAMP)
	$(TEST_ENV) $(BIN)/pytest -n 2 -m "not slow" $(PYTEST_ARGS)

test-all: $(STAMP)
	$(TEST_ENV) $(BIN)/pytest -n 2 $(PYTEST_ARGS)

# -P: the folder datasets/ must not stand in for Hugging Face's package.
bench: $(STAMP)
	$(BIN)/python -P benchmarks/compare.py $(BENCH_ARGS)

bench-full: $(STAMP)
	$(BIN)/python -P benchmarks/compare.py --full $(BENCH_ARGS)

# Not --quiet, which would silence the warnings that --strict counts.  The variable: a notice about MkDocs 2, which
# pyproject.toml excludes.
docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -P -m mkdocs build --strict
	@echo "open site/index.html; searching needs a server: $(BIN)/python -P -m http.server --directory site"

$(VENV)/.installed-docs: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[$(EXTRAS),docs]' $(CONSTRAINTS)
	@touch $@

dist: $(VENV)/.installed-release
	rm -rf dist build/lib build/bdist.*
	$(BIN)/python -P -m build --quiet
	$(BIN)/python -P -m twine check --strict dist/*
	$(BIN)/check-wheel-contents --toplevel harness dist/*.whl

$(VENV)/.installed-release: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[$(EXTRAS),release]' $(CONSTRAINTS)
	@touch $@

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

typecheck: $(STAMP)
	sh scripts/typecheck.sh $(BIN)/mypy

clean:
	rm -rf build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
