# Needs Python >= 3.11 and make; everything else goes into .venv. `make help` lists the targets.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
IMAGE  ?= ipet-serve:dev
# A pip index to take torch and torchaudio from, e.g. PyTorch's own CPU index (200 MB instead of 3 GB to download).
TORCH_INDEX ?=
# Processes that the tests run in, by file; each takes up to 3 GB.
WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help serve test test-ray demo bench lint format image clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

serve: $(VENV)/.runtime ## set-up, then the server on 127.0.0.1:8000; PORT=9000, ARGS="--device cpu"
	@IPET_ADAPTERS="$${IPET_ADAPTERS:-adapters/bundles}" exec $(BIN)/ipet serve $(if $(PORT),--port $(PORT)) $(ARGS)

test: $(VENV)/.dev ## set-up, then the whole test suite; SLOW=1 adds the slow tests, ARGS="-k bank" passes through
	@SLOW=$(SLOW) $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m "not alone" $(ARGS) || [ $$? -eq 5 ]
	@SLOW=$(SLOW) $(BIN)/python -m pytest -m alone $(ARGS) || [ $$? -eq 5 ] # 5: ARGS leave none of these

test-ray: $(VENV)/.dev $(VENV)-ray/.ray ## set-up of an environment beside it with Ray, then the cluster's tests; SLOW=1, ARGS= as above
	@SLOW=$(SLOW) PYTHONPATH=$(CURDIR) $(VENV)-ray/bin/python -m pytest -s tests/cluster $(ARGS)

demo: $(VENV)/.runtime ## every task over real HTTP, an upload, a hot swap and a rollback, on a free port
	@$(BIN)/python -m tests.demo $(ARGS)

bench: $(VENV)/.dev ## the forward beside its peers: a table, JSON and plots in runs/bench/; FULL=1 for the whole matrix
	@$(BIN)/python -m tests.benchmarks $(if $(filter 1,$(FULL)),--full) $(ARGS)

lint: $(VENV)/.dev ## format, linter, types, import layers, vulnerabilities: only looks; STRICT=1 fails on a vulnerability
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	@STRICT=$(STRICT) $(BIN)/python -m tests.audit

format: $(VENV)/.dev ## the formatter and the linter's own fixes: writes
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

image: ## the container image, with docker, podman or buildah; IMAGE=, BASE_IMAGE=, TORCH_INDEX=, BUILD_ARGS=
	@if docker info >/dev/null 2>&1; then build="docker build"; \
	elif command -v podman >/dev/null; then build="podman build --layers --format docker"; \
	elif command -v buildah >/dev/null; then build="buildah bud --layers --format docker"; \
	else echo "make image needs a running docker, or podman, or buildah" >&2; exit 1; fi; \
	set -x; $$build -f docker/Dockerfile -t $(IMAGE) $(if $(BASE_IMAGE),--build-arg BASE_IMAGE=$(BASE_IMAGE)) \
	  $(if $(filter undefined default file,$(origin TORCH_INDEX)),,--build-arg TORCH_INDEX=$(TORCH_INDEX)) $(BUILD_ARGS) .

clean: ## removes .venv and every cache
	rm -rf $(VENV) $(VENV)-ray .pytest_cache .ruff_cache .mypy_cache .import_linter_cache .hypothesis build dist *.egg-info

# --- set-up: two stamps, so that serving needs no developer tools and a second call starts at once ---

$(VENV)/.runtime: pyproject.toml | $(BIN)/pip
	$(call install,the service,-e .)
	@touch $@

$(VENV)/.dev: pyproject.toml | $(BIN)/pip
	$(call install,the service and the developer tools,-e '.[dev]')
	@! command -v npm >/dev/null || npm install --silent --no-save --prefix $(VENV) axe-core@4 || true # for one test file
	@touch $@ $(VENV)/.runtime

# Ray comes into an environment of its own, which sees what is installed in the other one.
$(VENV)-ray/.ray: pyproject.toml | $(VENV)/.dev
	@$(PYTHON) -m venv $(VENV)-ray
	@$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > "$$($(VENV)-ray/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/base.pth"
	@$(VENV)-ray/bin/python -m pip --disable-pip-version-check install -q 'ray[serve]>=2.60,<2.61'
	@touch $@

$(BIN)/pip:
	@command -v $(PYTHON) >/dev/null || { echo "no $(PYTHON) here: install Python >= 3.11, or name one: make PYTHON=/path/to/python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python %d.%d is too old, 3.11 is needed: make PYTHON=/path/to/python3.12 ..." % sys.version_info[:2])'
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "python cannot make a virtual environment (on Debian and Ubuntu: apt install python3-venv)" >&2; exit 1; }

# install(what, pip's arguments): pip's output goes to .venv/install.log, its newest line is shown in place on a terminal.
# The pair of torch and torchaudio is tried at once: a build whose torch is too new for its torchaudio gets torch 2.11.
define install
	@echo "installing $(1) into $(VENV); the first time takes minutes, as torch is large (log: $(VENV)/install.log)"
	@{ pip="$(BIN)/python -m pip --disable-pip-version-check install --progress-bar off"; \
	   pair() { $(BIN)/python -c 'import torch, torchaudio'; }; \
	   index="$(TORCH_INDEX)"; \
	   { [ -z "$$index" ] || $$pip --index-url "$$index" 'torch>=2.11,<2.15' 'torchaudio==2.11.*'; } && \
	   $$pip $(2) && { pair || { $$pip $${index:+--index-url "$$index"} 'torch==2.11.*' && pair; }; }; \
	   echo $$? > $(VENV)/install.rc; } 2>&1 | tee $(VENV)/install.log | \
	 if [ -t 1 ]; then awk '{printf "\r\033[K%s", substr($$0, 1, 100); fflush()} END {printf "\r\033[K"}'; else cat >/dev/null; fi
	@[ "$$(cat $(VENV)/install.rc)" = 0 ] || { tail -n 20 $(VENV)/install.log >&2; echo "the installation failed; the whole log is in $(VENV)/install.log" >&2; exit 1; }
endef
