"""A tiny container orchestrator for one host: embedded API server, provisioner, snapshotter,
mounts.
"""
