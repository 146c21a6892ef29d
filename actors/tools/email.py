"""Mail through an SMTP server. A repeat carries the same Message-ID, so that mailboxes show it once.

SMTP itself has no idempotency: a server that said yes just before the line broke sends a repeat again (RFC 5321, 6.1).
The Message-ID is derived from the idempotency key, which is what receivers and mail stores recognise a duplicate by.
"""

import logging
import os
import ssl
from email.message import EmailMessage
from email.utils import formataddr, formatdate
from typing import Annotated, Any, ClassVar

import aiosmtplib
from pydantic import BaseModel, Field

from actors.tools.adapter import ToolAdapter, ToolCall, ToolContext
from actors.tools.config import Address, EmailConfig, Line
from actors.tools.errors import (
    ToolError,
    ToolInputError,
    ToolOutcomeUnknownError,
    ToolRefusedError,
    ToolUnavailableError,
)
from events.ids import derived_id

log = logging.getLogger(__name__)

_PERMANENT = 500


class Mail(BaseModel, extra="forbid", frozen=True):
    to: Annotated[tuple[Address, ...], Field(min_length=1)]
    subject: Line
    text: str
    html: str | None = None
    reply_to: Address | None = None


class EmailTool(ToolAdapter[EmailConfig]):
    """One connection per mail: mail is rare, and a connection that lay idle is the one that breaks."""

    config_type: ClassVar[Any] = EmailConfig
    input_type: ClassVar[Any] = Mail

    def check(self, call: ToolCall) -> None:
        mail = self.parse(Mail, call)
        if len(mail.to) > self.config.recipients_max:
            raise ToolInputError(call.tool, f"{len(mail.to)} recipients, at most {self.config.recipients_max} at once")
        for address in mail.to:
            if self.config.allow_recipients and not any(_matches(address, p) for p in self.config.allow_recipients):
                raise ToolInputError(call.tool, f"{call.tool!r} does not write to every address, and not to this one")
        if len(mail.text.encode()) + len((mail.html or "").encode()) > self.config.body_bytes_max:
            raise ToolInputError(call.tool, f"a body of more than {self.config.body_bytes_max} bytes")

    def repeats_safely(self, call: ToolCall) -> bool:
        return True

    async def _execute_tool(self, call: ToolCall, context: ToolContext) -> dict[str, Any]:
        mail = self.parse(Mail, call)
        message = self._message(mail, call, context)
        smtp = self._client()
        try:
            await self._connect(smtp, call)
            refused = await self._envelope(smtp, mail, call)
            await self._send(smtp, message, call)
            return {"message_id": str(message["Message-ID"]), "refused": refused}
        finally:
            smtp.close()  # at once, cancelled or not: QUIT is a courtesy that could block

    async def _connect(self, smtp: aiosmtplib.SMTP, call: ToolCall) -> None:
        try:
            await smtp.connect()
            if self.config.username and self.config.password_env:
                await smtp.login(self.config.username, os.environ.get(self.config.password_env, ""))
        except aiosmtplib.SMTPAuthenticationError as error:
            raise ToolRefusedError(call.tool, "the mail server refused our credentials", "credentials") from error
        except (aiosmtplib.SMTPException, ssl.SSLError, OSError, ValueError) as error:
            log.warning("email.unreachable tool=%s: %s", call.tool, error)
            message = f"no connection to the mail server: {type(error).__name__}"
            raise ToolUnavailableError(call.tool, message) from error

    async def _envelope(self, smtp: aiosmtplib.SMTP, mail: Mail, call: ToolCall) -> list[str]:
        """Who it is for. Nothing is sent before DATA. Returns the recipients that the server won't have."""
        refused: dict[str, int] = {}
        try:
            await smtp.mail(self.config.sender)
            for address in mail.to:
                try:
                    await smtp.rcpt(address)
                except aiosmtplib.SMTPRecipientRefused as error:
                    refused[address] = error.code
        except aiosmtplib.SMTPResponseException as error:
            raise _answered(call, error.code) from error
        except (aiosmtplib.SMTPException, OSError) as error:
            raise ToolUnavailableError(call.tool, "the mail server broke off before the mail") from error
        if len(refused) == len(mail.to):
            raise _answered(call, min(refused.values()))
        return sorted(refused)

    async def _send(self, smtp: aiosmtplib.SMTP, message: EmailMessage, call: ToolCall) -> None:
        try:
            await smtp.data(message.as_bytes())
        except aiosmtplib.SMTPResponseException as error:
            raise _answered(call, error.code) from error
        except (aiosmtplib.SMTPException, OSError) as error:
            raise ToolOutcomeUnknownError(call.tool, "the mail server broke off: it may have been sent") from error

    def _client(self) -> aiosmtplib.SMTP:
        tls = self.config.security
        return aiosmtplib.SMTP(
            hostname=self.config.host,
            port=self.config.port,
            use_tls=tls == "tls",
            start_tls=tls == "starttls",
            tls_context=None if tls == "none" else ssl.create_default_context(cafile=self.config.ca_file),
            timeout=None,  # the time-out policy cancels us
            local_hostname="tenantry",
        )

    def _message(self, mail: Mail, call: ToolCall, context: ToolContext) -> EmailMessage:
        domain = self.config.sender.rpartition("@")[2]
        message = EmailMessage()
        message["Message-ID"] = f"<{derived_id(context.tenant, call.tool, call.idempotency_key)}@{domain}>"
        message["Date"] = formatdate(usegmt=True)
        message["From"] = formataddr((self.config.sender_name, self.config.sender))
        message["To"] = ", ".join(mail.to)
        message["Subject"] = mail.subject
        if mail.reply_to is not None:
            message["Reply-To"] = mail.reply_to
        message.set_content(mail.text)
        if mail.html is not None:
            message.add_alternative(mail.html, subtype="html")
        return message


def _answered(call: ToolCall, code: int) -> ToolError:
    """4xx is for now, 5xx for good (RFC 5321, 4.2.1)."""
    if code >= _PERMANENT:
        return ToolRefusedError(call.tool, f"the mail server answered {code}", f"smtp_{code}")
    return ToolUnavailableError(call.tool, f"the mail server answered {code}", f"smtp_{code}")


def _matches(address: str, pattern: str) -> bool:
    if pattern.startswith("*@"):
        return address.lower().endswith(pattern[1:].lower())
    return address.lower() == pattern.lower()
