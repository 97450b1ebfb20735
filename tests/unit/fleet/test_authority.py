"""The fleet's authority: what it gives holds for OpenSSL and for our nodes, and a crash leaves nothing half done."""

import json
import shutil
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from hfl_mqtt.errors import ConfigError, HflError, Misuse
from hfl_mqtt.fleet.authority import Authority, Papers
from hfl_mqtt.fleet.book import Kind
from hfl_mqtt.fleet.certificates import revocations_in, serial_of
from hfl_mqtt.trust.cards import Card, read_card, read_revoked
from hfl_mqtt.trust.keys import PrivateKey

#: 2026-01-01.
NOW_S = 1_767_225_600
DAY_S = 86400
YEAR_S = 365 * DAY_S
PI_1, PI_2 = "cloud/farm-a/pi-1", "cloud/farm-a/pi-2"


class Clock:
    """A clock that stands until it is set."""

    def __init__(self) -> None:
        self.now_s = float(NOW_S)

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "site" / "authority"


@pytest.fixture
def authority(folder: Path, clock: Clock) -> Authority:
    return Authority.create(folder, "fed1", clock=clock)


def certificate(papers: Papers) -> x509.Certificate:
    return x509.load_pem_x509_certificate(papers.certificate.encode())


def verdict(folder: Path, papers: Papers, *options: str) -> str:
    """What OpenSSL says of a certificate, with its strict checks and our list of revoked ones."""
    options = (
        "-x509_strict",
        "-crl_check",
        "-CRLfile",
        str(folder / "crl.pem"),
        "-CAfile",
        str(folder / "ca.crt"),
        *options,
    )
    done = subprocess.run(
        ["openssl", "verify", *options],  # noqa: S607
        input=papers.certificate,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout + done.stderr


def test_all_its_files_are_for_their_owner_only(authority: Authority, folder: Path) -> None:
    authority.issue("node", PI_1)
    authority.revoke(PI_1)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == dict.fromkeys(
        ["ca.crt", "ca.key", "crl.pem", "fleet.key", "issued.json", "revoked"], 0o600
    )


def test_a_node_has_one_key_for_tls_and_for_what_it_signs(authority: Authority) -> None:
    papers = authority.issue("node", PI_1, days=30)
    key = PrivateKey.from_pem(papers.key)
    assert certificate(papers).public_key().public_bytes_raw().hex() == key.public  # type: ignore[union-attr]
    assert read_card(papers.card, authority.fleet_key) == Card(
        federation="fed1", path=PI_1, key=key.public, serial=papers.serial, not_after=NOW_S + 30 * DAY_S
    )
    assert certificate(papers).serial_number == int(papers.serial)
    assert certificate(papers).not_valid_after_utc.timestamp() == NOW_S + 30 * DAY_S


@pytest.mark.parametrize(
    ("kind", "path", "name", "usage"),
    [
        ("node", PI_1, PI_1, ExtendedKeyUsageOID.CLIENT_AUTH),
        ("bridge", "cloud/farm-a", "_bridge/cloud/farm-a", ExtendedKeyUsageOID.CLIENT_AUTH),
        ("broker", "cloud/farm-a", "broker cloud/farm-a", ExtendedKeyUsageOID.SERVER_AUTH),
    ],
)
def test_each_kind_has_its_name_and_its_one_use(
    authority: Authority, kind: Kind, path: str, name: str, usage: x509.ObjectIdentifier
) -> None:
    found = certificate(authority.issue(kind, path))
    assert [each.value for each in found.subject.get_attributes_for_oid(NameOID.COMMON_NAME)] == [name]
    assert list(found.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [usage]
    assert authority.issued[-1].subject == name


def test_openssl_takes_all_of_them_at_any_time_from_1970_on_and_refuses_them_when_they_are_over(
    authority: Authority, folder: Path
) -> None:
    for kind, purpose in (("node", "sslclient"), ("bridge", "sslclient"), ("broker", "sslserver")):
        papers = authority.issue(kind, "cloud/farm-a", hosts=["farm-a.local"] if kind == "broker" else ())  # type: ignore[arg-type]
        for when_s in (1, NOW_S, NOW_S + 2 * YEAR_S - 1):
            assert verdict(folder, papers, "-attime", str(when_s), "-purpose", purpose) == "stdin: OK\n"
        assert "certificate has expired" in verdict(folder, papers, "-attime", str(NOW_S + 2 * YEAR_S))
        other = "sslserver" if purpose == "sslclient" else "sslclient"
        assert "certificate purpose" in verdict(folder, papers, "-purpose", other)


def test_a_broker_is_found_under_its_hosts_and_under_localhost(authority: Authority, folder: Path) -> None:
    papers = authority.issue("broker", "cloud", hosts=["cloud.example", "10.0.0.7", "fd00::1", "127.0.0.1"])
    for host in (["-verify_hostname", "cloud.example"], ["-verify_hostname", "localhost"]):
        assert "OK" in verdict(folder, papers, *host)
    for address in ("10.0.0.7", "fd00::1", "127.0.0.1", "::1"):
        assert "OK" in verdict(folder, papers, "-verify_ip", address)
    assert "hostname mismatch" in verdict(folder, papers, "-verify_hostname", "farm-a.local")


def test_who_is_revoked_stands_in_both_lists_and_the_others_do_not(authority: Authority, folder: Path) -> None:
    lost, good = authority.issue("node", PI_1), authority.issue("node", PI_2)
    assert [one.serial for one in authority.revoke(PI_1)] == [lost.serial]
    assert "certificate revoked" in verdict(folder, lost, "-attime", "1")
    assert "OK" in verdict(folder, good)
    revoked = read_revoked(authority.revoked_text, authority.fleet_key)
    assert (revoked.federation, revoked.serials) == ("fed1", frozenset([lost.serial]))
    assert [one.revoked_at_s for one in authority.issued] == [NOW_S, None]


def test_a_path_is_revoked_with_all_its_kinds_and_only_nodes_have_cards_to_revoke(
    authority: Authority, folder: Path
) -> None:
    kinds: tuple[Kind, ...] = ("node", "bridge", "broker")
    papers = [authority.issue(kind, "cloud/farm-a") for kind in kinds]
    assert len(authority.revoke("cloud/farm-a")) == 3
    assert all("certificate revoked" in verdict(folder, each) for each in papers)
    assert read_revoked(authority.revoked_text, authority.fleet_key).serials == {papers[0].serial}


def test_what_is_revoked_can_be_narrowed_to_the_old_ones_and_to_a_kind(authority: Authority) -> None:
    old, new = authority.issue("node", "cloud/farm-a"), authority.issue("node", "cloud/farm-a")
    authority.issue("bridge", "cloud/farm-a")
    assert [one.serial for one in authority.revoke("cloud/farm-a", keep=new.serial, kinds=["node"])] == [old.serial]
    assert authority.revoke("cloud/farm-a", keep=new.serial, kinds=["node"]) == ()


def test_revoking_nothing_changes_nothing(authority: Authority) -> None:
    before = authority.crl_pem, authority.revoked_text
    assert authority.revoke(PI_1) == ()
    assert (authority.crl_pem, authority.revoked_text) == before


def test_the_lists_number_only_grows_even_where_a_backup_was_restored(
    authority: Authority, folder: Path, clock: Clock
) -> None:
    def number() -> int:
        return read_revoked(authority.revoked_text, authority.fleet_key).number

    for path in (PI_1, PI_2, "cloud/farm-a/pi-3"):
        authority.issue("node", path)
    backup = (folder / "issued.json").read_bytes()
    numbers = [number()]
    for path in (PI_1, PI_2):  # within one second
        authority.revoke(path)
        numbers.append(number())
    (folder / "issued.json").write_bytes(backup)
    clock.now_s += 60
    authority.revoke("cloud/farm-a/pi-3")
    numbers.append(number())
    assert numbers == [NOW_S, NOW_S + 1, NOW_S + 2, NOW_S + 60]


def test_no_papers_outlive_the_authority(authority: Authority, clock: Clock) -> None:
    clock.now_s += 9 * YEAR_S
    papers = authority.issue("node", PI_1)
    assert certificate(papers).not_valid_after_utc.timestamp() == authority.ca_not_after_s == NOW_S + 3652 * DAY_S


def test_a_certificates_serial_is_read_from_its_file(authority: Authority, tmp_path: Path) -> None:
    papers = authority.issue("node", PI_1)
    path = tmp_path / "node.crt"
    path.write_text(papers.certificate)
    assert serial_of(path) == papers.serial
    path.write_text("junk")
    assert serial_of(path) is None
    assert serial_of(tmp_path / "gone") is None


def test_opened_again_it_is_the_same(authority: Authority, folder: Path, clock: Clock) -> None:
    authority.issue("node", PI_1)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    again = Authority.open(folder, clock=clock)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert (again.federation, again.fleet_key, again.ca_pem) == ("fed1", authority.fleet_key, authority.ca_pem)
    assert again.issued == authority.issued


@pytest.mark.parametrize("lost", [("crl.pem",), ("revoked",), ("crl.pem", "revoked")])
@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_text("junk")])
def test_a_crash_between_the_book_and_its_lists_is_made_good_at_the_next_start(
    authority: Authority, folder: Path, clock: Clock, lost: tuple[str, ...], damage: Callable[[Path], object]
) -> None:
    papers = authority.issue("node", PI_1)
    authority.revoke(PI_1)
    for name in lost:
        damage(folder / name)
    again = Authority.open(folder, clock=clock)
    assert "certificate revoked" in verdict(folder, papers)
    assert read_revoked(again.revoked_text, again.fleet_key).serials == {papers.serial}


def test_lists_of_before_a_revocation_are_renewed_when_the_folder_is_opened(
    authority: Authority, folder: Path, clock: Clock
) -> None:
    old = {name: (folder / name).read_bytes() for name in ("crl.pem", "revoked")}
    papers = authority.issue("node", PI_1)
    authority.revoke(PI_1)
    for name, data in old.items():
        (folder / name).write_bytes(data)
    Authority.open(folder, clock=clock)
    assert "certificate revoked" in verdict(folder, papers)


def test_a_list_is_renewed_long_before_it_ends(authority: Authority, folder: Path, clock: Clock) -> None:
    first = authority.crl_pem
    clock.now_s += 4 * YEAR_S
    assert Authority.open(folder, clock=clock).crl_pem == first
    clock.now_s += 2 * YEAR_S
    again = Authority.open(folder, clock=clock).crl_pem
    until = x509.load_pem_x509_crl(again.encode()).next_update_utc
    assert until is not None
    assert until.timestamp() == clock.now_s + 3652 * DAY_S


def test_a_disk_that_fails_leaves_the_old_book_and_gives_no_papers(authority: Authority, folder: Path) -> None:
    authority.issue("node", PI_1)
    before = (folder / "issued.json").read_bytes()
    (folder / ".issued.json.tmp").mkdir()  # nothing can be written in its place
    with pytest.raises(HflError, match=r"issued\.json: cannot be written"):
        authority.issue("node", PI_2)
    with pytest.raises(HflError, match=r"issued\.json: cannot be written"):
        authority.revoke(PI_1)
    assert (folder / "issued.json").read_bytes() == before
    assert read_revoked(authority.revoked_text, authority.fleet_key).serials == frozenset()


def test_two_at_once_lose_nothing(authority: Authority, folder: Path, clock: Clock) -> None:
    other = Authority.open(folder, clock=clock)
    threads = [
        threading.Thread(target=lambda one=one, n=n: [one.issue("node", f"cloud/f{n}/d{i}") for i in range(10)])
        for n, one in enumerate((authority, other))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(authority.issued) == 20


def test_a_folder_that_is_taken_away_is_an_error_that_says_so(authority: Authority, folder: Path) -> None:
    folder.rename(folder.with_name("elsewhere"))
    with pytest.raises(HflError, match="authority: cannot be written: No such file or directory"):
        authority.issue("node", PI_1)


#: Papers come and go, and each is said once it holds.
BUSY = """
import sys
from pathlib import Path
from hfl_mqtt.fleet.authority import Authority
authority = Authority.open(Path(sys.argv[1]))
while True:
    for name in "ab":
        print(authority.issue("node", f"cloud/{name}").serial, flush=True)
    print("revoked", *[one.serial for one in authority.revoke("cloud/a")], flush=True)
"""


@pytest.mark.parametrize("lines", [1, 2, 3, 10])
def test_killed_at_any_moment_what_it_said_holds_and_its_lists_are_those_of_its_book(
    authority: Authority, folder: Path, clock: Clock, lines: int
) -> None:
    busy = subprocess.Popen([sys.executable, "-c", BUSY, str(folder)], stdout=subprocess.PIPE, text=True)
    with busy:
        assert busy.stdout is not None
        said = [busy.stdout.readline().split() for _ in range(lines)]
        busy.kill()
        said += [line.split() for line in busy.stdout.read().splitlines()]
    again = Authority.open(folder, clock=clock)
    gone = {one.serial for one in again.issued if not one.is_live}
    assert {words[0] for words in said if words[0] != "revoked"} <= {one.serial for one in again.issued}
    assert {serial for words in said if words[0] == "revoked" for serial in words[1:]} <= gone
    assert read_revoked(again.revoked_text, again.fleet_key).serials == gone
    assert revocations_in(again.crl_pem)[1] == {int(serial) for serial in gone}


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("irk"), st.sampled_from([PI_1, PI_2])), max_size=12))
def test_whatever_is_issued_and_revoked_both_lists_say_what_the_book_says(acts: list[tuple[str, str]]) -> None:
    with TemporaryDirectory() as home:
        authority = Authority.create(Path(home) / "authority", "fed1", clock=Clock())
        live: dict[str, list[str]] = {PI_1: [], PI_2: []}
        gone: set[str] = set()
        for act, path in acts:
            if act == "i":
                live[path].append(authority.issue("node", path).serial)
                continue
            keep = live[path][-1] if live[path] and act == "k" else None
            revoked = {one.serial for one in authority.revoke(path, keep=keep)}
            assert revoked == {serial for serial in live[path] if serial != keep}
            gone |= revoked
            live[path] = [keep] if keep else []
        assert read_revoked(authority.revoked_text, authority.fleet_key).serials == gone
        assert revocations_in(authority.crl_pem)[1] == {int(serial) for serial in gone}
        assert {one.serial for one in authority.issued if one.is_live} == {*live[PI_1], *live[PI_2]}


def test_one_authority_is_never_made_in_the_place_of_another(authority: Authority, folder: Path, clock: Clock) -> None:
    before = (folder / "ca.key").read_bytes()
    with pytest.raises(HflError, match=r"is there already; a fleet has one authority for good"):
        Authority.create(folder, "fed1", clock=clock)
    assert (folder / "ca.key").read_bytes() == before


def test_where_it_cannot_be_made_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(HflError, match="a file stands where a directory should be"):
        Authority.create(tmp_path / "file" / "authority", "fed1")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_clock_that_is_not_set_dates_no_papers(authority: Authority, tmp_path: Path, clock: Clock) -> None:
    clock.now_s = 5.0
    for act in (
        lambda: authority.issue("node", PI_1),
        lambda: authority.revoke(PI_1),
        lambda: Authority.create(tmp_path / "x", "fed1", clock=clock),
    ):
        with pytest.raises(
            HflError, match="this machine's clock says a year before 2025; set it before papers are dat"
        ):
            act()


@pytest.mark.parametrize("name", ["ca.key", "fleet.key", "issued.json"])
def test_what_others_may_read_is_refused_until_it_is_put_right(authority: Authority, folder: Path, name: str) -> None:
    (folder / name).chmod(0o644)
    with pytest.raises(ConfigError, match=rf"{name}: others on this machine may read it; chmod 600"):
        Authority.open(folder)
    (folder / name).chmod(0o600)
    Authority.open(folder)


@pytest.mark.parametrize("name", ["ca.key", "ca.crt", "fleet.key", "issued.json"])
@pytest.mark.parametrize("damage", ["gone", "empty", "junk", "another's"])
def test_a_damaged_folder_is_an_error_that_names_it_and_shows_no_secret(
    authority: Authority, folder: Path, tmp_path: Path, clock: Clock, name: str, damage: str
) -> None:
    path = folder / name
    if damage == "gone":
        path.unlink()
    elif damage == "another's" and name in ("ca.key", "ca.crt"):
        Authority.create(tmp_path / "other", "fed1", clock=clock)
        shutil.copy(tmp_path / "other" / name, path)
    else:
        path.write_text("" if damage == "empty" else '{"federation": "fed1", "number": "s3cret"')
    with pytest.raises(
        ConfigError, match=r"authority.*(from its backup|the backup of the authority's folder)$"
    ) as caught:
        Authority.open(folder, clock=clock).federation  # noqa: B018
    assert "s3cret" not in str(caught.value)


def test_no_secret_shows_in_what_is_printed(authority: Authority) -> None:
    papers = [authority.issue("node", PI_1), authority.issue("broker", "cloud")]
    shown = f"{authority!r} {authority} {papers!r} {authority.issued!r} {vars(authority)}"
    assert "PRIVATE" not in shown
    for each in papers:
        assert each.key.splitlines()[1] not in shown


@pytest.mark.parametrize(
    ("kind", "path", "hosts", "match"),
    [
        ("node", "cloud/../x", (), "is no path"),
        ("node", "_bridge/cloud", (), "is no path"),
        ("node", "cloud/" + "p" * 59, (), "has 65 characters, and a certificate's name at most 64; give the place or"),
        ("bridge", "cloud/" + "p" * 51, (), "has 65 characters"),
        ("broker", "cloud", ("a b",), "neither a host's name nor an address; correct host: in the site file"),
        ("broker", "cloud", ("*.example",), "neither a host's name nor an address"),
        ("broker", "cloud", ("",), "neither a host's name nor an address"),
    ],
)
def test_what_cannot_stand_in_a_certificate_is_refused_and_not_in_the_book(
    authority: Authority, kind: Kind, path: str, hosts: tuple[str, ...], match: str
) -> None:
    with pytest.raises(HflError, match=match):
        authority.issue(kind, path, hosts=hosts)
    assert authority.issued == ()


def test_days_are_some_and_a_key_is_a_nodes(authority: Authority) -> None:
    with pytest.raises(HflError, match="papers last 1 to 36500 days, not 0"):
        authority.issue("node", PI_1, days=0)
    with pytest.raises(Misuse, match="not a node with 64 hex digits"):
        authority.issue("bridge", PI_1, public_key="aa" * 32)
    with pytest.raises(Misuse, match="not a node with 64 hex digits"):
        authority.issue("node", PI_1, public_key="AA" * 32)


def test_the_book_has_no_secret_and_says_what_a_certificate_says(authority: Authority, folder: Path) -> None:
    papers = authority.issue("broker", "cloud", hosts=["cloud.example"])
    assert json.loads((folder / "issued.json").read_text()) == {
        "version": 1,
        "federation": "fed1",
        "number": NOW_S,
        "issued": [
            {
                "serial": papers.serial,
                "kind": "broker",
                "path": "cloud",
                "key": "",
                "hosts": ["cloud.example"],
                "issued_at_s": NOW_S,
                "not_after_s": NOW_S + 730 * DAY_S,
            }
        ],
    }
