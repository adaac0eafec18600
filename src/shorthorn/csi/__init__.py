"""The gRPC edge: CSI messages in, service calls out; one table from domain errors to codes."""
