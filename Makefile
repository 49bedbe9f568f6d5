# Everything from a fresh clone, with only Python 3.11 to 3.13, make and the package index.
PYTHON ?= python3
VENV ?= .venv
WORKDIR ?= runs/digits-lenet5
BIN := $(VENV)/bin

CLAIMS := sharing edges sparsity optimizers overfitting shifts depth cat_detector

.PHONY: demo claims environment test test-faults test-long test-properties sanitize lint format bench clean

demo: $(VENV)/.installed $(VENV)/.onednn
	$(BIN)/python -m cnnjax.main --config=experiments/digits/lenet5.py --workdir=$(WORKDIR)

# Every claim of docs/claims.md measured anew, its table and plot.
claims: $(VENV)/.installed-test $(VENV)/.onednn
	set -e; for claim in $(CLAIMS); do \
	  $(BIN)/python -m experiments.claims.$$claim --workdir=$(or $(DIR),runs/claims); done

# What the tests need, without them.
environment: $(VENV)/.installed-test $(VENV)/.onednn

test: environment
	$(BIN)/python -m pytest -n 2 --dist=worksteal

# What takes minutes a test: kills, signals, lost workers and leaks, for the most part of an hour
# (results are in docs/reliability.md), and receptive fields of whole networks.
test-faults: $(VENV)/.installed-test $(VENV)/.onednn
	$(BIN)/python -m pytest -n 0 -m long tests/test_faults_long.py
test-long: test-faults
	$(BIN)/python -m pytest -n 2 -m long tests/analysis

# Ten minutes of bad input for each of configs, images, IDX files, checkpoints and weights; what is
# promised and what was found is in docs/security.md.
test-properties: $(VENV)/.installed-test
	PROPERTY_MINUTES=$(or $(MINUTES),10) $(BIN)/python -m pytest -n 0 $(PROPERTIES)
PROPERTIES := tests/test_config_properties.py tests/data/test_image_properties.py \
  tests/data/test_idx_properties.py tests/training/test_checkpoint_properties.py \
  tests/pretrained/test_reader_properties.py

# The compiled part under the address and undefined-behaviour sanitizers, and what its threads share
# under the thread sanitizer: JAX isn't built with it. No object compiled without sanitizers is used,
# none compiled with them is left behind. One test is left out: it measures resident memory, of which
# the sanitizer keeps what is freed.
SANITIZE := -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -g
sanitize: $(VENV)/.installed-test $(VENV)/.onednn
	rm -rf native/build $(VENV)/sanitized
	CXXFLAGS='$(SANITIZE)' LDFLAGS='$(SANITIZE)' $(BIN)/python -m pip install --quiet --upgrade \
	  --no-deps --no-build-isolation --target $(VENV)/sanitized ./native
	rm -rf native/build
	grep -q __asan_init $(VENV)/sanitized/cnnjax_onednn/_kernels*.so
	$(CXX) -std=c++20 -O2 -g -fopenmp -fsanitize=thread -Inative/src native/tests/team.cc \
	  native/src/team.cc -o $(VENV)/sanitized/team
	$(VENV)/sanitized/team
	PYTHONPATH=$(VENV)/sanitized ASAN_OPTIONS=detect_leaks=0 \
	  LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so)" \
	  $(BIN)/python -m pytest -p no:cacheprovider -n 0 tests/ops tests/test_inference.py \
	  --deselect tests/ops/test_convolution.py::test_more_shapes_than_are_kept

lint: $(VENV)/.installed-dev
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(VENV)/.installed-dev
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

bench: $(VENV)/.installed $(VENV)/.onednn
	$(BIN)/python benchmarks/loop_overhead.py

clean:
	rm -rf $(VENV)

# The compiled convolutions, where they can be built; without them everything runs through XLA.
NATIVE := $(wildcard native/*.* native/src/* native/memory/* native/cnnjax_onednn/*.py)
$(VENV)/.onednn: $(NATIVE) constraints.txt | $(VENV)/.installed
	@if [ "$$(uname -sm)" = 'Linux x86_64' ] && command -v $(CXX) >/dev/null; then \
	  $(BIN)/python -m pip install --quiet --constraint constraints.txt setuptools \
	    onednn-cpu-gomp onednn-devel-cpu-gomp && \
	  $(BIN)/python -m pip install --quiet --no-deps --no-build-isolation ./native; \
	else \
	  echo 'No C++ compiler or no x86 Linux: convolutions run through XLA.'; \
	fi
	touch $@

# One stamp per set of extras, renewed when what it was installed from changes.
$(VENV)/.installed: EXTRAS =
$(VENV)/.installed-test: EXTRAS = [test]
$(VENV)/.installed-dev: EXTRAS = [dev]
$(VENV)/.installed $(VENV)/.installed-test $(VENV)/.installed-dev: setup.cfg constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.$(EXTRAS)'
	touch $@

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
