# Two commands do everything on a fresh machine: `make demo` and `make test`. Both set themselves up in .venv first, once.
# Another Python: make demo PYTHON=/path/to/python3.12

PYTHON ?= $(shell for p in python3.12 python3.11 python3.13 python3; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo "$$p" && break; done)
BIN := .venv/bin
TEST_PROCESSES ?= 2
RUN_STAMP := .venv/.installed-run
DEV_STAMP := .venv/.installed-dev
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

# Tests of what has to be the same to the last bit, under the BLAS kernels of other processors. OpenBLAS only has these
# names on x86-64; a kernel that the processor can't run is not chosen.
CORES ?= Haswell Nehalem
BITWISE := tests/index tests/store/test_scan.py tests/store/test_kernels.py tests/store/test_codecs.py tests/test_scanning.py

.PHONY: demo test cores slurm check docs bench format clean

demo: $(RUN_STAMP)
	$(BIN)/influence demo

test: $(DEV_STAMP)
	$(BIN)/python -m pytest -m "not slurm" --numprocesses $(TEST_PROCESSES) --dist worksteal

cores: $(DEV_STAMP)
	for core in $(CORES); do \
		echo "OPENBLAS_CORETYPE=$$core" >&2; \
		OPENBLAS_CORETYPE=$$core $(BIN)/python -m pytest --numprocesses $(TEST_PROCESSES) --dist worksteal $(BITWISE) \
			|| exit 1; \
	done

slurm: $(DEV_STAMP)
	$(BIN)/python -m pytest -m slurm -rs tests/slurm

check: $(DEV_STAMP) docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/python scripts/house.py --check
	$(BIN)/pyright

docs: $(DEV_STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

format: $(DEV_STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(DEV_STAMP)
	$(BIN)/python scripts/benchmarks/capture.py $(BENCH_ARGS)

clean:
	rm -rf .venv runs build site dist *.egg-info

.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or newer found. Install one, or run: make demo PYTHON=/path/to/python3.11" >&2; exit 2; }
	"$(PYTHON)" -m venv .venv

$(RUN_STAMP): .venv/bin/python pyproject.toml constraints.txt
	@echo "Installing into .venv (once; some minutes on a fresh machine) ..." >&2
	$(PIP) --editable '.[cpu]'
	@touch $@

$(DEV_STAMP): .venv/bin/python pyproject.toml constraints.txt
	@echo "Installing into .venv (once; some minutes on a fresh machine) ..." >&2
	$(PIP) --editable '.[cpu,cluster,dev,docs]'
# Of kronfluence, which the parity tests compare with, only itself: its torchvision, never imported, brings another torch.
	$(PIP) --no-deps kronfluence
	@touch $@ $(RUN_STAMP)
