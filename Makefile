# Two commands on a fresh machine: `make demo`, `make test`. Both set up .venv first.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := runs/demo
# One thread a process: the tests run several beside each other, and networks as small as the demo's
# are slower on two threads whenever something else wants a core.
export OMP_NUM_THREADS ?= 1
# Hundreds of processes start here; each would compile the toolkit again.
unexport PYTHONDONTWRITEBYTECODE
# Processes that tests run in. One more than the cores it is meant for: tests on a SLURM mostly wait.
JOBS ?= 3

.PHONY: demo test test-long lint docs bench results-gpu slurm-deps clean-demo

# Made anew when what it is made from changes; nothing is installed outside .venv.
$(VENV)/.done: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "lensdist needs Python 3.11 or newer; set PYTHON=…"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,bench,tensorboard,export,parquet,hdf5]'
	touch $@

# The main job, end to end, on simulated data: at most 5 minutes on two CPU cores.
demo: $(VENV)/.done
	PATH="$(CURDIR)/$(BIN):$$PATH" bash configs/demo/run.sh $(DEMO)

test: $(VENV)/.done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@# Beside each other: now and then all tests wait.
	$(BIN)/mypy & types=$$!; $(BIN)/python -m pytest -n $(JOBS); tests=$$?; \
	  wait $$types && exit $$tests

# Every combination of what `make test` pairs (engines, precisions, processes, tasks), in more steps.
test-long: export LENSDIST_TESTS := long
test-long: test

lint: $(VENV)/.done
	$(BIN)/ruff check --fix . && $(BIN)/ruff format . && $(BIN)/mypy && $(BIN)/lint-imports

# The documentation as a site, in site/. Building needs no network.
docs: export NO_MKDOCS_2_WARNING := 1
docs: $(VENV)/.done
	PYTHONPATH=. COLUMNS=100 $(BIN)/python -m mkdocs build --quiet --strict
	@echo "read it: $(BIN)/python -m http.server -d site, then open http://localhost:8000"

# Ratios against what a user would pick instead; each prints a table.
bench: $(VENV)/.done
	@# Beside the environment: where timm is installed, accelerate's command imports it, and with it
	@# torchvision, whose operators do not load beside a CPU build of torch.
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --target $(VENV)/rivals --upgrade 'timm>=1.0'
	for file in $(basename $(notdir $(wildcard benchmarks/[a-z]*.py))); do echo "== $$file"; \
	  PYTHONPATH=$(VENV)/rivals $(BIN)/python -m benchmarks.$$file || exit 1; done

# The full-size table, a GPU's job: goes on where it was, LIMIT seconds a call. Not run yet.
results-gpu: $(VENV)/.done
	PATH="$(CURDIR)/$(BIN):$$PATH" bash configs/results/run.sh runs/results

# A real SLURM for the tests that need one (Debian, root). `make test` never installs system packages.
# The tests start daemons of their own: a policy-rc.d that exits 101 keeps apt from starting any.
SLURM_PACKAGES := slurmctld slurmd slurm-client munge
slurm-deps:
	@dpkg -s $(SLURM_PACKAGES) >/dev/null 2>&1 && exit 0; \
	[ "$$(id -u)" = 0 ] || { echo "slurm-deps installs Debian packages: run it as root"; exit 2; }; \
	set -e; policy=/usr/sbin/policy-rc.d; \
	if [ ! -e $$policy ]; then \
	  trap "rm -f $$policy" EXIT; printf '#!/bin/sh\nexit 101\n' >$$policy; chmod 755 $$policy; \
	fi; \
	apt-get update -qq; \
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(SLURM_PACKAGES)

clean-demo:
	rm -rf $(DEMO)
