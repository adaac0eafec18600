"""What `shorthorn up` can be told."""

from __future__ import annotations

from pathlib import Path

import pytest

from shorthorn.settings import Settings, parse_listen, parse_size

GIB = 1 << 30


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("20G", 20 * GIB),
        ("20g", 20 * GIB),
        ("20Gi", 20 * GIB),
        ("20GiB", 20 * GIB),
        ("20 GB", 20 * GIB),
        (" 512M ", 512 << 20),
        ("4096", 4096),
        ("1T", 1 << 40),
        ("3k", 3072),
    ],
)
def test_sizes_are_powers_of_1024(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize("text", ["", "0", "0G", "-1G", "1.5G", "G", "20X", "20GG", "1e9", "ten"])
def test_what_is_no_size_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="as in 20G"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("127.0.0.1:6443", ("127.0.0.1", 6443)),
        ("127.0.0.1:0", ("127.0.0.1", 0)),
        ("[::1]:6443", ("::1", 6443)),
        ("localhost:65535", ("localhost", 65535)),
    ],
)
def test_places_to_listen_at(text: str, place: tuple[str, int]) -> None:
    assert parse_listen(text) == place


@pytest.mark.parametrize("text", ["", "6443", "127.0.0.1", "127.0.0.1:", "h:65536", "h:-1", "h:x"])
def test_what_is_no_place_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match=r"as in 127\.0\.0\.1:6443"):
        parse_listen(text)


def test_everything_lies_below_the_data_directory() -> None:
    settings = Settings(Path("/data"))
    places = (
        settings.kubeconfig,
        settings.csi_socket,
        settings.database,
        settings.token_file,
        settings.staging_dir,
        settings.devices_dir,
    )
    assert len(set(places)) == len(places)
    assert {path.parent for path in places} == {Path("/data")}


def test_the_node_has_a_name_that_csi_accepts() -> None:
    assert 0 < len(Settings(Path("/data")).node_id.encode()) <= 192
