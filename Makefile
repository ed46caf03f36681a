# The whole graph. `make` prints help; `make all` does everything; results/ cuts experiments and paper apart.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
MAKEFLAGS += --no-builtin-rules --warn-undefined-variables --no-print-directory
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

.NOTPARALLEL:  # whatever -j says: models are timed here

PROFILE ?= minilm# which profile in scripts/profiles/
DEVICE ?= cpu# cpu or cuda: where models are measured
TRAIN_DEVICE ?= $(DEVICE)# where they are trained: cuda with DEVICE=cpu gives every engine's rows in GPU minutes
SEEDS ?= 0# training seeds, separated by spaces
override SEEDS := $(sort $(SEEDS))
THREADS ?= $(shell getconf _NPROCESSORS_ONLN)# CPU threads of every backend
PYTHON ?= python3# the interpreter that makes .venv (3.11 or 3.12)
# Starts the stages that train, if set: "torchrun --standalone --nproc-per-node 2" (the environment's own torchrun).
LAUNCH ?=

ifeq ($(filter grouped-target,$(.FEATURES)),)
$(error GNU make $(MAKE_VERSION) is too old: install GNU make 4.3 or newer)
endif

PROFILES := $(sort $(basename $(notdir $(wildcard scripts/profiles/*.toml))))
ifeq ($(filter $(PROFILE),$(PROFILES)),)
$(error unknown PROFILE '$(PROFILE)': choose one of $(PROFILES), or write scripts/profiles/$(PROFILE).toml)
endif

MAX_MB ?=
MAX_MS ?=
MIN_F1 ?=
MODEL ?=
# what `make check` compares with; nothing: results/ at git's HEAD
AGAINST ?= $(wildcard tests/expected/$(PROFILE))
ONLY ?=# variants that make check makes anew, and checks alone
PORT ?= 8000
MERGE ?=

CONDA_NAME := bert-compression
CONDA_DEFAULT_ENV ?=
ifeq ($(CONDA_DEFAULT_ENV),$(CONDA_NAME))
PY := python
ENV := requirements.txt
else
PY := .venv/bin/python
ENV := .venv/.installed
endif

BUILD := build/$(PROFILE)
RUN := --profile $(PROFILE) --device $(DEVICE) --train-device $(TRAIN_DEVICE) --threads $(THREADS)
TAG := $(DEVICE)-$(THREADS)threads$(if $(filter-out $(DEVICE),$(TRAIN_DEVICE)),-trained-on-$(TRAIN_DEVICE))
CORE := $(wildcard scripts/compress/*.py scripts/compress/serving/*.*) scripts/profiles/$(PROFILE).toml
REPORT := report$(if $(filter-out minilm,$(PROFILE)),/$(PROFILE))
# of the CPU, and of a GPU where one was tried
RESULTS := $(foreach device,. cuda,$(addprefix results/$(PROFILE)/$(device)/,variants.csv environment.json data.json methods.json reliability.csv flips.csv)) \
  $(addprefix results/$(PROFILE)/,serving.csv services.csv)
COLLATE_SERVING = $(PY) scripts/collate_serving.py --profile $(PROFILE)
COLLATE = $(PY) scripts/collate.py --profile $(PROFILE) --device $(DEVICE) --seeds "$(SEEDS)"
# A stage's stamps, one per seed: build/<profile>/.<stage>-seed0-cpu-2threads
stamps = $(foreach seed,$(SEEDS),$(BUILD)/.$1-seed$(seed)-$(TAG))
STAGES := finetune distill quantize-prune cluster export optimum serve-bench
PEERS := mosec litserve infinity course
# One run at a time per clone: the second is told, and stops. Sub-makes of the first already hold the lock.
HELD ?= 0
HAS_PYTHON = command -v $(PYTHON) >/dev/null || { echo "no $(PYTHON): install Python 3.11 or 3.12, or set PYTHON=..." >&2; exit 1; }
LOCK := $(if $(filter 1,$(HELD)),,$(HAS_PYTHON); $(PYTHON) scripts/with_lock.py build/.lock)

##@ Main
help: ## this text
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} /^[a-z-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' Makefile
	@printf '\nVariables (make settings shows them): PROFILE DEVICE TRAIN_DEVICE SEEDS THREADS PYTHON LAUNCH\n'

all: ## environment, data, every stage, results, figures, report
	@+$(LOCK) $(MAKE) HELD=1 sequence

smoke: ## the whole graph in miniature, in four to seven minutes
	@+$(MAKE) all PROFILE=smoke

test: $(ENV) ## the tests, the smoke run among them
	$(PY) -m pytest

soak: $(ENV) ## ten minutes of load on the service: nothing may grow
	$(PY) -m pytest -s -m soak tests/test_service.py

test-replicas: $(ENV) ## two replicas behind haproxy (Debian: haproxy), the manifests, the image's packages
	$(PY) -m pytest -s -m replicas tests/test_replicas.py

test-slow: $(ENV) ## what takes minutes: bert-base from a hub's cache, data of one's own, two training processes
	$(PY) -m pytest -m slow

test-peers: $(ENV) peers-env ## the peers answer as our own predictor does
	$(PY) -m pytest -m peers tests/test_peers.py

test-ray: $(ENV) build/ray/.installed ## the same predictor on Ray Serve answers as it does here
	$(PY) -m pytest -m ray tests/test_ray.py

##@ Experiments (write build/)
env: $(ENV) ## the environment: .venv, or the active conda environment

data: $(BUILD)/.data ## fetch, verify and split the data; unpack the backbone

finetune: $(call stamps,finetune) ## baselines: bert-orig and finetuned

quantize-prune: $(call stamps,quantize-prune) ## HW1: quantized, pruned and smaller models

cluster: $(call stamps,cluster) ## HW2: weights that share k values

distill: $(call stamps,distill) ## HW3: smaller students of the fine-tuned teacher

export: $(call stamps,export) ## HW4: ONNX Runtime and OpenVINO

optimum: $(call stamps,optimum) ## HW6: Optimum, compiled PyTorch, and the champions

serve-bench: $(call stamps,serve-bench) ## HW7: five classifiers for one service, and load on what is served
	@[ -z '$(filter 1,$(HELD))' ] || exit 0; $(COLLATE_SERVING)

serve-ray: build/ray/.installed ## the same on Ray Serve: make serve-ray MODEL=champion-balanced PORT=8000
	build/ray/bin/python scripts/serve_ray.py --model $(BUILD)/models/$(MODEL) --port $(PORT) --replicas $(THREADS)

serve-peers: $(call stamps,serve-bench) peers-env ## HW7: other servers on the same file, beside ours (results/<profile>/serving.csv)
	@$(LOCK) $(PY) scripts/07_serve_bench.py $(RUN) --peers
	$(COLLATE_SERVING)

peers-env: ## an environment for each peer of the service; one that fails is told and left out
	@+$(MAKE) --keep-going $(PEERS:%=build/peers/%/.installed) || for name in $(PEERS); do \
	  test -e build/peers/$$name/.installed || echo "peer-$$name is left out, it can't be installed: build/peers/$$name.log" >&2; done

results: $(ENV) ## records to results/<profile>/; other machines' too: make results MERGE="a/build/minilm b/build/minilm"
	$(COLLATE) $(if $(MERGE),--merge $(MERGE))
	$(COLLATE_SERVING)

##@ Service
serve: $(ENV) ## an HTTP service: make serve MODEL=champion-balanced (default: the five classifiers) PORT=8000
	$(PY) scripts/serve.py --profile $(PROFILE) --lanes $(THREADS) --port $(PORT) $(foreach model,$(MODEL),--model $(BUILD)/models/$(model))

##@ Paper (reads results/ only)
figures: $(BUILD)/.figures ## results/ to figures/

report: $(BUILD)/.report ## results/ and figures/ to report/ (whole, chapters, decision page) and the README's table

notebooks: $(BUILD)/.notebooks ## a notebook per chapter, executed, to notebooks/

check: $(ENV) $(if $(ONLY),$(BUILD)/.data) ## which claims of the committed results a fresh run upholds; make check ONLY="cluster-16 ...": makes these first
	@$(if $(ONLY),$(LOCK)) $(PY) scripts/check.py --profile $(PROFILE) $(if $(AGAINST),--against $(AGAINST)) $(if $(ONLY),--threads $(THREADS) --only $(ONLY))

recommend: $(ENV) ## which variant to use: make recommend MAX_MB=25 MAX_MS=2 MIN_F1=0.85
	$(PY) scripts/recommend.py --profile $(PROFILE) $(if $(MAX_MB),--max-mb $(MAX_MB)) $(if $(MAX_MS),--max-ms $(MAX_MS)) $(if $(MIN_F1),--min-f1 $(MIN_F1))

pdf: $(BUILD)/.report ## report.pdf (Debian: texlive-xetex texlive-fonts-recommended texlive-plain-generic lmodern)
	@command -v xelatex >/dev/null || { echo "no xelatex: apt-get install --no-install-recommends texlive-xetex texlive-fonts-recommended texlive-plain-generic lmodern" >&2; exit 1; }
	cd $(REPORT) && xelatex -interaction=batchmode -halt-on-error -output-directory=$(CURDIR)/$(BUILD) report.tex && xelatex -interaction=batchmode -halt-on-error -output-directory=$(CURDIR)/$(BUILD) report.tex
	mv $(BUILD)/report.pdf $(REPORT)/report.pdf

##@ House-keeping
lint: $(ENV) ## ruff
	$(PY) -m ruff check scripts tests
	$(PY) -m ruff format --check scripts tests

lock: $(ENV) ## requirements.in to requirements.txt
	CUSTOM_COMPILE_COMMAND="make lock" $(PY) -m piptools compile --quiet --strip-extras --no-emit-index-url --no-emit-find-links --no-emit-trusted-host --output-file requirements.txt requirements.in
	sed -i 's/^\(torch==[0-9.]*\)+cpu/\1/' requirements.txt

settings: ## the variables' values
	@printf '%-12s %s\n' PROFILE '$(PROFILE)' DEVICE '$(DEVICE)' TRAIN_DEVICE '$(TRAIN_DEVICE)' SEEDS '$(SEEDS)' THREADS '$(THREADS)' PYTHON '$(PYTHON)' LAUNCH '$(LAUNCH)' python '$(PY)'

clean: ## remove build/<profile> (models, records); results/ stay
	rm -rf $(BUILD)

distclean: ## remove build/ and .venv too
	rm -rf build .venv

.PHONY: help all smoke test env data $(STAGES) results figures report recommend serve serve-ray soak pdf serve-peers peers-env test-slow test-peers test-replicas lint lock settings clean distclean sequence stages results-if-new notebooks check test-ray

# --- files behind the verbs -------------------------------------------------------------------------------
.venv/.installed: requirements.txt
	@$(HAS_PYTHON)
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 11) <= v <= (3, 12) or sys.exit("Python %d.%d is outside 3.11 to 3.12: install one of those and set PYTHON=python3.11" % v)'
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "$(PYTHON) has no venv module: install it (Debian: apt-get install python3-venv)" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

build/ray/.installed: requirements-ray.txt requirements.txt
	$(PYTHON) -m venv build/ray
	build/ray/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-ray.txt
	@touch $@

build/peers/%/.installed: scripts/peers/requirements-%.txt
	rm -rf $(@D)
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check -r $< >build/peers/$*.log 2>&1 || { tail -n 3 build/peers/$*.log >&2; exit 1; }
	@touch $@

# What a file's rule depends on besides, so that it runs where all files of this pattern are gone.
unless = $(if $(wildcard $1),,gone)
.PHONY: gone
# the CPU's, or a GPU's alone
NO_RESULTS = $(call unless,results/$(PROFILE)/variants.csv results/$(PROFILE)/*/variants.csv)

# files and folders of one's own that the profile names
OWN := $(wildcard $(foreach path,$(shell sed -n 's/.*\bpath *= *"\([^"]*\)".*/\1/p' scripts/profiles/$(PROFILE).toml 2>/dev/null),$(path) $(path)/*))
$(BUILD)/.data: scripts/prepare_data.py $(addprefix scripts/compress/,data.py sources.py archives.py) scripts/profiles/$(PROFILE).toml $(OWN) $(call unless,$(BUILD)/data/data.json) | $(ENV)
	$(PY) scripts/prepare_data.py --profile $(PROFILE)
	@touch $@

# stage, script, the stage before it, what starts it if it trains
define STAGE
$$(BUILD)/.$1-seed%-$$(TAG): scripts/$2 $$(CORE) $$(BUILD)/$3 | $$(ENV)
	$$(PY) $4 scripts/$2 $$(RUN) --seed $$*
	@touch $$@
endef
TORCHRUN = $(LAUNCH:torchrun=-m torch.distributed.run)
$(eval $(call STAGE,finetune,01_finetune.py,.data,$(TORCHRUN)))
# 04 comes before 02 and 03: students are quantized and clustered, too.
$(eval $(call STAGE,distill,04_distill.py,.finetune-seed%-$$(TAG),$(TORCHRUN)))
$(eval $(call STAGE,quantize-prune,02_quantize_prune.py,.distill-seed%-$$(TAG),$(TORCHRUN)))
$(eval $(call STAGE,cluster,03_cluster.py,.quantize-prune-seed%-$$(TAG),$(TORCHRUN)))
$(eval $(call STAGE,export,05_export.py,.cluster-seed%-$$(TAG),))
$(eval $(call STAGE,optimum,06_optimum.py,.export-seed%-$$(TAG),))
$(eval $(call STAGE,serve-bench,07_serve_bench.py,.optimum-seed%-$$(TAG),))

stages: $(STAGES)

# Three makes in a row: each sees on disk what the one before wrote.
sequence:
	@[ '$(firstword $(SEEDS))' = 0 ] || { echo "SEEDS=$(SEEDS): add 0, whose times and champions the others share (or: make stages)" >&2; exit 1; }
	@+$(MAKE) stages
	@+$(MAKE) results-if-new
	@+$(MAKE) report

# Collate only after a stage has run: the stamp is newer than the results, or the seeds are others.
COLLATED := $(BUILD)/.results-$(subst $(eval ) ,-,$(SEEDS))-$(TAG)
results-if-new: $(COLLATED)
$(COLLATED): scripts/collate.py $(CORE) $(foreach stage,$(STAGES),$(call stamps,$(stage))) $(NO_RESULTS)
	$(COLLATE)
	$(COLLATE_SERVING)
	@rm -f $(BUILD)/.results-*; touch $@

# No rule makes results/ here: the paper is drawn from what is committed.
$(BUILD)/.figures: scripts/figures.py $(addprefix scripts/compress/,results.py questions.py) $(wildcard $(RESULTS)) $(NO_RESULTS) $(call unless,figures/$(PROFILE)) | $(ENV)
	$(PY) scripts/figures.py --profile $(PROFILE)
	@mkdir -p $(@D) && touch $@

$(BUILD)/.notebooks: scripts/notebooks.py $(BUILD)/.report | $(ENV)
	$(PY) scripts/notebooks.py
	@touch $@

$(BUILD)/.report: scripts/render.py $(addprefix scripts/compress/,captions.py tables.py questions.py results.py) scripts/recommend.py $(wildcard report/*.j2 report/chapters/*.j2 report/*.bib report/*.csv) $(BUILD)/.figures $(call unless,$(REPORT)/report.md) | $(ENV)
	$(PY) scripts/render.py --profile $(PROFILE)
	@mkdir -p $(@D) && touch $@
