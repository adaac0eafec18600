"""Shorthorn: golden disk images behind the Kubernetes VolumeSnapshot API."""
