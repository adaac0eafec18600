"""The subset of the Kubernetes API that Shorthorn needs, over SQLite, for plain kubectl."""
