"""Reconcilers: observe, plan (pure), one bounded step, status."""
