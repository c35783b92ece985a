"""Settings of one proxy container: flags over ``OUTCROP_PROXY_*`` over SageMaker's own variables over defaults."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from outcrop.errors import BadSetting

PREFIX = "OUTCROP_PROXY_"
# SageMaker's variable -> our field (aws/sagemaker-inference-toolkit, parameters.py).
SAGEMAKER = {
    "SAGEMAKER_MODEL_PATH": "model_dir",
    "SAGEMAKER_PROGRAM": "program",
    "SAGEMAKER_BIND_TO_PORT": "port",
    "SAGEMAKER_MODEL_SERVER_WORKERS": "workers",
    "SAGEMAKER_MODEL_SERVER_TIMEOUT": "timeout_s",
    "SAGEMAKER_MODEL_SERVER_TIMEOUT_SECONDS": "timeout_s",
    "SAGEMAKER_STARTUP_TIMEOUT": "startup_timeout_s",
    "SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT": "default_accept",
}
_LEVELS = {"10": "debug", "20": "info", "30": "warning", "40": "error", "50": "error"}


class ProxySettings(BaseSettings):
    """Immutable after the start."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid", protected_namespaces=())

    model_dir: Path = Field(
        default=Path("/opt/ml/model"), description="Folder of the bundle: the script and what it reads."
    )
    program: str = Field(
        default="", description="File name of the script, in the bundle or its code/; empty looks for it."
    )
    target: str = Field(
        min_length=1, max_length=2048, description="ARN or name of the imported model that calls are forwarded to."
    )
    endpoint_url: str | None = Field(
        default=None,
        pattern=r"^https?://[^/?#]+(/[^?#]*)?$",
        description="Base URL of the Bedrock runtime API. Unset: AWS's own, as its SDKs find it.",
    )
    region: str | None = Field(
        default=None, description="Region that calls are signed for; unset: as AWS's SDKs find it."
    )
    dialect: Literal["auto", "sagemaker", "huggingface", "djl", "mms", "class", "outcrop", "none"] = Field(
        default="auto", description="How the script wants to be run; auto tells by what it defines."
    )
    forward: Literal["always", "when-absent"] = Field(
        default="always",
        description="Whether the script's own load and predict are replaced by forwarding, or only absent ones.",
    )
    host: str = Field(
        default="0.0.0.0",  # noqa: S104  (the container contract; a platform's network stands in front)
        description="Address to listen on.",
    )
    port: int = Field(default=8080, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    key: SecretStr = Field(
        default=SecretStr(""),
        description="Bearer key that invocations and metrics must carry. Empty asks for none, as SageMaker's contract "
        "has it: the platform's network keeps others out.",
    )
    key_file: Path | None = Field(
        default=None, description="File that holds that key instead, so that it is in no environment."
    )
    workers: int = Field(
        default=0, ge=0, le=256, description="Processes that run the script; 0 takes one per core, at most 4."
    )
    threads: int = Field(
        default=64, ge=1, le=1024, description="Plain (not async) handlers that one worker runs at a time."
    )
    in_flight: int = Field(
        default=256, ge=1, le=65536, description="Invocations in one worker at a time; more wait in the front."
    )
    queue: int = Field(default=1024, ge=0, description="Invocations that wait in the front; one more is answered 503.")
    max_payload_bytes: int = Field(
        default=25 << 20, ge=1_000, description="Largest body of an invocation; over it 413."
    )
    timeout_s: float = Field(
        default=60.0, gt=0, le=86400, description="Time in s until an answer, or its first part, must be there."
    )
    stream_timeout_s: float = Field(
        default=480.0, gt=0, le=86400, description="Time in s until the last part of a stream must be there."
    )
    startup_timeout_s: float = Field(
        default=600.0, gt=0, le=86400, description="Time in s that a worker has to load the script."
    )
    hang_s: float = Field(
        default=5.0,
        gt=0,
        description="Time in s after its deadline within which a handler must have ended; then its worker is replaced.",
    )
    drain_s: float = Field(
        default=25.0, ge=0, description="Time in s that running invocations get at SIGTERM; SageMaker kills after 30."
    )
    worker_memory_bytes: int = Field(
        default=0,
        ge=0,
        description="Resident memory of a worker over which it is replaced; killed at one and a half of it. 0: any.",
    )
    ends_with_parent: bool = Field(
        default=False, description="Drain and end when the process that started the proxy dies (Linux)."
    )
    default_accept: str = Field(
        default="application/json", description="Type of an answer whose caller accepts anything."
    )
    tracebacks: bool = Field(
        default=False, description="Show the traceback of a failed handler to the caller, not its line alone."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least severity that is logged."
    )
    log_json: bool = Field(default=True, description="Log one JSON object a line instead of text for people.")

    def bearer_key(self) -> str:
        """The key that is asked for; empty for none. Raises BadSetting when its file cannot be read."""
        if self.key_file is None:
            return self.key.get_secret_value()
        try:
            return self.key_file.read_text().strip()
        except OSError as exc:
            raise BadSetting(f"{PREFIX}KEY_FILE={self.key_file} cannot be read: {exc.strerror}.") from exc

    @property
    def worker_count(self) -> int:
        return self.workers or min(4, len(os.sched_getaffinity(0)))


def load(environment: Mapping[str, str] | None = None, **flags: Any) -> ProxySettings:
    """Settings from *flags* (None means not given) and the environment. Raises BadSetting."""
    environment = os.environ if environment is None else environment
    given = {name: value for name, value in flags.items() if value is not None}
    if "SAGEMAKER_BASE_DIR" in environment:
        _default(given, environment, "model_dir", str(Path(environment["SAGEMAKER_BASE_DIR"]) / "model"))
    if "SAGEMAKER_MAX_PAYLOAD_IN_MB" in environment:
        megabytes = environment["SAGEMAKER_MAX_PAYLOAD_IN_MB"]
        if not megabytes.isdecimal():
            raise BadSetting(f"SAGEMAKER_MAX_PAYLOAD_IN_MB={megabytes}: must be a whole number of MiB.")
        _default(given, environment, "max_payload_bytes", int(megabytes) << 20)
    if "SAGEMAKER_CONTAINER_LOG_LEVEL" in environment:
        level = environment["SAGEMAKER_CONTAINER_LOG_LEVEL"].lower()
        _default(given, environment, "log_level", _LEVELS.get(level, level))
    for variable, name in SAGEMAKER.items():
        if environment.get(variable):
            _default(given, environment, name, environment[variable])
    try:
        return ProxySettings(**given)
    except ValidationError as exc:
        problems = "; ".join(
            f"{'.'.join(map(str, error['loc']))}: {error['msg']} ({PREFIX}{str(error['loc'][0]).upper()})"
            for error in exc.errors()
        )
        raise BadSetting(f"cannot start the proxy with these settings: {problems}") from exc


def _default(given: dict[str, Any], environment: Mapping[str, str], name: str, value: Any) -> None:
    if name not in given and PREFIX + name.upper() not in environment:
        given[name] = value
