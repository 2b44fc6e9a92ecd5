# imagefs: "make" prints the targets. Only Go and git must be there before;
# the demo and the tests install Debian packages through test/install.

SHELL       := bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help

GO          ?= go
VERSION     ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS     := -s -w -X main.version=$(VERSION)
FUZZTIME    ?= 30s
FUZZPKGS    ?= ./...
BENCH       ?= .
BENCHFLAGS  ?=
SOAK        ?= 10
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
GOFUMPT     := mvdan.cc/gofumpt@v0.12.0

# mke2fs and others live where only root looks.
export PATH := $(PATH):/usr/sbin:/sbin

# A test run covers a real server, real mounts and a booting guest.
TESTFLAGS   ?= -race -shuffle=on -timeout=30m

.PHONY: help build s3server demo test lint bench microbench fuzz soak cover check clean

help: ## print the targets
	@awk -F ':.*## ' '/^[a-z0-9]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## build bin/imagefs
	@CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/imagefs ./cmd/imagefs

s3server: ## build bin/s3server, the S3 server of the tests
	@CGO_ENABLED=0 $(GO) -C test/s3server build -trimpath -o ../../bin/s3server .

demo: ## install what it needs, mount a small store, copy a disk out, compare it
	@test/install demo
	$(MAKE) --no-print-directory build
	test/demo

test: ## install what the tests need and run all of them, end to end included
	@test/install
	$(MAKE) --no-print-directory build s3server
	export IMAGEFS_REQUIRE_TOOLS=1 IMAGEFS_BIN="$$PWD/bin/imagefs" IMAGEFS_S3SERVER="$$PWD/bin/s3server"
	CGO_ENABLED=1 $(GO) test $(TESTFLAGS) ./...
	$(GO) -C test/bench test -shuffle=on -timeout=10m ./...
	echo "the formats once more without the race detector, on whole samples:"
	$(GO) test -shuffle=on -timeout=10m ./codec/...
	echo "once more on one processor, where some deadlocks show:"
	GOMAXPROCS=1 $(GO) test -shuffle=on -timeout=10m ./cache/... ./fs/...

lint: ## formatting, vet, staticcheck, tidy modules, the import rules
	@bad=$$($(GO) run $(GOFUMPT) -l .)
	[ -z "$$bad" ] || { echo "not formatted (gofumpt):" >&2; echo "$$bad" >&2; exit 1; }
	for s in .ci/run $$(grep -rlE '^#!.*bash' test); do bash -n "$$s"; done
	for dir in . test/s3server test/bench; do
		$(GO) -C $$dir vet ./...
		$(GO) -C $$dir run $(STATICCHECK) ./...
		$(GO) -C $$dir mod tidy -diff
	done
	$(GO) test -count=1 -run '^Test(ImportRules|TopLevel)$$' ./test

bench: build s3server ## compare with what users do today, side by side in one run
	@test/install bench
	$(GO) -C test/bench build -trimpath -o ../../bin/bench .
	bin/bench $(BENCHFLAGS)

microbench: ## Go benchmarks matching BENCH (all)
	@$(GO) test -run '^$$' -bench '$(BENCH)' -benchmem -timeout=60m ./...

fuzz: ## every fuzz target for FUZZTIME (30s, or a count such as 10000x)
	@list=$$($(GO) test -list '^Fuzz' $(FUZZPKGS))
	awk '/^Fuzz/ { f[n++] = $$1 } /^ok/ { for (i = 0; i < n; i++) print $$2, f[i]; n = 0 }' <<<"$$list" |
	while read -r pkg f; do
		echo "$$pkg $$f"
		$(GO) test -run '^$$' -fuzz "^$$f$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 20x "$$pkg"
	done

soak: build s3server ## all tests SOAK (10) times, in another order each time, with more kills and damage
	@test/install
	export IMAGEFS_S3SERVER="$$PWD/bin/s3server" IMAGEFS_KILLS=200 IMAGEFS_HOSTILE_FLIPS=2000 IMAGEFS_IMAGES=100000 IMAGEFS_READ_MIB=32768
	for i in $$(seq $(SOAK)); do
		echo "round $$i of $(SOAK)"
		$(GO) test -race -count=1 -shuffle=on -timeout=180m ./...
	done

cover: build s3server ## statement coverage of all tests, in bin/cover.html
	@export IMAGEFS_S3SERVER="$$PWD/bin/s3server"
	$(GO) test -coverpkg=./... -coverprofile=bin/cover.out ./...
	$(GO) tool cover -html=bin/cover.out -o bin/cover.html
	$(GO) tool cover -func=bin/cover.out | tail -n 1

check: ## exactly what the build server runs
	@.ci/run

clean: ## remove what make made
	@rm -rf bin demo
