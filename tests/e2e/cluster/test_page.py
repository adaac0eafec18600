"""Every manifest of the page on backing images, applied by kubectl to a real API server.

The files are the page's, byte for byte, but for what it tells its reader to fill in; what the API
server refuses goes through `shorthorn lint --fix` first. The source volume is mounted throughout.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.e2e.cluster.page import (
    EXISTING,
    IMAGE,
    ON_DEMAND,
    SOURCE,
    Foreign,
    Page,
    fill,
    foreign_image,
    mended,
)
from tests.e2e.cluster.release import NAMESPACE, Release
from tests.integration.daemon_process import poll
from tests.integration.service_api import is_bound

from shorthorn.demo import manifests, tree

pytestmark = pytest.mark.root

#: All but the file system's own tables, which take more of it where it began small.
FIVE_GIB_OF_EXT4 = int(4.4 * (1 << 30))


@dataclass
class Source:
    """Somebody at the page's beginning: with a mounted volume, its files, and an image to use."""

    page: Page
    directory: Path
    foreign: Foreign


@pytest.fixture(scope="module")
def source(release: Release, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Source]:
    page = Page(release)
    page.apply(manifests.read_own("claim.yaml"))
    page.apply_page(manifests.SNAPSHOT_CLASS)
    with (
        foreign_image(tmp_path_factory.mktemp("foreign"), release.plane.address) as (foreign, _),
        page.mounted(SOURCE, "node-0") as directory,
    ):
        fill(directory)
        yield Source(page, directory, foreign)
    page.clean()
    release.plane.kubectl("delete", "volumesnapshotclass", "longhorn-snapshot-vsc")
    poll(lambda: not release.left(), what=f"empty pools, and not {release.left()}")


@pytest.fixture
def page(source: Source) -> Iterator[Page]:
    yield source.page
    source.page.clean(keep=(SOURCE,))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (manifests.EXISTING_SNAPSHOT, "no matches for kind"),
        (manifests.ON_DEMAND_SNAPSHOT, "no matches for kind"),
        (manifests.DOWNLOAD_CONTENT, "volumeSnapshotRef"),
        (manifests.EXPORT_CONTENT, "resource name may not be empty"),
    ],
)
def test_what_is_refused_as_it_stands_is_accepted_once_mended(
    page: Page, name: str, words: str
) -> None:
    assert words in page.refusal(name)
    text = mended(manifests.read(name))
    page.release.plane.kubectl("apply", "--dry-run=server", "-f", "-", stdin=text)


def test_a_mounted_claim_becomes_an_image_and_a_claim_again(source: Source, page: Page) -> None:
    page.apply_page(manifests.SNAPSHOT)
    shot = page.ready(manifests.PAGE_SNAPSHOT)
    uid, image = shot["metadata"]["uid"], page.image_of(manifests.PAGE_SNAPSHOT)
    content = page.api.get("VolumeSnapshotContent", "", f"snapcontent-{uid}")
    assert shot["status"]["boundVolumeSnapshotContentName"] == f"snapcontent-{uid}"
    assert image["metadata"]["name"] == f"snapshot-{uid}"
    assert content["status"]["readyToUse"] is True
    assert content["status"]["snapshotHandle"] == (
        f"bi://backing?backingImageDataSourceType=export-from-volume&backingImage=snapshot-{uid}"
        f"&volume-name={page.handle_of(SOURCE)}&export-type=qcow2"
    )
    wanted = tree.read_tree(source.directory)
    later = source.directory / "written after the snapshot"
    later.write_text("not to be seen in the restored claim")
    page.apply_page(manifests.RESTORE_CLAIM)
    page.compare(manifests.PAGE_CLAIM, wanted, at_least_bytes=FIVE_GIB_OF_EXT4)
    later.unlink()
    page.release.plane.kubectl("delete", "volumesnapshot", manifests.PAGE_SNAPSHOT)
    page.api.wait_gone("VolumeSnapshotContent", "", f"snapcontent-{uid}")
    page.api.wait_gone("BackingImage", NAMESPACE, f"snapshot-{uid}")


def test_a_content_of_an_image_that_exists(source: Source, page: Page) -> None:
    foreign = source.foreign
    page.make_image(foreign)
    page.apply_page(manifests.EXISTING_CONTENT, *foreign.fill_ins)
    page.apply_mended(manifests.EXISTING_SNAPSHOT)
    page.ready(EXISTING[0])
    page.restore("of-existing", EXISTING[0])
    page.compare("of-existing", foreign.tree, at_least_bytes=FIVE_GIB_OF_EXT4)
    page.forget(*EXISTING)
    page.compare("of-existing", foreign.tree)


def test_an_image_is_downloaded_on_demand(source: Source, page: Page) -> None:
    foreign = source.foreign
    page.apply_mended(manifests.DOWNLOAD_CONTENT, *foreign.fill_ins)
    page.apply_mended(manifests.ON_DEMAND_SNAPSHOT)
    page.ready(ON_DEMAND[0])
    page.restore("downloaded", ON_DEMAND[0])
    page.compare("downloaded", foreign.tree, at_least_bytes=FIVE_GIB_OF_EXT4)
    assert page.has_image()
    page.forget(*ON_DEMAND)


def test_a_volume_is_exported_on_demand(source: Source, page: Page) -> None:
    wanted = tree.read_tree(source.directory)
    handle = manifests.volume_handle(page.handle_of(SOURCE))
    page.apply_mended(manifests.EXPORT_CONTENT, handle)
    page.apply_mended(manifests.ON_DEMAND_SNAPSHOT)
    page.ready(ON_DEMAND[0])
    page.restore("exported", ON_DEMAND[0])
    page.compare("exported", wanted, at_least_bytes=FIVE_GIB_OF_EXT4)
    page.forget(*ON_DEMAND)


def test_a_wrong_checksum_reaches_the_claim(source: Source, page: Page) -> None:
    wrong = "0" * len(source.foreign.sha512)
    url = manifests.url(source.foreign.url)
    page.apply_mended(manifests.DOWNLOAD_CONTENT, url, manifests.checksum(wrong))
    page.apply_mended(manifests.ON_DEMAND_SNAPSHOT)
    page.ready(ON_DEMAND[0])
    page.restore("refused", ON_DEMAND[0])
    page.pod("uses-refused", "refused")
    said = page.api.wait_event(
        "PersistentVolumeClaim", "default", "refused", "ProvisioningFailed", holding="checksum"
    )
    assert wrong[:8] in said
    assert source.foreign.sha512[:8] in said
    poll(lambda: times_said(page, "refused", said) > 1, what="a second try that says the same")
    assert not is_bound(page.api.get("PersistentVolumeClaim", "default", "refused"))


def times_said(page: Page, claim: str, text: str) -> int:
    """Return how often a claim's events have said something."""
    return sum(
        int(event.get("count") or 1)
        for event in page.api.list("Event", "default")
        if event["involvedObject"].get("name") == claim and event["message"] == text
    )


def test_a_parameter_that_is_not_the_images_reaches_the_snapshot(
    source: Source, page: Page
) -> None:
    page.make_image(source.foreign)
    other = manifests.url(f"{source.foreign.url}.other")
    page.apply_page(manifests.EXISTING_CONTENT, other, manifests.checksum(source.foreign.sha512))
    page.apply_mended(manifests.EXISTING_SNAPSHOT)
    page.error(EXISTING[0], IMAGE, "different")


def test_the_source_type_of_the_pages_prose_reaches_the_snapshot(page: Page) -> None:
    handle = manifests.volume_handle(page.handle_of(SOURCE))
    text = mended(manifests.read(manifests.EXPORT_CONTENT).fill(handle))
    page.apply(text.replace("export-from-volume", "export-form-volume"))
    page.apply_mended(manifests.ON_DEMAND_SNAPSHOT)
    page.error(ON_DEMAND[0], "export-form-volume", "export-from-volume")


def test_a_claims_name_for_a_volume_reaches_the_snapshot(page: Page) -> None:
    page.apply_mended(manifests.EXPORT_CONTENT, manifests.volume_handle(SOURCE))
    page.apply_mended(manifests.ON_DEMAND_SNAPSHOT)
    page.error(ON_DEMAND[0], SOURCE, f"volume-name={page.handle_of(SOURCE)}")
