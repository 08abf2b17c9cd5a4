# Short names for the commands of CONTRIBUTING.md. Each can be typed without make as well.

help: ## print this help
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

test: ## every test; on Debian as root it installs what is missing
	./test.sh

test-race: ## every test under the race detector, as test-all does
	./test.sh --race

test-all: ## everything a change has to pass: .ci/run, as root on Debian
	.ci/run

test-full: ## the fault tests at full size, as root: up to 3 hours
	MAILDISPATCH_TEST_FULL=1 go test -tags root -count=1 -timeout 3h -v ./server/e2e

lint: ## format, vet, staticcheck, the schema
	.ci/lint

model: ## check the model of ownership exhaustively; needs spin
	server/e2e/model/check.sh

proto: ## generate the Go of the schema
	go generate ./proto

demo: ## the whole main job on this machine, self-contained
	go run ./server/cmd/maildispatchd demo

SCENARIO ?= batch -conns 32
load: ## a benchmark: make load SCENARIO="batch -conns 100"
	go run ./server/e2e/load $(SCENARIO)

FOR ?= 30m
soak: ## a long run with steady faults: make soak FOR=2h
	go run ./server/e2e/soak -for $(FOR)

.PHONY: help test test-race test-all test-full lint model proto demo load soak
