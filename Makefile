# The one door: thin targets over scripts/ and .venv/bin. Each makes the checkout ready first
# (scripts/setup), which takes no time when nothing is missing.
.DEFAULT_GOAL := help
.PHONY: help run up down test conformance e2e browser screenshots check bench fmt lock generate manifests container clean
bin := .venv/bin
export DATA_DIR ?= .data

help: ## this list
	@echo "Shorthorn: golden disk images behind the Kubernetes VolumeSnapshot API."
	@echo
	@echo "  sudo make run     first: sets everything up, then carries a disk through every path"
	@echo "  sudo make up      then: leaves the service running for your own manifests"
	@echo
	@sed -n 's/^\([a-z0-9]*\):.*## \(.*\)/  make \1	\2/p' $(MAKEFILE_LIST) | expand -t 19

run: ## the main job on real disks: export, restore, download, refusals; needs root
	@SHORTHORN_TARGET=run scripts/setup run
	@scripts/run

up: ## start the service on ./.data (DATA_DIR=… elsewhere) and print what to try; needs root
	@SHORTHORN_TARGET=up scripts/setup run
	@$(bin)/shorthorn up --data-dir $(DATA_DIR) --background

down: ## stop the service on ./.data; volumes and images stay
	@SHORTHORN_TARGET=down scripts/setup run
	@$(bin)/shorthorn down --data-dir $(DATA_DIR)

test: ## check, then all tests on real mounts and sockets; needs root (PYTEST="-k name" for some)
	@SHORTHORN_TARGET=test scripts/setup test
	@scripts/check
	@$(bin)/pytest -n 3 --dist loadfile $(PYTEST)

conformance: ## csi-sanity on XFS and btrfs, mount and block; needs root and Go
	@SHORTHORN_TARGET=conformance scripts/setup test
	@scripts/conformance $(CONFORMANCE)

e2e: ## tests on a real Kubernetes, built from its sources once; needs root and Go (PYTEST="-k name")
	@SHORTHORN_TARGET=e2e scripts/setup e2e
	@scripts/e2e $(PYTEST)

browser: ## the web page in a real Chromium, every flow; needs root (PYTEST="-k name" for some)
	@SHORTHORN_TARGET=browser scripts/setup browser
	@scripts/browser $(PYTEST)

screenshots: ## take the pictures of the web page in docs/images anew; needs root
	@SHORTHORN_TARGET=screenshots scripts/setup browser
	@scripts/screenshots

check: ## format, lint, types, layers, house rules; under a minute, no root
	@scripts/setup check
	@scripts/check

bench: ## export and restore against qemu-img convert and cp on the same data; needs root
	@SHORTHORN_TARGET=bench scripts/setup run
	@bench/run $(BENCH)

fmt: ## rewrite the sources in the house's format
	@scripts/setup check
	@$(bin)/ruff format
	@$(bin)/ruff check --fix

lock: ## pin the packages that pyproject.toml asks for (UPGRADE=1: the newest of all)
	@scripts/setup check
	@scripts/lock
	@scripts/setup check

generate: ## make the CSI stubs from proto/csi.proto again
	@scripts/setup check
	@$(bin)/python hatch_build.py

manifests: ## render deploy/manifests from the Helm chart; needs helm
	@scripts/manifests

container: ## make the container image's root file system without a container engine, and try it; needs root
	@scripts/container-rootfs

clean: ## remove what set-up, tests and tools made; never ./.data
	@rm -rf .venv .cache .hypothesis .pytest_cache build dist src/shorthorn/csi/proto
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
