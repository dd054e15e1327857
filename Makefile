# Everything a fresh machine with Python 3.11 or newer needs:
#     make run     set up .venv and train on the embedded data set (ARGS="..." is passed to `fedem run`)
#     make test    set up .venv with the developers' tools and run the tests (ARGS="..." is passed to pytest;
#                  WORKERS=0 runs them in one process)
#     make lock | sbom | audit       lock files with hashes; what is in them as CycloneDX; known vulnerabilities of it
#     make test-kernels              a GPU's kernels in Triton's interpreter (installs Triton: 1 GB)
#     make test-flower FLOWER=1.41   the tests that touch Flower, on any of its admitted releases
# Set-up happens once; it is repeated when pyproject.toml or the pins change.

.DEFAULT_GOAL := help
VENV ?= .venv
BIN := $(VENV)/bin
ARGS ?=
TOOLS := .venv-tools
CONSTRAINTS ?= constraints.txt
WORKERS ?= 3
# A candidate must run, be new enough and be able to make environments. The version of the pins comes first.
PYTHONS := $(PYTHON) python3.11 python3.12 python3.13 python3
PYTHON_CHECK := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))
# Byte code is written when a module is first imported.
unexport PYTHONDONTWRITEBYTECODE
INSTALL := $(BIN)/python deploy/install.py $(CONSTRAINTS)

# Flower's releases: that of constraints.txt, and others with pins of their own, each in an environment of its own.
FLOWER ?= $(shell sed -n 's/^flwr==\([0-9]*\.[0-9]*\)\..*/\1/p' constraints.txt)
FLOWER_PINS = $(firstword $(wildcard constraints-flwr-$(FLOWER).txt) constraints.txt)
FLOWER_VENV = $(if $(filter constraints.txt,$(FLOWER_PINS)),$(VENV),.venv-flwr-$(FLOWER))
FLOWER_TESTS = $(shell grep -lE '^(from|import) flwr\b' tests/test_*.py)

# No usage reports are sent from runs and tests started here.
export FLWR_TELEMETRY_ENABLED := 0
export RAY_USAGE_STATS_ENABLED := 0

.PHONY: help run test attacks test-kernels test-flower test-flower-here lint format typecheck compose-config docker-lint docker-pins \
    lock sbom audit ci clean

help:
	@echo "make run | test | attacks | test-kernels | test-flower | lint | format | typecheck | compose-config | docker-lint |"
	@echo "     docker-pins | lock | sbom | audit | ci | clean"

run: $(VENV)/.installed
	@$(BIN)/fedem run $(ARGS)

test: $(VENV)/.installed-dev
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

# Runtimes against each other, networks, `flwr run`; then whatever else names Flower.
test-flower:
	@grep -q '^flwr==$(FLOWER)\.' $(FLOWER_PINS) || \
	    { echo "error: no pins for Flower $(FLOWER): write constraints-flwr-$(FLOWER).txt" >&2; exit 1; }
	@$(MAKE) --no-print-directory test-flower-here VENV=$(FLOWER_VENV) CONSTRAINTS=$(FLOWER_PINS)

# What is tried against a run, and docs/security.md tells of; part of `make test`, too.
attacks: $(VENV)/.installed-dev
	@$(BIN)/python -m pytest -m attacks $(ARGS)

# Without a GPU. Where Triton is, `make test` runs them, too.
test-kernels: $(VENV)/.installed-kernels
	@$(BIN)/python -m pytest tests/test_kernel*.py $(ARGS)

test-flower-here: $(VENV)/.installed-dev
	@$(BIN)/python -c 'import flwr; print("Flower", flwr.__version__)'
	@$(BIN)/python -m pytest -m "ray or network" $(ARGS)
	@$(BIN)/python -m pytest -m "not ray and not network" $(FLOWER_TESTS) $(ARGS)

lint: $(VENV)/.installed-dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

format: $(VENV)/.installed-dev
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

typecheck: $(VENV)/.installed-dev
	@$(BIN)/mypy

# The containers' files, without a container engine; the test suite does the same and more (tests/test_compose.py).
compose-config: $(VENV)/.installed-dev
	@set -e; for overlay in "" "--file docker-compose.insecure.yml"; do for profile in "" "--profile four"; do \
	    set -- --file docker-compose.yml $$overlay $$profile; \
	    $(BIN)/docker-compose "$$@" config --quiet; echo "valid: $$*"; \
	done; done

docker-lint: $(VENV)/.installed-dev
	@$(BIN)/hadolint Dockerfile
	@echo "no findings: Dockerfile"
	@$(MAKE) --no-print-directory docker-pins

# What a tag means can change; the bytes behind a digest cannot. Only a registry knows a digest.
docker-pins:
	@for image in "$${FEDEM_PYTHON_IMAGE:-$$(sed -n 's/^ARG PYTHON_IMAGE=//p' Dockerfile)}" \
	    "$${FEDEM_NGINX_IMAGE:-$$(sed -n 's/.*FEDEM_NGINX_IMAGE:-\([^}]*\)}.*/\1/p' docker-compose.yml)}"; do \
	    case "$$image" in *@sha256:*) echo "pinned by its bytes: $$image" ;; \
	        *) echo "NOT pinned by its bytes: $$image; its digest:" \
	            "docker buildx imagetools inspect $$image --format '{{.Manifest.Digest}}'" ;; esac; \
	done
	@echo "set FEDEM_PYTHON_IMAGE and FEDEM_NGINX_IMAGE to NAME:TAG@sha256:... for docker compose (--build-arg PYTHON_IMAGE for docker build)"

# The supply chain. Its tools live in an environment of their own, installed by hashes.
lock: $(VENV)/.installed-dev
	@$(BIN)/python deploy/lock.py

sbom: $(TOOLS)/.installed
	@cat requirements.lock requirements-torch.lock | $(TOOLS)/bin/cyclonedx-py requirements --pyproject pyproject.toml \
	    --output-reproducible --output-file sbom.json -
	@echo "sbom.json: $$(grep -c '"bom-ref"' sbom.json) components"

audit: $(TOOLS)/.installed
	@found="$$($(TOOLS)/bin/pip-audit --strict --disable-pip --require-hashes --progress-spinner off \
	    --requirement requirements.lock --requirement requirements-torch.lock 2>&1)"; status=$$?; \
	printf '%s\n' "$$found" | tail -n 40; \
	case "$$found" in *"could not be audited"* | *"Max retries"* | *"onnection"*) \
	    echo "error: the advisory service gave no answer: nothing is known of these packages" >&2; exit 3 ;; esac; \
	exit $$status

ci:
	@.ci/run

clean:
	rm -rf $(VENV) .venv-flwr-* $(TOOLS) sbom.json build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis fedem_flwr.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@for candidate in $(PYTHONS); do \
	    if $$candidate -c '$(PYTHON_CHECK)' >/dev/null 2>&1; then \
	        echo "setting up $(VENV) with $$($$candidate --version) (once; a few minutes)"; \
	        exec $$candidate -m venv $(VENV); \
	    fi; \
	done; \
	echo "error: no Python 3.11 or newer with the venv module found; install one, or name it: make PYTHON=/path/to/python3" >&2; \
	exit 1

# The interpreter is an order-only prerequisite: its date, that of the system's Python, says nothing about the set-up.
$(VENV)/.installed: pyproject.toml $(CONSTRAINTS) | $(BIN)/python
	@$(INSTALL) -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml $(CONSTRAINTS) | $(BIN)/python
	@$(INSTALL) -e '.[dev]'
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-kernels: pyproject.toml $(CONSTRAINTS) | $(BIN)/python
	@$(INSTALL) -e '.[dev,kernels]'
	@touch $@ $(VENV)/.installed-dev $(VENV)/.installed

$(TOOLS)/.installed: requirements-tools.lock | $(VENV)/.installed-dev
	@$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(TOOLS)
	@VIRTUAL_ENV=$(TOOLS) $(BIN)/uv pip sync --quiet --require-hashes requirements-tools.lock
	@touch $@
