# One command each on a fresh machine with Python 3.10 or newer: the environment is made on the way.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

.PHONY: setup test lint demo clean

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

# Two files at a time, each with one thread: most tests wait for processes of their own.
test: lint
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist loadfile

demo: setup
	$(RUN) -m anima_core demo --output_dir demo

clean:
	rm -rf $(VENV) demo .pytest_cache .ruff_cache
