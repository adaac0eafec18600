"""The fields of the form for new images, and the BackingImage that becomes of them.

Owns: which fields there are, what each may hold, and how a refusal is said. Must never: judge what
only the API server knows. Pure. Called by `pages.create`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from shorthorn.domain.errors import InvalidArgument
from shorthorn.domain.handle_traps import CHECKSUM_FORM
from shorthorn.domain.image_bytes import UPLOAD_LENGTH
from shorthorn.domain.models import SourceType
from shorthorn.kube import user_api
from shorthorn.kube.user_api import Refused
from shorthorn.services.image_requests import check_name, selector, web_url

if TYPE_CHECKING:
    from collections.abc import Mapping

SOURCES: Final = {
    "download": SourceType.DOWNLOAD,
    "upload": SourceType.UPLOAD,
    "export": SourceType.EXPORT_FROM_VOLUME,
    "clone": SourceType.CLONE,
}
FIELDS: Final = (
    "name",
    "url",
    "checksum",
    "volume",
    "export_type",
    "image",
    "copies",
    "node_tags",
    "disk_tags",
    "upload_length",
)
_COPIES_DIGITS: Final = 4
#: More than any file system holds in one file, and less than what an object's reader refuses.
_LENGTH_DIGITS: Final = 18
#: How an API server begins what one of the object's own rules says.
_RULE_PREFIX: Final = re.compile(r'Invalid value: "[^"]*": ')


def backing_image(source: str, values: Mapping[str, str], namespace: str) -> dict[str, Any]:
    """Return the object that a form asks for. Raises: InvalidArgument: a field makes no sense.

    Args: source: a key of SOURCES. values: of all FIELDS, without blanks around them.
    """
    try:
        check_name(values["name"])
    except InvalidArgument as exc:
        raise InvalidArgument("name", exc.problem) from None
    if values["checksum"] and not CHECKSUM_FORM.fullmatch(values["checksum"].lower()):
        raise InvalidArgument("checksum", "a SHA-512 is 128 hexadecimal digits")
    copies = _number(values["copies"] or "1", _COPIES_DIGITS)
    if not copies:
        raise InvalidArgument("copies", "write a whole number from 1 to 9999, in digits 0 to 9")
    spec: dict[str, Any] = {
        "sourceType": SOURCES[source].value,
        "sourceParameters": _parameters(source, values),
        "checksum": values["checksum"].lower(),
        "minNumberOfCopies": copies,
        "nodeSelector": list(selector(values["node_tags"])),
        "diskSelector": list(selector(values["disk_tags"])),
    }
    meta: dict[str, Any] = {"name": values["name"], "namespace": namespace}
    if source == "upload":
        meta["annotations"] = {UPLOAD_LENGTH: str(_length(values["upload_length"]))}
    return {
        "apiVersion": user_api.IMAGES.api_version,
        "kind": user_api.IMAGES.kind,
        "metadata": meta,
        "spec": {key: value for key, value in spec.items() if value not in ("", [], {})},
    }


def said_of(error: Exception, name: str) -> str:
    """Return how a refusal of the image `name` is told to who filled the form in."""
    if isinstance(error, Refused) and error.reason == "AlreadyExists":
        return f"There is an image named {name} already. Choose another name."
    if isinstance(error, Refused) and error.causes:
        told = [_RULE_PREFIX.sub("", message) for _, message in error.causes if message]
        return "; ".join(told) or error.message
    return str(error)


def _parameters(source: str, values: Mapping[str, str]) -> dict[str, str]:
    wanted = {
        "download": {"url": "url"},
        "upload": {},
        "export": {"volume": "volume-name", "export_type": "export-type"},
        "clone": {"image": "backing-image"},
    }[source]
    for field in wanted:
        if not values[field]:
            raise InvalidArgument(field.replace("_", " "), "must not be empty")
    parameters = {key: values[field] for field, key in wanted.items()}
    if source == "download":
        parameters["url"] = web_url(parameters["url"])
    return parameters


def _length(text: str) -> int:
    length = _number(text, _LENGTH_DIGITS)
    if length is None:
        problem = f"its length must be a number of bytes, of at most {_LENGTH_DIGITS} digits"
        raise InvalidArgument("file", problem)
    if not length:
        raise InvalidArgument("file", "choose a file that is not empty")
    return length


def _number(text: str, digits: int) -> int | None:
    """Return a whole number; None: `text` is none, or has more than `digits`."""
    if not (text.isascii() and text.isdecimal() and len(text) <= digits):
        return None
    return int(text)
