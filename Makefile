# Flow Generator Matching. `make help` lists the targets; EXP= names an experiment, ARGS= holds overrides.
# Spaces separate the words of ARGS; every other sign in it reaches the program, quotes and brackets included.

PYTHON ?= python3
VENV   ?= .venv
EXP    ?= digits_fgm
SWEEP  ?=
BENCH  ?= cycle
ARGS   ?=

BIN := $(VENV)/bin
RUN := $(BIN)/python -m
QUOTED = $(foreach word,$(value ARGS),'$(subst ','\'',$(word))')

.DEFAULT_GOAL := help
.PHONY: help setup train record cache-prompts eval sample export score reference bench memory sweep \
        study-identity test check format table notebooks

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | awk -F'\t' '{printf "  make %-14s %s\n", $$1, $$2}'
	@echo; echo "  experiments:"; for f in configs/experiment/*.yaml; do \
	  printf "  EXP=%-22s %s\n" "$$(basename $$f .yaml)" "$$(sed -n '3s/^# //p' $$f)"; done
	@echo; echo "  studies:"; for f in configs/sweep/*.yaml; do \
	  printf "  SWEEP=%-24s %s\n" "$$(basename $$f .yaml)" "$$(sed -n 's/^  question: //p' $$f)"; done

setup: $(VENV)/installed ## make the virtual environment (every other target does it when needed)

$(VENV)/installed: requirements.lock pyproject.toml
	@echo "setting up $(VENV) once: PyTorch and what the suite needs (some minutes)"
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
	  { echo "error: Python 3.11 to 3.13 is needed: make PYTHON=python3.11 ..." >&2; exit 2; }
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check --requirement requirements.lock
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

train: setup ## train an experiment, or resume it: EXP=digits_fgm ARGS="seed=1 method.t_star=0.9"
	@$(RUN) fgm.cli.train experiment=$(EXP) $(QUOTED)

record: setup ## add a finished run to experiments/<EXP>/runs.jsonl: EXP=, ARGS= as for make train
	@$(RUN) fgm.cli.main record experiment=$(EXP) $(QUOTED)

cache-prompts: setup ## encode the prompts of a text-to-image experiment, once: EXP=sd3_fgm, ARGS="device=cuda batch=32"
	@$(RUN) fgm.cli.cache_prompts experiment=$(EXP) $(QUOTED)

eval: setup ## measure a finished run again: EXP=, ARGS="n=50000 eval_seed=7"; or PNGs: ARGS="samples_dir= evaluator=digits"
	@$(RUN) fgm.cli.evaluate $(if $(findstring samples_dir=,$(ARGS)),,experiment=$(EXP)) $(QUOTED)

# A prompt given on the command line reaches the program letter by letter: make expands none of it, nor does the shell.
sample: setup ## draw from a finished run: EXP=, PROMPT="a photo of a red circle", ARGS="n=100 sample_seed=0 out=digits.png"
	@$(RUN) fgm.cli.sample experiment=$(EXP) $(if $(filter command,$(origin PROMPT)),'prompt=$(subst ','\'',$(value PROMPT))') $(QUOTED)

export: setup ## samples of a finished run as PNGs: EXP=, ARGS="format=png|edm|geneval n=1000 out=folder"; or it: format=diffusers
	@$(RUN) fgm.cli.export experiment=$(EXP) $(QUOTED)

score: setup ## GenEval's score: ARGS="geneval_dir= metadata= detections=seen.json" or detector=mask2former detector_dir= clip_dir=
	@$(RUN) fgm.cli.score $(QUOTED)

reference: setup ## mu and sigma of real images' features: ARGS="data=digits out=refs.npz"
	@$(RUN) fgm.cli.main reference $(QUOTED)

bench: setup ## time the package against plain code: EXP=, BENCH=cycle ARGS="cycles=50" or BENCH=evaluation ARGS="extractor=small"
	@$(RUN) benchmarks.$(BENCH) experiment=$(EXP) $(QUOTED)

memory: setup ## what a distillation needs, and which GPUs hold it, before anything is loaded: EXP=, ARGS="record=true"
	@$(RUN) fgm.cli.memory experiment=$(EXP) $(QUOTED)

sweep: setup ## run a study, or resume it: SWEEP=t_star, EXP=, ARGS="method.t_star=0.9 seed=0", ARGS="hydra/launcher=joblib"
	@$(RUN) fgm.cli.train -m +sweep=$(SWEEP) $(if $(filter command,$(origin EXP)),experiment=$(EXP)) $(QUOTED)

study-identity: setup ## compare FGM's gradient with the exact one, by fit of the online network: ARGS="cases=gaussian,mixture"
	@$(BIN)/python experiments/identity/study.py $(QUOTED)

# One thread: the tests compare bits between processes, and a sum split over two threads rounds otherwise.
test: setup ## the whole test suite, on the CPU
	@OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto --dist worksteal $(ARGS)

check: setup ## format, lint, types, every experiment composes, tables are fresh
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/ruff check --quiet .
	@$(BIN)/pyrefly check --summary=none
	@$(RUN) fgm.cli.config
	@$(RUN) fgm.cli.table --check

format: setup ## rewrite the code in the project's format
	@$(BIN)/ruff format --quiet .
	@$(BIN)/ruff check --quiet --fix .

table: setup ## write the tables of the documents and the plots of the studies from runs.jsonl
	@$(RUN) fgm.cli.table

notebooks: setup ## run the notebooks and keep their outputs
	@cd notebooks && for f in *.ipynb; do PYTHONWARNINGS=ignore ../$(BIN)/jupyter-execute $$f --inplace || exit 1; done
