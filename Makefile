# make demo   the main job, live in the browser       make test   all tests        make help   the rest
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
DEMO_ARGS ?=
EXAMPLES ?= 6
SIDE_BY_SIDE ?= -n 2 --dist loadfile

.PHONY: help demo test test-unit test-faults test-matrix lint format bench bench-bulk lock wheel clean setup

help:  ## this text
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

demo: $(VENV)/.demo  ## open a page with one customer on four channels; needs Python >= 3.11 and nothing else
	@$(BIN)/omnistate demo $(DEMO_ARGS)

test: setup  ## all tests, on real servers, two files at a time (eight minutes)
	@$(BIN)/python -m pytest $(SIDE_BY_SIDE)

test-unit: $(VENV)/.dev  ## the tests that need no server
	@$(BIN)/python -m pytest tests/unit -q

test-faults: setup  ## lost replies, crashes and clock steps, with many more random runs (EXAMPLES=6: times as many)
	@OMNISTATE_EXAMPLES=$(EXAMPLES) $(BIN)/python -m pytest $(SIDE_BY_SIDE) tests/faults tests/integration/test_*_model.py

test-matrix: setup  ## all tests on each kind of server: Redis 7.0, 8.2 and with TLS, Valkey, clusters, Sentinels (half an hour)
	@$(BIN)/python -m pytest $(SIDE_BY_SIDE) --servers valkey,redis,redis_8,tls,cluster,redis_cluster,sentinel

lint: $(VENV)/.dev  ## style, types, layers, what is written by tools, lock files
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python tools/check_layers.py
	$(BIN)/python tools/check_tree.py
	$(BIN)/python tools/unasync.py --check
	$(BIN)/python tools/errors_page.py --check

format: $(VENV)/.dev  ## format the code, fix what can be fixed, write omnistate.sync and the page of errors
	$(BIN)/ruff check --fix --quiet . ; $(BIN)/ruff format --quiet . ; $(BIN)/python tools/unasync.py; $(BIN)/python tools/errors_page.py

bench: setup  ## measure against peers and limit; writes benchmarks/results (twenty minutes)
	@$(BIN)/python benchmarks/run.py

bench-bulk: $(VENV)/.dev  ## import, migrate and export 1,000,000 customers; writes benchmarks/results (ten minutes)
	@$(BIN)/python benchmarks/bulk.py

wheel: $(VENV)/.dev  ## build the wheel into dist/
	@$(BIN)/python -m build --quiet --no-isolation --wheel

lock: $(VENV)/.dev  ## write the lock files anew
	@for e in all:dev server:server; do \
	  inputs="pyproject.toml"; [ "$${e#*:}" = dev ] && inputs="$$inputs requirements/dev.in"; \
	  $(BIN)/uv pip compile $$inputs --extra $${e%:*} --universal --python-version 3.11 --generate-hashes --quiet \
	    --no-emit-index-url --no-emit-find-links --no-header --no-annotate -o requirements/$${e#*:}.txt; done
	@$(BIN)/uv pip compile requirements/matrix.in --universal --python-version 3.11 --generate-hashes --quiet \
	  --no-emit-index-url --no-emit-find-links --no-header --no-annotate -o requirements/matrix.txt

setup: $(VENV)/.dev $(VENV)/.servers
	@tools/setup_test_machine.sh

clean:  ## remove what was made here
	rm -rf $(VENV) dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis tests/gateway/sdk/node_modules

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "omnistate needs Python >= 3.11: install it, or make PYTHON=/path/to/python"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "the venv module is missing; on Debian: apt-get install python3-venv"; exit 1; }

# The source itself is put on the path: no build step, so no build tools either.
define link_source
	@echo "$(CURDIR)/src" > "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/omnistate-source.pth"
	@printf '#!%s\nimport sys\n\nfrom omnistate.cli import main\n\nsys.exit(main())\n' "$(CURDIR)/$(BIN)/python" > $(BIN)/omnistate
	@chmod +x $(BIN)/omnistate
	@touch $@
endef

$(VENV)/.demo: $(VENV)/bin/python requirements/server.txt
	@test -f $(VENV)/.dev || { echo "Setting up (once) ..." && $(PIP) install --require-hashes -r requirements/server.txt; }
	$(link_source)

$(VENV)/.servers: $(VENV)/bin/python requirements/matrix.txt
	@$(PIP) install --require-hashes -r requirements/matrix.txt
	@touch $@

$(VENV)/.dev: $(VENV)/bin/python requirements/dev.txt
	@echo "Setting up the development environment (once) ..."
	@$(PIP) install --require-hashes -r requirements/dev.txt
	$(link_source)
