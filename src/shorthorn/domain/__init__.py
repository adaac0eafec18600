"""Names, models, errors, states, planning and ports. No I/O, no asyncio, no third party."""
