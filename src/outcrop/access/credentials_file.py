"""``credentials.json``, 0600: what clients on this machine need. Every command reads it, so it stands apart from the
directory and its database.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
from dataclasses import asdict, dataclass, field
from pathlib import Path

from outcrop.errors import BadSetting

FILE = "credentials.json"
ADMINISTRATOR = "admin"
IMPORT_ROLE = "outcrop-import"


@dataclass(frozen=True, slots=True)
class Credentials:
    """What ``outcrop env`` prints and the server checks against."""

    account: str
    region: str
    user_arn: str
    import_role_arn: str
    access_key_id: str
    secret_access_key: str = field(repr=False)
    bearer_key: str = field(repr=False)


def load_or_create(home: Path, account: str, region: str) -> Credentials:
    """The credentials of *home*, made on the first start; starts at the same time agree on one file."""
    path = home / FILE
    if not path.exists():
        fresh = Credentials(
            account=account,
            region=region,
            user_arn=f"arn:aws:iam::{account}:user/{ADMINISTRATOR}",
            import_role_arn=f"arn:aws:iam::{account}:role/{IMPORT_ROLE}",
            access_key_id="AKIA" + base64.b32encode(secrets.token_bytes(10)).decode(),
            secret_access_key=secrets.token_urlsafe(30),
            bearer_key="oc-" + secrets.token_urlsafe(32),
        )
        part = home / f"{FILE}.{os.getpid()}.{secrets.token_hex(4)}"
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump(asdict(fresh), file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        try:
            path.hardlink_to(part)  # fails when another start was first, whose file then counts
        except FileExistsError:
            pass
        finally:
            part.unlink()
    return read(home)


def read(home: Path) -> Credentials:
    """The credentials in *home*. Raises BadSetting when the file is absent, open to others or broken."""
    path = home / FILE
    try:
        if path.stat().st_mode & 0o077:
            raise BadSetting(f"{path} can be read by others; make it private: chmod 600 {path}")
        return Credentials(**json.loads(path.read_text()))
    except FileNotFoundError as exc:
        raise BadSetting(f"{path} does not exist; start a server once (outcrop serve) to make it.") from exc
    except (OSError, ValueError, TypeError) as exc:
        raise BadSetting(f"{path} cannot be read: {exc}. Restore it, or remove it to get new keys.") from exc
