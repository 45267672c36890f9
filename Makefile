# Every target installs what it needs: the first call takes minutes, the next none.
#   DATA=real|embedded|auto   PROFILE=quick|full   ARGS="any further flags"

PYTHON ?= $(shell command -v python3.11 || command -v python3 || echo python3.11)
PY := .venv/bin/python
STAMP := .venv/installed
FLOWER := .venv-flower/installed
MAKEFLAGS += --no-print-directory
# Else Python would not start in a folder like `für alle` where text is ASCII.
export LC_ALL := C.UTF-8
RECIPES := recipe-1 recipe-2 recipe-3 recipe-4 recipe-5 recipe-6
FLAGS = $(if $(DATA),--data $(DATA)) $(if $(PROFILE),--profile $(PROFILE)) $(ARGS)

.DEFAULT_GOAL := help
.PHONY: help setup recipes $(RECIPES) recipe-1-flower notebooks test lint models bench site lock licences clean

help:  ## Show this list
	@grep -E '^[a-z0-9-]+:.*##' Makefile | sed -E 's/:[^#]*## */\t/' | expand -t 17
	@echo 'DATA=real|embedded|auto, PROFILE=quick|full and ARGS="..." pass through.'

setup: $(STAMP)  ## Install everything into .venv (about 8 GB)

SYNC = .venv/bin/uv pip sync --quiet --require-hashes --python

# What both installations say, and how they fail: in one line.
define INSTALLING
say() { echo "setup: $$*" >&2; }
free() { df -Pk . | awk 'NR == 2 { print int($$4 / 1048576) }'; }
explain() {
    if [ "$$(free)" -lt 1 ] || grep -qiE 'no space left|os error 28' "$$log"; then say "the disk is full: $$1 GB are needed"
    elif grep -qiE 'dns error|resolve|connect|timed out|from versions: none|unreachable' "$$log"; then
        say 'the package registry cannot be reached; check the network (or UV_DEFAULT_INDEX and PIP_INDEX_URL) and try again'
    else say "failed: $$(tail -n 3 "$$log" | tr '\n' ' ')"; fi
    exit 1
}
endef

# uv comes from the lock too, so that every package is checked against a hash. It trusts the signers
# that it knows; behind a proxy that signs for the registry only the system knows the signer.
define SETUP
$(INSTALLING)
$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null || {
    say 'Python 3.11 is needed, and neither python3.11 nor python3 is one; install it, or say PYTHON=/path/to/python3.11'; exit 1; }
[ -d .venv ] || [ "$$(free)" -ge 9 ] || { say "9 GB of disk are needed here, $$(free) GB are free"; exit 1; }
say 'installing into .venv; the first time this takes a few minutes'
log=$$(mktemp) || { say 'the disk is full: no temporary file can be written'; exit 1; }
trap 'rm -f "$$log"' EXIT
{   { $(PY) -m pip --version || $(PYTHON) -m venv --clear .venv; } &&
    awk '/^uv==/ { found = 1 } found { print } found && !/\\$$/ { exit }' requirements.lock >.venv/uv.txt &&
    { .venv/bin/uv --version || $(PY) -m pip install --quiet --retries 1 --require-hashes -r .venv/uv.txt; } &&
    { $(SYNC) $(PY) requirements.lock || $(SYNC) $(PY) --system-certs requirements.lock; } &&
    .venv/bin/uv pip install --quiet --python $(PY) --no-deps --no-build-isolation --editable . &&
    touch $(STAMP)
} >"$$log" 2>&1 || explain 9
endef
export SETUP

define SETUP_FLOWER
$(INSTALLING)
say 'installing Flower into .venv-flower (about 0.5 GB)'
log=$$(mktemp) || { say 'the disk is full: no temporary file can be written'; exit 1; }
trap 'rm -f "$$log"' EXIT
{   .venv/bin/uv venv --quiet --clear --python $(PY) .venv-flower &&
    { $(SYNC) .venv-flower requirements-flower.lock || $(SYNC) .venv-flower --system-certs requirements-flower.lock; } &&
    touch $(FLOWER)
} >"$$log" 2>&1 || explain 1
endef
export SETUP_FLOWER

$(STAMP): requirements.lock pyproject.toml
	@sh -c "$$SETUP"

# Flower wants other versions than the rest, and so has an environment of its own.
$(FLOWER): requirements-flower.lock | $(STAMP)
	@sh -c "$$SETUP_FLOWER"

recipes:  ## Run all recipes, quick
	@status=0; for recipe in $(RECIPES); do $(MAKE) --silent $$recipe || status=1; done; exit $$status

recipe-1: MODULE = federated_averaging
recipe-1:  ## Federated averaging
recipe-2: MODULE = secret_sharing
recipe-2:  ## Secret-sharing calculator
recipe-3: MODULE = private_prediction
recipe-3:  ## Private prediction
recipe-4: MODULE = adversarial_robustness
recipe-4:  ## Adversarial robustness
recipe-5: MODULE = dp_sgd
recipe-5:  ## DP-SGD
recipe-6: MODULE = membership_inference
recipe-6:  ## Membership inference

$(RECIPES): $(STAMP)
	@$(PY) -m recipes.$(MODULE) $(FLAGS)

recipe-1-flower: $(STAMP) $(FLOWER)  ## Federated averaging on Flower, a process for each party
	@$(PY) -m recipes.federated_averaging.flower $(if $(DATA),--data $(DATA)) $(ARGS)

recipe-%:
	@echo "There is no $@; there are $(RECIPES)" >&2; exit 2

notebooks: setup  ## Build the notebooks, on real data (or say DATA=embedded)
	@$(PY) notebooks/build.py $(if $(DATA),--data $(DATA)) $(ARGS)

test: setup $(FLOWER)  ## Run the tests (ARGS go to pytest)
	@$(PY) -m pytest -n 2 --dist worksteal $(ARGS)

lint: setup  ## Check style
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .

models: setup  ## Train all weights anew, on real data (hours)
	@$(PY) -m recipes.private_prediction --train --data real
	@$(PY) -m recipes.adversarial_robustness --train all --part scratch --data real
	@$(PY) -m recipes.dp_sgd --train --data real
	@$(PY) -m recipes.membership_inference --train --data real
	@$(PY) -m recipes.weights

bench: setup $(FLOWER)  ## Run each recipe beside its peers, and write benchmarks/README.md
	@$(PY) benchmarks/all.py

site: setup  ## Make a site of it all in site/, which needs no network
	@$(PY) notebooks/build_site.py

RESOLVE = env -u UV_FIND_LINKS -u UV_INDEX_URL -u UV_EXTRA_INDEX_URL .venv/bin/uv pip compile pyproject.toml \
    --quiet --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --no-header

LICENCES = $(PY) -m piplicenses --from=mixed --format=markdown --with-system --ignore-packages private-ai-cookbook

define DEPENDENCIES
# Dependencies

What `make lock` found in the packages themselves; each is installed with the hash that stands in the lock. Nothing
of it is part of this project. The licences of the data stand in [datasets/README.md](datasets/README.md).

## requirements.lock

endef
export DEPENDENCIES

lock: setup  ## Resolve both locks anew (ARGS=--upgrade for newer versions), and list licences
	@$(RESOLVE) --all-extras --override overrides.txt --output-file requirements.lock $(ARGS)
	@$(RESOLVE) --group flower --output-file requirements-flower.lock $(ARGS)
	@$(MAKE) licences

licences: setup $(FLOWER)
	@set -e; { echo "$$DEPENDENCIES"; $(LICENCES); printf '\n## requirements-flower.lock\n\n'; \
	    $(LICENCES) --python .venv-flower/bin/python; } >.venv/dependencies.md; mv .venv/dependencies.md DEPENDENCIES.md

clean:  ## Remove everything that make made
	@rm -rf .venv .venv-flower site build dist .pytest_cache .ruff_cache .hypothesis
	@find recipes tests notebooks benchmarks -name __pycache__ -prune -exec rm -rf {} +
