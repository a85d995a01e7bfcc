# The same at home and in CI. Needs python3 (3.11 to 3.13), pip, make and git.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# The parts of the bench: `make bench-steps` runs bench/steps.py.
BENCHES := bench-steps bench-exactness bench-pipeline bench-epoch bench-speedups bench-memory bench-photographs bench-attention bench-projections bench-masks bench-frozen bench-caption_scores bench-views

.PHONY: help demo install test check bench $(BENCHES) proof reference clean
help:            ## this list
	@grep -E '^[a-z]+:.*##' Makefile | sed 's/:.*##/\t/'

demo: $(VENV)/core.stamp          ## install, train a small ViT on drawn scenes, verify it, write the report
	$(BIN)/pellucid demo

install: $(VENV)/dev.stamp        ## everything for development into .venv

test: $(VENV)/dev.stamp           ## all tests but the long proofs
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

check: $(VENV)/dev.stamp          ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(BENCHES)                 ## Pellucid beside its peers: every part, hours; or one: bench-steps, bench-exactness, ...

$(BENCHES): bench-%: $(VENV)/bench.stamp
	OMP_WAIT_POLICY=passive $(BIN)/python bench/$*.py

proof: $(VENV)/dev.stamp          ## the long demonstrations
	$(BIN)/python -m pytest -q -m proof

reference: $(VENV)/dev.stamp      ## docs/reference.md from the schema and the command line
	$(BIN)/python docs/make_reference.py

$(VENV)/core.stamp: requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

$(VENV)/dev.stamp: $(VENV)/core.stamp requirements-dev.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
	touch $@

$(VENV)/bench.stamp: $(VENV)/dev.stamp requirements-bench.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-bench.lock
	touch $@

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
