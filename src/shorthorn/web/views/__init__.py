"""Objects → plain rows for templates. Pure: no I/O, no requests."""
