"""asyncio pieces, keyed operations, the one process spawner, the form of our certificates."""
