# Every target sets up .venv by itself on a fresh clone.
PYTHON ?= python3
MINUTES ?= 5
BIN := .venv/bin

.PHONY: demo world test test-all check format install clean

demo: .venv/installed
	$(BIN)/python -m launch demo --minutes $(MINUTES)

# Two Rooms: explore, pack, train a world model, plan, report. A target that was interrupted continues.
world: .venv/installed
	$(BIN)/python -m launch generate rooms runs/world/train --clips 700 --seed 0 layouts=fixed frames=129 crf=14
	$(BIN)/python -m launch generate rooms runs/world/test --clips 100 --seed 1 layouts=fixed split=held_out frames=65 crf=14
	$(BIN)/python -m launch train configs/world/two_rooms.yaml data.path=runs/world/train/shards run.output=runs/world/run
	$(BIN)/python -m launch plan configs/plan/two_rooms.yaml model=runs/world/run

test: check
	$(BIN)/python -m pytest

test-all: check
	$(BIN)/python -m pytest -m "slow or not slow"

check: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

install: .venv/installed

.venv/installed: setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 10) or sys.exit(f"Python 3.10 or newer is required, found {v[0]}.{v[1]}; set one with: make PYTHON=python3.12 ...")'
	@echo "Installing into .venv (PyTorch is large: takes some minutes) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[test]" torchvision
	@touch $@

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache
