"""csi-sanity against the running service: `make conformance`, docs/conformance.md."""
