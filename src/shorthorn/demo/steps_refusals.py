"""What is refused, and whether the message says what to do."""

from __future__ import annotations

from shorthorn.demo import manifests, service
from shorthorn.demo import steps_existing as existing
from shorthorn.demo import steps_on_demand as on_demand
from shorthorn.demo.failures import expect, expect_words
from shorthorn.demo.job import IMAGE, REFUSED_CLAIM, SOURCE_CLAIM, Job
from shorthorn.demo.kubectl import IMAGES_NAMESPACE
from shorthorn.demo.manifests import FillIn

_ERROR = ".status.error.message"


async def misindented(job: Job, name: str, kubectl_says: str) -> None:
    """Show a mis-indented sample: kubectl's words, lint's explanation, and the mended form."""
    manifest = manifests.read(name)
    async with job.step(f"refused: the page's {name}"):
        job.report.differences(name, manifest.differences())
        answer = await job.kubectl.try_apply(manifest.text, f"kubectl apply -f {name}")
        expect(answer.returncode != 0, f"kubectl accepts {name} as it is")
        expect_words(answer.stderr, [kubectl_says], "kubectl")
        job.report.command(f"shorthorn lint {name}")
        status, said, _ = await service.lint(manifest.text)
        job.report.output(said.replace("-:", f"{name}:"))
        expect(status == 1, f"shorthorn lint finds nothing wrong with {name}")
        expect_words(said, ["volumeSnapshotRef", "belongs to spec"], "shorthorn lint")
        mended = await job.mend(manifest)
        for line in manifests.changed_lines(manifest.text, mended):
            job.report.changed_line(line)
        await job.kubectl.apply_text(mended, f"shorthorn lint --fix {name} | kubectl apply -f -")
        await job.kubectl.delete(on_demand.CONTENT)


async def wrong_checksum(job: Job) -> None:
    """Show a download whose bytes are not those that were promised."""
    async with job.step("refused: a wrong checksum"):
        wrong = "0" * len(job.foreign_sha512)
        content = manifests.read(manifests.DOWNLOAD_CONTENT).fill(
            manifests.url(job.foreign_url), manifests.checksum(wrong)
        )
        await job.apply_mended(content)
        await job.kubectl.apply(manifests.read(manifests.ON_DEMAND_SNAPSHOT))
        await job.kubectl.wait(on_demand.SNAPSHOT, ".status.readyToUse", "true")
        await job.kubectl.apply(
            manifests.read(manifests.RESTORE_CLAIM).fill(
                manifests.claim_name(REFUSED_CLAIM),
                manifests.restored_from(on_demand.SNAPSHOT.removeprefix("volumesnapshot/")),
            )
        )
        event = await job.kubectl.wait_event(f"pvc/{REFUSED_CLAIM}", "checksum")
        job.report.output(manifests.shorten(event), style="yellow")
        expect_words(event, [wrong[:8], job.foreign_sha512[:8]], "the claim's event")
        phase = await job.kubectl.value(f"pvc/{REFUSED_CLAIM}", ".status.phase")
        expect(phase == "Pending", f"the claim is {phase}")
        await job.kubectl.show("get", "backingimages", "-n", IMAGES_NAMESPACE)
        await job.kubectl.delete(f"pvc/{REFUSED_CLAIM}")
        await on_demand.forget(job)


async def mismatching_parameter(job: Job) -> None:
    """Show a handle that says something else of an existing image than is true."""
    async with job.step("refused: a parameter that is not the existing image's"):
        text = manifests.read_own("backing-image.yaml")
        text = text.replace("@URL@", job.foreign_url).replace("@SHA512@", job.foreign_sha512)
        await job.kubectl.apply_text(text, "kubectl apply -f backing-image.yaml")
        content = manifests.read(manifests.EXISTING_CONTENT).fill(
            manifests.url(f"{job.foreign_url}.other"), manifests.checksum(job.foreign_sha512)
        )
        await job.kubectl.apply(content)
        await job.kubectl.apply(manifests.read(manifests.EXISTING_SNAPSHOT))
        error = await job.kubectl.wait_text(existing.SNAPSHOT, _ERROR)
        job.report.output(error, style="yellow")
        expect_words(
            error, [IMAGE, "different"], "the VolumeSnapshot's status", [existing.SNAPSHOT]
        )
        await job.kubectl.delete(existing.SNAPSHOT)
        await job.kubectl.wait_gone("volumesnapshotcontent/test-existing-backing")
        await job.kubectl.show(
            *("wait", "--for=condition=Ready", f"backingimage/{IMAGE}"),
            *("-n", IMAGES_NAMESPACE, "--timeout=60s"),
        )
        job.report.proven("the image, which that handle did not describe, is still there")
        await job.kubectl.delete(f"backingimage/{IMAGE}", namespace=IMAGES_NAMESPACE)


async def unknown_source_type(job: Job) -> None:
    """Show the source type as the page's prose spells it."""
    async with job.step("refused: source type export-form-volume (the page's prose)"):
        content = manifests.read(manifests.EXPORT_CONTENT)
        content = content.fill(manifests.volume_handle(await job.volume_handle(SOURCE_CLAIM)))
        await job.apply_edited(
            content,
            FillIn(
                "source type",
                "backingImageDataSourceType=export-from-volume",
                "backingImageDataSourceType=export-form-volume",
            ),
        )
        await _refused_on_demand(job, ["export-form-volume", "export-from-volume"])


async def claim_name_as_volume(job: Job) -> None:
    """Show a claim's name where a volume handle belongs; the error names the right one."""
    async with job.step("refused: a claim's name where a volume handle belongs"):
        right = await job.volume_handle(SOURCE_CLAIM)
        content = manifests.read(manifests.EXPORT_CONTENT)
        await job.apply_mended(content.fill(manifests.volume_handle(SOURCE_CLAIM)))
        await _refused_on_demand(job, [SOURCE_CLAIM, f"volume-name={right}"])


async def _refused_on_demand(job: Job, words: list[str]) -> None:
    """Bind a content whose handle is refused; the reason has to reach the VolumeSnapshot."""
    await job.kubectl.apply(manifests.read(manifests.ON_DEMAND_SNAPSHOT))
    error = await job.kubectl.wait_text(on_demand.SNAPSHOT, _ERROR)
    job.report.output(error, style="yellow")
    expect_words(error, words, "the VolumeSnapshot's status", [on_demand.SNAPSHOT])
    assert job.driver is not None
    handle = await job.kubectl.value(on_demand.CONTENT, ".spec.source.snapshotHandle")
    code, message = await job.driver.refusal_of(handle)
    expect(code == "INVALID_ARGUMENT", f"ListSnapshots answers {code}")
    expect_words(message, words, "ListSnapshots")
    await job.kubectl.delete(on_demand.SNAPSHOT)
    await job.kubectl.wait_gone(on_demand.CONTENT)
