"""The gRPC edge: CSI messages in, service calls out; the one table from domain errors to gRPC codes."""
