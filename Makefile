# Every target is thin: setup.sh makes .venv as the lock files say, the rest is done from it.
.DEFAULT_GOAL := help
.PHONY: help setup preview up down rebuild probe map fleet sandbox-up sandbox-down test test-unit test-engine test-relay test-regions test-live bench-changes bench-fleet bench-faults prepare-tests lint format lock

PYTHON := .venv/bin/python
# whose file is stacks/Pulumi.$(STACK).yaml
STACK ?= local
# more arguments for the command behind a target, such as ARGS=--volumes
ARGS ?=

help:
	@echo "make up      bring up a relay behind Caddy on this machine, and check it (STACK=name: that stack)"
	@echo "make preview STACK=name   show what make up would change, and whether relay sessions would end"
	@echo "make down    remove all that it made but certificates and keys (ARGS=--volumes: these too)"
	@echo "make rebuild STACK=name   make that stack's server anew, with its addresses, certificates and keys"
	@echo "make fleet ARGS=\"up --all\"   bring up all regions in turn; also preview, refresh, destroy, status (docs/fleet.md)"
	@echo "make sandbox-up REGION=eu-nuremberg   show a whole region on this machine; sandbox-down removes it"
	@echo "make probe   check all relays that are up as Tailscale's clients use them (STACK=name: that one)"
	@echo "make map     print the DERP map of all relays that are up (STACK=name: of that one)"
	@echo "make setup   bring what they need, and change nothing that runs"
	@echo "make test    all tests; test-unit, test-engine, test-relay, test-regions are its parts"
	@echo "make bench-changes   what changes of sites and images cost, measured here"
	@echo "make bench-faults    which faults of a relay the probe and Tailscale's own tools find, made here"
	@echo "make bench-fleet     what 1, 5 and 20 regions cost in time and memory, measured here"
	@echo "make lint    ruff, mypy and shellcheck"
	@echo "make lock    renew the requirements lock files"

# a region on this machine, server and all, without an account: REGION=eu-nuremberg
sandbox-up sandbox-down:
	@./setup.sh --dev
	@$(PYTHON) -m sandbox $(@:sandbox-%=%) $(REGION) $(ARGS)

setup preview up down rebuild:
	@./setup.sh
	@$(PYTHON) -m relayctl $@ $(STACK) $(ARGS)

# of all stacks that are up, unless STACK was given
probe map:
	@./setup.sh
	@$(PYTHON) -m relayctl $@ $(if $(filter file,$(origin STACK)),,$(STACK)) $(ARGS)

fleet:
	@./setup.sh
	@$(PYTHON) -m relayctl fleet $(ARGS)

# one after the other: each lane has the machine to itself
.NOTPARALLEL:
test: test-unit test-engine test-relay test-regions

test-unit:
	@./setup.sh --dev
	$(PYTHON) -m pytest tests/unit --numprocesses=auto $(ARGS)

# two files at a time, each with hosts of its own: most of the time goes in waiting for containers
test-engine: prepare-tests
	$(PYTHON) -m pytest tests/engine --numprocesses=2 --dist=loadfile $(ARGS)

# one at a time: here it is timed when a run is killed
test-relay: prepare-tests
	$(PYTHON) -m pytest tests/relay $(ARGS)

# two files at a time, each with a cloud of its own: most of the time goes in waiting for servers
test-regions: prepare-tests
	$(PYTHON) -m pytest tests/regions --numprocesses=2 --dist=loadfile $(ARGS)

# one real region, which costs money: it skips unless all that docs/servers.md names is set
test-live:
	@./setup.sh --dev
	$(PYTHON) -m pytest tests/live $(ARGS)

# the Docker engine, Pulumi and the relay's programs, which `make up` would bring
prepare-tests:
	@./setup.sh --dev
	@$(PYTHON) -m tests.prepare

# what changes of sites and images cost, in sizes, ratios and seconds; ten minutes, as root
bench-changes: prepare-tests
	$(PYTHON) -m bench.changes $(ARGS)

# which faults of a relay the probe and Tailscale's own tools find; ten minutes, as root
bench-faults: prepare-tests
	$(PYTHON) -m bench.faults $(ARGS)

# what fleets of regions cost, in seconds and memory; half an hour, as root
bench-fleet: prepare-tests
	$(PYTHON) -m bench.fleet $(ARGS)

lint:
	@./setup.sh --dev
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy .
	@if command -v shellcheck >/dev/null; then shellcheck setup.sh sandbox/machines/guest/boot.sh; \
	else echo "shellcheck is not installed, so the shell scripts were not checked: apt-get install shellcheck"; fi

format:
	@./setup.sh --dev
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

# the runtime lock first: the one for development is constrained by it
lock:
	@./setup.sh --dev
	.venv/bin/uv pip compile $(LOCK_OPTIONS) --output-file requirements.txt requirements.in
	.venv/bin/uv pip compile $(LOCK_OPTIONS) --output-file requirements-dev.txt requirements-dev.in
	.venv/bin/uv pip compile $(LOCK_OPTIONS) --output-file tools/go/requirements.txt tools/go/requirements.in

# one lock for every Python from 3.11 on; which index it came from is this machine's business
LOCK_OPTIONS := --quiet --universal --python-version 3.11 --generate-hashes --no-config \
	--no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" $(ARGS)
