"""The root of what the host adapters raise.

Owns the base class only; each error stands beside the code that raises it. Must never hold text for
end users: engines and services translate these into domain errors at their boundary.
"""


class HostError(Exception):
    """The kernel or a tool refused, in a way that callers tell apart from a plain OSError."""
