"""Measurements of Shorthorn on this machine, against the tools that a user would take instead.

Each module measures one thing and returns figures; `__main__` runs them in order and `report`
judges and prints. Nothing here is imported by the package or by its tests.
"""
