"""Typed resources, client, informer and work queue over a Kubernetes API."""
