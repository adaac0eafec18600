"""A real Kubernetes for tests, from its own programs: `make e2e`, and never part of `make test`."""
