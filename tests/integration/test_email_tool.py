"""The email adapter against a real SMTP server that keeps what it took."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from actors.tools.adapter import ToolCall, ToolContext
from actors.tools.config import EmailConfig, ToolConfigBuilder, ToolConfigError
from actors.tools.email import EmailTool
from actors.tools.errors import ToolInputError, ToolOutcomeUnknownError, ToolRefusedError, ToolUnavailableError
from tests.kit.mail import PASSWORD, USER, Mailbox, running_mail_server, self_signed

CONTEXT = ToolContext("acme", "call-1")
MAIL: dict[str, Any] = {"to": ["ann@example.com"], "subject": "Your order 7", "text": "It is on its way.\n.\nReally."}


@pytest.fixture
async def mailbox() -> AsyncIterator[Mailbox]:
    async with running_mail_server() as running:
        yield running


def builder(port: int) -> ToolConfigBuilder[EmailConfig]:
    server = {"host": "127.0.0.1", "port": port, "security": "none"}
    return ToolConfigBuilder(EmailConfig, "mail").set(**server, sender="shop@example.com", sender_name="Shöp")


async def send(config: ToolConfigBuilder[EmailConfig], key: str = "order-7", **changes: Any) -> dict[str, Any]:
    call = ToolCall("mail", {**MAIL, **changes}, key)
    output: dict[str, Any] = (await EmailTool(config.build()).execute(call, CONTEXT)).output
    return output


async def test_a_mail_arrives_as_it_was_meant(mailbox: Mailbox) -> None:
    sent = await send(builder(mailbox.port), html="<p>Grüße</p>", subject="Grüße", reply_to="help@example.com")
    ((envelope, mail),) = mailbox.mails
    assert (envelope.mail_from, envelope.rcpt_tos) == ("shop@example.com", ["ann@example.com"])
    assert (mail["Subject"], mail["From"], mail["To"]) == ("Grüße", "Shöp <shop@example.com>", "ann@example.com")
    assert mail["Message-ID"] == sent["message_id"]
    text, html = mail.get_body(("plain",)), mail.get_body(("html",))
    assert text is not None
    assert html is not None
    assert text.get_content().splitlines() == MAIL["text"].splitlines()
    assert "Grüße" in html.get_content()


@pytest.mark.parametrize("fault", ["drop", 451])
async def test_a_repeat_under_the_same_key_is_one_mail_in_the_mailbox(mailbox: Mailbox, fault: int | str) -> None:
    mailbox.faults.append(fault)
    with pytest.raises((ToolOutcomeUnknownError, ToolUnavailableError)):
        await send(builder(mailbox.port))
    await send(builder(mailbox.port))
    await send(builder(mailbox.port))
    assert len(mailbox.delivered) == 1
    await send(builder(mailbox.port), "order-8")
    assert len(mailbox.delivered) == 2


async def test_an_answer_says_what_to_do_next(mailbox: Mailbox) -> None:
    mailbox.faults += [451, 554, "drop"]
    for expected in (ToolUnavailableError, ToolRefusedError, ToolOutcomeUnknownError):
        with pytest.raises(expected) as failure:
            await send(builder(mailbox.port))
        assert "127.0.0.1" not in str(failure.value)


async def test_recipients_that_are_refused_are_named_and_the_others_get_their_mail(mailbox: Mailbox) -> None:
    mailbox.refused = {"gone@example.com": 550}
    sent = await send(builder(mailbox.port), to=["ann@example.com", "gone@example.com"])
    assert sent["refused"] == ["gone@example.com"]
    assert mailbox.mails[0][0].rcpt_tos == ["ann@example.com"]
    with pytest.raises(ToolRefusedError):
        await send(builder(mailbox.port), to=["gone@example.com"])
    mailbox.refused = {"full@example.com": 452}
    with pytest.raises(ToolUnavailableError):
        await send(builder(mailbox.port), to=["full@example.com"])
    assert len(mailbox.mails) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"subject": "Hello\r\nBcc: everyone@example.com"},
        {"subject": "Hello\nBcc: everyone@example.com"},
        {"subject": "Hello\x00"},
        {"subject": "Hello\u2028Bcc: x"},
        {"to": ["ann@example.com\r\nRCPT TO:<evil@example.com>"]},
        {"to": ["ann@example.com>\r\nDATA"]},
        {"to": ["ann@example.com, evil@example.com"]},
        {"to": ["Ann <ann@example.com>"]},
        {"to": ["@example.com:ann@evil.example"]},
        {"to": ['"a b"@example.com']},
        {"to": []},
        {"to": ["nobody"]},
        {"reply_to": "help@example.com\nX-Evil: 1"},
        {"bcc": ["evil@example.com"]},
        {"text": "x" * 300_000},
    ],
)
async def test_no_header_and_no_command_can_be_smuggled_in(mailbox: Mailbox, changes: dict[str, Any]) -> None:
    with pytest.raises(ToolInputError):
        await send(builder(mailbox.port), **changes)
    assert not mailbox.mails


async def test_a_body_can_not_end_the_mail_and_begin_another(mailbox: Mailbox) -> None:
    smuggled = "Hi\r\n.\r\nMAIL FROM:<evil@example.com>\n.\nRCPT TO:<x@example.com>\r.\rDATA"
    await send(builder(mailbox.port), text=smuggled)
    ((envelope, _),) = mailbox.mails
    assert envelope.mail_from == "shop@example.com"


async def test_only_recipients_that_the_operator_allows(mailbox: Mailbox) -> None:
    config = builder(mailbox.port).set(allow_recipients=["*@example.com", "boss@partner.example"], recipients_max=2)
    await send(config, to=["Ann@EXAMPLE.com", "boss@partner.example"])
    for to in (["x@partner.example"], ["x@evilexample.com"], ["x@sub.example.com"], ["a@example.com"] * 3):
        with pytest.raises(ToolInputError):
            await send(config, to=to)
    assert len(mailbox.mails) == 1


async def test_starttls_with_a_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAIL_PASSWORD", PASSWORD)
    certificate = self_signed(tmp_path)
    async with running_mail_server(certificate) as mailbox:
        config = builder(mailbox.port).set(security="starttls", username=USER, password_env="MAIL_PASSWORD")
        with pytest.raises(ToolUnavailableError):  # an authority that nobody vouches for
            await send(config)
        config = config.set(ca_file=str(certificate))
        await send(config)
        assert (mailbox.was_encrypted, mailbox.users) == ([True], [USER])
        monkeypatch.setenv("MAIL_PASSWORD", "canary-password")
        with pytest.raises(ToolRefusedError) as refusal:
            await send(config)
        assert refusal.value.code == "credentials"
        assert "canary" not in repr(refusal.value)


async def test_a_server_without_starttls_gets_nothing_in_clear(mailbox: Mailbox) -> None:
    with pytest.raises(ToolUnavailableError):
        await send(builder(mailbox.port).set(security="starttls"))
    assert not mailbox.mails


async def test_tls_from_the_start(tmp_path: Path) -> None:
    certificate = self_signed(tmp_path)
    async with running_mail_server(certificate, implicit_tls=True) as mailbox:
        await send(builder(mailbox.port).set(security="tls", ca_file=str(certificate)))
        assert len(mailbox.mails) == 1


async def test_a_server_that_is_not_there_or_talks_nonsense_was_not_given_a_mail() -> None:
    async def nonsense(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"\x00\xffHTTP/1.1 200 OK\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(nonsense, "127.0.0.1", 0)
    for port in (1, server.sockets[0].getsockname()[1]):
        with pytest.raises(ToolUnavailableError) as failure:
            await send(builder(port))
        assert not failure.value.may_have_happened
    server.close()
    await server.wait_closed()


async def test_a_cancelled_mail_lets_go_of_its_connection(mailbox: Mailbox) -> None:
    mailbox.faults.append("hang")
    sending = asyncio.create_task(send(builder(mailbox.port)))
    await asyncio.wait_for(mailbox.hanging.wait(), 10)
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    await asyncio.wait_for(mailbox.was_left.wait(), 10)
    assert not mailbox.connections


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"username": "x"}, "go together"),
        ({"username": "x", "password_env": "Y", "security": "none"}, "tls or starttls only"),
        ({"sender": "nobody"}, "sender"),
        ({"pasword_env": "X"}, "did you mean 'password_env'"),
    ],
)
def test_a_configuration_that_can_not_work_says_why(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ToolConfigError, match=says):
        builder(25).set(**settings).build()
