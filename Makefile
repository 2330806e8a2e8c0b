# `make train`, `make playground` and `make test` need nothing but make, git and Python >= 3.10: each first sets up .venv
# with the versions of requirements.lock, and does so anew only when pyproject.toml or requirements.lock has changed.
#
#   make PYTHON=python3.12 test    another Python than python3
#   make TORCH_INDEX=https://download.pytorch.org/whl/cpu train
#                                  PyTorch without CUDA: PyPI's build for Linux brings several GB of it
#
# Both count when .venv is made: `make clean` first to change them.

PYTHON ?= python3
TORCH_INDEX ?=
DATA ?= pydocs

VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL = $(call PIP_IN,$(VENV)) --constraint requirements.lock
PIP_IN = PIP_DISABLE_PIP_VERSION_CHECK=1 $(1)/bin/python -m pip install --quiet \
	$(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
UV_VERSION := 0.13.9

.DELETE_ON_ERROR:
.PHONY: help train playground test test-fast test-versions test-lowest test-newest bench torture gpu-pack format lock clean

help: ## Say what there is
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22

train: $(VENV)/.installed ## Train the quickstart model in runs/quickstart, or go on where it stopped
	$(BIN)/mu-sota train --preset quickstart --data pydocs --out runs/quickstart --resume
	@echo "Next: make playground, or $(BIN)/mu-sota generate runs/quickstart --interactive"

playground: runs/quickstart/best/config.json $(VENV)/.installed-playground ## Look inside the quickstart model in your browser
	$(BIN)/mu-sota playground runs/quickstart

test: $(VENV)/.installed-dev ## Check format, lint, types, and run the tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile

test-fast: $(VENV)/.installed-dev ## Run the tests that need no process, server, browser or compiler: under a minute
	MU_SOTA_KERNELS=0 $(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist worksteal -m "not slow"

# What an update of a library can break: the model inside others' code, training, decoding, export, serving, data,
# tokenizer, playground.
VERSION_TESTS := $(addprefix tests/,model data saved generation inspection training playground \
	comparison/test_baselines.py test_using.py)
RUN_VERSION_TESTS = $(1)/bin/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile $(VERSION_TESTS)
RECORD_VERSIONS = $(1)/bin/python benchmarks/versions.py $(2) --out docs/results/versions.json

test-versions: test-lowest test-newest ## Test on the lowest and on the newest releases that pyproject.toml admits

test-lowest: $(VENV)-lowest/.installed ## The first half of it, in .venv-lowest
	$(call RUN_VERSION_TESTS,$(VENV)-lowest)
	$(call RECORD_VERSIONS,$(VENV)-lowest,lowest)

test-newest: ## The second half, in .venv-newest, which is set up anew each time
	@echo "Setting up $(VENV)-newest without requirements.lock: several GB where PyTorch brings CUDA."
	@$(PYTHON) -m venv --clear $(VENV)-newest
	@$(call PIP_IN,$(VENV)-newest) hatchling
	@$(call PIP_IN,$(VENV)-newest) --no-build-isolation --editable '.[dev]'
	$(call RUN_VERSION_TESTS,$(VENV)-newest)
	@$(call PIP_IN,$(VENV)-newest) torchao # last, for importing it prints lines into what other tests read
	$(VENV)-newest/bin/python -m pytest tests/model/test_others_code.py -k torchao
	$(call RECORD_VERSIONS,$(VENV)-newest,newest)

bench: $(VENV)/.installed-dev ## Time training, decoding and reading of text here (6 minutes), in runs/bench; DATA=corpus
	$(BIN)/python benchmarks/training.py --out runs/bench/training.json
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/decoding.py --out runs/bench/decoding.json
	$(BIN)/python benchmarks/tokenizer.py $(DATA) --out runs/bench/tokenizer.json

torture: $(VENV)/.installed-dev ## Kill, damage and disturb training runs (15 minutes), in runs/torture.json
	$(BIN)/python benchmarks/torture.py --out runs/torture.json

WIKITEXT ?= $(or $(wildcard ../shared/data/wikitext-2),wikitext-2)
gpu-pack: $(VENV)/.installed-dev ## Fill gpu-pack/ with what benchmarks/gpu.py needs on a bare GPU machine; WIKITEXT=corpus
	$(BIN)/python benchmarks/gpu_pack.py --data $(WIKITEXT) --out gpu-pack

format: $(VENV)/.installed-dev ## Rewrite the code in the house's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: ## Pin again what pyproject.toml asks for; LOCK=--upgrade takes the newest
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) uv==$(UV_VERSION)
	$(BIN)/uv pip compile --quiet --universal --python-version 3.10 --extra dev $(LOCK) \
		--custom-compile-command "make lock" --output-file requirements.lock pyproject.toml

clean: ## Remove .venv and what tools left behind; runs/ stays
	rm -rf $(VENV) $(VENV)-lowest $(VENV)-newest .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.installed: pyproject.toml requirements.lock
	@command -v $(PYTHON) >/dev/null || { \
		echo "There is no $(PYTHON): install Python 3.10 or newer, or name one: make $(MAKECMDGOALS) PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
		echo "mu-sota needs Python 3.10 or newer, and $(PYTHON) is $$($(PYTHON) --version 2>&1):" \
			"name another one: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "$(PYTHON) cannot make virtual environments:" \
			"install its venv module (on Debian and Ubuntu: sudo apt install python3-venv)" >&2; exit 1; }
	@echo "Setting up $(VENV), once: about 2 minutes and 2 GB of disk (several GB more where PyTorch brings CUDA)."
	@$(PYTHON) -m venv --clear $(VENV)
	@$(PIP_INSTALL) hatchling
	@$(PIP_INSTALL) --no-build-isolation --editable .
	@touch $@

runs/quickstart/best/config.json:
	@echo "There is no model in runs/quickstart yet: make train first; the first is there after its first epoch." >&2; exit 1

$(VENV)/.installed-playground: $(VENV)/.installed
	@echo "Adding Gradio for the playground, once: about 0.5 GB of disk."
	@$(PIP_INSTALL) --no-build-isolation --editable '.[playground]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "Adding the tools of development."
	@$(PIP_INSTALL) --no-build-isolation --editable '.[dev]'
	@touch $@

# Direct requirements at their lowest, what these need at its newest: so an old release meets new ones in practice, too.
$(VENV)-lowest/.installed: pyproject.toml
	@echo "Setting up $(VENV)-lowest with the lowest releases: several GB where PyTorch brings CUDA."
	@$(PYTHON) -m venv --clear $(VENV)-lowest
	@$(call PIP_IN,$(VENV)-lowest) uv==$(UV_VERSION) hatchling
	@$(VENV)-lowest/bin/uv pip compile --no-config --quiet --resolution lowest-direct --extra dev \
		--python $(VENV)-lowest/bin/python --output-file $(VENV)-lowest/requirements.txt pyproject.toml
	@$(call PIP_IN,$(VENV)-lowest) --requirement $(VENV)-lowest/requirements.txt
	@$(call PIP_IN,$(VENV)-lowest) --no-build-isolation --no-deps --editable .
	@touch $@
