"""What a link says of a broker, in the words of the command line that gave it its account."""

from __future__ import annotations

from hfl_mqtt.ops.watch import in_options
from hfl_mqtt.transport.link import Account

OPEN = Account(host="h", port=1883, user="viewer")


def test_who_gave_no_password_is_told_which_option_gives_it() -> None:
    reason = (
        "the broker at h:1883 refuses 'viewer': Not authorized; "
        "check user name and password here and in the broker's password file, then reload the broker"
    )
    assert in_options(OPEN, reason) == (
        "the broker at h:1883 refuses 'viewer': Not authorized; no password was given: give --password-file or "
        "--password-env, and --user where the account has another name"
    )
    account = Account(host="h", port=1883, user="viewer", password="guessed")
    assert in_options(account, reason) == reason


def test_keys_of_a_configuration_are_said_as_options() -> None:
    reason = "the broker at h:8884 refuses 'viewer': it asks for a certificate; set broker.tls.cert_file and key_file"
    assert in_options(OPEN, reason).endswith("it asks for a certificate; give --cert and --key")
    reason = "does this port want TLS? Then its configuration here needs broker.tls"
    assert in_options(OPEN, reason) == "does this port want TLS? Then give --ca"
    assert in_options(OPEN, "self signed; check ca_file and this clock") == "self signed; check --ca and this clock"
