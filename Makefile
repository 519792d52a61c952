# One command each on a fresh machine with Python 3.10 or newer: the environment is made on the way.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
# Two files at a time, each with one thread: many tests wait for processes of their own.
PYTEST := OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: setup lint test fast comfy faults demo clean

setup: $(VENV)/.ready

$(VENV)/.ready: requirements-dev.txt requirements-headless.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet torch==2.13.0
	$(RUN) -m pip install --quiet -r requirements-dev.txt
	$(RUN) -m pip install --quiet --no-deps lycoris-lora
	touch $@

lint: setup
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

test: lint
	$(PYTEST)

# Under a minute: no ComfyUI, no faults, no long training.
fast: lint
	$(PYTEST) -m "not comfyui and not faults and not slow"

comfy: lint
	$(PYTEST) -m comfyui

faults: lint
	$(PYTEST) -m faults

demo: setup
	$(RUN) -m anima_core demo --output_dir demo

clean:
	rm -rf $(VENV) demo .pytest_cache .ruff_cache
