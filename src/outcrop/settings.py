"""All configuration, read once: flags over ``OUTCROP_*`` variables over ``outcrop.toml`` over defaults.

Nothing else reads the environment. Every field says its unit and what happens at the ends of its range; the field
descriptions become ``docs/reference/settings.md``.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from outcrop.errors import BadSetting


class ObjectStore(BaseModel):
    """One S3-compatible store that import jobs may read. What is left out comes from the standard AWS chain."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    buckets: tuple[str, ...] = Field(
        default=("*",), min_length=1, description="Patterns of bucket names that live here; the first store wins."
    )
    endpoint: str | None = Field(
        default=None, pattern=r"^https?://[^/?#]+/?$", description="http(s)://host[:port]; without it AWS itself."
    )
    region: str | None = Field(default=None, description="Region that requests are signed for.")
    path_style: bool | None = Field(
        default=None, description="Bucket in the path, not in the host name; by default so when there is an endpoint."
    )
    profile: str | None = Field(default=None, description="Profile of the AWS configuration files to take keys from.")
    access_key_id: str | None = Field(default=None, description="Access key, with secret_access_key.")
    secret_access_key: SecretStr | None = Field(default=None, validate_default=True)
    session_token: SecretStr | None = None
    assume_role: bool = Field(
        default=False, description="Read as the job's roleArn, by AssumeRole; else with the store's own credentials."
    )
    sts_endpoint: str | None = Field(default=None, description="Where AssumeRole is asked; default: endpoint, or AWS.")
    ca_bundle: Path | None = Field(default=None, description="PEM file of the authority of an https endpoint.")

    @field_validator("secret_access_key")
    @classmethod
    def _has_its_key(cls, secret: SecretStr | None, info: Any) -> SecretStr | None:
        if (secret is None) != (info.data.get("access_key_id") is None):
            raise ValueError("access_key_id and secret_access_key go together")
        return secret


class OidcProvider(BaseModel):
    """One OpenID Connect provider whose tokens AssumeRoleWithWebIdentity takes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    issuer: str = Field(pattern=r"^https?://\S+$", description="The tokens' `iss`, exactly.")
    audiences: tuple[str, ...] = Field(min_length=1, description="Values of `aud` that are taken.")
    jwks: str = Field(description="File or http(s) address of the provider's public keys (a JWK set).")


class Simulated(BaseModel):
    """The simulated engine: takes an engine's time and computes nothing."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    calibration: str = Field(
        default="qwen2.5-14b-h200", description="Name of a calibration of the package, or path of a JSON file with one."
    )
    start_s: float | None = Field(
        default=None, ge=0, le=3600, description="Seconds that a start takes; default: the calibration's."
    )
    seed: int = Field(default=0, description="The same seed gives the same answers and lengths.")
    speedup: float = Field(
        default=1.0, gt=0, le=1000, description="How many times faster than the calibration all goes, starts included."
    )


class Settings(BaseSettings):
    """Settings of one server; immutable after the start."""

    model_config = SettingsConfigDict(env_prefix="OUTCROP_", frozen=True, extra="forbid", toml_file="outcrop.toml")

    home: Path = Field(
        default_factory=lambda: Path.home() / ".outcrop",
        description="Folder of the database, weight store, buckets, credentials and logs; made when absent.",
    )
    host: str = Field(default="127.0.0.1", description="Address to listen on.")
    port: int = Field(default=7070, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    tls: bool = Field(
        default=False,
        description="Serve HTTPS with a certificate of the installation's own authority, which is made on first use. "
        "boto3 sends a bearer key over HTTPS only.",
    )
    tls_certificate: Path | None = Field(
        default=None,
        description="PEM file of a certificate of your own, its chain behind it; with tls_key. Serves HTTPS. A changed "
        "file is loaded within ten seconds or at SIGHUP, and no connection is dropped.",
    )
    tls_key: Path | None = Field(default=None, description="PEM file of its key, mode 0600.")
    tls_authority: Path | None = Field(
        default=None,
        description="PEM file of the authority of that certificate, where clients do not trust it anyway: what "
        "`outcrop env` exports, and what commands and proxies on this machine go by.",
    )
    tls_names: list[str] = Field(
        default=[],
        description="Further host names and addresses in the certificate of the installation's own authority (JSON).",
    )
    header_bytes: int = Field(
        default=65_536, ge=4096, le=1 << 20, description="Bytes of all headers of one request; over it 431."
    )
    headers: int = Field(default=100, ge=20, le=1000, description="Headers of one request; one more gets 431.")
    header_timeout_s: float = Field(
        default=30.0, gt=0, description="Time in s that a client gets from a request's first byte to its last header."
    )
    idle_timeout_s: float = Field(
        default=75.0, gt=0, description="Time in s after which a connection without a request is closed."
    )
    client_stall_s: float = Field(
        default=120.0, gt=0, description="Time in s after which a client that takes nothing of its answer is left."
    )
    account: str = Field(default="000000000000", pattern=r"^[0-9]{12}$", description="Account id made at first start.")
    region: str = Field(
        default="us-east-1", pattern=r"^[a-z0-9-]{1,20}$", description="Region this server answers for."
    )
    secret_key_file: Path | None = Field(
        default=None,
        description="File with the key (32 bytes in base64, mode 0600) that secret access keys and session tokens are "
        "sealed with; every node needs the same one. Unset: `secret.key` of the home, made at the first start.",
    )
    oidc_providers: tuple[OidcProvider, ...] = Field(
        default=(),
        description="Identity providers for AssumeRoleWithWebIdentity (TOML: `[[oidc_providers]]`; variable: JSON): "
        "`issuer`, `audiences`, `jwks` (a file or an address). Every account's roles may trust them.",
    )
    log_level: str = Field(
        default="info", pattern="^(debug|info|warning|error)$", description="Least severity that is logged."
    )
    log_json: bool = Field(default=False, description="Log one JSON object a line instead of text for people.")

    slow_request_s: float = Field(
        default=5.0,
        ge=0,
        description="Wait in s for a copy, a slot or the first token from which a request is logged with where its "
        "time went; 0 logs every request. One that engine or server failed always is.",
    )
    request_records: int = Field(
        default=5000, ge=1, le=1_000_000, description="Records of ended requests kept in memory (about 1 kB each)."
    )
    request_log_bytes: int = Field(
        default=64 << 20,
        ge=0,
        description="Bytes of the files logs/requests.jsonl and .1, which keep more of them (`outcrop trace`); the "
        "oldest go first. 0 writes no file.",
    )
    audit: bool = Field(
        default=True,
        description="Record every call in the audit log (`outcrop audit`): who, from where, what, refused or not; "
        "never a prompt.",
    )
    audit_key_file: Path | None = Field(
        default=None,
        description="File of the audit log's key, 64 hexadecimal digits, mode 0600. Unset: audit.key of the home, made "
        "on first use. Kept elsewhere, a copy of the home cannot be used to forge the log.",
    )
    audit_file_bytes: int = Field(
        default=64 << 20, ge=10_000, description="Size in bytes from which a new file of the audit log is begun."
    )
    audit_keep_days: float = Field(
        default=90, ge=0, description="Days after which whole files of the audit log are removed; 0 keeps them."
    )
    audit_bytes: int = Field(
        default=10 << 30,
        ge=0,
        description="Bytes of the audit log from which the oldest files are removed earlier; 0 sets no limit.",
    )
    audit_strangers_per_s: float = Field(
        default=50,
        ge=0,
        description="Unauthenticated calls a second that are recorded one by one; more are added up by address once a "
        "minute, so that a flood pushes no other record out. 0 records all.",
    )
    trusted_proxies: list[str] = Field(
        default=[],
        description="Addresses or networks of proxies in front, whose `X-Forwarded-For` is believed (JSON: "
        '`["10.0.0.0/8"]`). Of all others the address is that of the connection.',
    )
    browser_origins: list[str] = Field(
        default=["*"],
        description="Origins of web pages whose scripts may call this server with a key of theirs (JSON: "
        '`["https://chat.example"]`); `*` is every one, as at AWS and OpenAI, `[]` none.',
    )
    invocation_log_bytes: int = Field(
        default=64 << 20,
        ge=0,
        description="Bytes of prompts and completions that may wait for the bucket of an account's invocation log "
        "(PutModelInvocationLoggingConfiguration); what does not fit is lost and counted, and no request waits.",
    )
    otlp_endpoint: str = Field(
        default="",
        pattern=r"^(https?://\S+)?$",
        description="Address of an OpenTelemetry collector that traces of requests are sent to, as OTLP over HTTP, for "
        "example `http://localhost:4318`. Needs the extra `otel`; the standard OTEL_EXPORTER_OTLP_HEADERS and "
        "_CERTIFICATE are obeyed. Empty: no traces, and no cost.",
    )
    otlp_sample: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="Share of the requests without a `traceparent` that are traced; a caller's own sampled flag is "
        "obeyed.",
    )

    max_body_bytes: int = Field(
        default=25_000_000, ge=1_000, description="Largest request body; over it the request is refused."
    )
    hold_limit_s: float = Field(
        default=55.0,
        ge=0,
        le=3600,
        description="Longest time in s that a request waits for a copy, then 429 ModelNotReadyException; "
        "0 answers at once. Default clients stop reading after 60 s.",
    )
    stream_hold_limit_s: float = Field(
        default=300.0,
        ge=0,
        le=3600,
        description="Longest time in s that a stream waits for a copy: it is opened with heartbeats that clients skip.",
    )
    heartbeat_s: float = Field(
        default=10.0,
        gt=0,
        le=50,
        description="A held stream is opened after this time in s, and sends a heartbeat this often. Until then a "
        "failure is a plain error, which clients retry.",
    )
    hold_queue_requests: int = Field(
        default=2048, ge=1, description="Requests held per model; one more gets 429 ThrottlingException."
    )
    hold_queue_bytes: int = Field(
        default=256_000_000, ge=1_000, description="Bytes of request bodies held per model; over it 429."
    )
    hold_queue_requests_per_principal: int = Field(
        default=1024, ge=1, description="Requests of one principal held per model; one more gets 429."
    )
    hold_queue_bytes_per_principal: int = Field(
        default=128_000_000, ge=1_000, description="Bytes of one principal's requests held per model; over it 429."
    )
    fetch_evicted: bool = Field(
        default=True,
        description="Fetch a model's files again from its source when it is asked after `outcrop models evict`; off: "
        "it answers an error until this is on.",
    )
    kept_answer_s: float = Field(
        default=120.0,
        ge=0,
        description="Time in s for which a whole answer is kept for a retry of the same AWS invocation, whose first "
        "attempt may have lost it; 0 keeps none.",
    )
    kept_answer_bytes: int = Field(
        default=32_000_000, ge=0, description="Memory in bytes for such answers, the oldest go first; 0 keeps none."
    )
    keep_alive_s: float | None = Field(
        default=None,
        ge=0,
        description="Idle time in s after which a copy may go; 300 is AWS's. Unset: the break-even of the model's own "
        "cold start (5 s to 1 h).",
    )
    stop_idle: bool = Field(
        default=False,
        description="Stop a copy as soon as its keep-alive has ended. Otherwise it stays, evictable, until another "
        "model needs the memory or the cores.",
    )
    max_copies: int = Field(
        default=3,
        ge=1,
        le=1000,
        description="Most copies of one model at a time. A further copy starts only while cores are free.",
    )
    start_deadline_s: float = Field(
        default=0.0,
        ge=0,
        description="Longest start of a copy in s; one not ready by then is stopped. 0 derives it from the model's "
        "bytes and earlier starts.",
    )
    starts_in_parallel: int = Field(
        default=2, ge=1, le=64, description="Copies that start at a time; of those that wait the smallest goes first."
    )
    memory_bytes: int = Field(
        default=0, ge=0, description="Memory for copies in bytes; 0 takes four fifths of what this machine grants."
    )
    cpu_cores: int = Field(
        default=0, ge=0, le=4096, description="Cores that copies share; 0 takes those this process may use."
    )
    probe_s: float = Field(
        default=5.0, gt=0, description="Time in s between health checks of a copy; three missed ones replace it."
    )
    stall_s: float = Field(
        default=60.0,
        gt=0,
        description="Longest wait in s for a stream's next token, and longest time in s in which a copy gets on with "
        "none of its requests; then it is replaced. One that is silent but computes has ten times as long.",
    )
    copy_log_bytes: int = Field(
        default=1_000_000, ge=10_000, description="Size of a copy's log from which its older half is cut."
    )
    copy_logs_kept: int = Field(
        default=10, ge=1, le=1000, description="Logs of ended copies kept per model; older ones are removed."
    )
    drain_s: float = Field(
        default=30.0, ge=0, description="Time in s that running requests get at shutdown; 0 ends them at once."
    )
    request_timeout_s: float = Field(default=900.0, gt=0, description="Longest wait in s for the engine's next bytes.")
    cpu_threads: int = Field(
        default=0,
        ge=0,
        description="Compute threads per copy; 0 shares the free cores: all for an only model, half where others may "
        "come.",
    )
    slots: int = Field(
        default=0, ge=0, le=256, description="Requests that one copy runs at a time; 0 derives it from memory."
    )
    custom_engine: str = Field(
        default="",
        description="Command line of a server that speaks the OpenAI API, for example "
        "`vllm serve {model} --uds {socket}`; no shell runs it. `{port}` instead of `{socket}` is a port of loopback, "
        "which other users of the machine reach too. Empty: there is no custom engine.",
    )
    custom_engine_models: list[str] = Field(
        default=[],
        description="Names of the imported models that the custom engine runs, `*` for all; others run on llama.cpp.",
    )
    engine_by_model: dict[str, str] = Field(
        default={},
        description="Engine by name of an imported model, `*` for all others (TOML: a table; variable: JSON). What is "
        "not named here is on the custom engine where `custom_engine_models` says so, else chosen. `simulated` is "
        "never chosen: it must be named.",
    )
    simulated: Simulated = Field(
        default=Simulated(),
        description="The simulated engine (TOML: `[simulated]`; variable: JSON): `calibration` (a name or a file), "
        "`start_s`, `seed`, `speedup`. See the how-to on engines.",
    )
    weight_keys: dict[str, str] = Field(
        default={},
        description="Keys that weights are encrypted with at rest, by the name that `importedModelKmsKeyId` gives "
        "(ARN, `alias/…`, id), `default` for imports that name none, `*` for any other (TOML: table; variable: JSON). "
        "Each is `file:PATH` or `env:VARIABLE` (32 bytes in base64 or hexadecimal), or `command:PROGRAM` of a key "
        "service. Without any, weights are not encrypted. See the how-to on encryption.",
    )
    max_context_tokens: int = Field(
        default=0, ge=0, description="Cap on a model's context in tokens; 0 takes the checkpoint's own."
    )
    imports_in_parallel: int = Field(
        default=1, ge=1, le=64, description="Import jobs that run at a time; one more gets ServiceQuotaExceeded."
    )
    object_stores: tuple[ObjectStore, ...] = Field(
        default=(),
        description="S3-compatible stores by bucket pattern (TOML: `[[object_stores]]`; variable: JSON). A bucket that "
        "no store claims is a folder of the home. See the how-to on importing.",
    )
    transfer_buffer_bytes: int = Field(
        default=48 << 20,
        ge=16 << 20,
        le=4 << 30,
        description="Memory in bytes for parts on their way, shared by all jobs; also bounds the requests in flight "
        "(one per 8 MiB).",
    )
    source_retry_s: float = Field(
        default=120.0,
        ge=0,
        le=86400,
        description="Time in s for which a failing object store is asked again, with growing pauses; 0 fails at once.",
    )
    source_stall_s: float = Field(
        default=20.0, ge=1, le=3600, description="Time in s without a byte after which a request is made again."
    )
    store_spare_bytes: int = Field(
        default=1 << 30, ge=0, description="Bytes of the disk that imports leave free; 0 lets them fill it."
    )

    vllm: str = Field(
        default="",
        description="Command of vLLM, for example `/opt/vllm/bin/vllm`, in an environment of its own. Empty: the one "
        "on PATH, if any.",
    )
    vllm_args: list[str] = Field(
        default=[], description="Further arguments of `vllm serve` for every model; they win over the derived ones."
    )
    sglang: str = Field(default="", description="Command of SGLang; empty: the one on PATH, if any.")
    sglang_args: list[str] = Field(default=[], description="Further arguments of `sglang serve`; they win.")
    tensorrt_llm: str = Field(
        default="", description="Command of TensorRT-LLM, `trtllm-serve`; empty: the one on PATH, if any."
    )
    tensorrt_llm_args: list[str] = Field(default=[], description="Further arguments of `trtllm-serve serve`; they win.")
    gpus: list[int] | None = Field(
        default=None, description="GPUs that copies may use, by the driver's index (JSON: `[0, 1]`); unset: all."
    )
    gpu_memory_share: float = Field(
        default=0.9, gt=0, le=1, description="Share of a GPU's memory that one copy takes; the rest is the driver's."
    )
    load_format: str = Field(
        default="auto",
        description="How engines on GPUs read weights: `auto`, or `runai_streamer` or `fastsafetensors` where "
        "installed.",
    )
    vllm_sleep: Literal["auto", "1", "2", "off"] = Field(
        default="auto",
        description="How a copy on GPUs that must go for another model sleeps: at level `1` its weights stay in the "
        "node's memory, at `2` they are read again at the wake; `auto` takes 1 while memory lasts, else 2 (never for "
        "quantised weights); `off` ends the copy instead.",
    )
    vllm_python: str = Field(
        default="",
        description="Interpreter of the environment that the custom engine's vLLM is installed in. It is asked, once, "
        "which architectures it serves; checkpoints of those are imported for it although no family of ours covers "
        "them. Empty: nothing is asked, and the families of docs/reference/checkpoints.md are taken.",
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)

    @property
    def has_tls(self) -> bool:
        return self.tls or self.tls_certificate is not None or self.tls_key is not None

    @property
    def authority(self) -> Path | None:
        """PEM file of the authority that clients of this server must trust; None: one that they trust anyway."""
        return self.home / "tls" / "ca.pem" if self.tls_certificate is None else self.tls_authority

    @property
    def buckets(self) -> Path:
        """Folder that holds the embedded buckets: ``s3://bucket/key`` is ``buckets/bucket/key``."""
        return self.home / "buckets"

    @property
    def store(self) -> Path:
        """Folder of the content-addressed weight store."""
        return self.home / "store"

    @property
    def secret_key(self) -> Path:
        return self.secret_key_file or self.home / "secret.key"

    @property
    def database(self) -> Path:
        return self.home / "outcrop.db"

    @property
    def engine_work(self) -> Path:
        """Folder of what engines keep of a model between starts: compile caches."""
        return self.home / "engines"

    @property
    def logs(self) -> Path:
        return self.home / "logs"

    @property
    def audit_folder(self) -> Path:
        return self.logs / "audit"

    @property
    def audit_key(self) -> Path:
        return self.audit_key_file or self.home / "audit.key"

    @property
    def run(self) -> Path:
        """Folder of what lives only as long as the server: its address, its copies' sockets."""
        return self.home / "run"

    def engine_of(self, model_name: str) -> str | None:
        """Name of the engine that the model *model_name* is put on; None where it is to be chosen."""
        named = self.engine_by_model.get(model_name) or self.engine_by_model.get("*")
        if named:
            return named
        is_custom = self.custom_engine and not {model_name, "*"}.isdisjoint(self.custom_engine_models)
        return "custom" if is_custom else None

    def threads_per_copy(self) -> int:
        """Compute threads that one copy gets: the setting, else the cores this process may use."""
        return self.cpu_threads or len(os.sched_getaffinity(0))


def _shown(error: Any) -> str:
    """The value that was refused, unless it is a secret."""
    is_secret = any(word in str(error["loc"][-1:]) for word in ("secret", "token"))
    return "(hidden)" if is_secret else repr(error["input"])


def load(**flags: Any) -> Settings:
    """Settings from *flags* (None means not given), environment, file and defaults. Raises BadSetting."""
    try:
        return Settings(**{name: value for name, value in flags.items() if value is not None})
    except ValidationError as exc:
        problems = "; ".join(
            f"{'.'.join(map(str, error['loc'])) or 'settings'}={_shown(error)}: {error['msg']}"
            f" (OUTCROP_{str(error['loc'][0]).upper() if error['loc'] else '*'})"
            for error in exc.errors()
        )
        raise BadSetting(f"cannot start with these settings: {problems}") from exc
