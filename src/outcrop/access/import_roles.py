"""Import jobs read buckets as the role that they were given, and with nothing else.

Bedrock, as a service, assumes the role for one job: the trust policy has to let it, with ``aws:SourceAccount`` and
``aws:SourceArn`` of that job. What the session may read is decided by the role's policies and, in another account's
bucket, by that bucket's policy too.
"""

from __future__ import annotations

import time

from outcrop.access.authorizer import Authorizer, Origin
from outcrop.access.directory import Directory
from outcrop.access.identities import Principal, Reader, Session
from outcrop.access.sessions import session_arn
from outcrop.errors import NotAllowed, SourceDenied
from outcrop.ids import import_job_arn

SERVICE = "bedrock.amazonaws.com"
SESSION_S = 3600


class ImportRoles:
    """Makes readers of buckets for import jobs."""

    def __init__(self, directory: Directory, authorizer: Authorizer, *, region: str) -> None:
        self._directory = directory
        self._authorizer = authorizer
        self._region = region

    def reader(self, account: str, job_id: str, role_arn: str) -> Reader:
        """What *role_arn* may read for a job of *account*. Raises SourceDenied when it cannot be assumed."""
        role, job_arn = self._directory.role(role_arn), import_job_arn(self._region, account, job_id)
        if role is None:
            raise SourceDenied(
                f"Could not assume the role {role_arn}: it does not exist. Create it (aws iam create-role) or give "
                "another roleArn."
            )
        context = self._authorizer.circumstances(Origin())
        context |= {
            "aws:sourceaccount": account,
            "aws:sourcearn": job_arn,
            "aws:principalisawsservice": "true",
            "aws:principalservicename": SERVICE,
        }
        if not self._authorizer.is_trusted(role.compiled_trust, context, service=SERVICE):
            raise SourceDenied(
                f"Could not assume the role {role_arn}: its trust policy does not let {SERVICE} assume it for account "
                f"{account} and {job_arn}. Allow sts:AssumeRole to that service."
            )
        now, name = time.time(), f"outcrop-{job_id}"
        session = Session(session_name=name, role_arn=role.arn, issued_at=now, expires_at=now + SESSION_S)
        principal = Principal(role.account, session_arn(role.account, role.name, name), role.identity_id, session)

        def may(action: str, bucket: str, key: str) -> None:
            owned = self._directory.bucket(bucket)
            resource = f"arn:aws:s3:::{bucket}" + (f"/{key}" if action == "s3:GetObject" else "")
            facts: dict[str, str | list[str]] = {"s3:prefix": key} if action == "s3:ListBucket" else {}
            try:
                self._authorizer.check(
                    principal, action, resource, Origin(), owner=owned.account, policy=owned.policy, facts=facts
                )
            except NotAllowed as exc:
                raise SourceDenied(exc.message) from exc

        return may
