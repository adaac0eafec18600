"""The programs, put together: `standalone` for one host, `controller` and `node` for a cluster.

This package is the only place that wires concrete classes; `parts` has what the programs share,
`program` how they start, are watched over and stop. Imported by `commands`, one program each: none
loads what only another one needs.
"""
