# Windlass: what one does with this repository, a word each. `make` alone lists the words.

PYTHON ?= python3
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help demo test lint fix floors bench docs clean

# Seconds since the recipe's first line are printed by each word that takes a while.
NOW = $$(date +%s)

help: ## list these words
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'
	@echo '  Options: PYTHON=python3.12 (the interpreter to use), ARGS="..." (handed to demo, test and bench).'

demo: $(VENV)/core.stamp ## set everything up, lift examples/harbour, ask it, open the page (ARGS=--no-web: exit)
	@echo '== demo: windlass up examples/harbour --demo $(ARGS)'
	@$(BIN)/windlass up examples/harbour --demo $(ARGS)

test: $(VENV)/dev.stamp ## run the tests (ARGS="tests/core -k settings": only those)
	@echo '== test: pytest $(ARGS)'
	@$(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/dev.stamp ## check style, formatting and types
	@start=$(NOW); echo '== lint: ruff check, ruff format --check, mypy'; \
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && echo "lint took $$(( $(NOW) - start )) s"

fix: $(VENV)/dev.stamp ## repair what lint can repair by itself
	@$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

floors: $(VENV)/dev.stamp ## check that no import runs upward or sideways
	@echo '== floors: who imports whom'
	@$(BIN)/python -m pytest -q tests/test_floors.py

bench: $(VENV)/dev.stamp ## measure against the peers (ARGS="spine-index --json"; default: all, quick)
	@$(BIN)/windlass bench $(if $(ARGS),$(ARGS),--all --quick)

docs: $(VENV)/core.stamp ## write the generated pages under docs/ anew
	@$(BIN)/python tools/docs.py

clean: ## remove the virtual environment and all caches (never a workspace)
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp is younger than pyproject.toml when what is installed is what pyproject.toml asks for.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo '$(PYTHON) is missing or older than Python 3.11; name another with make PYTHON=python3.11' >&2; exit 1; }
	@echo '== set-up: a virtual environment in $(VENV)'
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo 'the venv module is incomplete; on Debian: apt-get install python3-venv' >&2; exit 1; }

$(VENV)/core.stamp: pyproject.toml | $(BIN)/python
	@start=$(NOW); echo '== set-up: installing windlass and what the main job needs (a few minutes the first time)'; \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable . && \
	touch $@ && echo "set-up took $$(( $(NOW) - start )) s"

$(VENV)/dev.stamp: pyproject.toml | $(BIN)/python
	@start=$(NOW); echo '== set-up: installing windlass and what tests and checks need'; \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]' && \
	touch $@ $(VENV)/core.stamp && echo "set-up took $$(( $(NOW) - start )) s"
