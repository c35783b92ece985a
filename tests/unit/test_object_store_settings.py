"""Object stores in the settings: which one a bucket belongs to, and what stops the start."""

from __future__ import annotations

from pathlib import Path

import pytest

from outcrop.errors import BadSetting
from outcrop.importing.sources import open_source, store_of
from outcrop.importing.sources.folder import FolderSource
from outcrop.settings import ObjectStore, load

TEAM = ObjectStore(buckets=("team-*", "base"), endpoint="https://s3.example.com")
REST = ObjectStore(buckets=("*",))


@pytest.mark.parametrize(("bucket", "store"), [("team-a", TEAM), ("base", TEAM), ("other", REST), ("teams", REST)])
def test_the_first_store_whose_pattern_matches_wins(tmp_path: Path, bucket: str, store: ObjectStore) -> None:
    assert store_of(bucket, load(home=tmp_path, object_stores=(TEAM, REST))) == store


def test_a_bucket_that_no_store_claims_is_a_folder_of_the_home(tmp_path: Path) -> None:
    settings = load(home=tmp_path, object_stores=(TEAM,))
    (tmp_path / "buckets" / "other" / "v1").mkdir(parents=True)

    source = open_source("s3://other/v1/", settings)

    assert isinstance(source, FolderSource)
    assert source.folder == tmp_path / "buckets" / "other" / "v1"


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ('[{"endpoint": "ftp://host"}]', "endpoint"),
        ('[{"endpoint": "https://host/path"}]', "endpoint"),
        ('[{"access_key_id": "a"}]', "go together"),
        ('[{"secret_access_key": "hush"}]', "go together"),
        ('[{"buckets": []}]', "buckets"),
        ('[{"bucket": "typo"}]', "bucket"),
    ],
)
def test_a_store_that_cannot_work_stops_the_start_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str, named: str
) -> None:
    monkeypatch.setenv("OUTCROP_OBJECT_STORES", wrong)

    with pytest.raises(BadSetting, match=named) as refused:
        load(home=tmp_path)
    assert "hush" not in str(refused.value)


def test_secrets_do_not_show(tmp_path: Path) -> None:
    store = ObjectStore.model_validate({"access_key_id": "id", "secret_access_key": "hush", "session_token": "hush"})

    assert "hush" not in repr(load(home=tmp_path, object_stores=(store,)))
