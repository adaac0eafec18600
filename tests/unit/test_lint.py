"""Lint's rules, one example each; mending, its limits, and its properties."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from shorthorn.lint import RULES, Rule, Severity, check, mend
from shorthorn.lint.handle_rules import mend_handle

ROOT = Path(__file__).parents[2]
MANIFESTS = sorted((Path(__file__).parents[2] / "src/shorthorn/demo/page").iterdir())
SHA = "0123456789abcdef" * 8
CLASS = """
    apiVersion: snapshot.storage.k8s.io/v1
    kind: VolumeSnapshotClass
    metadata: {name: c}
    driver: driver.longhorn.io
    deletionPolicy: Retain
    parameters:
      type: bi
      export-type: qcow2
"""
CONTENT = """
    apiVersion: snapshot.storage.k8s.io/v1
    kind: VolumeSnapshotContent
    metadata: {name: content}
    spec:
      driver: driver.longhorn.io
      deletionPolicy: Retain
      source:
        snapshotHandle: bi://backing?backingImageDataSourceType=download&backingImage=a
      volumeSnapshotRef:
        name: snap
        namespace: default
"""
SNAPSHOT = """
    apiVersion: snapshot.storage.k8s.io/v1
    kind: VolumeSnapshot
    metadata: {name: snap, namespace: default}
    spec:
      source:
        volumeSnapshotContentName: content
"""
CLAIM = """
    apiVersion: v1
    kind: PersistentVolumeClaim
    metadata: {name: claim}
    spec:
      storageClassName: longhorn
      dataSource:
        name: snap
        kind: VolumeSnapshot
        apiGroup: snapshot.storage.k8s.io
      accessModes:
        - ReadWriteOnce
      resources:
        requests:
          storage: 5Gi
"""
HANDLE = "bi://backing?backingImageDataSourceType=download&backingImage=a"


def yml(text: str, old: str = "", new: str = "") -> str:
    assert not old or old in text
    return textwrap.dedent(text.replace(old, new)).lstrip()


def handle(tail: str, source_type: str = "download") -> str:
    new = HANDLE.replace("download", source_type) + tail
    return yml(CONTENT, HANDLE, new)


def rules(text: str) -> set[Rule]:
    return {finding.rule for finding in check(text)}


def errors(text: str) -> set[Rule]:
    return {finding.rule for finding in check(text) if finding.is_error}


#: rule → (text that breaks it, whether mending puts it right)
EXAMPLES: dict[Rule, tuple[str, bool]] = {
    Rule.YAML_SYNTAX: ("a: [1\n", False),
    Rule.NOT_A_MANIFEST: ("just: a map\n", False),
    Rule.UNKNOWN_KIND: (yml(CLAIM, "PersistentVolumeClaim", "PerstistantVolumeClaim"), False),
    Rule.OLD_API_VERSION: (yml(SNAPSHOT, "io/v1", "io/v1beta1"), True),
    Rule.WRONG_API_VERSION: (yml(SNAPSHOT, "snapshot.storage.k8s.io/v1", "v1"), False),
    Rule.DUPLICATE_FIELD: (yml(CLASS) + "driver: driver.longhorn.io\n", False),
    Rule.MISPLACED_FIELD: (
        yml(SNAPSHOT, "  source:\n        volume", "  source:\n      volume"),
        True,
    ),
    Rule.UNKNOWN_FIELD: (yml(SNAPSHOT, "ContentName", "ContentNam"), False),
    Rule.MISSING_FIELD: (yml(CONTENT, "namespace: default", ""), False),
    Rule.WRONG_TYPE: (yml(SNAPSHOT, "name: snap,", "name: 1,"), False),
    Rule.SOURCE_CHOICE: (
        yml(SNAPSHOT, "Name: content", "Name: content\n        persistentVolumeClaimName: pvc"),
        False,
    ),
    Rule.DELETION_POLICY: (yml(CLASS, "Retain", "retain"), True),
    Rule.DELETES_IMAGE: (yml(CONTENT, "Retain", "Delete"), False),
    Rule.OTHER_DRIVER: (yml(CLASS, "driver.longhorn.io", "hostpath.csi.k8s.io"), False),
    Rule.CLASS_TYPE: (yml(CLASS, "type: bi", "type: BI"), True),
    Rule.CLASS_EXPORT_TYPE: (yml(CLASS, "qcow2", "Qcow2"), True),
    Rule.CLASS_TWO_EXPORT_TYPES: (yml(CLASS, "qcow2", "qcow2\n      exportType: raw"), False),
    Rule.CLASS_PARAMETER: (yml(CLASS, "qcow2", "qcow2\n      checksum: abc"), False),
    Rule.DATA_SOURCE_GROUP: (yml(CLAIM, "k8s.io\n", "k8s.io/v1\n"), True),
    Rule.DATA_SOURCE_KIND: (yml(CLAIM, "kind: VolumeSnapshot", "kind: BackingImage"), False),
    Rule.ACCESS_MODE: (yml(CLAIM, "ReadWriteOnce", "RWO"), False),
    Rule.QUANTITY: (yml(CLAIM, "5Gi", "5GB"), False),
    Rule.UNMATCHED_REF: (
        yml(CONTENT, "name: snap", "name: other") + "---\n" + yml(SNAPSHOT),
        False,
    ),
    Rule.PVC_NAME: (handle("&volume-name=vol&export-type=raw", "export-from-volume"), False),
    Rule.HANDLE_INVALID: (yml(CONTENT, "backingImage=a", "backingImage="), False),
    Rule.HANDLE_UNESCAPED_AMPERSAND: (handle("&url=https://h/a?x=1&y=2"), True),
    Rule.HANDLE_UNESCAPED_HASH: (handle("&url=https://h/a#b"), True),
    Rule.HANDLE_UNESCAPED_PLUS: (handle("&url=https://h/a+b"), True),
    Rule.HANDLE_DROPPED_PAIR: (handle("&url=https://h/a;b"), True),
    Rule.HANDLE_DUPLICATE_KEY: (handle("&url=https://h/a&url=https://h/b"), False),
    Rule.HANDLE_CHECKSUM_KEY: (handle(f"&url=https%3A%2F%2Fh&checksum={SHA}"), True),
    Rule.HANDLE_CHECKSUM_FORMAT: (handle(f"&backingImageChecksum={SHA.upper()}"), True),
    Rule.HANDLE_UPPER_CASE: (handle("&volume-name=v&export-type=RAW", "export-from-volume"), True),
    Rule.HANDLE_UNKNOWN_SOURCE_TYPE: (handle("", "export-form-volume"), True),
    Rule.HANDLE_UNKNOWN_EXPORT_TYPE: (
        handle("&volume-name=v&export-type=vmdk", "export-from-volume"),
        False,
    ),
    Rule.HANDLE_MISSPELT_KEY: (handle("&backingImageCheksum=a"), False),
    Rule.HANDLE_UNEXPECTED_KEY: (handle("&url=https%3A%2F%2Fh&dataEngine=v1"), False),
    Rule.HANDLE_MISSING_PARAMETER: (handle("&volume-name=v", "export-from-volume"), False),
    Rule.HANDLE_URL_SCHEME: (handle("&url=ftp%3A%2F%2Fh"), False),
    Rule.HANDLE_IMAGE_NAME: (yml(CONTENT, "backingImage=a", "backingImage=a_b"), False),
    Rule.HANDLE_PLACEHOLDER: (yml(CONTENT, "backingImage=a", "backingImage=${NAME}"), False),
}


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_tells_of_its_example(rule):
    found = [finding for finding in check(EXAMPLES[rule][0]) if finding.rule is rule]
    assert found
    assert all(finding.message and finding.advice for finding in found)


@pytest.mark.parametrize("rule", RULES)
def test_an_example_is_mended_exactly_where_its_rule_promises_it(rule):
    text, is_mended = EXAMPLES[rule]
    assert (rule not in rules(mend(text))) is is_mended
    if is_mended:
        assert errors(mend(text)) == set()
        assert mend(mend(text)) == mend(text)
    else:
        assert mend(text) == text


def test_every_rule_is_in_the_docs_with_its_severity_and_whether_it_is_mended():
    lint = (ROOT / "docs/lint.md").read_text()
    rows = re.findall(r"^\| `([a-z0-9-]+)` \| (error|warning|info) \| (yes|no) \|", lint, re.M)
    assert {rule: (severity, mended) for rule, severity, mended in rows} == {
        str(rule): (str(severity), "yes" if EXAMPLES[rule][1] else "no")
        for rule, severity in RULES.items()
    }


@pytest.mark.parametrize("text", [CLASS, CONTENT, SNAPSHOT, CLAIM])
def test_a_sound_manifest_has_no_finding(text):
    assert check(yml(text)) == []
    assert check("---\n" + yml(text)) == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# only a comment\n",
        "---\n---\n",
        "%YAML 1.1\n---\n" + yml(CLAIM),
        "apiVersion: apps/v1\nkind: Deployment\nanything: goes\n",
        yml(CLASS, "bi\n      export-type: qcow2", "snap"),
        yml(CLASS, "export-type", "exportType"),
        yml(CLASS, "qcow2", "raw\n      csi.storage.k8s.io/snapshotter-secret-name: s"),
        yml(CONTENT, HANDLE, "snap://pvc-1/before"),
        yml(CLAIM, "5Gi", "5368709120"),
        yml(
            CLAIM,
            "VolumeSnapshot\n        apiGroup: snapshot.storage.k8s.io",
            "PersistentVolumeClaim",
        ),
        "\ufeff" + yml(CLAIM),
    ],
)
def test_what_is_fine_or_none_of_our_business_is_left_alone(text):
    assert check(text) == []
    assert mend(text) == text


def test_lines_count_through_the_whole_stream():
    text = yml(CLAIM) + "---\nx: [\n---\n" + yml(SNAPSHOT, "io/v1", "io/v1beta1")
    found = [(finding.rule, finding.line) for finding in check(text)]
    after = yml(CLAIM).count("\n")
    assert found == [(Rule.YAML_SYNTAX, after + 3), (Rule.OLD_API_VERSION, after + 4)]


def test_the_items_of_a_list_are_checked_and_mended():
    item = textwrap.indent(yml(SNAPSHOT, "io/v1", "io/v1beta1"), "    ").replace("    ", "  - ", 1)
    text = f"apiVersion: v1\nkind: List\nitems:\n{item}"
    assert errors(text) == {Rule.OLD_API_VERSION}
    assert check(mend(text)) == []


def test_fields_at_the_top_at_any_depth_find_their_way_home():
    text = (
        "apiVersion: snapshot.storage.k8s.io/v1\nkind: VolumeSnapshotContent\n"
        "metadata:\nname: content\nspec:\ndriver: driver.longhorn.io\n"
        "deletionPolicy: Retain\nsource:\nsnapshotHandle: snap://a/b\n"
        "volumeSnapshotRef:\nname: snap\nnamespace: default\n"
    )
    mended = yaml.safe_load(mend(text)) if "name: content" in text else {}
    assert mended["spec"]["source"] == {"snapshotHandle": "snap://a/b"}
    assert mended["spec"]["driver"] == "driver.longhorn.io"


def test_comments_line_ends_and_blank_lines_survive_mending():
    text = (
        "# before\r\n"
        "apiVersion: snapshot.storage.k8s.io/v1beta1 # old\r\n"
        "kind: VolumeSnapshot\r\n"
        "metadata:\r\n"
        "  name: s\r\n"
        "# about the source\r\n"
        "source: # here\r\n"
        "\r\n"
        "  # which one\r\n"
        "  volumeSnapshotContentName: c\r\n"
        "spec:\r\n"
        "  volumeSnapshotClassName: x\r\n"
        "# after"
    )
    assert mend(text) == (
        "# before\r\n"
        "apiVersion: snapshot.storage.k8s.io/v1 # old\r\n"
        "kind: VolumeSnapshot\r\n"
        "metadata:\r\n"
        "  name: s\r\n"
        "spec:\r\n"
        "  volumeSnapshotClassName: x\r\n"
        "  # about the source\r\n"
        "  source: # here\r\n"
        "\r\n"
        "    # which one\r\n"
        "    volumeSnapshotContentName: c\r\n"
        "# after"
    )


def test_a_field_set_in_too_deep_is_brought_back_out():
    text = yml(
        CONTENT,
        "      volumeSnapshotRef:\n        name: snap\n        namespace: default\n",
        "        volumeSnapshotRef:\n          name: snap\n          namespace: default\n",
    )
    assert errors(text) == {Rule.MISPLACED_FIELD}
    assert mend(text) == yml(CONTENT)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(
            yml(SNAPSHOT).replace("spec:\n  source:\n    volume", "spec: {}\nsource:\n  volume"),
            id="the parent is written in braces",
        ),
        pytest.param(
            yml(SNAPSHOT).replace("spec:\n  source:\n", "spec:\n? source\n: "),
            id="an explicit key",
        ),
        pytest.param(
            yml(SNAPSHOT).replace("spec:\n", "x: &a 1\ny: *a\nspec:\nvolumeSnapshotClassName: c\n"),
            id="anchors",
        ),
        pytest.param('{"kind": "VolumeSnapshot", "apiVersion": "x", "source": {}}', id="JSON"),
    ],
)
def test_what_cannot_be_mended_line_by_line_is_told_and_left(text):
    assert errors(text)
    assert mend(text) == text


def test_a_missing_group_is_added_in_its_place():
    group = "        apiGroup: snapshot.storage.k8s.io\n"
    text = yml(CLAIM, group, "")
    assert errors(text) == {Rule.DATA_SOURCE_GROUP}
    mended = yaml.safe_load(mend(text))
    assert mended == yaml.safe_load(yml(CLAIM))


def test_a_list_far_from_home_is_moved_whole_and_the_last_line_keeps_its_end():
    text = (
        "apiVersion: v1\nkind: PersistentVolumeClaim\naccessModes:\n- ReadWriteOnce\n"
        "  # odd\ndataSource: {kind: VolumeSnapshot, name: s, apiGroup: snapshot.storage.k8s.io}\n"
        "metadata:\n  name: c\nspec:\n  volumeMode: |-\n    Block\n\n"
        "  resources:\n    requests:\n      storage: 1Gi"
    )
    mended = mend(text)
    assert yaml.safe_load(mended)["spec"]["accessModes"] == ["ReadWriteOnce"]
    assert yaml.safe_load(mended)["spec"]["dataSource"]["name"] == "s"
    assert check(mended) == []


def test_fields_taken_from_an_anchor_are_not_called_missing():
    text = yml(CONTENT).replace(
        "  driver: driver.longhorn.io\n", "  <<: {driver: driver.longhorn.io}\n"
    )
    assert check(text) == []


def test_another_drivers_content_is_not_read_closely():
    text = yml(CONTENT, "driver.longhorn.io", "ebs.csi.aws.com").replace(HANDLE, "snap-0123")
    assert rules(text) == {Rule.OTHER_DRIVER}


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(
            handle("&url=https://h/a+b").replace("snapshotHandle: ", "snapshotHandle: >-\n      "),
            id="a handle in a folded block",
        ),
        pytest.param(
            "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {name: c}\nspec:\n"
            "  dataSource: {kind: VolumeSnapshot, name: s}\n  accessModes: [ReadWriteOnce]\n"
            "  resources: {requests: {storage: 1Gi}}\n",
            id="a group missing in braces",
        ),
        pytest.param(
            yml(SNAPSHOT).replace("spec:\n  source:\n  ", "spec: ~\nsource:\n"),
            id="a parent that says null",
        ),
        pytest.param(
            yml(SNAPSHOT).replace(
                "ContentName: content", 'ContentName: content\n    volumeSnapshotClassName: "a\n b"'
            ),
            id="a field that cannot be set out because a line of it begins further left",
        ),
    ],
)
def test_what_cannot_be_edited_safely_stays_as_it_is(text):
    assert any(finding.mend for finding in check(text))
    assert mend(text) == text


def test_a_value_where_fields_belong_is_told():
    text = yml(SNAPSHOT).partition("spec:")[0] + "spec: 5\n"
    assert Rule.WRONG_TYPE in errors(text)


def test_json_is_yaml_and_a_version_in_it_is_mended():
    text = '{"apiVersion": "snapshot.storage.k8s.io/v1beta1", "kind": "VolumeSnapshotClass"}'
    assert '"snapshot.storage.k8s.io/v1"' in mend(text)


@pytest.mark.parametrize(
    ("broken", "meant"),
    [
        (
            "&url=https://h/a.qcow2?x=1&y=2&backingImageChecksum=" + SHA,
            "&url=https%3A%2F%2Fh%2Fa.qcow2%3Fx%3D1%26y%3D2&backingImageChecksum=" + SHA,
        ),
        ("&url=https://h/a;b&y=2", "&url=https%3A%2F%2Fh%2Fa%3Bb%26y%3D2"),
        ("&url=https://h/a+b#c;d", "&url=https%3A%2F%2Fh%2Fa%2Bb%23c%3Bd"),
        (f"&checksum={SHA.upper()}", f"&backingImageChecksum={SHA}"),
        (f"&checksum={SHA}&backingImageChecksum={SHA}", f"&backingImageChecksum={SHA}"),
    ],
)
def test_a_handle_is_mended_to_what_was_meant(broken, meant):
    assert mend_handle(HANDLE + broken) == HANDLE + meant


@pytest.mark.parametrize(
    "text",
    [
        HANDLE,
        HANDLE + "&url=https://h/a",
        HANDLE + "#cut",
        HANDLE + "&x=a+b&volume-name=RAW",
        HANDLE + "&a=%zz",
        HANDLE + "&url=",
        "bi:// b?url=x",
        "snap://a/b/c",
        "bi://",
        "x",
    ],
)
def test_a_handle_that_is_fine_or_unclear_is_not_mended(text):
    assert mend_handle(text) is None


LINES = [line for path in MANIFESTS for line in path.read_text().splitlines()]
PIECES = st.sampled_from(
    [*LINES, "---", "...", "  ", "- ", "&a", "*a", "{", "}", "|", "? x", "<<: *a"]
)


@given(st.lists(st.tuples(st.integers(0, 6), PIECES), max_size=14), st.sampled_from(["\n", "\r\n"]))
def test_any_pile_of_manifest_lines_is_linted_and_mending_is_idempotent(pile, newline):
    text = newline.join(" " * indent + line for indent, line in pile)
    check(text)
    mended = mend(text)
    assert mend(mended) == mended
    assert len([f for f in check(mended) if f.rule is Rule.YAML_SYNTAX]) == len(
        [f for f in check(text) if f.rule is Rule.YAML_SYNTAX]
    )


@st.composite
def shaken(draw: st.DrawFn) -> str:
    """A documented manifest with some lines set in or out."""
    lines = draw(st.sampled_from(MANIFESTS)).read_text().splitlines()
    move = st.sampled_from([0, 0, 0, 2, -2])
    moves = draw(st.lists(move, min_size=len(lines), max_size=len(lines)))
    moved = [
        " " * by + line if by >= 0 else line.removeprefix("  ")
        for by, line in zip(moves, lines, strict=True)
    ]
    return "\n".join(moved) + "\n"


@given(shaken())
def test_mending_a_shaken_manifest_keeps_every_word_and_leaves_nothing_it_could_mend(text):
    mended = mend(text)
    assert sorted(mended.split()) == sorted(text.replace("v1beta1", "v1").split()) or (
        Rule.YAML_SYNTAX in rules(text)
    )
    assert mend(mended) == mended


@given(st.text(max_size=200))
@example("[" * 400)
@example("a: " * 500)
@example('"\\UFFFFFFFF"')
@example("&a [*a, *a]")
@example("? {a: b}\n: c")
@example("\ud800")
@example("a: \x00")
@example("kind: &k List\napiVersion: v1\nitems: [*k]")
@example("kind: [List]\nitems: 1")
@example("!!python/object:os.system {}")
def test_no_text_crashes_lint(text):
    check(text)
    assert mend(mend(text)) == mend(text)


def test_severities_are_of_all_three_kinds():
    assert set(RULES.values()) == set(Severity)
