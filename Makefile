# Every target calls a script of deploy/ or the go command; without make, call
# those. The first target prints this help.

.PHONY: help
help: ## Print this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: build
build: ## Build bin/waymark
	deploy/build

.PHONY: demo
demo: ## Run real workflows on real servers, and show what Waymark sees
	deploy/demo

.PHONY: test
test: ## Run all tests with the race detector, on real servers
	deploy/test

.PHONY: static
static: ## Check format, vet, staticcheck, known vulnerabilities
	deploy/static

.PHONY: check
check: static test ## Do all that a change must pass: static and test

.PHONY: fuzz
fuzz: ## Run every fuzz target with FUZZTIME inputs (make fuzz FUZZTIME=500000x)
	FUZZTIME=$(or $(FUZZTIME),500000x) deploy/test --fuzz

.PHONY: faults
faults: ## Kill, freeze and cut everything, and compare; docs/faults.md
	deploy/faults

.PHONY: bench
bench: ## Measure everything beside the goals, and write docs/performance.md
	deploy/bench

.PHONY: clean
clean: ## Remove what was built
	rm -rf bin
