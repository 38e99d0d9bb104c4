# Every habit is one word: make demo, test, gpu, lint, build, wheel, clean.
#   PYTHON   the Python that makes the virtual environment
#   VENV     where it goes
#   TORCH    which PyTorch it gets, in pip's spelling
#   IN       make demo IN=speech.wav resynthesises this file instead of the clip that ships with the project

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0

BIN := $(VENV)/bin
SOURCES := $(shell find csrc -type f)

.PHONY: demo test gpu lint build wheel clean

demo: $(VENV)/.ready
	$(BIN)/python scripts/demo.py $(if $(IN),--in "$(IN)")

test: $(VENV)/.ready
	$(BIN)/python -m pytest

# On a machine with a GPU; TORCH must then name a CUDA build.
gpu: $(VENV)/.ready
	$(BIN)/python -m pytest -m gpu
	$(BIN)/python -m benchmarks.gpu

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict fastflow
	$(BIN)/clang-format --dry-run -Werror $(filter %.h %.cpp %.cu %.cuh,$(SOURCES))

build: $(VENV)/.ready

wheel: $(VENV)/.ready
	$(BIN)/python -m build --wheel --no-isolation

clean:
	rm -rf build dist demo fastflow.egg-info fastflow/*.so .mypy_cache .pytest_cache .ruff_cache
	rm -f $(VENV)/.native $(VENV)/.ready $(VENV)/.lint

# The stamps below let set-up run once: again only where what it was made from has changed.

$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet "$(TORCH)" "setuptools>=77" ninja
	touch $@

# Without build isolation: the libraries are built against the PyTorch that is already there, not a second download.
$(VENV)/.native: $(VENV)/.torch setup.py pyproject.toml $(SOURCES)
	$(BIN)/pip install --quiet --no-build-isolation --no-deps --editable .
	touch $@

# Dependencies come in a step of their own: some are built from source and want their own build tools, isolated.
$(VENV)/.ready: $(VENV)/.native
	$(BIN)/pip install --quiet "fastflow[test]"
	touch $@

$(VENV)/.lint: $(VENV)/.ready
	$(BIN)/pip install --quiet "fastflow[dev]"
	touch $@
