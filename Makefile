# What a person types and what CI calls are the same targets. `make` alone lists them.
#
# Needs python3 (3.10 or newer, with venv), cargo and make; everything else goes into .venv. `make neon` also needs an
# emulator, which it installs where it may.
# Stamps in .venv keep work from being done twice: a target is rebuilt when its sources changed.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
CRATES := -p kizami-gguf -p kizami-kernels -p kizami-quantizer

RUST   := $(shell find rust -name '*.rs' -o -name '*.bin' -o -name Cargo.toml 2>/dev/null) Cargo.toml Cargo.lock

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1

.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

.PHONY: help
help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "  make %-8s %s\n", $$1, $$2 }'

.PHONY: build
build: $(VENV)/.built ## build the package into .venv (release, editable)

.PHONY: demo
demo: $(VENV)/.built ## quantize and run the embedded model, end to end
	$(BIN)/kizami demo

.PHONY: test
test: $(VENV)/.built $(VENV)/.test ## run the tests of the Rust crates and of the package
	cargo test --locked $(CRATES)
	$(BIN)/python -m pytest

.PHONY: lint
lint: $(VENV)/.built $(VENV)/.test $(VENV)/.lint ## check style, types, stubs and warnings
	cargo fmt --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	MYPYPATH=python $(BIN)/stubtest kizami._core --mypy-config-file pyproject.toml

.PHONY: bench
bench: $(VENV)/.built $(VENV)/.test ## measure kernels and tokens per second
	$(BIN)/python -m pytest bench

.PHONY: docs
docs: $(VENV)/.built ## regenerate the pages under docs/ that are made from the code
	$(BIN)/python docs/make_cli.py

.PHONY: neon
neon: ## run the tests of the kernels on aarch64, emulated where this is none
	.ci/neon

.PHONY: neon-wheel
neon-wheel: $(VENV)/.built ## build the wheel for aarch64, install and test it there
	.ci/neon wheel

.PHONY: formats
formats: $(VENV)/.built ## measure every format, on a quiet machine, and write docs/formats.md
	$(BIN)/python bench/formats.py

.PHONY: clean
clean: ## remove everything that was built
	rm -rf target dist $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	rm -f python/kizami/_core*.so
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.created:
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) not found; install Python 3.10 or newer, or set PYTHON=" >&2; exit 1; }
	@command -v cargo >/dev/null || { echo "error: cargo not found; install Rust from https://rustup.rs" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	  || { echo "error: $$($(PYTHON) --version) is too old; kizami needs 3.10 or newer (set PYTHON=)" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
	  || { echo "error: $(PYTHON) has no venv module; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet 'maturin>=1.14,<2'
	@touch $@

# Editable: a change of Python code needs no rebuild.
$(VENV)/.built: $(VENV)/.created $(RUST) pyproject.toml
	VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/maturin develop --release
	@touch $@

$(VENV)/.%: $(VENV)/.created pyproject.toml
	$(BIN)/python -m pip install --quiet --group $*
	@touch $@
