# The whole graph. `make` prints help; `make all` does everything; results/ separates experiments from paper.
# A variant is a target, build/<profile>/seed<k>/<variant>/record.json; scripts/plan.py writes its rule to plan.mk.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
MAKEFLAGS += --no-builtin-rules --warn-undefined-variables --no-print-directory
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

# The environment alone decides what Python finds, and where pip installs; texts are UTF-8 in every locale.
unexport PYTHONPATH PYTHONHOME PYTHONSAFEPATH PYTHONOPTIMIZE PYTHONINSPECT PIP_TARGET PIP_PREFIX
export PIP_USER := 0
export PYTHONNOUSERSITE := 1
export PYTHONUTF8 := 1
export HOME ?= $(CURDIR)/build# a user without an entry in /etc/passwd has none

PROFILE ?= minilm# which profile in scripts/profiles/
SCOPE ?= core# core (the main text) or full (the appendix, too)
SEEDS ?= 0# training seeds, separated by spaces
DEVICE ?= cpu# cpu or cuda: where models are measured
TRAIN_DEVICE ?= $(DEVICE)# where they are trained; cuda also works with DEVICE=cpu
# The cores that this machine, taskset and a container's quota leave; nproc does not know quotas.
CORES = cd scripts && $(PYTHON) -E -c 'import compress.cli as c; print(c.cores())' 2>/dev/null || nproc || getconf _NPROCESSORS_ONLN
THREADS ?= $(eval THREADS := $$(shell $$(CORES)))$(THREADS)# CPU threads of every backend while it is timed; counted once, when first used
JOBS ?= $(THREADS)# variants built in parallel
PYTHON ?= python3# the interpreter that makes .venv (3.11.5 to 3.12)
LAUNCH ?=# starts the scripts that train: "torchrun --standalone --nproc-per-node 2" (the environment's own torchrun)

ifeq ($(filter grouped-target,$(.FEATURES)),)
$(error GNU make $(MAKE_VERSION) is too old: install GNU make 4.3 or newer)
endif

PROFILES := $(sort $(basename $(notdir $(wildcard scripts/profiles/*.toml))))
ifeq ($(filter $(PROFILE),$(PROFILES)),)
$(error unknown PROFILE '$(PROFILE)': choose one of $(PROFILES), or write scripts/profiles/$(PROFILE).toml)
endif
ifeq ($(filter $(SCOPE),core full),)
$(error unknown SCOPE '$(SCOPE)': choose core or full)
endif
override SEEDS := $(sort $(SEEDS))
BAD_SEEDS := $(shell printf '%s\n' $(SEEDS) | grep -vxE '[0-9]+')
ifneq ($(BAD_SEEDS),)
$(error SEEDS '$(SEEDS)': whole numbers separated by spaces, for example SEEDS="0 1 2")
endif

NAME ?=# make model: the variants to build
MODEL ?=# make serve, serve-ray, soak: champions, variants or folders of models
PORT ?= 8000# make serve, serve-ray
MINUTES ?= 10# make soak: of load
MAX_MB ?=# make recommend: the largest size
MAX_MS ?=# make recommend: the longest time per sentence
MIN_F1 ?=# make recommend: the least F1
AGAINST ?= $(wildcard tests/expected/$(PROFILE))# make check: the folder to compare with (empty: results/ at git's HEAD)
ONLY ?=# make check: variants that are built first, and compared alone

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
REPORT := report$(if $(filter-out minilm,$(PROFILE)),/$(PROFILE))
LARGE := $(shell sed -n 's/^teacher *= *"\([^"]*\)".*/\1/p' scripts/profiles/$(PROFILE).toml)# the profile of the large teacher
STAGES := finetune quantize-prune cluster distill export optimum serve-bench
PEERS := mosec litserve infinity course
# One run at a time per clone: a second one names the process that holds the lock and stops. HELD=1: this make has it.
HELD ?= 0
PLANNED ?= 0
HAS_PYTHON = command -v $(PYTHON) >/dev/null || { echo "no $(PYTHON): install Python 3.11.5 to 3.12, or set PYTHON=..." >&2; exit 1; }
LOCK := $(if $(filter 1,$(HELD)),,$(HAS_PYTHON); $(PYTHON) scripts/with_lock.py build/.lock)
# A sub-make that reads the plan. If the user gave -j, Make's job server is there already.
PLANNED_MAKE := $(MAKE) HELD=1 PLANNED=1
PARALLEL = $(if $(filter -j%,$(MAKEFLAGS)),,-j$(JOBS))
PLAN = $(PY) scripts/plan.py --profile $(PROFILE) --scope $(SCOPE) --seeds "$(SEEDS)" --device $(DEVICE) --train-device $(TRAIN_DEVICE)
NEEDS_ENV = test -e $(ENV) || { echo "make -n needs the environment: run make env first" >&2; exit 1; }

##@ Main
help: ## this text
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} /^[a-z-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' Makefile
	@printf '\nVariables (make settings shows their values)\n'
	@awk -F ' [?]=|# ' '/^[A-Z_0-9]+ [?]=.*# / {printf "  %-14s %s\n", $$1, $$3}' Makefile

all: ## environment, data, models, results, service benchmark, figures, report
	@+$(LOCK) $(MAKE) HELD=1 sequence

smoke: ## the whole graph in miniature, in four minutes
	@+$(MAKE) all PROFILE=smoke

test: $(ENV) ## the tests, the smoke run among them
	$(PY) -m pytest

test-replicas: $(ENV) ## two replicas behind haproxy (Debian: haproxy), the manifests, the image's packages
	$(PY) -m pytest -s -m replicas tests/test_replicas.py

test-slow: $(ENV) ## the tests that take minutes: bert-base from a hub's cache, your own data, two training processes
	$(PY) -m pytest -m slow

test-peers: $(ENV) peers-env ## the peers give the same predictions as our own predictor
	$(PY) -m pytest -m peers tests/test_peers.py

test-ray: $(ENV) build/ray/.installed ## the same predictor on Ray Serve
	$(PY) -m pytest -m ray tests/test_ray.py

##@ Experiments (write build/)
env: $(ENV) ## the environment: .venv, or the active conda environment

data: $(ENV) ## fetch, verify and split the data; unpack the backbone
	@+$(LOCK) $(MAKE) HELD=1 planned GOAL="$(DATA)"

finetune: ## the baselines
quantize-prune: ## HW1: quantized, pruned and smaller models
cluster: ## HW2: weights that share k values
distill: ## HW3: smaller students of the fine-tuned teacher
export: ## HW4: ONNX Runtime and OpenVINO
optimum: ## HW6: Optimum, and PyTorch's own fast paths
finetune quantize-prune cluster distill export optimum: $(ENV)
	@+$(LOCK) $(MAKE) HELD=1 planned GOAL=stage-$@

model: $(ENV) ## one variant with its parents, evaluated: make model NAME=cluster-16
	@test -n "$(NAME)" || { echo "which model? make model NAME=cluster-16 (names: scripts/profiles/$(PROFILE).toml)" >&2; exit 1; }
	@+$(LOCK) $(MAKE) HELD=1 planned GOAL=evaluated ONLY="$(NAME)"

serve-bench: $(ENV) ## HW7: the classifiers of the service, and load on the served models
	@+$(LOCK) $(MAKE) HELD=1 planned GOAL=stage-$@
	@$(LOCK) $(SERVE_BENCH)
	@$(LOCK) $(COLLATE_SERVING)

serve-peers: $(ENV) peers-env ## HW7: load on other servers with the same model (results/<profile>/serving.csv)
	@$(LOCK) $(SERVE_BENCH) --peers
	@$(LOCK) $(COLLATE_SERVING)

peers-env: ## an environment for each of the other servers; those that can't be installed are left out
	@+$(MAKE) --keep-going $(PEERS:%=build/peers/%/.installed) || for name in $(PEERS); do \
	  test -e build/peers/$$name/.installed || echo "$$name is left out: it can't be installed (log: build/peers/$$name.log)" >&2; done

teacher: $(ENV) ## the logits that other profiles' students learn from: make teacher PROFILE=base
	@+$(LOCK) $(MAKE) HELD=1 planned GOAL=baseline
	for seed in $(SEEDS); do $(LOCK) $(PY) scripts/teacher_logits.py --profile $(PROFILE) --device $(DEVICE) --seed $$seed; done

results: $(ENV) ## build/ and results/<profile>/seed<k>.npz to the tables in results/<profile>/
	@$(LOCK) $(COLLATE)
	@$(LOCK) $(COLLATE_SERVING)

##@ Service
serve: $(ENV) ## an HTTP service: make serve MODEL=champion-balanced (default: the five classifiers) PORT=8000
	$(PY) scripts/serve.py --profile $(PROFILE) --workers $(THREADS) --port $(PORT) $(foreach model,$(MODEL),--model $(model))

serve-ray: $(if $(MODEL),build/ray/.installed) ## the same on Ray Serve: make serve-ray MODEL=champion-balanced PORT=8000
	@test -n "$(MODEL)" || { echo "which model? make serve-ray MODEL=champion-balanced" >&2; exit 1; }
	build/ray/bin/python scripts/serve_ray.py --profile $(PROFILE) --model $(MODEL) --port $(PORT) --replicas $(THREADS)

soak: $(ENV) ## load for MINUTES=10: memory, connections and latency must not grow: make soak MODEL=champion-balanced
	@$(LOCK) $(PY) scripts/soak.py --profile $(PROFILE) --threads $(THREADS) --minutes $(MINUTES) $(foreach model,$(MODEL),--model $(model))

##@ Paper (reads results/ only)
figures: $(BUILD)/.figures ## results/ to figures/

report: $(BUILD)/.report ## results/ and figures/ to report/ (whole, chapters, decision page) and the README's table

notebooks: $(BUILD)/.notebooks ## a notebook per chapter, executed, to notebooks/

check: $(ENV) ## which claims of the committed results a fresh run upholds; make check ONLY="cluster-16 ..." builds these first
	@+$(if $(ONLY),$(LOCK) $(MAKE) HELD=1 rebuilt)
	$(PY) scripts/check.py --profile $(PROFILE) $(if $(AGAINST),--against $(AGAINST)) $(if $(ONLY),--fresh $(BUILD)/check --only $(ONLY))

recommend: $(ENV) ## which variant to use: make recommend MAX_MB=25 MAX_MS=2 MIN_F1=0.82
	$(PY) scripts/recommend.py --profile $(PROFILE) $(if $(MAX_MB),--max-mb $(MAX_MB)) $(if $(MAX_MS),--max-ms $(MAX_MS)) $(if $(MIN_F1),--min-f1 $(MIN_F1))

pdf: $(BUILD)/.report ## report.pdf (Debian: texlive-xetex texlive-fonts-recommended texlive-plain-generic lmodern)
	@command -v xelatex >/dev/null || { echo "no xelatex: apt-get install --no-install-recommends texlive-xetex texlive-fonts-recommended texlive-plain-generic lmodern" >&2; exit 1; }
	cd $(REPORT) && xelatex -interaction=batchmode -halt-on-error -output-directory="$(CURDIR)/$(BUILD)" report.tex && xelatex -interaction=batchmode -halt-on-error -output-directory="$(CURDIR)/$(BUILD)" report.tex
	mv $(BUILD)/report.pdf $(REPORT)/report.pdf

##@ Housekeeping
lint: $(ENV) ## ruff
	$(PY) -m ruff check scripts tests
	$(PY) -m ruff format --check scripts tests

lock: $(ENV) ## requirements.in to requirements.txt
	CUSTOM_COMPILE_COMMAND="make lock" $(PY) -m piptools compile --quiet --strip-extras --no-emit-index-url --no-emit-find-links --no-emit-trusted-host --output-file requirements.txt requirements.in
	sed -i 's/^\(torch==[0-9.]*\)+cpu/\1/' requirements.txt

settings: ## the variables' values
	@printf '%-12s %s\n' $(foreach name,PROFILE SCOPE SEEDS DEVICE TRAIN_DEVICE THREADS JOBS PYTHON LAUNCH PY,$(name) '$($(name))')

clean: ## remove build/<profile> (models, records); results/ stay
	@$(LOCK) rm -rf $(BUILD)

distclean: ## remove build/ and .venv too
	@$(LOCK) rm -rf build .venv

.PHONY: help all model smoke test soak test-replicas test-slow test-peers test-ray env data teacher $(STAGES) serve-peers peers-env results serve serve-ray figures report notebooks check recommend pdf lint lock settings clean distclean sequence planned rebuilt

# The files and steps behind these targets.
.venv/.installed: requirements.txt
	@$(HAS_PYTHON)
	@$(PYTHON) -c 'import sys; v = sys.version_info[:3]; (3, 11, 5) <= v < (3, 13) or sys.exit("Python %d.%d.%d is outside 3.11.5 to 3.12: install one of those and set PYTHON=python3.11" % v)'
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

# A further prerequisite, which makes a rule run if no file of the pattern exists.
unless = $(if $(wildcard $1),,gone)
.PHONY: gone
NO_RESULTS = $(call unless,results/$(PROFILE)/variants.csv results/$(PROFILE)/*/variants.csv)

SUFFIX := $(if $(filter-out cpu,$(DEVICE)),-$(DEVICE))
BUILD_OPTIONS := --profile $(PROFILE) --device $(DEVICE) --train-device $(TRAIN_DEVICE)
START_TRAINING := $(PY) $(LAUNCH:torchrun=-m torch.distributed.run)
package = $(wildcard $(addsuffix /*.py,$(addprefix scripts/compress/,$1)))
DATA := $(SEEDS:%=$(BUILD)/data/seed%/data.json)
PREPARED := $(BUILD)/.data-$(subst $(eval ) ,-,$(SEEDS))
DATA_SOURCES := scripts/prepare_data.py $(call package,data)
EVALUATION_SOURCES := scripts/compress/measure/evaluation.py $(call package,engines)
TIMING_SOURCES := $(filter-out %/evaluation.py,$(call package,measure)) $(call package,engines)
SETTINGS := scripts/profiles/$(PROFILE).toml# champions, the core and the course are read from it by tables and pages
RESULTS_SOURCES := scripts/collate.py $(call package,results)
COLLATE = $(PY) scripts/collate.py --profile $(PROFILE) --scope $(SCOPE) --device $(DEVICE) --seeds "$(SEEDS)"
COLLATE_SERVING = $(PY) scripts/collate_serving.py --profile $(PROFILE)
SERVE_BENCH = $(PY) scripts/07_serve_bench.py --profile $(PROFILE) --scope $(SCOPE) --threads $(THREADS)
TIME = $(PY) scripts/time_variants.py --profile $(PROFILE) --device $(DEVICE) --threads $(THREADS) --sources $(TIMING_SOURCES)
TIME_ALL = $(TIME); for number in $$(seq 0 $$(($(PASSES) - 1))); do $(TIME) --pass $$number; done
EVALUATE = $(PY) scripts/evaluate_variants.py --profile $(PROFILE) --device $(DEVICE) --sources $(EVALUATION_SOURCES)

# A stamp has the date of the step's start: what changes meanwhile makes the step run again.
BEGIN = @mkdir -p $(@D) && touch $@.new
END = @mv $@.new $@

# One sub-make per phase: each sees the files that the phase before wrote. Only builds run in parallel, because nothing
# else may run while models are timed. Failed variants don't stop the run: collate reports them by its exit status.
sequence:
	@+$(MAKE) $(ENV)
	@+$(NEEDS_ENV); $(PLAN)
	@+$(PLANNED_MAKE) $(PARALLEL) models
	@+$(PLANNED_MAKE) evaluated
	@+$(PLANNED_MAKE) timed
	@+status=0; $(PLANNED_MAKE) collated benchmarked || status=$$?; $(MAKE) report; exit $$status

# One goal that needs the plan: the data, or the models of a script with their parents.
planned:
	@+$(NEEDS_ENV); $(PLAN) $(if $(ONLY),--only "$(ONLY)")
	@+$(PLANNED_MAKE) $(PARALLEL) $(GOAL)

# For make check: some variants with their parents, collated into a separate folder.
rebuilt:
	@+$(NEEDS_ENV); $(PLAN) --only "$(ONLY)"
	@+$(PLANNED_MAKE) $(PARALLEL) models
	@+$(PLANNED_MAKE) evaluated
	@+$(PLANNED_MAKE) timed
	@rm -rf $(BUILD)/check
	$(COLLATE) --only "$(ONLY)" --results $(BUILD)/check

ifeq ($(PLANNED),1)
include $(BUILD)/plan.mk
.PHONY: baseline models evaluated timed collated benchmarked $(STAGES:%=stage-%)

$(PREPARED): $(BUILD)/plan/data.json $(DATA_SOURCES) $(foreach file,$(DATA),$(call unless,$(file)))
	$(BEGIN)
	$(PY) scripts/prepare_data.py --profile $(PROFILE) --seeds "$(SEEDS)"
	$(END)

# Keep their dates if the content stays the same, so that no model is built again. The + makes `make -n` look at them.
$(DATA): $(PREPARED)
	@+:

baseline: $(SEEDS:%=$(BUILD)/seed%$(SUFFIX)/$(BASELINE)/record.json)

models: $(foreach seed,$(SEEDS),$(RECORDS_$(seed)))

evaluated: $(SEEDS:%=$(BUILD)/seed%$(SUFFIX)/.evaluated)
define EVALUATED
$$(BUILD)/seed$1$$(SUFFIX)/.evaluated: $$(RECORDS_$1) $$(EVALUATION_SOURCES)
	$$(BEGIN)
	@$$(EVALUATE) --seed $1
	$$(END)
endef
$(foreach seed,$(SEEDS),$(eval $(call EVALUATED,$(seed))))

# Only seed 0 is timed: another seed's models have the same shapes and arithmetic.
TIMED := $(BUILD)/seed0$(SUFFIX)/.timed-$(THREADS)threads
timed: $(if $(filter 0,$(SEEDS)),$(TIMED))
$(TIMED): $(BUILD)/seed0$(SUFFIX)/.evaluated $(BUILD)/plan$(SUFFIX)/_measure.json $(TIMING_SOURCES)
	@rm -f $(@D)/.timed-*
	$(BEGIN)
	@$(TIME_ALL)
	$(END)

COLLATED := $(BUILD)/.collated$(SUFFIX)-$(SCOPE)-$(subst $(eval ) ,-,$(SEEDS))
collated: $(COLLATED)
$(COLLATED): $(SEEDS:%=$(BUILD)/seed%$(SUFFIX)/.evaluated) $(if $(filter 0,$(SEEDS)),$(TIMED)) $(RESULTS_SOURCES) $(SETTINGS) $(if $(LARGE),$(wildcard results/$(LARGE)/seed*.npz results/$(LARGE)/logits/seed*.npz)) $(call unless,results/$(PROFILE)$(SUFFIX:-%=/%)/variants.csv)
	$(BEGIN)
	$(COLLATE)
	$(END)

BENCHMARKED := $(BUILD)/serving/.done-$(SCOPE)
benchmarked: $(if $(filter 0,$(SEEDS)),$(if $(filter cpu,$(DEVICE)),$(BENCHMARKED)))
$(BENCHMARKED): $(COLLATED) $(call package,serving loadtest) scripts/serve.py
	$(BEGIN)
	$(SERVE_BENCH)
	$(COLLATE_SERVING)
	$(END)

define STAGE
stage-$1: $$(RECORDS_OF_$1)
	@for seed in $$(SEEDS); do $$(EVALUATE) --seed $$$$seed; done
	@$$(if $$(filter 0,$$(SEEDS)),$$(TIME_ALL))
endef
$(foreach stage,$(STAGES),$(eval $(call STAGE,$(stage))))
endif

# No rule here writes results/: figures and report use the tables as they are.
TABLES := $(foreach folder,$(PROFILE) $(PROFILE)/cuda $(LARGE),$(wildcard results/$(folder)/*.csv results/$(folder)/*.json))
$(BUILD)/.figures: scripts/figures.py report/both_sizes.csv report/names.csv $(call package,report results) $(SETTINGS) $(TABLES) $(NO_RESULTS) $(call unless,figures/$(PROFILE)) | $(ENV)
	$(BEGIN)
	$(PY) scripts/figures.py --profile $(PROFILE)
	$(END)

$(BUILD)/.notebooks: scripts/notebooks.py $(call package,methods storage serving loadtest engines) $(BUILD)/.report | $(ENV)
	$(BEGIN)
	$(PY) scripts/notebooks.py
	$(END)

$(BUILD)/.report: scripts/render.py $(call package,report results) scripts/compress/measure/evaluation.py scripts/compress/measure/latency.py $(wildcard report/*.j2 report/chapters/*.j2 report/*.bib report/*.csv) report/style.css report/tables.html $(SETTINGS) $(LARGE:%=scripts/profiles/%.toml) $(BUILD)/.figures $(call unless,$(REPORT)/report.md) | $(ENV)
	$(BEGIN)
	$(PY) scripts/render.py --profile $(PROFILE)
	$(END)
