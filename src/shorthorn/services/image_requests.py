"""What is asked of a backing image, and whether an image is what was asked for.

Owns: ImageRequest (made from StorageClass parameters and a `bi://` handle), the judgement whether
an existing image matches it, and whether an absent one could be made on demand. Pure. Must never
print a URL: it may carry credentials. Called by `services.images` and `services.volumes`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from shorthorn.domain.errors import ImageMismatch, InvalidArgument
from shorthorn.domain.handle_traps import CHECKSUM_FORM, WEB_URL_FORM
from shorthorn.domain.models import NO_MAP, BackingImageSpec, ImageFormat, SourceType
from shorthorn.domain.names import OBJECT_NAME_LENGTH_MAX, problem_of_name

if TYPE_CHECKING:
    from collections.abc import Mapping

    from shorthorn.domain.handles import BackingImageHandle
    from shorthorn.domain.models import BackingImage

IMAGE_KEY: Final = "backingImage"
SOURCE_TYPE_KEY: Final = "backingImageDataSourceType"
PARAMETERS_KEY: Final = "backingImageDataSourceParameters"
CHECKSUM_KEY: Final = "backingImageChecksum"
COPIES_KEY: Final = "backingImageMinNumberOfCopies"
NODE_SELECTOR_KEY: Final = "backingImageNodeSelector"
DISK_SELECTOR_KEY: Final = "backingImageDiskSelector"
DATA_ENGINE_KEY: Final = "dataEngine"

VOLUME_NAME: Final = "volume-name"
EXPORT_TYPE: Final = "export-type"
URL: Final = "url"

#: BackingImage's own rule asks for two characters.
_NAME_LENGTHS = range(2, OBJECT_NAME_LENGTH_MAX + 1)


@dataclass(frozen=True, slots=True)
class ImageRequest:
    """One backing image as a caller describes it. Empty fields: the caller does not say."""

    name: str
    source_type: str = ""
    checksum: str = ""
    parameters: Mapping[str, str] = field(default_factory=lambda: NO_MAP)
    min_number_of_copies: int = 1
    node_selector: tuple[str, ...] = ()
    disk_selector: tuple[str, ...] = ()

    def to_spec(self) -> BackingImageSpec:
        """Return the spec of an image made for this request; source parameters verbatim."""
        return BackingImageSpec(
            source_type=self.source_type,
            source_parameters=dict(self.parameters),
            checksum=self.checksum,
            min_number_of_copies=self.min_number_of_copies,
            node_selector=self.node_selector,
            disk_selector=self.disk_selector,
        )


def merge_handle(parameters: Mapping[str, str], handle: BackingImageHandle) -> dict[str, str]:
    """Return StorageClass parameters with what the handle says in place of what they say.

    The handle wins, also by being empty: without a checksum in it, none is checked.
    """
    return {
        **parameters,
        IMAGE_KEY: handle.backing_image,
        SOURCE_TYPE_KEY: handle.source_type,
        CHECKSUM_KEY: handle.checksum,
        PARAMETERS_KEY: json.dumps(dict(handle.parameters), sort_keys=True),
    }


def request_of_handle(handle: BackingImageHandle) -> ImageRequest:
    """Return what a handle alone asks for."""
    return ImageRequest(
        handle.backing_image, handle.source_type, handle.checksum.strip(), dict(handle.parameters)
    )


def request_of_parameters(parameters: Mapping[str, str]) -> ImageRequest | None:
    """Return the image that volume parameters ask for, or None where they name none.

    Raises: InvalidArgument: a value that cannot be read.
    """
    name = parameters.get(IMAGE_KEY, "")
    check_data_engine(parameters)
    if not name:
        return None
    return ImageRequest(
        name=name,
        source_type=parameters.get(SOURCE_TYPE_KEY, ""),
        checksum=parameters.get(CHECKSUM_KEY, "").strip(),
        parameters=_source_parameters(parameters.get(PARAMETERS_KEY, "")),
        min_number_of_copies=_copies(parameters.get(COPIES_KEY, "")),
        node_selector=selector(parameters.get(NODE_SELECTOR_KEY, "")),
        disk_selector=selector(parameters.get(DISK_SELECTOR_KEY, "")),
    )


def export_request(
    volume_id: str,
    export_type: str,
    *,
    node_selector: tuple[str, ...],
    disk_selector: tuple[str, ...],
) -> ImageRequest:
    """Return the request that CreateSnapshot of type bi makes."""
    return ImageRequest(
        name="",
        source_type=SourceType.EXPORT_FROM_VOLUME,
        parameters={VOLUME_NAME: volume_id, EXPORT_TYPE: export_type},
        node_selector=node_selector,
        disk_selector=disk_selector,
    )


def check_data_engine(parameters: Mapping[str, str]) -> None:
    """Raise InvalidArgument where another data engine than v1 is asked for."""
    engine = parameters.get(DATA_ENGINE_KEY, "")
    if engine not in {"", "v1"}:
        raise InvalidArgument(DATA_ENGINE_KEY, f"{engine!r} is not offered; use v1 or leave it out")


def selector(text: str) -> tuple[str, ...]:
    """Return the tags of a comma-separated list."""
    return tuple(tag for part in text.split(",") if (tag := part.strip()))


def check_name(name: str) -> None:
    """Raise InvalidArgument where no backing image can have this name."""
    if len(name) not in _NAME_LENGTHS:
        problem = f"a name has from 2 to 253 characters, this one has {len(name)}"
        raise InvalidArgument(IMAGE_KEY, problem)
    problem = problem_of_name(name)
    if problem:
        raise InvalidArgument(IMAGE_KEY, f"{name!r} names no image: {problem}")


def web_url(text: str) -> str:
    """Return the URL of a download as objects hold it: its scheme in lower case.

    Raises: InvalidArgument: it is none. The URL is not in the message.
    """
    if not WEB_URL_FORM.fullmatch(text):
        raise InvalidArgument(
            URL, "must be an http:// or https:// URL without spaces (a space in a path is %20)"
        )
    scheme, _, rest = text.partition(":")
    return f"{scheme.lower()}:{rest}"


def check_matches(image: BackingImage, request: ImageRequest) -> None:
    """Raise ImageMismatch where `image` is not what `request` says of it.

    The source type counts where it is given, the source parameters as a whole where any are given,
    the checksum against both the one expected and the one computed.
    """
    name, spec = image.meta.name, image.spec
    if request.source_type and request.source_type != spec.source_type:
        raise ImageMismatch(
            SOURCE_TYPE_KEY,
            f"existing backing image {name} has the data source {spec.source_type}, "
            f"which is different from {request.source_type!r} in the request",
        )
    if request.parameters and dict(request.parameters) != stored_parameters(spec):
        raise ImageMismatch(
            _differing_key(request.parameters, stored_parameters(spec)),
            f"existing backing image {name} has a data source that is different from the "
            "parameters in the request; give exactly its spec.sourceParameters, or none",
        )
    for known in (image.status.checksum, spec.checksum):
        if request.checksum and known and request.checksum != known:
            raise ImageMismatch(
                CHECKSUM_KEY,
                f"existing backing image {name} has the checksum {known}, which doesn't match "
                f"{request.checksum} in the request",
            )


def stored_parameters(spec: BackingImageSpec) -> dict[str, str]:
    """Return an image's source parameters with the default that an export has."""
    parameters = dict(spec.source_parameters)
    if spec.source_type == SourceType.EXPORT_FROM_VOLUME:
        parameters[EXPORT_TYPE] = parameters.get(EXPORT_TYPE) or ImageFormat.RAW
    return parameters


def is_same_request(image: BackingImage, request: ImageRequest) -> bool:
    """Whether making an image for `request` would try again exactly what `image` tried.

    A request without parameters describes no attempt of its own.
    """
    if not request.parameters:
        return True
    asked = (request.source_type, dict(request.parameters), request.checksum)
    return asked == (image.spec.source_type, stored_parameters(image.spec), image.spec.checksum)


def check_creatable(request: ImageRequest) -> None:
    """Raise InvalidArgument where an absent image cannot be made from what `request` says.

    Whether an export's volume exists is not looked at.
    """
    check_name(request.name)
    if request.checksum and not CHECKSUM_FORM.fullmatch(request.checksum):
        raise InvalidArgument(
            CHECKSUM_KEY, "invalid checksum: a SHA-512 has 128 lower-case hexadecimal digits"
        )
    if request.source_type == SourceType.DOWNLOAD:
        _check_download(request)
    elif request.source_type == SourceType.EXPORT_FROM_VOLUME:
        _check_export(request)
    else:
        raise InvalidArgument(
            SOURCE_TYPE_KEY,
            f"there is no backing image {request.name}, and type {request.source_type!r} is not "
            "supported for making one on demand; use download or export-from-volume",
        )


def check_export_type(export_type: str) -> str:
    """Return the export type; raises InvalidArgument for what is neither raw nor qcow2."""
    if export_type not in list(ImageFormat):
        raise InvalidArgument(
            EXPORT_TYPE, f"unsupported export type {export_type!r}; use raw or qcow2"
        )
    return export_type


def _check_download(request: ImageRequest) -> None:
    url = request.parameters.get(URL, "")
    if not url:
        raise InvalidArgument(
            URL,
            f"there is no backing image {request.name}, and the parameter url for making it on "
            "demand is missing; correct the name, or add url",
        )
    web_url(url)


def _check_export(request: ImageRequest) -> None:
    for key in (VOLUME_NAME, EXPORT_TYPE):
        if not request.parameters.get(key):
            raise InvalidArgument(
                key,
                f"there is no backing image {request.name}, and the parameter {key} for making it "
                f"on demand is missing; correct the name, or add {VOLUME_NAME} and {EXPORT_TYPE}",
            )
    check_export_type(request.parameters[EXPORT_TYPE])


def _differing_key(asked: Mapping[str, str], stored: Mapping[str, str]) -> str:
    return min(key for key in {*asked, *stored} if asked.get(key) != stored.get(key))


def _source_parameters(text: str) -> dict[str, str]:
    if not text:
        return {}
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise InvalidArgument(PARAMETERS_KEY, 'is not JSON; write {"url": "…"}') from None
    if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
        raise InvalidArgument(PARAMETERS_KEY, "must be a JSON object whose values are strings")
    return value


def _copies(text: str) -> int:
    try:
        copies = int(text or "1")
    except ValueError:
        copies = 0
    if copies < 1:
        raise InvalidArgument(COPIES_KEY, f"{text!r} is no whole number of at least 1")
    return copies
