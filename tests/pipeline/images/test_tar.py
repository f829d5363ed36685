import gzip
import io
import random
import tarfile
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.images.source import ShardError
from pipeline.images.tar import members

FORMS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
LONG = "folder-" * 9 + "/" + "name-" * 16 + ".jpg"


def walked(data):
    return list(members(io.BytesIO(data), "train-7.tar", len(data)))


def refusal(data):
    with pytest.raises(ShardError) as failure:
        walked(data)
    message = str(failure.value)
    assert message.startswith("train-7.tar: ")
    assert "\n" not in message
    return message


def info(name, kind, link=""):
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, link
    return entry


def mended(block):
    """The header with its checksum made right again."""
    block = bytearray(block)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def oracle(data):
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return [(entry.name, entry.offset_data, entry.size) for entry in tar if entry.isreg()]


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_long_names_are_read_in_every_format(tar, form):
    data = tar([("a.jpg", b"1"), (LONG, b"22"), ("b.cls", b"")], form)
    assert [(each.name, each.offset, each.size) for each in walked(data)] == oracle(data)
    assert walked(data)[1].name == LONG


@given(
    st.sampled_from(["gnu", "pax"]),
    st.lists(
        st.tuples(
            st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=140),
            st.binary(max_size=1100),
        ),
        max_size=6,
    ),
)
def test_members_lie_where_tarfile_finds_them(tar, form, files):
    data = tar(files, FORMS[form])
    assert [(each.name, each.offset, each.size) for each in walked(data)] == oracle(data)


def test_folders_are_passed_over_and_a_leading_dot_is_dropped(tar):
    data = tar([("./a.jpg", b"1")], extra=[info("sub", tarfile.DIRTYPE), info("./", tarfile.DIRTYPE)])
    assert [each.name for each in walked(data)] == ["a.jpg"]


def test_an_old_gnu_header_whose_prefix_field_holds_times_is_read(tar):
    data = bytearray(tar([("a.jpg", b"1")], tarfile.GNU_FORMAT))
    data[345:357] = b"14777777777\0"
    data[:512] = mended(data[:512])
    assert walked(bytes(data))[0].name == "a.jpg"


def test_sizes_in_base_256_are_read(tar):
    data = bytearray(tar([("a.jpg", b"12345")]))
    data[124:136] = b"\x80" + (5).to_bytes(11, "big")
    data[:512] = mended(data[:512])
    assert walked(bytes(data))[0].size == 5


@pytest.mark.parametrize(
    ("entry", "fault"),
    [
        (info("b.jpg", tarfile.SYMTYPE, "a.jpg"), "b.jpg: is a link to a.jpg; links are refused"),
        (info("b.jpg", tarfile.LNKTYPE, "../../etc/passwd"), "b.jpg: is a link to ../../etc/passwd"),
        (info("b.jpg", tarfile.FIFOTYPE), "b.jpg: is neither a file nor a folder"),
        (info("b.jpg", tarfile.CHRTYPE), "b.jpg: is neither a file nor a folder"),
        (info("b.jpg", tarfile.GNUTYPE_SPARSE), "b.jpg: is neither a file nor a folder"),
        (info("/tmp/b.jpg", tarfile.REGTYPE), "/tmp/b.jpg: has a name that leaves the folder"),
        (info(".//tmp/b.jpg", tarfile.REGTYPE), None),
        (info("x/../../b.jpg", tarfile.REGTYPE), "x/../../b.jpg: has a name that leaves the folder"),
        (info("../sub", tarfile.DIRTYPE), "../sub/: has a name that leaves the folder"),
        (info("b\n.jpg", tarfile.REGTYPE), r"'b\n.jpg': has an empty name or one with control characters"),
    ],
)
def test_members_that_could_lead_astray_are_refused_by_name(tar, entry, fault):
    data = tar([("a.jpg", b"1")], tarfile.GNU_FORMAT, extra=[entry])
    if fault is None:
        assert walked(data)[1].name == "tmp/b.jpg"
    else:
        assert fault in refusal(data)


def test_a_name_that_is_not_utf8_is_refused(tar):
    data = bytearray(tar([("a.jpg", b"1")]))
    data[0:1] = b"\xff"
    data[:512] = mended(data[:512])
    assert "not UTF-8" in refusal(bytes(data))


def test_a_tar_cut_inside_a_member_names_it(tar):
    data = tar([("a.jpg", b"1" * 600), ("b.jpg", b"2" * 5000)])
    assert refusal(data[: 512 + 1024 + 512 + 700]) == (
        "train-7.tar: b.jpg: promises 5000 bytes, the shard ends after 700: it is cut"
    )


@pytest.mark.parametrize("cut", [0, 100, 1536, 1536 + 200, 2048 + 1024])
def test_a_tar_cut_anywhere_else_lacks_its_end_and_names_the_last_member(tar, cut):
    data = tar([("a.jpg", b"1" * 600), ("b.jpg", b"2" * 700)])
    message = refusal(data[:cut])
    assert "cut" in message
    assert cut < 1536 or "a.jpg" in message or "b.jpg" in message


def test_a_second_tar_strung_to_the_first_is_not_lost_silently(tar):
    assert "strung together" in refusal(tar([("a.jpg", b"1")]) + tar([("b.jpg", b"2")]))


def test_a_damaged_header_names_the_member_before_it(tar):
    data = bytearray(tar([("a.jpg", b"1"), ("b.jpg", b"2")]))
    data[1024 + 3] ^= 1
    assert refusal(bytes(data)) == ("train-7.tar: after member a.jpg: has a damaged header at byte 1024, or is no tar")


@pytest.mark.parametrize("size", [b"x" * 12, b"\xff" * 12, b"-0000000001\0"])
def test_a_size_that_is_no_number_is_a_damaged_header(tar, size):
    data = bytearray(tar([("a.jpg", b"1")]))
    data[124:136] = size
    data[:512] = mended(data[:512])
    assert "damaged header" in refusal(bytes(data))


def test_what_is_no_tar_says_so(tar):
    assert "or is no tar" in refusal(b"<html>" * 200)
    assert "is compressed (gzip); unpack it" in refusal(
        gzip.compress(tar([("a.jpg", random.Random(1).randbytes(999))]))
    )


def pax(record, kind=b"x"):
    head = tarfile.TarInfo("PaxHeader")
    head.size = len(record)
    head.type = kind
    return head.tobuf(tarfile.USTAR_FORMAT) + record + bytes(-len(record) % 512)


@pytest.mark.parametrize(
    ("record", "fault"),
    [
        (b"nonsense", "damaged pax header"),
        (b"0 path=x\n", "damaged pax header"),
        (b"99 path=x\n", "damaged pax header"),
        (b"9 size=x\n", "damaged pax header"),
        (b"22 GNU.sparse.major=1\n", "sparse file"),
        (b"15 path=../b.c\n", "leaves the folder"),
    ],
)
def test_damaged_or_dangerous_pax_headers_are_refused(tar, record, fault):
    assert fault in refusal(pax(record) + tar([("a.jpg", b"1")]))


def test_a_global_pax_header_may_comment_but_not_rename(tar):
    assert walked(pax(b"14 comment=hi\n", b"g") + tar([("a.jpg", b"1")]))[0].name == "a.jpg"
    assert "global pax header" in refusal(pax(b"12 path=a.b\n", b"g") + tar([("a.jpg", b"1")]))


def test_an_extension_header_of_gigabytes_is_not_read(tar):
    huge = bytearray(pax(b"12 path=a.b\n"))
    huge[124:136] = b"000010000000"
    huge[:512] = mended(huge[:512])
    assert "extension header of 2097152 bytes" in refusal(bytes(huge) + bytes(3 << 20))


@given(st.data())
def test_any_flipped_byte_gives_members_or_one_clear_line(tar, draw):
    data = bytearray(tar([("a.jpg", b"1" * 40), (LONG, b"2" * 600), ("c.cls", b"3")], tarfile.PAX_FORMAT))
    for place in draw.draw(st.lists(st.integers(0, 5000), min_size=1, max_size=3)):
        data[place] = draw.draw(st.integers(0, 255))
    with suppress(ShardError):
        for each in walked(bytes(data)):
            assert each.offset + each.size <= len(data)
