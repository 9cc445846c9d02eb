# make quickstart   the whole recipe, from recordings to a report       make quickstart SMOKE=1   the same path in minutes
# make test         set up and run the tests                           make test ARGS="-k mask"  only some of them
# make help         every target and variable

# The first two may also come from the environment, the others only from the command line.
PYTHON ?= python3
TORCH  ?= torch==2.13.0
VENV    = .venv
WORKERS = 2
SMOKE   =
RUN     = runs/$(if $(SMOKE),smoke,quickstart)
ARGS    =
STATUS  =

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
CPU_INDEX := https://download.pytorch.org/whl/cpu

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help venv install quickstart test test-cluster ruff clean

help:
	@echo "make quickstart   install, then run every stage and write the report into RUN (now $(RUN)); SMOKE=1 for a quick pass"
	@echo "make test         install, then run the tests on WORKERS=$(WORKERS) processes; ARGS=\"...\" is handed to pytest"
	@echo "make test-cluster install, then run the drills on clusters of several nodes, which \`make test\` leaves out (minutes)"
	@echo "make ruff         install, then lint"
	@echo "make install      install everything that users and developers need into VENV=$(VENV)"
	@echo "make venv         create the virtual environment with PYTHON=$(PYTHON) and install TORCH=$(TORCH)"
	@echo "make clean        remove the virtual environment, caches and build products; runs/ is kept"

# One stamp per step, so that nothing is installed twice and an interrupted step is done again.

venv: $(VENV)/.torch
install: $(VENV)/.dev

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0] + ": say make PYTHON=/path/to/python3.11" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv --clear $(VENV)
	@touch $@

# torch is asked for first, alone and pinned: a looser requirement may bring gigabytes of CUDA to a machine without a GPU.
# Without an NVIDIA GPU the CPU wheel is wanted: from the configured sources, else from PyTorch's index, else whatever
# carries the pinned version. TORCH=... given on the command line or in the environment is installed as it is.
$(VENV)/.torch: $(VENV)/.made
ifeq ($(origin TORCH),file)
	@if [ "$$(uname -s)" = Linux ] && ! nvidia-smi >/dev/null 2>&1; then \
		echo "no NVIDIA GPU: installing $(TORCH) for the CPU"; \
		$(PIP) install "$(TORCH)+cpu" 2>/dev/null \
		|| $(PIP) install "$(TORCH)+cpu" --extra-index-url $(CPU_INDEX) --retries 1 --timeout 20 2>/dev/null \
		|| $(PIP) install "$(TORCH)"; \
	else \
		$(PIP) install "$(TORCH)"; \
	fi
else
	$(PIP) install "$(TORCH)"
endif
	@touch $@

$(VENV)/.core: $(VENV)/.torch pyproject.toml
	$(PIP) install --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.core pyproject.toml
	$(PIP) install --editable ".[test,dev,wandb,video,minari]"
	@touch $@

quickstart: $(VENV)/.core
	$(BIN)/dreamer4 quickstart $(if $(SMOKE),--smoke) --run $(RUN)

# make turns every exit status into 2. With STATUS=FILE pytest's own is written there and make succeeds (.ci/run reads it).
# A crashed worker ends the run: pytest-xdist can wait for ever for the one that replaces it.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup --max-worker-restart 0 -ra $(ARGS)
test: install
	$(PYTEST)$(if $(STATUS),; echo $$? >"$(STATUS)")

# One after the other: every drill starts a cluster of its own and some wait for its clocks.
test-cluster: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 0 -m cluster -ra $(ARGS)

ruff: install
	$(BIN)/python -m ruff check .

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache *.egg-info
	find . -name __pycache__ -type d -not -path "./runs/*" -prune -exec rm -rf {} +
