"""One error root. A refusal asks the caller to change the request, a transient error to try later, an integrity
error stops whoever sees it.

Constructor arguments equal ``args``: Ray and multiprocessing rebuild errors with ``type(e)(*e.args)``.
"""


class PlatformError(Exception):
    """Root of every error that Tenantry raises on purpose."""

    code = "platform_error"
    retryable = False


class Refusal(PlatformError):
    """The request can't be granted as it is; nothing was written."""

    code = "refused"
    retry_after_s: float | None = None


class InvalidCommandError(Refusal):
    """The command is malformed or breaks a rule that doesn't depend on state."""

    code = "invalid_request"


class NotFoundError(Refusal):
    code = "not_found"

    def __init__(self, kind: str, name: str) -> None:
        super().__init__(kind, name)
        self.kind, self.name = kind, name

    def __str__(self) -> str:
        return f"{self.kind} {self.name!r} does not exist"


class AlreadyExistsError(Refusal):
    code = "already_exists"

    def __init__(self, kind: str, name: str) -> None:
        super().__init__(kind, name)
        self.kind, self.name = kind, name

    def __str__(self) -> str:
        return f"{self.kind} {self.name!r} exists already"


class KeyRefusedError(Refusal):
    """The API key is unknown, revoked or wrong. Which of them is not said: it would help who guesses."""

    code = "invalid_api_key"

    def __str__(self) -> str:
        return "the API key is not valid: check it, or have a new one issued with `tenantry key issue TENANT`"


class BudgetExceededError(Refusal):
    """A budget can't cover the call's maximum cost. Amounts in nano-USD; ``subject`` is whose budget: the tenant's, or
    that of a key or user.
    """

    code = "budget_exceeded"

    def __init__(self, needed_nano_usd: int, left_nano_usd: int, window: str, subject: str) -> None:
        super().__init__(needed_nano_usd, left_nano_usd, window, subject)
        self.needed_nano_usd, self.left_nano_usd = needed_nano_usd, left_nano_usd
        self.window, self.subject = window, subject

    def __str__(self) -> str:
        needed, left = self.needed_nano_usd / 1e9, self.left_nano_usd / 1e9
        return (
            f"this call may cost up to {needed:.9f} USD and {left:.9f} USD of the budget "
            f"({self.subject}, {self.window}) are free: "
            "lower max_tokens, wait for running calls to settle, or raise the budget"
        )


class ForbiddenError(Refusal):
    """The key is good, and may not do this."""

    code = "forbidden"


class TenantSuspendedError(Refusal):
    """An operator has suspended the tenant; its keys are told so, nobody else."""

    code = "tenant_suspended"

    def __str__(self) -> str:
        return "this tenant is suspended: its operator can resume it with `tenantry tenant resume`"


class ModelNotAllowedError(Refusal):
    """The key is limited to some models."""

    code = "model_not_allowed"

    def __init__(self, model: str, allowed: tuple[str, ...]) -> None:
        super().__init__(model, allowed)
        self.model, self.allowed = model, allowed

    def __str__(self) -> str:
        return f"this key may not use the model {self.model!r}, only {', '.join(self.allowed)}"


class LimitExceededError(Refusal):
    """A limit of the tenant, a user or a key (``subject``) is used up; the same call is granted after the wait, unless
    another one comes first. Each resource has a code of its own.
    """

    code = "rate_limit_exceeded"
    retry_after_s: float

    def __init__(self, subject: str, resource: str, limit: int, window_s: int, retry_after_s: float) -> None:
        super().__init__(subject, resource, limit, window_s, retry_after_s)
        self.subject, self.resource, self.limit = subject, resource, limit
        self.window_s, self.retry_after_s = window_s, retry_after_s
        self.code = {"requests": "rate_limit_exceeded"}.get(resource, f"{resource}_limit_exceeded")

    def __str__(self) -> str:
        allowed = f"{self.limit} at a time" if self.resource == "concurrency" else f"{self.limit} per {self.window_s} s"
        return f"the limit of {self.subject} is reached ({self.resource}: {allowed}): retry after {self.retry_after_s:.3g} s"


class CommandIdReusedError(Refusal):
    """One command id, two different bodies."""

    code = "idempotency_mismatch"

    def __init__(self, command_id: str) -> None:
        super().__init__(command_id)
        self.command_id = command_id

    def __str__(self) -> str:
        return f"command id {self.command_id!r} was used before with another body: use a new Idempotency-Key"


class TooLargeError(Refusal):
    code = "too_large"

    def __init__(self, what: str, size: int, limit: int) -> None:
        super().__init__(what, size, limit)
        self.what, self.size, self.limit = what, size, limit

    def __str__(self) -> str:
        return f"{self.what} is {self.size}, the limit is {self.limit}"


class OverloadedError(Refusal):
    """The tenant's mailbox is full: its callers outrun its log."""

    code = "rate_limited"

    def __init__(self, tenant: str, waiting: int, retry_after_s: float = 1.0) -> None:
        super().__init__(tenant, waiting, retry_after_s)
        self.tenant, self.waiting, self.retry_after_s = tenant, waiting, retry_after_s

    def __str__(self) -> str:
        return (
            f"tenant {self.tenant!r} has {self.waiting} commands waiting already: retry after {self.retry_after_s:g} s"
        )


class QueueFullError(Refusal):
    """The tenant's queue holds as many commands as it may: they are told faster than they are decided."""

    code = "rate_limited"
    retry_after_s = 5.0

    def __init__(self, tenant: str, waiting: int) -> None:
        super().__init__(tenant, waiting)
        self.tenant, self.waiting = tenant, waiting

    def __str__(self) -> str:
        return (
            f"tenant {self.tenant!r} has {self.waiting} commands queued already, which is its limit: "
            f"retry after {self.retry_after_s:g} s"
        )


class TransientError(PlatformError):
    """Nothing is wrong with the request: try later."""

    code = "unavailable"
    retryable = True


class StoreUnavailableError(TransientError):
    code = "store_unavailable"


class BusUnavailableError(TransientError):
    code = "bus_unavailable"


class NotServedError(TransientError):
    """No actor owns the tenant, and none could be activated in time."""

    code = "tenant_unavailable"

    def __init__(self, tenant: str, reason: str, retry_after_s: float | None = None) -> None:
        super().__init__(tenant, reason, retry_after_s)
        self.tenant, self.reason, self.retry_after_s = tenant, reason, retry_after_s

    def __str__(self) -> str:
        return f"tenant {self.tenant!r} has no running actor: {self.reason}"


class UnservableError(NotServedError):
    """No actor may own the tenant before a person has looked: to try later changes nothing."""

    code = "tenant_unservable"
    retryable = False

    def __init__(self, tenant: str, reason: str) -> None:
        super().__init__(tenant, reason)
        self.args = (tenant, reason)


class TenantCrashedError(TransientError):
    """A defect ended the tenant's activation: its supervisor tries again later, and not for ever."""

    code = "tenant_crashed"


class OutcomeUnknownError(TransientError):
    """The command may or may not have happened. Sending it again with the same command id is safe."""

    code = "outcome_unknown"

    def __init__(self, tenant: str, command_id: str) -> None:
        super().__init__(tenant, command_id)
        self.tenant, self.command_id = tenant, command_id

    def __str__(self) -> str:
        return (
            f"tenant {self.tenant!r} did not answer command {self.command_id!r} in time: it may have happened; "
            "repeat it with the same Idempotency-Key to learn which"
        )


class WrongExpectedPositionError(PlatformError):
    """The log is not where the writer believes it is."""

    code = "wrong_expected_position"
    retryable = True

    def __init__(self, tenant: str, detail: str) -> None:
        super().__init__(tenant, detail)
        self.tenant, self.detail = tenant, detail

    def __str__(self) -> str:
        return f"log of tenant {self.tenant!r}: {self.detail}"


class IntegrityError(PlatformError):
    """What is stored contradicts itself or the code: stop, and let a person look."""

    code = "integrity"


class FencedError(IntegrityError):
    """A newer activation owns the tenant."""

    code = "fenced"

    def __init__(self, tenant: str, epoch: int, detail: str) -> None:
        super().__init__(tenant, epoch, detail)
        self.tenant, self.epoch, self.detail = tenant, epoch, detail

    def __str__(self) -> str:
        return f"epoch {self.epoch} of tenant {self.tenant!r} is over: {self.detail}"


class TenantClosedError(IntegrityError):
    """The log takes no more events (halted or erased)."""

    code = "tenant_closed"


class TenantErasedError(TenantClosedError):
    """The tenant's personal data was destroyed on purpose; its log stays closed for ever."""

    code = "tenant_erased"


class KeyUnreadableError(IntegrityError):
    """Sealed data can't be opened: its key is not there, can't be unwrapped, or is another one."""

    code = "key_unreadable"

    def __init__(self, tenant: str, detail: str) -> None:
        super().__init__(tenant, detail)
        self.tenant, self.detail = tenant, detail

    def __str__(self) -> str:
        return (
            f"sealed data of tenant {self.tenant!r} can't be opened: {self.detail}. "
            "Restore the vault, or set TENANTRY_MASTER_KEY to the key that was used"
        )


class ChainBrokenError(IntegrityError):
    """An event's hash does not follow from its bytes and the hash before it."""

    code = "chain_broken"

    def __init__(self, tenant: str, position: int, detail: str) -> None:
        super().__init__(tenant, position, detail)
        self.tenant, self.position, self.detail = tenant, position, detail

    def __str__(self) -> str:
        return f"log of tenant {self.tenant!r} is broken at position {self.position}: {self.detail}"


class UnknownEventError(IntegrityError):
    """An event type that this code has never heard of: an older release reads a newer log."""

    code = "unknown_event"

    def __init__(self, type_tag: str) -> None:
        super().__init__(type_tag)
        self.type_tag = type_tag

    def __str__(self) -> str:
        return f"event type {self.type_tag!r} is unknown here: this release is older than the log, upgrade it"


class LogRewoundError(IntegrityError):
    """The store holds less of a log than was acknowledged: an old copy came back, or a failover lost the end."""

    code = "log_rewound"

    def __init__(self, tenant: str, acknowledged: int, found: int) -> None:
        super().__init__(tenant, acknowledged, found)
        self.tenant, self.acknowledged, self.found = tenant, acknowledged, found

    def __str__(self) -> str:
        return (
            f"the store has lost acknowledged events of tenant {self.tenant!r}: position {self.acknowledged} was "
            f"acknowledged, the log agrees up to {self.found}. Restore the store's newest files; or, where they are gone "
            f"for good, accept the loss with `tenantry tenant resume {self.tenant} --accept-loss`"
        )


class StoreMismatchError(IntegrityError):
    """The store was created with another layout than this process is configured for."""

    code = "store_mismatch"


class CommandRefusedError(Refusal):
    """A refusal as it came back over the wire: code and message are the tenant's own."""

    def __init__(self, code: str, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(code, message, retry_after_s)
        self.code, self.message, self.retry_after_s = code, message, retry_after_s

    def __str__(self) -> str:
        return self.message


class CommandFailedError(PlatformError):
    """A failure as it came back over the wire; nothing was written."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, message)
        self.code, self.message = code, message

    def __str__(self) -> str:
        return self.message


class RunClosedError(Refusal):
    """The run is not in a state in which that can be done."""

    code = "run_closed"

    def __init__(self, run_id: str, why: str) -> None:
        super().__init__(run_id, why)
        self.run_id, self.why = run_id, why

    def __str__(self) -> str:
        return f"run {self.run_id!r}: {self.why}"


class TooManyRunsError(Refusal):
    """The tenant has as many open runs as it may."""

    code = "too_many_runs"
    retryable = True

    def __init__(self, count: int, limit: int) -> None:
        super().__init__(count, limit)
        self.count, self.limit = count, limit
        self.retry_after_s = 10.0

    def __str__(self) -> str:
        return f"{self.count} runs are open, the limit is {self.limit}: wait for some to end, or cancel some"


class NotPlacedError(Refusal):
    """What was asked of the supervisor about nodes and actors can't be done as things are."""

    code = "not_placed"
