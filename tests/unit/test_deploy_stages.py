"""A deployment over a place that does as it is told: what is taken back, and what is gone on with."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from outcrop.delivery.deploy import DONE, NOT_GOOD_ENOUGH, ROLLED_BACK, Deployment, Wish
from outcrop.delivery.expectations import read_cases
from outcrop.errors import BadSetting
from outcrop.serving.migration.plan import Step, read_steps

ARN = "arn:aws:bedrock:us-east-1:000000000000:imported-model/abcdefghijkl"


class ModelNotReady(ClientError):
    def __init__(self) -> None:
        super().__init__({"Error": {"Code": "ModelNotReadyException", "Message": "not yet"}}, "InvokeModel")


class Bedrock:
    """Both services; *answers*: text by model, *cold*: ModelNotReady so many times first."""

    class exceptions:  # noqa: N801  (boto3's own name)
        ModelNotReadyException = ModelNotReady
        ResourceNotFoundException = KeyError

    def __init__(self) -> None:
        self.answers: dict[str, str] = {}
        self.cold = 0
        self.jobs: list[dict[str, Any]] = []

    def create_model_import_job(self, **asked: Any) -> dict[str, Any]:
        self.jobs.append(asked)
        return {"jobArn": "job"}

    def get_model_import_job(self, jobIdentifier: str) -> dict[str, Any]:  # noqa: N803  (AWS's own name)
        return {"status": "Completed", "jobName": "job", "importedModelArn": ARN}

    def get_imported_model(self, modelIdentifier: str) -> dict[str, Any]:  # noqa: N803
        return {"modelArn": modelIdentifier}

    def invoke_model(self, modelId: str, body: str) -> dict[str, Any]:  # noqa: N803
        if self.cold:
            self.cold -= 1
            raise ModelNotReady
        text = self.answers.get(modelId, "good")
        return {"body": io.BytesIO(json.dumps({"generation": text}).encode())}


class Paper:
    """A place on paper. *ends*: what a migration comes to."""

    role_arn = "arn:aws:iam::000000000000:role/r"

    def __init__(self, name: str = "outcrop", ends: str = "completed") -> None:
        self.name = name
        self.bedrock = Bedrock()
        self.names: dict[str, str] = {"live": "old"}
        self.switches: list[tuple[str, str | None]] = []
        self.uploads = 0
        self.ends = ends
        self.moves: list[tuple[str, str, str, Sequence[Step]]] = []

    def client(self, service: str) -> Any:
        return self.bedrock

    def upload(self, folder: Path, files: list[str], prefix: str, digests: dict[str, str]) -> str:
        self.uploads += 1
        return f"s3://b/{prefix}/"

    def current(self, name: str) -> str | None:
        return self.names.get(name)

    def switch(self, name: str, model: str | None) -> None:
        self.switches.append((name, model))
        if model is None:
            del self.names[name]
        else:
            self.names[name] = model

    def move(
        self, name: str, old: str, model: str, steps: Sequence[Step], tell: Callable[[str], None]
    ) -> Mapping[str, Any]:
        self.moves.append((name, old, model, steps))
        if self.ends == "completed":
            self.names[name] = model
        return {"phase": self.ends, "reason": "as told", "evidence": [], "totals": {}, "comparison": {}}

    def what_switches(self, name: str) -> str:
        return name


def deployment(place: Paper, tiny: Path, folder: Path, **wish: Any) -> Deployment:
    smoke = read_cases('{"prompt": "x", "equals": "good"}', "smoke.jsonl")
    wanted = Wish(**{"name": "ship", "source": str(tiny), "alias": "live", "smoke": smoke, **wish})
    return Deployment(wanted, place, folder, lambda text: None, poll_s=0)


def test_prompts_that_fail_after_the_switch_take_it_back(tiny: Path, tmp_path: Path) -> None:
    place = Paper()
    place.bedrock.answers["live"] = "bad"
    run = deployment(place, tiny, tmp_path)

    assert run.run() == ROLLED_BACK
    assert place.names == {"live": "old"}
    assert [name for name, _ in place.switches] == ["live", "live"]
    assert run.report["outcome"] == "rolled back"
    assert "after the switch 1 smoke prompts failed" in run.report["reason"]
    assert run.report["reason"].endswith("live is old again")
    # A first deployment has nothing to go back to: the name goes.
    place.names.clear()
    assert deployment(place, tiny, tmp_path).run() == ROLLED_BACK
    assert place.names == {}


def test_on_aws_the_models_arn_is_what_is_switched_and_asked(tiny: Path, tmp_path: Path) -> None:
    place = Paper("aws")
    place.bedrock.answers["live"] = "bad"  # a parameter is no model: nobody asks it

    assert deployment(place, tiny, tmp_path).run() == DONE
    assert place.names == {"live": ARN}


def test_a_cold_model_is_waited_for(tiny: Path, tmp_path: Path) -> None:
    place = Paper()
    place.bedrock.cold = 5

    assert deployment(place, tiny, tmp_path).run() == DONE


def test_a_gradual_switch_is_a_migration_and_ends_as_that_does(tiny: Path, tmp_path: Path) -> None:
    steps = read_steps("10,100")
    place = Paper()
    run = deployment(place, tiny, tmp_path, gradual=steps)
    assert run.run() == DONE
    assert [(name, old) for name, old, _, _ in place.moves] == [("live", "old")]
    assert place.switches == []
    assert run.report["migration"]["phase"] == "completed"

    back = Paper(ends="rolled-back")
    run = deployment(back, tiny, tmp_path / "b", gradual=steps)
    assert run.run() == ROLLED_BACK
    assert back.names == {"live": "old"}
    assert "the migration of live was rolled-back: as told" in run.report["reason"]

    first = Paper()
    first.names.clear()
    assert deployment(first, tiny, tmp_path / "c", gradual=steps).run() == DONE
    assert first.moves == []  # nothing to move from


@pytest.mark.parametrize("stage", ["upload", "import", "smoke", "gate", "switch"])
def test_a_deployment_that_died_in_a_stage_goes_on_there(
    tiny: Path, tmp_path: Path, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Died(BaseException):
        pass

    def die(*_: Any) -> None:
        raise Died

    place = Paper()
    with monkeypatch.context() as patch:
        patch.setattr(Deployment, f"_{stage}", die)
        with pytest.raises(Died):
            deployment(place, tiny, tmp_path).run()
    assert place.names == {"live": "old"}
    assert deployment(place, tiny, tmp_path).run() == DONE
    assert place.uploads == 1
    tokens = {job["clientRequestToken"] for job in place.bedrock.jobs}
    assert len(tokens) == 1
    assert len(place.bedrock.jobs) == 1
    again = deployment(place, tiny, tmp_path)
    assert again.run() == DONE
    assert len(place.switches) == 1


def test_a_worse_model_switches_nothing(tiny: Path, tmp_path: Path) -> None:
    place = Paper()
    place.bedrock.answers[ARN] = "bad"
    gate = read_cases('{"prompt": "x", "equals": "good"}', "gate.jsonl")

    assert deployment(place, tiny, tmp_path, smoke=[], gate=gate, pass_rate=0.0).run() == NOT_GOOD_ENOUGH
    assert place.switches == []


def test_aws_has_nobody_who_could_split_traffic() -> None:
    from outcrop.delivery.places import AwsPlace

    place = AwsPlace(role_arn="r", bucket="s3://b", session=None)
    with pytest.raises(BadSetting, match="no aliases"):
        place.move("live", "a", "b", [], print)
