"""Every fact that can go wrong, named once.

::

    OutcropError
    ├── BadSetting                     a flag, variable or file holds a value that stops the start
    └── ServiceError                   answered to a caller; each dialect has one table from fact to wire
        ├── Refused                    the caller got it wrong; asking again changes nothing
        │   ├── InvalidRequest
        │   │   ├── MalformedBody
        │   │   ├── MalformedPolicy
        │   │   ├── PromptTooLong
        │   │   └── ChatTemplateMissing
        │   ├── BodyTooLarge
        │   ├── NotAuthenticated       MissingCredentials, UnknownCredentials, BadSignature,
        │   │                          IncompleteSignature, ExpiredCredentials
        │   │                          IdentityTokenRefused, ExpiredIdentityToken
        │   ├── NotAllowed
        │   ├── NotFound               JobNotFound, ModelNotFound, ResourceNotFound, PolicyNotFound, NoSuchEntity
        │   ├── NameTaken              EntityExists
        │   ├── ModelInUse, EngineMissing, JobEnded, DeleteConflict
        │   ├── QuotaExceeded          LimitExceeded
        │   ├── TooManyTags
        │   ├── SourceRefused          SourceMissing, SourceDenied, SourceChanged
        │   └── UnknownOperation
        ├── Passing                    will pass if retried: ModelNotReady, Throttled, ShuttingDown
        └── Faulty                     what the engine or the machine did: EngineFault (KeyUnavailable), EngineTimeout,
                                       StorageFull, SourceUnavailable, ServiceFault

No class knows HTTP: the tables are in ``api/``, read along the class tree (``wire_error``), and a test fails when
an error has no row. Messages name the thing, the value and the remedy.
"""

from __future__ import annotations


class OutcropError(Exception):
    """Base of everything this project raises on purpose."""


class BadSetting(OutcropError):
    """A setting has a value that cannot be used; the message names setting, value and range."""


class ServiceError(OutcropError):
    """A fact that a caller is told about."""

    @property
    def message(self) -> str:
        return str(self.args[0]) if self.args else type(self).__name__


class Refused(ServiceError):
    """The caller got it wrong; the same request will be refused again."""


class InvalidRequest(Refused):
    """A value breaks a rule of the API; *param* is the field of the request that holds it, where there is one."""

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class MalformedBody(InvalidRequest):
    """The body is not what its content type says, for example not JSON."""


class MalformedPolicy(InvalidRequest):
    """A policy document does not follow the grammar of its kind."""


class PromptTooLong(InvalidRequest):
    """Prompt and requested output do not fit the model's context."""


class ChatTemplateMissing(InvalidRequest):
    """Messages were sent to a model that was imported without a chat template."""


class BodyTooLarge(Refused):
    """The request body exceeds the service's limit."""


class NotAuthenticated(Refused):
    """Who is asking could not be established."""


class MissingCredentials(NotAuthenticated):
    """Neither a signature nor a key was sent."""


class IncompleteSignature(NotAuthenticated):
    """The Authorization header lacks a part or does not parse."""


class UnknownCredentials(NotAuthenticated):
    """The access key or bearer key is not known here, or is disabled."""


class BadSignature(NotAuthenticated):
    """The signature does not match the request."""


class ExpiredCredentials(NotAuthenticated):
    """The signature's date is outside the window, or the key has expired."""


class IdentityTokenRefused(NotAuthenticated):
    """The token of an identity provider proves nothing here."""


class ExpiredIdentityToken(IdentityTokenRefused):
    """The token of an identity provider has expired."""


class NotAllowed(Refused):
    """The principal is known but may not do this."""


class NotFound(Refused):
    """The thing named in the request does not exist."""


class JobNotFound(NotFound):
    """No import job of this account has this ARN or name."""


class ModelNotFound(NotFound):
    """No imported model of this account has this ARN or name."""


class ResourceNotFound(NotFound):
    """No taggable resource has this ARN."""


class PolicyNotFound(NotFound):
    """The resource has no policy of its own."""


class NoSuchEntity(NotFound):
    """No user, role, key or policy of this name exists in the account."""


class NameTaken(Refused):
    """A job or model of that name exists in this account and region."""


class EntityExists(NameTaken):
    """A user, a role or an account of that name exists."""


class DeleteConflict(Refused):
    """A user or a role still has keys or policies."""


class ModelInUse(Refused):
    """The model cannot be changed while something depends on it."""


class EngineMissing(Refused):
    """The model is kept, but no engine of this installation serves it."""


class JobEnded(Refused):
    """The job is over, so there is nothing left to cancel."""


class QuotaExceeded(Refused):
    """An account limit is reached; the message names the quota and its value."""


class LimitExceeded(QuotaExceeded):
    """A user or a role would have more keys, tags or policy text than IAM allows."""


class TooManyTags(Refused):
    """A resource would have more tags than it may; carries the resource's ARN where it is known."""

    def __init__(self, message: str, *, resource_name: str | None = None) -> None:
        super().__init__(message)
        self.resource_name = resource_name


class SourceRefused(Refused):
    """The place that a checkpoint is to be read from is not usable as it is."""


class SourceMissing(SourceRefused):
    """No such bucket, prefix or object."""


class SourceDenied(SourceRefused):
    """The object store does not let these credentials read."""


class SourceChanged(SourceRefused):
    """An object was replaced while it was being imported, or its bytes are not those it is said to hold."""


class UnknownOperation(Refused):
    """The operation is not one that this service implements."""


class Passing(ServiceError):
    """Will pass if retried."""

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class ModelNotReady(Passing):
    """No copy is ready and the hold limit passed; a start goes on by itself."""


class Throttled(Passing):
    """A queue or a rate limit is full."""


class ShuttingDown(Passing):
    """The server is draining and takes no new work."""


class Faulty(ServiceError):
    """Not the caller's doing."""


class DependencyFailed(Faulty):
    """The model that an operation relies on failed."""


class EngineFault(Faulty):
    """The engine failed on a request; carries the engine's own status where there was one, and the model's name."""

    def __init__(self, message: str, *, engine_status: int | None = None, resource_name: str | None = None) -> None:
        super().__init__(message)
        self.engine_status = engine_status
        self.resource_name = resource_name


class KeyUnavailable(EngineFault):
    """The key that the model's weights are encrypted with is gone, disabled or another one."""


class EngineTimeout(Faulty):
    """The engine did not answer within the deadline.

    No EngineFault, on purpose: what a fault broke before its first byte is asked again on another copy, while here the
    caller's time is used up; AWS and OpenAI name the two apart as well.
    """


class StorageFull(Faulty):
    """No space is left, or the store cannot be written."""


class SourceUnavailable(Faulty):
    """The object store cannot be reached, or keeps failing."""


class ServiceFault(Faulty):
    """A defect of our own; the log has the traceback."""
