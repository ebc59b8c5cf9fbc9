# `make demo` and `make test` are all a newcomer needs; both install first, into .venv.

PYTHON ?= python3.11
BIN := .venv/bin
# Waiting threads sleep instead of spinning, which matters where two cores are shared.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: install demo test check bench clean

install: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: install
	$(BIN)/adjointdpm demo

test: install
	$(BIN)/python -m pytest -n 2

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

bench: install
	$(BIN)/python benchmarks/gradients.py --output docs/gradients.json
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/curve.py --output docs/curve.json --plot docs/curve.png
	$(BIN)/python benchmarks/speed.py --output docs/speed.json
	$(BIN)/python benchmarks/speed.py --trained --output docs/speed-trained.json
	$(BIN)/python benchmarks/pipelines.py
	$(BIN)/python benchmarks/scaling.py --output docs/scaling.json --plot docs/scaling.png
	$(BIN)/python benchmarks/real_size.py --steps 1 4 16 --output docs/real_size.json
	$(BIN)/python benchmarks/matters.py --starts 8 --steps 8 --sampling 12 --record docs/matters.json
	$(BIN)/python benchmarks/tables.py

clean:
	rm -rf .venv outputs
