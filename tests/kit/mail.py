"""A real SMTP server (aiosmtpd) in this loop, which keeps what it took, and misbehaves where told."""

import asyncio
import datetime as dt
import ipaddress
import ssl
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from pathlib import Path
from typing import Any

from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

USER, PASSWORD = "tenantry", "kept-secret"


class Mailbox:
    """``mails``: every mail that was taken, in order. ``delivered``: what a mailbox would show, one per Message-ID.

    ``faults``: what the next mails get instead of 250, one each: an SMTP status, ``drop`` (taken, no answer), ``hang``.
    """

    def __init__(self) -> None:
        self.mails: list[tuple[Envelope, EmailMessage]] = []
        self.faults: deque[int | str] = deque()
        self.refused: dict[str, int] = {}
        self.port = 0
        self.connections: set[asyncio.BaseTransport] = set()
        self.was_encrypted: list[bool] = []
        self.users: list[str] = []
        self.hanging = asyncio.Event()
        self.was_left = asyncio.Event()

    @property
    def delivered(self) -> dict[str, EmailMessage]:
        return {mail["Message-ID"]: mail for _, mail in self.mails}

    async def handle_RCPT(  # noqa: N802 - aiosmtpd's name
        self, _server: SMTP, _session: Session, envelope: Envelope, address: str, _options: Any
    ) -> str:
        if address in self.refused:
            return f"{self.refused[address]} not here"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802
        fault = self.faults.popleft() if self.faults else None
        if isinstance(fault, int):
            return f"{fault} told to"
        content = envelope.original_content
        assert content is not None
        mail = message_from_bytes(content, policy=default)
        assert isinstance(mail, EmailMessage)
        self.mails.append((envelope, mail))
        self.was_encrypted.append(session.ssl is not None)
        if fault == "drop":
            assert server.transport is not None
            server.transport.abort()  # type: ignore[attr-defined]
        if fault == "hang":
            self.hanging.set()
            await asyncio.Event().wait()
        return "250 taken"

    def authenticate(self, _server: SMTP, _session: Session, _envelope: Envelope, _kind: str, data: Any) -> AuthResult:
        assert isinstance(data, LoginPassword)
        good = data.login == USER.encode() and data.password == PASSWORD.encode()
        if good:
            self.users.append(data.login.decode())
        return AuthResult(success=good, handled=False)


class _Connection(SMTP):
    """Tells the mailbox about its transport, so that a test sees that none is left."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.event_handler.connections.add(transport)
        super().connection_made(transport)

    def connection_lost(self, error: Exception | None) -> None:
        self.event_handler.connections.discard(self.transport)
        self.event_handler.was_left.set()
        super().connection_lost(error)


@asynccontextmanager
async def running_mail_server(certificate: Path | None = None, *, implicit_tls: bool = False) -> AsyncIterator[Mailbox]:
    """With a ``certificate`` (of ``self_signed``) it speaks STARTTLS and asks for a password, or TLS from the start."""
    mailbox, context = Mailbox(), None
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
    starts_tls = context is not None and not implicit_tls

    def connection() -> SMTP:
        return _Connection(
            mailbox,
            hostname="mail.test",
            tls_context=context if starts_tls else None,
            require_starttls=starts_tls,
            auth_required=starts_tls,
            authenticator=mailbox.authenticate,
            loop=asyncio.get_running_loop(),
        )

    server = await asyncio.get_running_loop().create_server(
        connection, "127.0.0.1", 0, ssl=context if implicit_tls else None
    )
    mailbox.port = server.sockets[0].getsockname()[1]
    try:
        yield mailbox
    finally:
        server.close()
        for transport in set(mailbox.connections):
            transport.abort()  # type: ignore[attr-defined]
        await server.wait_closed()


def self_signed(directory: Path) -> Path:
    """A certificate for 127.0.0.1 and its key, in one PEM file; it is its own authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(minutes=5))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    written = directory / "certificate.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    written.write_bytes(private + certificate.public_bytes(serialization.Encoding.PEM))
    return written
