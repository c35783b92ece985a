"""A deployment: preflight, upload, import, wait, smoke, gate, switch; each stage timed, kept and not done twice.

What was done is written to a file by name and checkpoint digest after every stage, and the import job itself carries a
token made of both: a deployment that is run again goes on where it ended, or finds that all is done.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from outcrop.delivery.expectations import Case, problems, text_of
from outcrop.delivery.places import Place, sha256_of
from outcrop.errors import BadSetting, ServiceError
from outcrop.serving.migration.plan import Step

STAGES = ("preflight", "upload", "import", "smoke", "gate", "switch")
# Exit statuses for pipelines.
DONE, REFUSED, IMPORT_FAILED, NOT_GOOD_ENOUGH, ROLLED_BACK = 0, 3, 4, 5, 6
_POLL_S = 2.0
_READY_S = 900.0  # that a cold model may take


class Ended(Exception):
    """The deployment is over without a switch, or with one that was taken back; *status* for the pipeline."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What is to be deployed. *source*: a folder or s3://bucket/prefix/. *alias*: what applications know it by.

    *gradual*: the steps of a migration that moves the alias, where it stands for another model already.
    """

    name: str
    source: str
    alias: str = ""
    smoke: list[Case] = field(default_factory=list)
    gate: list[Case] = field(default_factory=list)
    pass_rate: float = 1.0
    gradual: Sequence[Step] = ()


@dataclass(slots=True)
class Deployment:
    """One run. *tell* hears of progress in words; *folder* keeps what was done."""

    wish: Wish
    place: Place
    folder: Path
    tell: Callable[[str], None]
    poll_s: float = _POLL_S
    report: dict[str, Any] = field(default_factory=dict)
    _kept: dict[str, Any] = field(default_factory=dict)
    _file: Path | None = None

    def plan(self) -> list[str]:
        """What a run would do, in words; nothing is changed."""
        files, digest = self._preflight()
        self._open(digest)
        done = self._kept
        model = f"{self.wish.name}-{digest[:8]}"
        lines = [f"checkpoint {digest[:16]}: {len(files)} files, {_size(files)}; it can be imported"]
        if self.wish.source.startswith("s3://"):
            lines.append("upload: nothing, it is in a bucket")
        else:
            lines.append("upload: done already" if "uri" in done else f"upload {_size(files)} to {self.place.name}")
        lines.append(f"import as {model}" + (": done already" if "model_arn" in done else ""))
        lines.append(f"smoke: {len(self.wish.smoke)} prompts" if self.wish.smoke else "smoke: none given")
        if self.wish.gate:
            lines.append(f"gate: {len(self.wish.gate)} cases, at least {self.wish.pass_rate:.0%} and no fewer than now")
        if self.wish.alias:
            now = self.place.current(self.wish.alias) or "nothing"
            how = f", in {len(self.wish.gradual)} steps" if self.wish.gradual else ""
            lines.append(f"switch {self.place.what_switches(self.wish.alias)} from {now} to {model}{how}")
        return lines

    def run(self) -> int:
        """Carry it out; the exit status. ``report`` says what happened."""
        self.report = {"name": self.wish.name, "target": self.place.name, "stages": [], "outcome": "", "reason": ""}
        status = DONE
        try:
            files, digest = self._stage("preflight", self._preflight)
            self.report["digest"] = digest
            self._open(digest)
            uri = self._stage("upload", lambda: self._upload(files, digest))
            arn = self._stage("import", lambda: self._import(uri, digest))
            self.report["model_arn"] = arn
            self._stage("smoke", lambda: self._smoke(arn))
            self._stage("gate", lambda: self._gate(arn))
            self._stage("switch", lambda: self._switch(digest))
        except Ended as exc:
            status = exc.status
            self.report["reason"] = str(exc)
            self.tell(f"{'Rolled back' if status == ROLLED_BACK else 'Stopped'}: {exc}")
        self.report["outcome"] = {DONE: "deployed", ROLLED_BACK: "rolled back"}.get(status, "stopped")
        return status

    def _stage(self, name: str, work: Callable[[], Any]) -> Any:
        begun = time.monotonic()
        outcome = "failed"
        try:
            found = work()
            outcome = "done"
            return found
        finally:
            seconds = round(time.monotonic() - begun, 3)
            self.report["stages"].append({"stage": name, "outcome": outcome, "seconds": seconds})
            self.tell(f"{name}: {outcome} in {seconds:.1f} s")

    def _open(self, digest: str) -> None:
        self._file = self.folder / f"{self.wish.name}-{digest[:16]}.{self.place.name}.json"
        if self._file.exists():
            self._kept = json.loads(self._file.read_text())

    def _keep(self, **found: Any) -> None:
        assert self._file is not None
        self._kept |= found
        self.folder.mkdir(parents=True, exist_ok=True)
        part = self._file.with_suffix(".part")
        part.write_text(json.dumps(self._kept, indent=1))
        part.replace(self._file)

    # -- stages ---------------------------------------------------------------------------------------

    def _preflight(self) -> tuple[Mapping[str, tuple[int, str]], str]:
        """Size and digest of every file, and the digest of all. Raises Ended for what cannot be imported."""
        if self.wish.source.startswith("s3://"):
            found = self._listed()
        else:
            folder = Path(self.wish.source)
            if not folder.is_dir():
                raise BadSetting(f"{folder} is no folder; give a checkpoint's, or s3://bucket/prefix/")
            verdict = asyncio.run(_verdict(folder))
            if verdict:
                raise Ended(REFUSED, f"the checkpoint cannot be imported: {verdict}")
            paths = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
            found = {str(path.relative_to(folder)): (path.stat().st_size, sha256_of(path)) for path in paths}
        if not any(name.endswith(".safetensors") for name in found):
            raise Ended(REFUSED, f"{self.wish.source} holds no .safetensors")
        lines = "".join(f"{name}\0{size}\0{digest}\n" for name, (size, digest) in sorted(found.items()))
        return found, hashlib.sha256(lines.encode()).hexdigest()

    def _listed(self) -> dict[str, tuple[int, str]]:
        bucket, _, prefix = self.wish.source.removeprefix("s3://").partition("/")
        pages = self.place.client("s3").get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        rows = [row for page in pages for row in page.get("Contents", ())]
        return {row["Key"].removeprefix(prefix): (row["Size"], row["ETag"]) for row in rows}

    def _upload(self, files: Mapping[str, tuple[int, str]], digest: str) -> str:
        if self.wish.source.startswith("s3://"):
            return self.wish.source
        if "uri" not in self._kept:
            digests = {name: found for name, (_, found) in files.items()}
            uri = self.place.upload(Path(self.wish.source), list(files), f"{self.wish.name}-{digest[:16]}", digests)
            self._keep(uri=uri)
        return str(self._kept["uri"])

    def _import(self, uri: str, digest: str) -> str:
        bedrock = self.place.client("bedrock")
        if arn := self._kept.get("model_arn"):
            try:
                bedrock.get_imported_model(modelIdentifier=arn)
                return str(arn)
            except bedrock.exceptions.ResourceNotFoundException:
                self._keep(model_arn=None, attempt=self._kept.get("attempt", 0) + 1)
        attempt = self._kept.get("attempt", 0)
        try:
            job = bedrock.create_model_import_job(
                jobName=f"{self.wish.name[:40]}-{digest[:12]}-{attempt}",
                importedModelName=f"{self.wish.name}-{digest[:8]}",
                roleArn=self.place.role_arn,
                modelDataSource={"s3DataSource": {"s3Uri": uri}},
                clientRequestToken=f"{self.wish.name[:60]}-{digest[:40]}-{attempt}",
            )["jobArn"]
        except ClientError as exc:
            raise Ended(IMPORT_FAILED, f"the import was refused: {exc}") from exc
        shown = ""
        while True:
            found = bedrock.get_model_import_job(jobIdentifier=job)
            if found["status"] != shown:
                shown = found["status"]
                self.tell(f"import job {found['jobName']}: {shown}")
            if shown == "Completed":
                self._keep(model_arn=found["importedModelArn"], attempt=attempt)
                return str(found["importedModelArn"])
            if shown == "Failed":
                self._keep(attempt=attempt + 1)
                raise Ended(IMPORT_FAILED, f"the import failed: {found.get('failureMessage')}")
            time.sleep(self.poll_s)

    def _smoke(self, arn: str) -> None:
        failed = self._failed(arn, self.wish.smoke)
        self.report["smoke"] = {"prompts": len(self.wish.smoke), "failed": failed}
        if failed:
            raise Ended(NOT_GOOD_ENOUGH, f"{len(failed)} of {len(self.wish.smoke)} smoke prompts failed: {failed[0]}")

    def _gate(self, arn: str) -> None:
        """The new model passes as often as was asked, and no less often than the one that it is to replace."""
        cases = self.wish.gate
        if not cases:
            return
        failed = self._failed(arn, cases)
        rate = 1 - len(failed) / len(cases)
        self.report["gate"] = {"cases": len(cases), "pass_rate": rate, "failed": failed}
        if rate < self.wish.pass_rate:
            raise Ended(NOT_GOOD_ENOUGH, f"{rate:.1%} of the gate's cases pass, fewer than {self.wish.pass_rate:.1%}")
        old = self.place.current(self.wish.alias) if self.wish.alias else None
        if old is not None:
            before = 1 - len(self._failed(old, cases)) / len(cases)
            self.report["gate"]["pass_rate_now"] = before
            if rate < before:
                raise Ended(NOT_GOOD_ENOUGH, f"{rate:.1%} of the gate's cases pass; {before:.1%} do with {old}")

    def _switch(self, digest: str) -> None:
        """Move the name, ask again under it, and move it back if that does not go well."""
        alias = self.wish.alias
        if not alias:
            return
        model = f"{self.wish.name}-{digest[:8]}" if self.place.name == "outcrop" else str(self._kept["model_arn"])
        old = self.place.current(alias)
        if old == model:
            return
        if self.wish.gradual and old is not None:
            self._move(alias, old, model)
        else:
            self.place.switch(alias, model)
        self.report["switched"] = {"from": old, "to": model}
        asked = alias if self.place.name == "outcrop" else model
        failed = self._failed(asked, self.wish.smoke)
        if failed:
            self.place.switch(alias, old)
            reason = f"after the switch {len(failed)} smoke prompts failed: {failed[0]}; {alias} is {old} again"
            raise Ended(ROLLED_BACK, reason)

    def _move(self, alias: str, old: str, model: str) -> None:
        """Let a migration move the name. Raises Ended when it takes the traffic back, with its evidence."""
        told = self.place.move(alias, old, model, self.wish.gradual, self.tell)
        self.report["migration"] = {
            name: told[name] for name in ("phase", "reason", "evidence", "totals", "comparison")
        }
        if told["phase"] != "completed":
            raise Ended(
                ROLLED_BACK, f"the migration of {alias} was {told['phase']}: {told['reason']}; {alias} is {old}"
            )

    def _failed(self, model: str, cases: list[Case]) -> list[str]:
        """What went wrong, a line per case."""
        runtime = self.place.client("bedrock-runtime")
        found = []
        for case in cases:
            begun = time.monotonic()
            try:
                answer = self._asked(runtime, model, case)
            except (ClientError, BotoCoreError) as exc:
                found.append(f"{case.name}: {exc}")
                continue
            text = text_of(answer)
            if wrong := problems(case, text, time.monotonic() - begun):
                found.append(f"{case.name}: the answer {', '.join(wrong)}: {text[:200]!r}")
        return found

    def _asked(self, runtime: Any, model: str, case: Case) -> Any:
        """InvokeModel, again while the model is not ready."""
        deadline = time.monotonic() + _READY_S
        while True:
            try:
                found = runtime.invoke_model(modelId=model, body=json.dumps(case.body))
                return json.loads(found["body"].read())
            except runtime.exceptions.ModelNotReadyException:
                if time.monotonic() > deadline:
                    raise
                time.sleep(self.poll_s)


async def _verdict(folder: Path) -> str:
    """Why the checkpoint cannot be imported; empty when it can."""
    from outcrop.importing.preflight import preflight
    from outcrop.importing.report import report
    from outcrop.importing.sources import open_local

    source = open_local(str(folder))
    try:
        told = report(await preflight(source))
    except ServiceError as exc:
        return exc.message
    finally:
        await source.aclose()
    return "" if told["importable"] else "; ".join(str(problem) for problem in told.get("problems", ())) or "refused"


def _size(files: Mapping[str, tuple[int, str]]) -> str:
    return f"{sum(size for size, _ in files.values()) / 1e6:,.1f} MB"
