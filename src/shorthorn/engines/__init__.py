"""Engines that keep volumes, snapshots and images; the default is local reflinks."""
