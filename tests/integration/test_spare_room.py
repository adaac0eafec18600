"""A disk filled to its last block: the service on it goes on, starts again, and things can go."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration import storage
from tests.integration.daemon_process import ServiceProcess, running
from tests.integration.service_api import Namespace, namespace

from shorthorn.standalone.apiserver import spare_room
from shorthorn.standalone.apiserver.spare_room import LOG_BYTES, SpareRoom

MIB = 1 << 20


@pytest.fixture(
    params=[
        pytest.param("xfs", marks=[pytest.mark.root, pytest.mark.xfs]),
        pytest.param("btrfs", marks=[pytest.mark.root, pytest.mark.btrfs]),
    ]
)
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, to be filled to the last block."""
    kind = storage.STORAGES[request.param]
    storage.require(kind)
    with storage.mounted(kind, tmp_path, size_bytes=480 * MIB) as root:
        yield root


# ---- the whole service --------------------------------------------------------------------------


@pytest.mark.slow
def test_on_a_full_disk_the_service_goes_on_starts_again_and_lets_things_go(disk: Path) -> None:
    with running(disk / "data") as service, namespace(service.api, "full") as own:
        own.claim("data", "32Mi", volumeMode="Block")
        own.snapshot_class("bi", type="bi")
        own.bound("data")
        own.snapshot("image", claim="data", cls="full-bi")
        own.ready("image")
        storage.fill_up(disk / "hog")

        label_often(own, "data")
        assert service.stop() == 0
        storage.fill_up(disk / "hog-of-a-stopped-service")
        service.start()
        label_often(own, "data")
        (image,) = service.api.list("BackingImage")
        (volume,) = service.api.list("Volume")
        own.delete_snapshot("image")
        own.delete_claim("data")
        for kind, obj in (("BackingImage", image), ("Volume", volume)):
            service.api.wait_gone(kind, obj["metadata"]["namespace"], obj["metadata"]["name"])

        shutil.rmtree(disk / "hog")
        shutil.rmtree(disk / "hog-of-a-stopped-service")
        assert service.stop() == 0
        service.start()
        assert is_whole(service)


def label_often(own: Namespace, claim: str) -> None:
    """Write more than the log's last block can have; raises when a write is refused."""
    for number in range(40):
        value = f"{number:050}"
        own.api.merge(
            "PersistentVolumeClaim",
            own.name,
            claim,
            {"metadata": {"labels": {f"l{number}": value}}},
        )


def is_whole(service: ServiceProcess) -> bool:
    spare = service.data_dir / "state.db.spare"
    return storage.allocated_bytes(spare) > LOG_BYTES


# ---- its parts ----------------------------------------------------------------------------------


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """A database with one table, closed."""
    path = tmp_path / "state.db"
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE kept (number INTEGER)")
        db.execute("INSERT INTO kept VALUES (1)")
        db.commit()
    return path


def in_wal_mode(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None)
    assert db.execute("PRAGMA journal_mode = WAL").fetchone() == ("wal",)
    return db


def test_the_log_begins_as_the_spare_file_and_keeps_its_blocks(database: Path) -> None:
    log = database.with_name("state.db-wal")
    SpareRoom(database).lend()
    with contextlib.closing(in_wal_mode(database)) as db:
        for number in range(5000):
            db.execute("INSERT INTO kept VALUES (?)", (number,))
            assert log.stat().st_size == storage.allocated_bytes(log)
        assert LOG_BYTES <= log.stat().st_size < 2 * LOG_BYTES
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    with contextlib.closing(in_wal_mode(database)) as db:
        assert db.execute("SELECT count(*) FROM kept").fetchone() == (5001,)


def test_a_log_that_is_there_stays_what_it_is(database: Path) -> None:
    log = database.with_name("state.db-wal")
    with contextlib.closing(in_wal_mode(database)) as db:
        db.execute("INSERT INTO kept VALUES (2)")
        copy, inode = log.read_bytes(), log.stat().st_ino
        SpareRoom(database).lend()
        assert (log.read_bytes(), log.stat().st_ino) == (copy, inode)


def test_the_log_of_a_killed_process_is_read(database: Path, tmp_path: Path) -> None:
    """Its last frames are followed by what the spare file had there."""
    SpareRoom(database).lend()
    folder = tmp_path / "killed"
    with contextlib.closing(in_wal_mode(database)) as db:
        db.execute("INSERT INTO kept VALUES (2)")
        folder.mkdir()
        for file in tmp_path.glob("state.db*"):
            shutil.copy(file, folder)
    SpareRoom(folder / "state.db").lend()
    with contextlib.closing(in_wal_mode(folder / "state.db")) as db:
        assert db.execute("SELECT number FROM kept").fetchall() == [(1,), (2,)]


def test_free_pages_are_had_once_and_own_their_blocks(database: Path) -> None:
    room = SpareRoom(database)
    with contextlib.closing(in_wal_mode(database)) as db:
        room.stock(db)
        free = db.execute("PRAGMA freelist_count").fetchone()[0]
        assert free * 4096 >= 2 * MIB
        room.stock(db)
        assert db.execute("PRAGMA freelist_count").fetchone()[0] == free
        assert storage.allocated_bytes(database) > 2 * MIB
        assert db.execute("SELECT name FROM sqlite_master").fetchall() == [("kept",)]


def test_what_a_death_while_pages_were_set_aside_left_goes(database: Path) -> None:
    with contextlib.closing(in_wal_mode(database)) as db:
        db.execute("CREATE TABLE spare_pages (zeros BLOB)")
        SpareRoom(database).stock(db)
        assert db.execute("SELECT name FROM sqlite_master").fetchall() == [("kept",)]


@pytest.mark.root
def test_a_small_disk_keeps_all_it_has(xfs_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spare_room, "_PLENTY_BYTES", 1 << 50)
    SpareRoom(xfs_dir / "state.db").keep()
    assert os.listdir(xfs_dir) == []


def test_who_never_ran_makes_way_for_nobody(tmp_path: Path) -> None:
    SpareRoom(tmp_path / "state.db").make_way()
    assert os.listdir(tmp_path) == []
