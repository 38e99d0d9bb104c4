# Every habit is one word: make demo, test, stacks, oldest, gpu, bench, report, model, lint, build, wheel, clean.
#   PYTHON   the Python that makes the virtual environment
#   VENV     where it goes
#   TORCH    which PyTorch it gets, in pip's spelling
#   ONLY     make bench ONLY="wn and float32" runs the benchmarks whose names match, in pytest's spelling
#   IN       make demo IN=speech.wav resynthesises this file instead of the clip that ships with the project
#   SPEECH   make model SPEECH="clips more": recordings to train on too, drawn four times as often as the synthetic speech
#   TEST     make model TEST=others: recordings to measure the model on too
#   STEPS    make model MODEL=trial STEPS="100 10 10": the folder, and how long the three stages of training are

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
MODEL ?= model
STEPS ?= 10180 3002 4916

BIN := $(VENV)/bin
OLDEST := $(VENV)/oldest
STACKS := $(VENV)/stacks
SOURCES := $(shell find csrc -type f)

.PHONY: demo test stacks oldest gpu bench report model lint build wheel clean

demo: $(VENV)/.ready
	$(BIN)/python scripts/demo.py $(if $(IN),--in "$(IN)")

test: $(VENV)/.ready
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

# What accelerate() does to the models of the packages themselves.
stacks: $(VENV)/.ready $(STACKS)/.ready
	PYTHONPATH=$(STACKS) $(BIN)/python -m pytest -m packages tests/stacks

# The libraries as they were built, in the oldest PyTorch that they are for.
oldest: $(VENV)/.ready $(OLDEST)/.ready
	$(OLDEST)/bin/python -m pytest tests/test_packaging.py tests/test_native.py -k "loads_into or gate or wn_layer"

# On a machine with a GPU. With fastflow/_cuda.so there, and PyTorch, Triton and pytest in VENV or in PYTHON, nothing is
# compiled or installed; else TORCH must name a CUDA build.
gpu:
	@if [ -e fastflow/_cuda.so ]; then for python in $(BIN)/python $(PYTHON); do \
		if $$python -c "import pytest, torch, triton; assert torch.version.cuda" 2>/dev/null; then \
			echo "$$python -m benchmarks.session"; exec $$python -m benchmarks.session; \
		fi; \
	done; fi; \
	$(MAKE) build && $(BIN)/python -m benchmarks.session

# This machine's rows, in benchmarks/results. An hour and more; nothing else should run meanwhile.
bench: $(VENV)/.bench
	$(BIN)/python -m pytest benchmarks --benchmark-columns=median,iqr,min,rounds $(if $(ONLY),-k "$(ONLY)")

# From those rows: the tables in README.md, and a page with plots and sounds, report/index.html.
report: $(VENV)/.ready
	$(BIN)/python -m benchmarks.report

# The bundled model from nothing: model/waveglow-small.safetensors with its card beside it. Needs espeak-ng. What was
# finished is not made again, and `make clean` leaves it; training that was cut short goes on.
model: $(MODEL)/waveglow-small.md

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict fastflow
	$(BIN)/clang-format --dry-run -Werror $(filter %.h %.cpp %.cu %.cuh,$(SOURCES))

build: $(VENV)/.ready

wheel: $(VENV)/.ready
	$(BIN)/python -m build --wheel --no-isolation

clean:
	rm -rf build dist demo report fastflow.egg-info fastflow/*.so .mypy_cache .pytest_cache .ruff_cache
	rm -f $(VENV)/.native $(VENV)/.ready $(VENV)/.bench $(VENV)/.lint

DATA := $(MODEL)/corpus/train $(foreach n,1 2 3 4,$(SPEECH))

TRAIN = $(BIN)/fastflow train $(DATA) -o $(@:.done=.safetensors) $(if $(wildcard $(@:.done=.state.pt)),--resume)

$(MODEL)/corpus/corpus.json: scripts/make_corpus.py scripts/corpus.txt | $(VENV)/.ready
	$(BIN)/python scripts/make_corpus.py $(MODEL)/corpus --overwrite

# Weights are there from the first save on; the stamp says that a stage is finished.
$(MODEL)/stage1.done: $(MODEL)/corpus/corpus.json
	$(TRAIN) --steps $(word 1,$(STEPS)) --precision bfloat16
	touch $@

$(MODEL)/stage2.done: $(MODEL)/stage1.done
	$(TRAIN) --steps $(word 2,$(STEPS)) --from-checkpoint $(<:.done=.safetensors) --lr 7e-4 --seed 1
	touch $@

$(MODEL)/stage3.done: $(MODEL)/stage2.done
	$(TRAIN) --steps $(word 3,$(STEPS)) --from-checkpoint $(<:.done=.safetensors) --lr 7e-4 --seed 2
	touch $@

$(MODEL)/waveglow-small.safetensors: $(MODEL)/stage3.done
	cp $(<:.done=.json) $(@:.safetensors=.json)
	$(BIN)/fastflow convert $(<:.done=.safetensors) $@ --dtype float16 --overwrite

$(MODEL)/waveglow-small.md: $(MODEL)/waveglow-small.safetensors scripts/model_card.py
	$(BIN)/python scripts/model_card.py $< --corpus $(MODEL)/corpus/corpus.json --card $@ \
		--earlier $(MODEL)/stage1.json --earlier $(MODEL)/stage2.json \
		--set "held-out espeak-ng voices=$(MODEL)/corpus/heldout" $(if $(TEST),--set "recordings=$(TEST)") $(foreach source,$(DATA),--train-data $(source))

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

$(VENV)/.bench: $(VENV)/.ready
	$(BIN)/pip install --quiet "fastflow[bench]"
	touch $@

# setuptools is what tests/test_packaging.py reads setup.py with.
$(OLDEST)/.ready: $(VENV)/.torch
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/pip install --quiet "torch==2.10.0" numpy "pytest>=8" "setuptools>=77"
	touch $@

# A folder beside the environment and not a second one: these packages run on the PyTorch that is there.
$(STACKS)/.ready: $(VENV)/.torch tests/stacks/packages.txt
	rm -rf $(STACKS)
	$(BIN)/pip install --quiet --no-deps --target $(STACKS) --requirement tests/stacks/packages.txt
	touch $@

$(VENV)/.lint: $(VENV)/.ready
	$(BIN)/pip install --quiet "fastflow[dev]"
	touch $@
