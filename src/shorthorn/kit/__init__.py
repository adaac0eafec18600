"""asyncio pieces, keyed operations and the one process spawner."""
