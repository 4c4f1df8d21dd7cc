# Everything a person types. `make run` and `make test` set up .venv by themselves.
PYTHON ?= $(or $(shell command -v python3.11),python3)
VENV := .venv
BIN := $(VENV)/bin

.PHONY: setup run test check proof kill-test kill-test-ternary ranks-test long-test tasks-test gpu-test docs bench bench-peers ladder study study-drift study-quality study-plugin study-ternary study-polynomial study-ablation families ui reader-gptq reader-llama

setup: $(VENV)/.installed

$(VENV)/.installed: requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

run: setup
	$(BIN)/normtweak quantize conf/quickstart.yaml

# Files of tests side by side: much of the time is spent starting processes, on one core.
test: setup
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/python -m tests.house
	$(BIN)/codespell --skip "*/reference/models/*" -L caf flows tasks normtweak_core tests conf docs README.md CONTRIBUTING.md

# Every pipeline in small; its results beside those of the record, which a redesign keeps.
proof: setup
	$(BIN)/python -m tests.proof proof.json --against tests/proof/record.json

kill-test: setup
	OMP_WAIT_POLICY=PASSIVE NORMTWEAK_ALL_KILLS=1 $(BIN)/python -m pytest tests/flows/test_kill.py

# Two numbers of processes, a whole run by two, and a fine-tuning that is killed; the suite has one of each kind.
ranks-test: setup
	OMP_WAIT_POLICY=PASSIVE NORMTWEAK_ALL_RANKS=1 $(BIN)/python -m pytest -m "long or not long" tests/flows/test_ranks_runs.py tests/flows/test_shared_training.py tests/flows/test_w4a8.py

# Tests of a kind of which the suite has one; beside it, they are all. Types of every call are checked.
long-test: setup
	NORMTWEAK_ALL_CALLS=1 OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder -m long --timeout 600

kill-test-ternary: setup
	OMP_WAIT_POLICY=PASSIVE NORMTWEAK_TERNARY_KILLS=10 $(BIN)/python -m pytest tests/flows/test_ternary.py

# Every item of LAMBADA and PIQA, by lm-eval alone and by us.
tasks-test: setup
	NORMTWEAK_ALL_ITEMS=1 $(BIN)/python -m pytest -m "long or not long" --timeout 3600 -k by_itself tests/core/evaluate/test_harness.py

# On a machine with a CUDA device; elsewhere these tests are skipped.
gpu-test: setup
	$(BIN)/python -m pytest -m gpu -rs tests/core/test_gpu.py tests/flows/test_gpu_runs.py

# The pages that are made from the code; a test keeps them equal.
docs: setup
	$(BIN)/python -m flows.recipes.reference > docs/recipes.md.new
	mv docs/recipes.md.new docs/recipes.md
	$(BIN)/python -m flows.drawing < docs/architecture.md > docs/architecture.md.new
	mv docs/architecture.md.new docs/architecture.md

bench: setup
	$(BIN)/python -m tests.benchmarks.blocks
	$(BIN)/python -m tests.benchmarks.generation
	$(BIN)/python -m tests.benchmarks.overhead
	$(BIN)/python -m tests.benchmarks.step
	$(BIN)/python -m tests.benchmarks.evaluation

# Other tools, each in an environment of its own below .peers; with nothing else on the machine.
bench-peers: setup
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m tests.benchmarks.peers

# The whole pipeline on random models of growing width and depth; goes on where it was ended.
ladder: setup
	$(BIN)/python -m tests.benchmarks.ladder

study: setup
	$(BIN)/python -m tests.benchmarks.stages

study-drift: setup
	$(BIN)/python -m tests.benchmarks.drift

# Several hours; goes on where it was stopped. STORIES=FOLDER of stories260K, where it is at hand.
study-quality: setup
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m tests.benchmarks.quality $(if $(STORIES),--stories $(STORIES))

# Codes of other tools (environments as bench-peers), tweaked and tuned; goes on where it was stopped.
study-plugin: setup
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m tests.benchmarks.plugin

study-ternary: setup
	$(BIN)/python -m tests.benchmarks.ternary

study-polynomial: setup
	$(BIN)/python -m tests.benchmarks.polynomial

study-ablation: setup
	$(BIN)/python -m tests.benchmarks.ablation

# Tiny random models of every family the whole way, in each format, opened by its reader; goes on where
# it was ended. Writes the matrix of docs/formats.md; needs `make reader-gptq`. A quarter of an hour.
families: setup
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m tests.families

ui: setup
	$(BIN)/normtweak ui

# A second environment that reads GPTQ files: its packages do not fit beside ours.
READER := .venv-reader-gptq
READER_LOCK := requirements-reader-gptq.lock

reader-gptq: $(READER)/.complete

$(READER)/.complete: $(READER_LOCK)
	$(PYTHON) -m venv --clear $(READER)
	$(READER)/bin/pip install --quiet --disable-pip-version-check -c $(READER_LOCK) \
	    torch transformers accelerate safetensors datasets optimum pillow pyarrow requests ninja \
	    mlflow-skinny
	$(READER)/bin/pip install --quiet --disable-pip-version-check --no-deps -c $(READER_LOCK) \
	    gptqmodel defuser device-smi logbar pypcre tokenicer threadpoolctl
	@touch $@

# A third one with llama.cpp itself, compiled for any processor with AVX2: some minutes on two cores.
LLAMA := .venv-reader-llama
LLAMA_LOCK := requirements-reader-llama.lock
LLAMA_FLAGS := -DGGML_NATIVE=OFF -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON \
    -DLLAVA_BUILD=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_EXAMPLES=OFF

reader-llama: $(LLAMA)/.complete

$(LLAMA)/.complete: $(LLAMA_LOCK)
	$(PYTHON) -m venv --clear $(LLAMA)
	CMAKE_ARGS="$(LLAMA_FLAGS)" CMAKE_BUILD_PARALLEL_LEVEL=2 \
	    $(LLAMA)/bin/pip install --quiet --disable-pip-version-check -r $(LLAMA_LOCK)
	@touch $@
