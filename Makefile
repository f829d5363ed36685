# Every target sets up what it needs first. `make help` lists them.
SHELL := /bin/bash
.DEFAULT_GOAL := help

VENV ?= .venv
PYTHON ?= python3
JOBS ?= auto
BIN := $(VENV)/bin
SETUP := $(VENV)/.sak-setup
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal -q

DEMO ?= demo
DEMO_IMAGES ?= 512
DEMO_STEPS ?= 200
DEVICE ?= auto
VIEWS ?= 1

.PHONY: help setup constraints demo extract-features distill finetune clean-demo docs test test-long check lint bench clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "Variables: VENV=$(VENV) (virtual environment), PYTHON=$(PYTHON) (3.11 or newer, used to make it), JOBS=$(JOBS) (test processes)"

setup: $(SETUP) ## make the virtual environment, VENV=, and install exact versions into it

# The virtual environment follows the files that decide what is in it.
$(SETUP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed, $(PYTHON) is " + sys.version.split()[0] + ": run make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV): PyTorch with CUDA and what else is needed, about 6 GB, some minutes"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt --editable '.[dev,remote]'
	@touch $@

constraints: ## refresh constraints.txt: the newest versions that pyproject.toml's ranges allow, all extras
	rm -rf build/constraints && $(PYTHON) -m venv build/constraints
	build/constraints/bin/python -m pip install --quiet --disable-pip-version-check '.[dev,remote,tracking,export]'
	( echo "# Exact versions of everything; made by 'make constraints'."; \
	  build/constraints/bin/python -m pip freeze --exclude sak ) > constraints.txt.part
	mv constraints.txt.part constraints.txt && rm -rf build/constraints

define DEMO_FINETUNE
$(BIN)/sak-cli finetune --dataset demo-pascal --data $(DEMO)/data --config recipes/finetune/demo_pascal.yaml \
	  --steps $(DEMO_STEPS) --device $(DEVICE) --overwrite
endef

demo: $(SETUP) ## everything on procedural data, from images to predictions, and its own numbers; minutes on two cores
	@echo "== 1 of 9, demo data: images with exact labels, so that nothing has to be downloaded"
	@$(MAKE) --no-print-directory $(DEMO)/data/manifest.json $(DEMO)/held-out/manifest.json
	@echo "== 2 of 9, plan: what the cache will take, before anything runs"
	$(BIN)/sak-cli cache plan cache_specs/demo.yaml --samples $(DEMO_IMAGES)
	@echo "== 3 of 9, extract: three teachers look at every image once; their features are kept, and held-out ones beside"
	@$(MAKE) --no-print-directory extract-features $(DEMO)/val-cache
	@echo "== 4 of 9, verify: every byte against its digest, and what the encoding kept, by teacher and level"
	$(BIN)/sak-cli cache verify $(DEMO)/cache --deep
	$(BIN)/sak-cli cache stats $(DEMO)/cache
	@echo "== 5 of 9, distil: one student learns all teachers from the cache; no teacher runs"
	$(BIN)/sak-cli distill --cache $(DEMO)/cache --out $(DEMO)/runs/distill --config recipes/distill/demo.yaml \
	  --val-cache $(DEMO)/val-cache --device $(DEVICE) --overwrite
	@echo "== 6 of 9, fine-tune: five dense tasks on the student; and the same ViT without teachers, to compare with"
	$(DEMO_FINETUNE) --init $(DEMO)/runs/distill --out $(DEMO)/runs/sak
	$(DEMO_FINETUNE) --init imagenet --baseline multi-task --out $(DEMO)/runs/multi-task
	@echo "== 7 of 9, evaluate: the field's metrics on held-out images, and delta_m over the baseline"
	$(BIN)/sak-cli evaluate $(DEMO)/runs/multi-task --device $(DEVICE) --pictures 0
	$(BIN)/sak-cli evaluate $(DEMO)/runs/sak --baseline-run $(DEMO)/runs/multi-task --device $(DEVICE)
	@echo "== 8 of 9, predict: pictures of every task for images of any size, here the first held-out scenes"
	$(BIN)/sak-cli predict $(DEMO)/runs/sak $$(sed -n '1,4s#.*#$(DEMO)/data/PASCALContext/JPEGImages/&.jpg#p' \
	  $(DEMO)/data/PASCALContext/ImageSets/Context/val.txt) --out $(DEMO)/pictures --device $(DEVICE) --overwrite
	@echo "== 9 of 9, report: curves, gates, feature maps, predictions and numbers of these runs on one page"
	$(BIN)/sak-cli report $(DEMO)/runs --out $(DEMO)/report.html --overwrite
	@echo
	@$(BIN)/python -m pipeline.demo.summary $(DEMO)

$(DEMO)/data/manifest.json: $(SETUP)
	$(BIN)/sak-cli demo-data $(DEMO)/data --images $(DEMO_IMAGES) --overwrite

$(DEMO)/held-out/manifest.json: $(SETUP)
	$(BIN)/sak-cli demo-data $(DEMO)/held-out --images 96 --scenes 2 --seed 1 --overwrite

.PHONY: $(DEMO)/val-cache
$(DEMO)/val-cache: $(DEMO)/held-out/manifest.json
	$(BIN)/sak-cli extract --spec cache_specs/demo_val.yaml --data $(DEMO)/held-out/imagenet --cache $@ --device $(DEVICE)

extract-features: $(SETUP) $(if $(DATA),,$(DEMO)/data/manifest.json) ## stage 1, of the demo by default: SPEC=, DATA=, CACHE=, DEVICE=, VIEWS=
	$(BIN)/sak-cli extract --spec $(or $(SPEC),cache_specs/demo.yaml) --data $(or $(DATA),$(DEMO)/data/imagenet) \
	  --cache $(or $(CACHE),$(DEMO)/cache) --device $(DEVICE) --views $(VIEWS)

distill: $(SETUP) $(if $(CACHE),,extract-features) ## stage 2, of the demo by default: CACHE=, OUT=, RECIPE=, DEVICE=
	$(BIN)/sak-cli distill --cache $(or $(CACHE),$(DEMO)/cache) --out $(or $(OUT),$(DEMO)/runs/distill) \
	  --config $(or $(RECIPE),recipes/distill/demo.yaml) --device $(DEVICE) $(if $(OUT),,--overwrite)

finetune: $(SETUP) $(if $(INIT),,distill) ## stage 3, of the demo by default: INIT=, DATASET=, DATA=, OUT=, RECIPE=, DEVICE=
	$(BIN)/sak-cli finetune --init $(or $(INIT),$(DEMO)/runs/distill) --dataset $(or $(DATASET),demo-pascal) \
	  --data $(or $(DATA),$(DEMO)/data) --out $(or $(OUT),$(DEMO)/runs/finetune) \
	  --config $(or $(RECIPE),recipes/finetune/demo_pascal.yaml) --device $(DEVICE) $(if $(OUT),,--overwrite)

clean-demo: ## remove what `make demo` wrote
	rm -rf $(DEMO)

lint: $(SETUP) ## formatting, lint, layers, types and the documentation alone
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/mypy
	$(BIN)/mkdocs build --strict --quiet

docs: $(SETUP) ## the documentation as pages, into build/site
	$(BIN)/mkdocs build --strict --quiet
	@echo "Open build/site/index.html"

check: lint ## what a change must pass: lint and the fast tests (minutes on two cores)
	$(PYTEST) -m "not slow and not long"

test: $(SETUP) ## all tests but the long ones (under 12 minutes on two cores)
	$(PYTEST) -m "not long"

test-long: $(SETUP) ## kill storms, load, browser and docs commands
	$(PYTEST) -m long

bench: $(SETUP) ## every benchmark at its quick size
	@for script in $$(grep -l __main__ benchmarks/*.py); do echo "== $$script"; $(BIN)/python $$script --quick || exit 1; done

clean: ## remove caches and build leftovers, not the virtual environment
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache *.egg-info
	find . -path ./.git -prune -o -path '$(patsubst $(CURDIR)/%,./%,$(abspath $(VENV)))' -prune -o -name __pycache__ -prune -exec rm -rf {} +
