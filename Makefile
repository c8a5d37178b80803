# Every target sets up .venv if necessary.
.PHONY: demo test check check-deploy proto bench bench-memory bench-refresh chaos bench-training gpu results picture report-pictures clean
.DEFAULT_GOAL := demo

PYTHON ?= python3
DATA   ?= ../shared/data
BIN    := .venv/bin
# setuptools warns about every editable install.
PIP    := PYTHONWARNINGS='ignore:Editable installation' $(BIN)/python -m pip install --quiet \
  --disable-pip-version-check --no-warn-script-location -c constraints.txt

demo: .venv/train.done
	@$(BIN)/python tests/system/demo.py

test: .venv/dev.done
	tests/system/fetch_peers.sh
	@# As in `lenserve-train`: spinning threads make small steps many times slower on busy cores.
	@# Two processes, also on many cores: some tests hold a server to limits in time. Fixtures of a file are made once.
	@# Files come in the order of their names: those with the fewest tests, which are the longest, would come last.
	OMP_WAIT_POLICY=passive LENSERVE_TEST_DATA=$(DATA) $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

check: .venv/dev.done
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(MAKE) --no-print-directory proto
	git diff --exit-code --stat -- serving/pb
	$(BIN)/python tests/checks/words.py
	$(BIN)/python tests/checks/distribution.py

# Brings every alert about on real servers, and checks images, manifests and proxies with what this machine has of
# Debian's packages prometheus and systemd: 6 minutes.
check-deploy: .venv/dev.done
	$(PIP) --group deploy
	PATH=$(PWD)/$(BIN):$$PATH LENSERVE_EVERY_ALERT=1 $(BIN)/python -m pytest tests/deploy $(PYTEST_ARGS)

proto: .venv/dev.done
	$(BIN)/python -m grpc_tools.protoc -Iproto --python_out=serving/pb --pyi_out=serving/pb \
	  lenserve/v1/classifier.proto inference/grpc_service.proto inference/model_config.proto
	@# protoc writes imports relative to the root proto/; ours is serving.pb.
	sed -i 's/^from inference import/from serving.pb.inference import/' serving/pb/inference/*_pb2.py serving/pb/inference/*_pb2.pyi

bench: .venv/dev.done
	PYTHON=$(PYTHON) tests/benchmarks/fetch.sh
	$(BIN)/python -m tests.benchmarks $(ROWS) $(if $(AGAINST),--against $(AGAINST)) $(BENCH_ARGS)

# Attacks servers for about 19 minutes, gives them bad days for 5, overloads them for 25, publishes under load for 10,
# feeds a million inputs to everything that reads requests or files in 10 more, and lets the clients and proxies of other
# makers call that this machine has. TRANSPORT=grpc attacks the reference transport.
TRANSPORT ?= h2
chaos: .venv/dev.done
	$(BIN)/python -m tests.chaos --transport $(TRANSPORT) --write docs/reliability.md $(CHAOS_ARGS)
	$(BIN)/python -m tests.chaos.bad_days --write docs/reliability.md
	$(BIN)/python -m tests.chaos.overload --write docs/reliability.md $(OVERLOAD_ARGS)
	$(BIN)/python -m tests.chaos.refresh --write docs/reliability.md $(REFRESH_ARGS)
	$(BIN)/python -m tests.fuzz $(FUZZ_ARGS)
	tests/system/fetch_peers.sh
	LENSERVE_FOREIGN_CALLS=4000 $(BIN)/python -m pytest tests/system/test_foreign_clients.py

# Rewrites the table of docs/results.md, between its two marks, from the records of `lenserve-train run --record`.
results: .venv/train.done
	$(BIN)/lenserve-train recipes --markdown > .venv/results.md
	sed -i -e '/^<!-- results -->$$/,/^<!-- end of results -->$$/{//!d}' -e '/^<!-- results -->$$/r .venv/results.md' docs/results.md

# Draws the README's picture from a real run.
picture: .venv/train.done
	$(BIN)/python -m tests.system.picture docs/demo.svg

# Takes the README's screenshots of a report; needs Chromium.
report-pictures: .venv/dev.done
	$(BIN)/python -m tests.system.report_pictures $(REPORT) docs

bench-memory: .venv/dev.done
	$(BIN)/python -m tests.benchmarks.model_memory $(BENCH_ARGS)

# How often the gate is right, on simulated pairs of versions (seconds), and what new versions cost under load (10 minutes).
bench-refresh: .venv/dev.done
	$(BIN)/python -m tests.benchmarks.gate --write docs/refresh.md $(BENCH_ARGS)
	$(BIN)/python -m tests.chaos.refresh --write docs/reliability.md $(REFRESH_ARGS)

bench-training: .venv/dev.done
	$(BIN)/python -m tests.benchmarks.training --data-root $(DATA) $(BENCH_ARGS)

gpu: .venv/gpu.done
	tests/gpu/run.sh $(if $(filter-out file,$(origin DATA)),--data-root $(DATA)) $(GPU_ARGS)

# constraints.txt pins torch. pip installs the CPU build if it finds one (a --find-links directory, PyTorch's CPU
# index), otherwise the default build. --group needs pip 25.1, newer than the pip of Python 3.11's venv.
.venv/train.done: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "Installing into .venv: about 1.5 minutes the first time"
	@$(PIP) --upgrade pip
	@$(PIP) -e '.[serve,train]'
	@touch $@

.venv/dev.done: .venv/train.done
	$(PIP) --group dev
	touch $@

.venv/gpu.done: .venv/dev.done
	$(PIP) -e '.[train,cuda]'
	touch $@

clean:
	rm -rf .venv .demo .bench .peers
