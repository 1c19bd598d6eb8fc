# `make demo`, `make real` and `make test` each work alone on a bare clone; what is installed once is not installed again.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed
# Two to each of two cores: some tests wait for processes of their own.
PYTEST_WORKERS ?= 4

# GCC before 13 drops stores that llama.cpp's AMX kernels need, which then fault; without these two passes it keeps them.
OLD_GCC := $(shell c++ --version 2>/dev/null | grep -q 'Free Software' && [ "$$(c++ -dumpversion | cut -d. -f1)" -lt 13 ] && echo yes)
export CXXFLAGS += $(if $(OLD_GCC),-fno-tree-dse -fno-dse)

.PHONY: demo real serve test lint docs

demo: $(INSTALLED)
	$(BIN)/edge-steer demo

real: $(INSTALLED)
	$(BIN)/python benchmarks/real.py

serve: $(INSTALLED)
	$(BIN)/edge-steer serve models/abacus --vector export/abacus/dense --temperature 0 \
		--preset terse='1 dense' --preset step-by-step='-0.5 dense'

test: $(INSTALLED)
	$(BIN)/edge-steer convert --fetch-converter
	$(BIN)/python -m pytest -n $(PYTEST_WORKERS) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

lint: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

$(INSTALLED): setup.cfg pyproject.toml constraints.txt
	@command -v c++ >/dev/null || { echo "a C++ compiler is needed to build llama.cpp"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	@rm -rf edge_steer.egg-info  # of an older layout, its entry points would come before the installed ones
	@echo "installing; llama.cpp is compiled the first time, which takes minutes"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

docs: $(INSTALLED)
	$(BIN)/python docs/cli.py > docs/cli.md
