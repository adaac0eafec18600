"""How bytes arrive and are proven: sources, inspection, staged writing, hashing."""
