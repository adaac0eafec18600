"""The one way in which `images` says that bytes are not an image it accepts.

Owns the exception and nothing else. Raised by the inspection, translated by `images.fetcher` into
the domain's ImageRejected, which names the image.
"""

from __future__ import annotations


class NotAcceptable(Exception):
    """These bytes are no image we take; `problem` is a sentence for the user, without a full
    stop.
    """

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem
