# Every target sets up .venv by itself on a fresh clone.
PYTHON ?= python3
MINUTES ?= 5
BIN := .venv/bin
PARALLEL := -n auto --maxprocesses 4 --dist loadfile

.PHONY: demo world test test-all check format docs notebook install clean

demo: .venv/installed
	$(BIN)/vjepa demo --minutes $(MINUTES)

# Two Rooms: explore, pack, train a world model, plan, report. A target that was interrupted continues.
world: .venv/installed
	$(BIN)/vjepa generate rooms runs/world/train --clips 6000 --seed 0 layouts=fixed frames=17 crf=14
	$(BIN)/vjepa generate rooms runs/world/test --clips 100 --seed 1 layouts=fixed split=held_out frames=65 crf=14
	$(BIN)/vjepa train configs/world/two_rooms.yaml data.path=runs/world/train/shards run.output=runs/world/run
	$(BIN)/vjepa plan configs/plan/plan_two_rooms.yaml model=runs/world/run

test: check
	$(BIN)/python -m pytest $(PARALLEL) --durations 15

test-all: check
	$(BIN)/python -m pytest $(PARALLEL) -m "slow or not slow"

check: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: .venv/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "The site is in build/site; $(BIN)/mkdocs serve shows it while you write."

# Runs examples/quickstart.ipynb in an empty folder and stores it with its pictures.
notebook: .venv/installed
	rm -rf runs/notebook && mkdir -p runs/notebook
	cd runs/notebook && PATH="$(CURDIR)/$(BIN):$$PATH" ../../$(BIN)/python -c 'import nbclient, nbformat; f = "../../examples/quickstart.ipynb"; n = nbformat.read(f, 4); nbclient.NotebookClient(n, timeout=3600, record_timing=False).execute(); nbformat.write(n, f)'

install: .venv/installed

.venv/installed: setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 10) or sys.exit(f"Python 3.10 or newer is required, found {v[0]}.{v[1]}; set one with: make PYTHON=python3.12 ...")'
	@echo "Installing into .venv (PyTorch is large: takes some minutes) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[test]" torchvision
	@touch $@

.venv/docs: .venv/installed
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[docs]"
	@touch $@

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache
