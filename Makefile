# Bare make prints the targets.
GO      ?= go
BINARY  := build/osteon
SAMPLES := testdata/samples
# The product is one static binary without cgo; only the race detector needs cgo.
export CGO_ENABLED := 0

RACE := ./dicomsvc ./dicomsvc/dul ./dicomsvc/dimse ./erasure ./erasure/journal ./raft/local ./raft/vault

.PHONY: help
help: ## print the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

.PHONY: build
build: ## build build/osteon, one static binary
	$(GO) build -trimpath -o $(BINARY) ./cmd/osteon

.PHONY: run
run: build ## a three-site ring here: store samples, lose a site, read everything, get it back, keep running
	./$(BINARY) dev --sites 3 --nodes 2 --demo $(SAMPLES)

.PHONY: dev
dev: build ## a three-site ring here, empty, in the foreground
	./$(BINARY) dev --sites 3 --nodes 2

.PHONY: deps
deps: ## install what the tests need besides Go (Debian packages, as root)
	bash .ci/deps

.PHONY: check
check: ## gofmt, vet, staticcheck, tidy
	@unformatted=$$(gofmt -l $$(git ls-files '*.go')); if [ -n "$$unformatted" ]; then echo "not gofmt'ed: $$unformatted"; exit 1; fi
	$(GO) mod tidy -diff
	$(GO) vet ./...
	$(GO) tool staticcheck ./...

.PHONY: unit
unit: ## tests of every package but the ones that start rings of processes
	$(GO) test -timeout 15m $$($(GO) list ./... | grep -v '/cmd/osteon$$')

.PHONY: race
race: ## the concurrent packages under the race detector (needs gcc)
	CGO_ENABLED=1 $(GO) test -race -short -p 1 -timeout 15m $(RACE) # one after the other: some wait in real time

.PHONY: e2e
e2e: ## tests of the built program: rings of processes, DCMTK, kills, power cuts
	$(GO) test -timeout 25m -parallel 3 ./cmd/osteon # the fault rows mostly wait

.PHONY: chaos
chaos: deps ## every fault row on rings of processes, at full length, about half an hour; make e2e has the short form
	@.ci/chaos $(CHAOS)

.PHONY: load
load: ## the long form of the load tests: floods, slow sockets, huge objects
	$(GO) test -timeout 10m -count=1 -v -run 'F46|F57' ./dicomsvc ./dicomsvc/dimse ./dicomsvc/dicom
	$(GO) test -timeout 20m -count=1 -v -run 'F46|F47' ./cmd/osteon -load-long

.PHONY: sim
sim: ## whole rings under faults on a virtual clock: SEEDS=n from FIRST on, or SEED=x
	$(GO) test -count=1 -timeout 0 -run 'TestSim$$' -v ./node/nodetest -args -seeds $(or $(SEEDS),20) -first $(or $(FIRST),1) -seed $(or $(SEED),0)

.PHONY: sim-short
sim-short: ## 20 seeds of sim without failing fsyncs, and 2 under the race detector (needs gcc); make sim SEEDS=n for more
	$(GO) test -count=1 -timeout 20m -run 'TestSim$$' ./node/nodetest -args -seeds 20 -without fsync
	CGO_ENABLED=1 $(GO) test -race -count=1 -timeout 20m -run 'TestSim$$' ./node/nodetest -args -seeds 2 -first 101 -without fsync

.PHONY: sim-long
sim-long: ## the scenarios of the simulation at full length: a day's cut, 1,000 rings whose members change
	$(GO) test -count=1 -timeout 0 -run 'TestF' ./node/nodetest -args -long

.PHONY: test-short
test-short: ## the quick part of the unit tests
	$(GO) test -short -timeout 5m $$($(GO) list ./... | grep -v '/cmd/osteon$$')

.PHONY: test
test: deps check unit race sim-short fuzz-short e2e ## everything that CI runs

.PHONY: fuzz-short
fuzz-short: ## fuzz every target of the list in .ci/fuzz for 10 s; fails when one is missing
	@nice .ci/fuzz 10s

.PHONY: fuzz
fuzz: ## the same for TIME each, or all targets of one package: make fuzz PKG=./dicomsvc/dicom TIME=10m
	@nice .ci/fuzz $(or $(TIME),2m) $(PKG)

.PHONY: planted
planted: ## show that each planted bug is caught by a test (BUG=name for one)
	$(GO) run ./cmd/planted $(BUG)

.PHONY: damage
damage: ## damage every kind of file of a node in every way, OFFSETS bit flips each; SEED chooses files and offsets
	$(GO) test -count=1 -timeout 120m -v -run '^TestF15DamagedFiles$$' ./node/nodetest -args -damage.offsets=$(or $(OFFSETS),20) -damage.seed=$(or $(SEED),1) | grep -v '^=== '

.PHONY: crashpoints
crashpoints: ## kill nodes at STATES points a scenario of their disks' changes and want each ring to recover
	$(GO) test -count=1 -timeout 60m -v -run '^TestCrashPoints$$' ./node -args -crash.states=$(or $(STATES),45)

.PHONY: golden
golden: ## refresh golden files; review the difference as behaviour
	$(GO) test ./... -run Golden -update

.PHONY: bench
bench: ## the packages' own benchmarks
	$(GO) test -run '^$$' -bench . -benchtime 1s ./erasure/... ./dicomsvc/dicom ./raft/catalog ./node/link

.PHONY: speed
speed: ## instances a second, CPU and memory of rings that share this machine with their senders, TIME a load (60s)
	$(GO) test -count=1 -v -timeout 30m -run '^TestSpeed$$' ./cmd/osteon -speed $(or $(TIME),60s)

.PHONY: cover
cover: ## statement coverage of the unit tests
	$(GO) test -cover $$($(GO) list ./... | grep -v '/cmd/osteon$$')
