"""Handles: what is read, what is refused, what is written, and what is warned of."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shorthorn.domain import handles
from shorthorn.domain.errors import InvalidArgument
from shorthorn.domain.handle_traps import RESERVED, TrapKind, find_traps
from shorthorn.domain.handles import BackingImageHandle, InvalidHandle, SnapshotHandle

DOCS = Path(__file__).parents[2] / "docs/handles.md"
SHA = "bd79ab9e6d45abf4f3f0adf552a868074dd235c4698ce7258d521160e0ad79ff" * 2
URL = "https://longhorn-backing-image.s3-us-west-1.amazonaws.com/parrot.qcow2"
ESCAPED = "https%3A%2F%2Flonghorn-backing-image.s3-us-west-1.amazonaws.com%2Fparrot.qcow2"
DOWNLOAD = (
    "bi://backing?backingImageDataSourceType=download&backingImage=test-bi"
    f"&url={ESCAPED}&backingImageChecksum={SHA}"
)
EXPORT = (
    "bi://backing?backingImageDataSourceType=export-from-volume&backingImage=test-bi"
    "&volume-name=vol-export-src&export-type=qcow2"
)


def image(handle: str) -> BackingImageHandle:
    parsed = handles.parse(handle)
    assert isinstance(parsed, BackingImageHandle)
    return parsed


def bi(pairs: str) -> str:
    return f"bi://backing?backingImage=a&backingImageDataSourceType={pairs}"


@pytest.mark.parametrize("text", [DOWNLOAD, EXPORT])
def test_the_documented_handles_are_read_without_warning_and_written_back_alike(text):
    assert image(text).warnings == ()
    assert image(text).format() == text


def test_every_part_of_a_download_handle_is_read():
    assert image(DOWNLOAD) == BackingImageHandle("test-bi", "download", SHA, {"url": URL})


def test_order_and_host_do_not_matter():
    shuffled = "bi://user@other:9/x?volume-name=vol-export-src&export-type=qcow2" + (
        "&backingImage=test-bi&backingImageDataSourceType=export-from-volume"
    )
    assert image(shuffled) == image(EXPORT)


def test_the_first_of_two_equal_keys_counts():
    assert image(bi("download&url=http://a&url=http://b")).parameters == {"url": "http://a"}


def test_unknown_keys_are_kept_and_a_key_without_value_is_empty():
    assert image(bi("download&Odd=1&flag")).parameters == {"Odd": "1", "flag": ""}


def test_a_raw_url_is_cut_at_its_ampersand():
    parsed = image(bi("download&url=https://h/a.qcow2?x=1&y=2"))
    assert parsed.parameters == {"url": "https://h/a.qcow2?x=1", "y": "2"}


def test_plus_and_percent_twenty_are_spaces_and_a_fragment_is_cut():
    assert image(bi("upload&a=b+c%20d#e&f=g")).parameters == {"a": "b c d"}


def test_pairs_with_semicolon_or_broken_escape_are_dropped():
    assert image(bi("upload&a=1;b=2&c=%zz&d=3")).parameters == {"d": "3"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "begins with bi://"),
        ("snapshot-123", "begins with bi://"),
        ("BI://backing?backingImage=a&backingImageDataSourceType=download", "lower case"),
        (" bi://backing?backingImage=a&backingImageDataSourceType=download", "without spaces"),
        ("bak://volume/backup", "backups"),
        ("bs://volume/backup", "backups"),
        ("bi://backing", "backingImage is missing"),
        ("bi://backing?backingImage=a", "backingImageDataSourceType is missing"),
        ("bi://backing?backingImageDataSourceType=download", "backingImage is missing"),
        ("bi://b?backingImage=&backingImageDataSourceType=download", "backingImage is missing"),
        ("bi://b?backingImageName=a&backingImageDataSourceType=upload", "did you mean backingIm"),
        ("bi://b?backingImage=a#&backingImageDataSourceType=upload", "after '#' is dropped"),
        ("bi://back ing?backingImage=a&backingImageDataSourceType=download", "host contains"),
        ("bi://b:x?backingImage=a&backingImageDataSourceType=download", "port"),
        ("bi://b?backingImage=a\n&backingImageDataSourceType=download", "control character"),
        ("bi://b?backingImage=a&backingImageDataSourceType=download#%zz", "broken escape"),
        ("snap://volume", "snap://VOLUME/SNAPSHOT"),
        ("snap:///name", "snap://VOLUME/SNAPSHOT"),
        ("snap://volume/", "snap://VOLUME/SNAPSHOT"),
    ],
)
def test_a_handle_that_names_nothing_is_refused_with_the_reason(text, says):
    with pytest.raises(InvalidHandle) as refused:
        handles.parse(text)
    assert says in refused.value.problem
    assert refused.value.handle == text
    assert refused.value.field == "snapshotHandle"


def test_a_long_handle_is_cut_in_the_message_and_kept_in_the_error():
    with pytest.raises(InvalidHandle) as refused:
        handles.parse("x" * 5000)
    assert len(str(refused.value)) < 500
    assert len(refused.value.handle) == 5000


@pytest.mark.parametrize(
    ("text", "warned"),
    [
        ("snap://vol/name", False),
        ("snap://vol/name/more", True),
        ("snap://vol/name://more", True),
    ],
)
def test_a_snapshot_handle_has_two_parts_and_ignores_the_rest(text, warned):
    parsed = handles.parse(text)
    assert parsed == SnapshotHandle("vol", "name")
    assert bool(parsed.warnings) is warned
    assert parsed.format() == "snap://vol/name"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (EXPORT, "test-bi"),
        ("bi://b?backingImage=only", "only"),
        ("bi://b?x=1", None),
        ("bi://b c?backingImage=a", None),
        ("BI://b?backingImage=a", None),
        ("snap://v/s", None),
    ],
)
def test_the_name_alone_is_found_where_there_is_one(text, name):
    assert handles.find_backing_image(text) == name


@pytest.mark.parametrize(
    ("text", "scheme"),
    [("bi://", "bi"), ("snap://x", "snap"), ("BI://x", None), ("bi:/x", None), ("bak://a/b", None)],
)
def test_a_broken_handle_is_told_from_an_id_of_no_known_form(text, scheme):
    assert handles.find_scheme(text) == scheme


@pytest.mark.parametrize(
    "handle",
    [
        BackingImageHandle("", "download"),
        BackingImageHandle("a", ""),
        BackingImageHandle("a", "download", "", {"backingImage": "b"}),
        BackingImageHandle("a", "download", "", {"url": "\ud800"}),
        BackingImageHandle("a", "download", "", {str(i): "" for i in range(10_000)}),
        SnapshotHandle("a/b", "c"),
        SnapshotHandle("a", ""),
    ],
    ids=lambda handle: repr(handle)[:60],
)
def test_what_could_not_be_read_back_is_not_written(handle):
    with pytest.raises(InvalidHandle):
        handle.format()


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
FILLED = TEXT.filter(bool)
PARAMETERS = st.dictionaries(TEXT.filter(lambda key: key not in RESERVED), TEXT, max_size=5)
PART = FILLED.filter(lambda part: "/" not in part)


@given(st.builds(BackingImageHandle, FILLED, FILLED, TEXT, PARAMETERS))
def test_a_written_handle_is_read_back_the_same(handle):
    assert handles.parse(handle.format()) == handle


@given(st.builds(SnapshotHandle, PART, PART))
def test_a_written_snapshot_handle_is_read_back_the_same(handle):
    assert handles.parse(handle.format()) == handle


PIECES = st.sampled_from(
    [
        "bi://",
        "snap://",
        "backing?",
        "backingImage=",
        "backingImageDataSourceType=",
        "download",
        "export-form-volume",
        "url=https://h",
        "checksum=",
        "&",
        "=",
        "%",
        "#",
        "+",
        ";",
        "/",
        "\0",
    ]
)


@given(st.lists(PIECES | st.text(max_size=3), max_size=14).map("".join))
def test_no_text_does_anything_but_parse_or_be_refused(text):
    try:
        parsed = handles.parse(text)
    except InvalidHandle:
        pass
    else:
        assert handles.parse(parsed.format()) == parsed
    handles.find_backing_image(text)
    find_traps(text)


TRAPS = [
    (TrapKind.UNESCAPED_AMPERSAND, bi("download&url=https://h/a.qcow2?x=1&y=2"), "'y'"),
    (TrapKind.UNESCAPED_HASH, bi("download&url=https://h/a.qcow2#x"), "%23"),
    (TrapKind.UNESCAPED_PLUS, bi("download&url=https://h/a+b.qcow2"), "%2B"),
    (TrapKind.DROPPED_PAIR, bi("download&url=https://h/a;b"), "%3B"),
    (TrapKind.DUPLICATE_KEY, bi("download&url=https://h/a&url=https://h/b"), "first"),
    (TrapKind.CHECKSUM_KEY, bi(f"download&url=https://h/a&checksum={SHA}"), "backingImageChecksum"),
    (TrapKind.CHECKSUM_FORMAT, bi("download&url=https://h/a&backingImageChecksum=12"), "SHA-512"),
    (TrapKind.CHECKSUM_FORMAT, bi(f"upload&backingImageChecksum={SHA.upper()}"), "lower-case"),
    (TrapKind.UPPER_CASE, bi("export-from-volume&volume-name=v&export-type=RAW"), "raw"),
    (TrapKind.UPPER_CASE, bi("Download&url=https://h/a"), "download"),
    (TrapKind.UNKNOWN_SOURCE_TYPE, bi("export-form-volume"), "mean export-from-volume?"),
    (TrapKind.UNKNOWN_SOURCE_TYPE, bi("zzz"), "known are download"),
    (TrapKind.UNKNOWN_EXPORT_TYPE, bi("export-from-volume&volume-name=v&export-type=vmdk"), "raw"),
    (TrapKind.MISSPELT_KEY, bi("export-from-volume&volume-name=v&exportType=raw"), "export-type?"),
    (TrapKind.MISSPELT_KEY, bi("download&url=https://h/a&backingimagechecksum=1"), "mean backing"),
    (TrapKind.MISSPELT_KEY, bi("upload&sourceType=upload"), "mean backingImageDataSourceType?"),
    (TrapKind.UNEXPECTED_KEY, bi("upload&minNumberOfCopies=1"), "kept"),
    (TrapKind.UNEXPECTED_KEY, bi("upload&" + "backingImage" * 9 + "=1"), "kept"),
    (TrapKind.UNEXPECTED_KEY, bi("download&url=https://h/a&volume-name=v"), "no parameter"),
    (TrapKind.MISSING_PARAMETER, bi("export-from-volume&volume-name=v"), "export-type is missing"),
    (TrapKind.MISSING_PARAMETER, bi("export-from-volume&export-type=raw"), "volume-name is miss"),
    (TrapKind.MISSING_PARAMETER, bi(f"download&checksum={SHA}"), "url is missing"),
    (TrapKind.URL_SCHEME, bi("download&url=ftp://h/a"), "http://"),
    (TrapKind.IMAGE_NAME, "bi://b?backingImage=A_b&backingImageDataSourceType=upload", "lower"),
    (TrapKind.PLACEHOLDER, "bi://b?backingImage=a&backingImageDataSourceType=${TYPE}", "fill"),
]


@pytest.mark.parametrize(("kind", "text", "says"), TRAPS, ids=[f"{t[0]}-{t[2]}" for t in TRAPS])
def test_a_trap_is_warned_of(kind, text, says):
    found = [trap.message for trap in find_traps(text) if trap.kind is kind]
    assert any(says in message for message in found)
    assert set(found) <= set(image(text).warnings)


def test_every_trap_has_an_example_here_and_a_row_in_the_docs():
    warnings = DOCS.read_text().partition("## Warnings")[2]
    documented = set(re.findall(r"^\| `([a-z-]+)` \|", warnings, re.MULTILINE))
    assert {kind for kind, _, _ in TRAPS} == set(TrapKind)
    assert documented == set(TrapKind)


@pytest.mark.parametrize(
    "text",
    [
        bi("export-from-volume"),
        bi("download&url=https://h/a.qcow2?x=1"),
        bi(f"upload&backingImageChecksum={SHA}"),
        bi("clone&backing-image=b&encryption=ignore"),
        "bi://elsewhere?backingImage=a.b&backingImageDataSourceType=restore",
    ],
)
def test_a_sound_handle_has_no_warning(text):
    assert image(text).warnings == ()


def test_traps_of_a_huge_handle_are_found_in_bounded_work():
    text = bi("upload&" + "&".join(f"unknown{i}=1" for i in range(9000)))
    assert len(find_traps(text)) <= 40


def test_a_checked_handle_is_made():
    made = handles.make("test-bi", "download", SHA, {"url": URL})
    assert made.format() == DOWNLOAD
    assert handles.make("test-bi", "export-from-volume", "", {}).parameters == {}


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        (("Bad_Name", "download", "", {}), "backingImage"),
        (("a", "export-form-volume", "", {}), "backingImageDataSourceType"),
        (("a", "download", SHA.upper(), {}), "backingImageChecksum"),
        (("a", "download", "", {"url": "ftp://h/a"}), "url"),
        (("a", "download", "", {"url": "https://[broken/ x"}), "url"),
        (("a", "download", "", {"other": "x"}), "url"),
        (("a", "export-from-volume", "", {"volume-name": "v"}), "export-type"),
        (
            ("a", "export-from-volume", "", {"export-type": "RAW", "volume-name": "v"}),
            "export-type",
        ),
        (("a", "export-from-volume", "", {"export-type": "raw", "volume-name": ""}), "volume-name"),
        (("a", "upload", "", {"backingImage": "b"}), "backingImage"),
    ],
)
def test_a_handle_that_would_be_refused_later_is_not_made(arguments, field):
    with pytest.raises(InvalidArgument) as refused:
        handles.make(*arguments)
    assert refused.value.field == field
