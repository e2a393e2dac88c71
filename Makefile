# The doors of the project. `make` alone lists them.
#
# Whatever a door needs, it makes: .venv from the pinned versions of setup.py and constraints.txt, with MXNet's CPU build,
# or its CUDA build where src/vargface/gpu.py finds an NVIDIA GPU that can run it (EXTRA=cpu or EXTRA=cu112 to decide).

VARGFACE := .venv/bin/vargface
# the recipe keys that have a name of their own here; the rest goes through ARGS="key=value ..."
KEYS = $(if $(DATA),"data=$(DATA)") $(if $(TEACHER),"teacher=$(TEACHER)") $(if $(OUT),"out=$(OUT)") $(foreach word,$(ARGS),'$(word)')

.DEFAULT_GOAL := help
.PHONY: help install train-teacher train-student study verify export lfr test lint bench clean

help: ## list these doors
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' Makefile | expand -t 22

install: .venv/.installed ## build .venv (every other door does so when it needs to)
	@echo ".venv is ready"

train-student: .venv/.installed ## the whole demo job; or one recipe: RECIPE= DATA= TEACHER=PREFIX,EPOCH OUT= ARGS="key=value ..."
ifeq ($(strip $(RECIPE)$(DATA)),)
	$(VARGFACE) demo $(KEYS)
else
	$(VARGFACE) train $(if $(RECIPE),"$(RECIPE)",$(error RECIPE is missing: make $@ RECIPE=recipes/NAME.py DATA=$(DATA))) $(KEYS)
endif

ifeq ($(strip $(RECIPE)$(DATA)),)
train-teacher: DATA = runs/demo/data
train-teacher: OUT = runs/demo/teacher
train-teacher: RECIPE = recipes/demo_teacher.py
train-teacher: runs/demo/data/property
endif
train-teacher: .venv/.installed ## the demo's teacher; or one recipe: RECIPE= DATA= OUT= ARGS=
	$(VARGFACE) train $(if $(RECIPE),"$(RECIPE)",$(error RECIPE is missing: make $@ RECIPE=recipes/NAME.py DATA=$(DATA))) $(KEYS)

# the demo's data set, as `vargface demo` makes it
runs/demo/data/property: | .venv/.installed
	$(VARGFACE) demo --data-only

study: .venv/.installed ## many small trainings and what differs, hours, goes on where it was: STUDY= DATA= TEACHER= OUT= ARGS="--other TEACHER"
	$(VARGFACE) study "$(or $(STUDY),$(error STUDY is missing: make study STUDY=recipes/study/NAME.py DATA= TEACHER= OUT=))" $(KEYS)

verify: .venv/.installed ## accuracy and TAR@FAR of MODEL=PREFIX,EPOCH on every pack DATA/*.bin
	$(VARGFACE) verify --model "$(or $(MODEL),$(error MODEL is missing: make verify MODEL=PREFIX,EPOCH DATA=FOLDER))" $(ARGS) \
	    "$(or $(DATA),$(error DATA is missing: make verify MODEL=$(MODEL) DATA=FOLDER))"/*.bin

lfr: .venv/.installed ## the LFR challenge: MODEL=PREFIX,EPOCH IMAGES=FOLDER against the limits and into OUT=feat.bin; its score with LABELS=
	$(VARGFACE) lfr check --model "$(or $(MODEL),$(error MODEL is missing: make lfr MODEL=PREFIX,EPOCH IMAGES=FOLDER))"
	$(VARGFACE) lfr submit --model "$(MODEL)" --images "$(or $(IMAGES),$(error IMAGES is missing: make lfr MODEL=$(MODEL) IMAGES=FOLDER))" \
	    --out "$(or $(OUT),feat.bin)"
	$(if $(LABELS),$(VARGFACE) lfr score "$(or $(OUT),feat.bin)" "$(LABELS)" $(ARGS))

export: .venv/.installed ## MODEL=PREFIX,EPOCH as ONNX: OUT=FILE.onnx; with CALIBRATE=DATA in 8 bits
	$(VARGFACE) export $(if $(CALIBRATE),int8,onnx) --model "$(or $(MODEL),$(error MODEL is missing: make export MODEL=PREFIX,EPOCH OUT=FILE.onnx))" \
	    --out "$(or $(OUT),$(error OUT is missing: make export MODEL=$(MODEL) OUT=FILE.onnx))" $(if $(CALIBRATE),--calibrate "$(CALIBRATE)") $(ARGS)

test: .venv/.installed ## every test; ARGS="-k name" for some
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -q $(ARGS)

lint: .venv/.installed ## style and format, as ruff sees them; nothing that Python 3.8 lacks
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/vermin --quiet --no-tips --violations --target=3.8- --exclude file src symbols eval recipes tests benchmarks setup.py

bench: .venv/.installed ## ratios to the originals: a training step, a teacher, the head's memory, verification, LFR scoring, reading, inference
	.venv/bin/python benchmarks/training_step.py
	.venv/bin/python benchmarks/teacher_cost.py
	.venv/bin/python benchmarks/head_memory.py
	OPENBLAS_NUM_THREADS=1 .venv/bin/python benchmarks/verification.py
	.venv/bin/python benchmarks/lfr_scoring.py
	.venv/bin/python benchmarks/data_reading.py
	.venv/bin/python benchmarks/inference.py --threads 1 --rounds 5

clean: ## remove what was built (.venv too), never runs/ or data
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find src symbols eval recipes tests benchmarks -name __pycache__ -prune -exec rm -rf {} +

# The stamp is written last, so a build that was interrupted is done again, from nothing. It says what was built: who asks
# for another MXNet or Python gets it.
BUILT := $(shell cat .venv/.installed 2>/dev/null)
ifneq ($(strip $(or $(EXTRA),$(word 1,$(BUILT))) $(or $(PYTHON),$(word 2,$(BUILT)))),$(strip $(BUILT)))
.PHONY: .venv/.installed
endif

.venv/.installed: setup.py constraints.txt
	@for python in $(or $(PYTHON),python3.11 python3) none; do \
	    "$$python" -c 'import sys; sys.exit(not (3, 8) <= sys.version_info[:2] <= (3, 11))' 2>/dev/null && break; \
	done; \
	if [ "$$python" = none ]; then \
	    echo "MXNet needs Python 3.8 to 3.11, and '$(or $(PYTHON),python3.11 python3)' is not one:" \
	        "install python3.11, or name one by make PYTHON=/path/to/python" >&2; exit 2; \
	fi; \
	if ! "$$python" -c 'import ensurepip, venv' 2>/dev/null; then \
	    version=$$("$$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
	    echo "$$python cannot make virtual environments: apt-get install python$$version-venv" >&2; exit 2; \
	fi; \
	set -e; \
	extra=$(or $(EXTRA),$$("$$python" -I src/vargface/gpu.py)); \
	case $$extra in cpu) size="250 MB";; cu112) size="2.3 GB";; *) echo "EXTRA=$$extra: give cpu or cu112" >&2; exit 2;; esac; \
	echo "building .venv with $$("$$python" -V) and MXNet's $$extra build"; \
	"$$python" -m venv --clear .venv; \
	.venv/bin/python -m pip install -qq --upgrade -c constraints.txt pip setuptools wheel; \
	echo "installing the pinned packages (about $$size to download; a minute or more)"; \
	.venv/bin/python -m pip install -qq -c constraints.txt --no-build-isolation -e ".[$$extra,dev,export]"; \
	.venv/bin/python -m pip check; \
	echo "$$extra $$python" > $@
