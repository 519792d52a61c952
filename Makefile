# One command each on a fresh machine with Python 3.10 or newer: the environment is made on the way.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
# mypy needs a name for the package that the nodes import with dots; a checkout's folder may have any.
PACKAGE := $(VENV)/package/anima_trainer
# Three files at a time on two cores, each with one thread: many tests wait for processes of their own.
PYTEST := OMP_NUM_THREADS=1 $(RUN) -m pytest -n 3 --dist loadfile --no-loadscope-reorder

.PHONY: setup lint types test long fast comfy faults compile browser docs demo clean

setup: $(VENV)/.ready

$(VENV)/.ready: requirements-dev.txt requirements-headless.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet torch==2.13.0
	$(RUN) -m pip install --quiet -r requirements-dev.txt
	$(RUN) -m pip install --quiet --no-deps lycoris-lora peft diffusers
	touch $@

lint: setup
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

types: setup
	mkdir -p $(dir $(PACKAGE)) && ln -sfn ../.. $(PACKAGE)
	MYPYPATH=$(dir $(PACKAGE)) $(RUN) -m mypy -p anima_trainer.anima_core -p anima_trainer.nodes

# Which tests; CI asks for the kills too.
MARKS ?= not long and not browser and not inductor

test: lint types
	$(PYTEST) -m "$(MARKS)"

# What takes minutes: campaigns of kills, thousands of steps, further seeds and signals. Before a release.
long: setup
	$(PYTEST) -m long --dist load

# Under a minute: no ComfyUI, no faults, no long training.
fast: lint
	$(PYTEST) -m "not comfyui and not faults and not slow and not long and not browser and not inductor"

comfy: lint
	$(PYTEST) -m "comfyui and not browser"

faults: lint
	$(PYTEST) -m faults

# torch.compile in earnest, which needs a C++ compiler; and every network and level as graphs.
compile: setup
	$(PYTEST) -m inductor --dist load

# The pages in a real Chromium, with ComfyUI's frontend; the last of them with a whole ComfyUI.
browser: $(VENV)/.browser
	OMP_NUM_THREADS=1 $(RUN) -m pytest -rs tests/browser

$(VENV)/.browser: $(VENV)/.ready tests/browser/requirements.txt tests/browser/package-lock.json
	$(RUN) -m pip install --quiet -r tests/browser/requirements.txt
	cd tests/browser && npm ci --silent || echo "no packages from npm: axe-core's rules are not checked"
	touch $@

# What is written from the code; all but the flags needs a ComfyUI.
docs: setup
	$(RUN) -m anima_core.compat.docs docs/flags.md
	$(RUN) -m tests.comfyui.make_help
	$(RUN) -m tests.browser.record
	$(RUN) -m tests.comfyui.make_workflows

demo: setup
	$(RUN) -m anima_core demo --output_dir demo

clean:
	rm -rf $(VENV) demo .mypy_cache .pytest_cache .ruff_cache
