# Every target sets up what it needs in .venv. PYTHON=… chooses another interpreter.
PYTHON ?= python3
BIN = .venv/bin
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable
DECLARED = .venv/made setup.cfg pyproject.toml constraints.txt

.PHONY: help train test bench lint clean

help:
	@echo "make train   train a linear model on synthetic data (no download)"
	@echo "make test    run the tests"
	@echo "make bench   measure against scikit-learn and torch"
	@echo "make lint    check the style"
	@echo "make clean   remove .venv and all that was built"

train: .venv/base
	@$(BIN)/hogwild train linear

test: .venv/test
	@$(BIN)/python -m pytest

bench: .venv/bench
	@$(BIN)/python -m experiments.bench_dense
	@$(BIN)/python -m experiments.bench_linear
	@$(BIN)/python -m experiments.bench_quality
	@$(BIN)/python -m experiments.bench_scaling

lint: .venv/test
	@$(BIN)/ruff check

clean:
	@echo "removing .venv and all that was built"
	@rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; name one: make PYTHON=python3.12"; exit 1; }
	@echo "making .venv"
	@$(PYTHON) -m venv --clear .venv && touch $@ || \
	  { echo "$(PYTHON) cannot make a virtual environment; on Debian and Ubuntu: apt install python3-venv"; exit 1; }

.venv/base: $(DECLARED)
	@echo "installing the trainer and its dependencies (once, about a minute)"
	@$(INSTALL) . && touch $@

.venv/test .venv/bench: $(DECLARED)
	@echo "installing what '$(@F)' needs, torch too (once, some minutes)"
	@$(INSTALL) '.[$(@F)]' && touch $@
