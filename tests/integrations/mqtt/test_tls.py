"""`mqtts://`: a certificate is checked, and an untrusted one is refused with the reason."""

import datetime
import ipaddress
import secrets

import pytest

pytest.importorskip("paho.mqtt.client", reason="needs streammem[mqtt]")
x509 = pytest.importorskip(
    "cryptography.x509", reason="makes the certificates: pip install cryptography"
)

from cryptography.hazmat.primitives import hashes, serialization  # noqa: E402
from cryptography.hazmat.primitives.asymmetric import ec  # noqa: E402
from cryptography.x509.oid import NameOID  # noqa: E402

from streammem.integrations.mqtt.broker import Broker  # noqa: E402
from streammem.integrations.mqtt.link import Link, Message, Outbox  # noqa: E402
from tests.integrations.mqtt.brokers import ANYONE, MOSQUITTO, RunningBroker, listener, until  # noqa: E402

pytestmark = pytest.mark.skipif(not MOSQUITTO, reason="needs mosquitto, which speaks TLS")
WILL = Message("home/hall/status", "offline", retain=True)
HELLO = Message("home/hall/status", "online", retain=True)
TODAY = datetime.datetime.now(datetime.UTC)


class Authority:
    """Signs certificates of brokers."""

    def __init__(self):
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, secrets.token_hex(4))])
        self._own = self._signed(self._name, self._key, x509.BasicConstraints(True, 0))

    def write(self, folder):
        """Write its own certificate; give the path."""
        path = folder / "authority.pem"
        path.write_bytes(self._own.public_bytes(serialization.Encoding.PEM))
        return path

    def issue(self, folder, address="127.0.0.1", days=1):
        """Write the key and certificate of a broker; return mosquitto's options for them."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "broker")])
        alternative = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))])
        certificate = self._signed(name, key, alternative, days)
        (folder / "broker.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        (folder / "broker.key").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        paths = f"certfile {folder / 'broker.pem'}\nkeyfile {folder / 'broker.key'}\n"
        return f"{ANYONE}user root\n{paths}"

    def _signed(self, name, key, extension, days=1):
        began = TODAY - datetime.timedelta(days=9)
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(began)
            .not_valid_after(TODAY + datetime.timedelta(days=days))
            .add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
            .sign(self._key, hashes.SHA256())
        )


def over_tls(port):
    return Broker.of(f"mqtts://127.0.0.1:{port}")


def test_events_reach_a_broker_whose_certificate_is_trusted(tmp_path, monkeypatch):
    authority, outbox = Authority(), Outbox()
    running = RunningBroker("mosquitto", tmp_path, authority.issue(tmp_path))
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.write(tmp_path)))
    running.start()
    link = Link(over_tls(running.port), WILL, [HELLO], outbox, pytest.fail)
    try:
        with listener(running.port, "home/#", tls=True) as came:
            outbox.put(Message("home/hall/alert/a-dog", "seen"), alert=True)
            until(lambda: link.step(0.01) and not link.undelivered)
            assert [came()[:2] for _ in range(2)] == [HELLO[:2], ("home/hall/alert/a-dog", "seen")]
            link.finish(WILL, 5)
            assert came()[:2] == WILL[:2]
    finally:
        running.kill()


@pytest.mark.parametrize(
    ("certificate", "trusts", "why"),
    [
        ({}, False, "unable to get local issuer"),
        ({"address": "127.0.0.9"}, True, "ip address mismatch"),
        ({"days": -1}, True, "expired"),
    ],
)
def test_an_untrusted_certificate_is_reported_once_and_nothing_is_sent(
    tmp_path, monkeypatch, certificate, trusts, why
):
    authority, told, outbox = Authority(), [], Outbox()
    running = RunningBroker("mosquitto", tmp_path, authority.issue(tmp_path, **certificate))
    trusted = authority if trusts else Authority()
    monkeypatch.setenv("SSL_CERT_FILE", str(trusted.write(tmp_path)))
    running.start()
    try:
        link = Link(over_tls(running.port), WILL, [HELLO], outbox, told.append)
        outbox.put(HELLO)
        for _ in range(3):
            link._retry_at = 0
            assert not link.step(0.01)
    finally:
        running.kill()
    assert link.undelivered == 1 and not link.connected
    (line,) = told
    assert "not trusted" in line and why in line and "SSL_CERT_FILE" in line and "\n" not in line


def test_a_port_without_tls_is_reported_as_such(tmp_path):
    running, told = RunningBroker("mosquitto", tmp_path), []
    running.start()
    try:
        assert not Link(over_tls(running.port), WILL, [], Outbox(), told.append).step(0.01)
    finally:
        running.kill()
    assert len(told) == 1 and "over TLS" in told[0] and "check the port" in told[0]
