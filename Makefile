# `make demo` and `make test` are all a fresh Debian 12 or Raspberry Pi OS needs; both install what is missing first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SUDO := $(shell [ "$$(id -u)" -eq 0 ] || echo sudo)
# PyPI's torch brings gigabytes of CUDA; without an NVIDIA GPU the CPU build of pytorch.org is tried first.
TORCH_CPU := --index-url https://download.pytorch.org/whl/cpu --retries 0 --timeout 15
PIP := $(BIN)/pip --disable-pip-version-check install --quiet -c constraints.txt
ARGS ?=

# One thread of maths per process: several train at once.
export OMP_NUM_THREADS ?= 1

.PHONY: help demo test check bench chaos fuzz attacks install clean
.DEFAULT_GOAL := help

help:  ## say what there is
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

demo: install  ## a cloud, three farms and their devices learn on real bridged brokers; ARGS="..." is passed on
	@$(BIN)/hfl demo $(ARGS)

# Two at a time, for they wait for brokers more than they compute; a file's tests share what they start.
test: install  ## all tests, on real brokers
	@$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

check: install  ## lint, format, types, import layers
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/python -m pytest -q tests/unit/test_layers.py

bench: install  ## measure, print a table, save it under benchmarks/results
	@$(BIN)/python -m benchmarks $(ARGS)

fuzz: install  ## random plans of faults in the simulator, each checked; ARGS="--plans 10000 --seed 0"
	@$(BIN)/python -m hfl_mqtt.sim.fuzz $(ARGS)

chaos: install  ## pull plugs on real processes, print the table of faults, save it too; ARGS="edge-*" chooses rows
	@$(BIN)/python -m tests.chaos $(ARGS)

attacks: install  ## attack a locked fleet on real brokers, print the table of attacks, save it too; ARGS="forged-*" chooses rows
	@$(BIN)/python -m tests.attacks $(ARGS)

install: $(VENV)/.ready  ## what all of these need

$(VENV)/.ready: setup.cfg pyproject.toml constraints.txt
	@PATH="$$PATH:/usr/sbin"; need=""; \
	command -v mosquitto >/dev/null || need="$$need mosquitto"; \
	$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || need="$$need python3-venv"; \
	if [ -n "$$need" ]; then \
	  echo "installing$$need with apt"; \
	  $(SUDO) apt-get update -qq && $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$need; \
	fi
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	@echo "installing Python packages into $(VENV)"
	@$(PIP) setuptools wheel
	@for package in torch torchvision; do \
	  if $(BIN)/python -c "import importlib.metadata as m, sys; v = m.version('$$package').split('+')[0]; sys.exit(f'$$package=={v}' not in open('constraints.txt').read())" 2>/dev/null; then continue; fi; \
	  command -v nvidia-smi >/dev/null || $(PIP) $(TORCH_CPU) $$package 2>/dev/null || true; \
	  $(PIP) $$package || exit 1; \
	done
	@$(PIP) --no-build-isolation -e '.[train,plot,fleet,parquet,dev]'
	@touch $@

clean:  ## remove what was installed and built here
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
