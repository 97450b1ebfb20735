"""A bundle is the same bytes for the same files, and a hostile one gives nothing but a reason."""

import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hfl_mqtt.errors import ConfigError, Malformed, Misuse
from hfl_mqtt.fleet import bundle
from hfl_mqtt.protocol.limits import MAX_BUNDLE_FILE

FILES = {"agent.yaml": b"role: client\n", "node.key": b"secret", "ca.crt": b"", "revoked": b"x" * 1000}


def member(name: str = "agent.yaml", data: bytes = b"x", **attributes: object) -> bytes:
    """One header and its data, as `tar` would write it."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in attributes.items():
        setattr(info, key, value)
    return info.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % 512)


END = bytes(1024)


def tar(directory: Path, *arguments: str) -> None:
    """The system's own."""
    subprocess.run(["tar", *arguments], cwd=directory, check=True)  # noqa: S607


def test_it_comes_back_and_is_the_same_bytes_whatever_the_order() -> None:
    packed = bundle.pack(FILES)
    assert bundle.unpack(packed) == FILES
    assert bundle.pack(dict(reversed(FILES.items()))) == packed
    assert list(bundle.unpack(packed)) == ["agent.yaml", "ca.crt", "node.key", "revoked"]


def test_it_says_nothing_of_when_and_by_whom_it_was_made() -> None:
    with tarfile.open(fileobj=io.BytesIO(bundle.pack(FILES))) as members:
        for info in members:
            assert (info.mtime, info.uid, info.gid, info.uname, info.gname, info.mode) == (0, 0, 0, "", "", 0o600)


def test_a_bundle_that_somebody_made_with_tar_is_one_too(tmp_path: Path) -> None:
    for name in ("agent.yaml", "node.card"):
        (tmp_path / name).write_text(name)
    for form in ("gnu", "ustar", "v7"):
        tar(tmp_path, f"--format={form}", "-cf", "x.tar", "node.card", "agent.yaml")
        assert bundle.read(tmp_path / "x.tar") == {"agent.yaml": b"agent.yaml", "node.card": b"node.card"}


def test_what_is_nothing_for_a_bundle_is_not_packed() -> None:
    with pytest.raises(Misuse, match=r"'ca\.key' with 1 bytes is nothing for a bundle"):
        bundle.pack({"ca.key": b"x"})
    with pytest.raises(Misuse, match="with 1000001 bytes"):
        bundle.pack({"revoked": bytes(MAX_BUNDLE_FILE + 1)})


@pytest.mark.parametrize(
    "name",
    [
        "../agent.yaml",
        "/etc/passwd",
        "./agent.yaml",
        "x/../agent.yaml",
        "AGENT.YAML",
        "agent.yaml/",
        "agent.yaml\n",
        "",
        ".",
        "ca.key",
        "a" * 99,
        "agent\u0301.yaml",
        "\x1b[2Jagent.yaml",
    ],
)
def test_a_name_that_is_none_of_its_own_is_refused_and_shown_harmless(name: str) -> None:
    with pytest.raises(Malformed, match=r"is none of its names|is no regular file") as caught:
        bundle.unpack(member(name) + END)
    assert str(caught.value).isprintable()


def test_a_path_hidden_in_the_prefix_is_part_of_the_name() -> None:
    info = tarfile.TarInfo("agent.yaml")
    header = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    header[345:348] = b"../"
    header[148:156] = b"%06o\0 " % (sum(header[:148]) + 8 * 32 + sum(header[156:]))
    with pytest.raises(Malformed, match=r"'\.\.//agent\.yaml' is none of its names"):
        bundle.unpack(bytes(header) + END)


@pytest.mark.parametrize("kind", list(b"1234567gxLKSMDVNXA"))
def test_links_folders_devices_and_extensions_of_the_format_are_refused(kind: int) -> None:
    with pytest.raises(Malformed, match=r"'agent\.yaml' is no regular file but a link, a folder, a device or an ext"):
        bundle.unpack(member(type=bytes([kind]), linkname="/etc/shadow") + END)


def test_a_sparse_file_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "revoked").open("wb") as stream:
        stream.truncate(10**9)
    for form in ("gnu", "posix"):
        tar(tmp_path, f"--format={form}", "-cSf", "x.tar", "revoked")
        with pytest.raises(ConfigError, match="is no regular file"):
            bundle.read(tmp_path / "x.tar")


@pytest.mark.parametrize("size", [MAX_BUNDLE_FILE + 1, 8**11 - 1, 2**62, -1, -512])
def test_a_size_is_judged_before_anything_is_taken_for_it(size: int) -> None:
    with pytest.raises(Malformed, match=rf"agent\.yaml has {size} bytes, and at most 1000000 are allowed"):
        bundle.unpack(member(size=size) + END)


def test_the_same_name_twice_is_refused() -> None:
    with pytest.raises(Malformed, match=r"agent\.yaml stands in it twice"):
        bundle.unpack(member() + member() + END)


def test_what_ends_early_goes_on_behind_its_end_or_is_empty_is_refused() -> None:
    whole = member(data=b"x" * 513)
    for cut in (1, 511, 512, 1024):
        with pytest.raises(Malformed, match=r"not a tar|it ends within"):
            bundle.unpack(whole[:cut])
    with pytest.raises(Malformed, match="not a tar: "):
        bundle.unpack(whole)  # no end
    with pytest.raises(Malformed, match="something stands behind its end"):
        bundle.unpack(whole + END + member("node.key"))
    with pytest.raises(Malformed, match="it is empty"):
        bundle.unpack(END)
    with pytest.raises(Malformed, match="not a tar: "):
        bundle.unpack(b"")


def test_what_is_packed_is_not_unpacked(tmp_path: Path) -> None:
    (tmp_path / "agent.yaml").write_text("x")
    tar(tmp_path, "-czf", "x.tar", "agent.yaml")
    with pytest.raises(ConfigError, match=r"x\.tar: is no bundle: not a tar: .*; nothing was unpacked"):
        bundle.read(tmp_path / "x.tar")


def test_an_endless_file_is_not_read_to_its_end() -> None:
    with pytest.raises(ConfigError, match=r"/dev/zero: is no bundle: more than 9\d+ bytes"):
        bundle.read(Path("/dev/zero"))


@given(st.binary(max_size=2000))
@example(b"\x80" * 512)
@example(b"agent.yaml" + bytes(502))
def test_junk_is_malformed_and_nothing_else(data: bytes) -> None:
    with pytest.raises(Malformed):
        bundle.unpack(data)


@given(st.integers(0, 511), st.binary(min_size=1, max_size=12), st.booleans())
def test_a_header_with_anything_changed_gives_its_files_or_malformed(at: int, junk: bytes, is_summed: bool) -> None:
    packed = bytearray(member(data=b"data") + END)
    packed[at : min(at + len(junk), 512)] = junk[: 512 - at]
    if is_summed:
        packed[148:156] = b"%06o\0 " % (sum(packed[:148]) + 8 * 32 + sum(packed[156:512]))
    try:
        files = bundle.unpack(bytes(packed))
    except Malformed:
        return
    assert files.keys() <= set(bundle.NAMES)


@given(st.dictionaries(st.sampled_from(bundle.NAMES), st.binary(max_size=1500), min_size=1))
def test_any_files_come_back(files: dict[str, bytes]) -> None:
    assert bundle.unpack(bundle.pack(files)) == files


def test_the_files_that_it_writes_are_for_their_owner_only_and_a_key_is_left(tmp_path: Path) -> None:
    home = tmp_path / "etc" / "hfl"
    home.mkdir(parents=True)
    (home / "node.key").write_text("its own")
    (home / "agent.yaml").write_text("old")
    bundle.write(tmp_path / "x.tar", {"agent.yaml": b"new", "node.card": b"card"})
    assert bundle.unpack_to(tmp_path / "x.tar", home) == ["agent.yaml", "node.card"]
    assert {path.name: path.read_text() for path in home.iterdir()} == {
        "agent.yaml": "new",
        "node.card": "card",
        "node.key": "its own",
    }
    assert (home / "node.card").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "x.tar").stat().st_mode & 0o777 == 0o600


def test_it_does_not_write_through_a_link_that_lies_there(tmp_path: Path) -> None:
    home, victim = tmp_path / "home", tmp_path / "victim"
    home.mkdir()
    victim.write_text("mine")
    (home / "agent.yaml").symlink_to(victim)
    (home / ".agent.yaml.tmp").symlink_to(victim)
    bundle.write(tmp_path / "x.tar", {"agent.yaml": b"new"})
    bundle.unpack_to(tmp_path / "x.tar", home)
    assert victim.read_text() == "mine"
    assert not (home / "agent.yaml").is_symlink()


def script(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "hfl_mqtt.fleet.bundle", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "COLUMNS": "200"},
    )


def test_the_command_unpacks_lists_and_refuses(tmp_path: Path) -> None:
    bundle.write(tmp_path / "x.tar", FILES)
    listed = script("list", tmp_path / "x.tar")
    assert (listed.returncode, listed.stdout) == (0, "agent.yaml\nca.crt\nnode.key\nrevoked\n")
    unpacked = script("unpack", tmp_path / "x.tar", tmp_path / "home")
    assert (unpacked.returncode, unpacked.stdout, unpacked.stderr) == (0, listed.stdout, "")
    assert (tmp_path / "home" / "node.key").read_bytes() == b"secret"
    (tmp_path / "bad.tar").write_bytes(member() + member("../x") + END)
    refused = script("unpack", tmp_path / "bad.tar", tmp_path / "other")
    assert refused.returncode == 2
    assert refused.stdout == ""
    assert refused.stderr.count("\n") == 1
    assert "bad.tar: is no bundle: '../x' is none of its names" in refused.stderr
    assert not (tmp_path / "other").exists()
    assert script().returncode == 2


def test_the_command_needs_no_library_for_certificates_and_none_for_tensors() -> None:
    code = (
        "import sys, hfl_mqtt.fleet.bundle; "
        "sys.exit(str({'cryptography', 'nacl', 'numpy', 'torch', 'pydantic'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr == "set()\n"
