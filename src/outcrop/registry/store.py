"""The registry over SQLAlchemy Core.

Writers are serialised by SQLite itself; a model and the end of its job are written in one transaction, so that no
reader ever sees one without the other.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, Self

import sqlalchemy as sa

from outcrop.errors import JobNotFound, ModelNotFound, NameTaken, StorageFull
from outcrop.ids import JobId, ModelId, import_job_id, import_job_resource, imported_model_id, imported_model_resource
from outcrop.registry import attachments
from outcrop.registry.attachments import Attachments
from outcrop.registry.records import ImportedModel, ImportJob
from outcrop.registry.schema import cold_starts, import_jobs, imported_models, model_aliases, model_scaling

ENDED = ("COMPLETED", "FAILED")


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """What a List call asks for; *after* is the (created_at, id) of the last row already given."""

    limit: int
    ascending: bool = False
    created_after: float | None = None
    created_before: float | None = None
    name_contains: str | None = None
    phases: Collection[str] | None = None
    after: tuple[float, str] | None = None


class Registry:
    """Records of one installation; safe to call from several threads."""

    def __init__(self, url: str) -> None:
        self._engine = sa.create_engine(url)
        if self._engine.dialect.name == "sqlite":
            sa.event.listen(self._engine, "connect", _prepare_sqlite)
            sa.event.listen(self._engine, "handle_error", _name_full_disk)
        self.attachments = Attachments(self._engine)

    @property
    def database(self) -> sa.Engine:
        """For records that have a file of their own."""
        return self._engine

    @classmethod
    def open(cls, path: Path) -> Self:
        """The registry in the SQLite file *path*, migrated to the current schema."""
        registry = cls(f"sqlite:///{path}")
        registry.migrate()
        path.chmod(0o600)
        return registry

    def migrate(self) -> None:
        from alembic import command
        from alembic.config import Config

        config = Config()
        config.set_main_option("script_location", str(files("outcrop.registry") / "migrations"))
        with self._engine.begin() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")

    def close(self) -> None:
        self._engine.dispose()

    # -- import jobs ------------------------------------------------------------------------------

    def create_job(self, job: ImportJob) -> tuple[ImportJob, bool]:
        """Store *job* and return (it, True); with a known client token, (the earlier job, False).

        Raises NameTaken when a job or a model of that name exists, or a running job will make one.
        """
        with self._engine.begin() as db:
            if job.client_token is not None and (row := _of_token(db, job.account, job.client_token)) is not None:
                return _job(row), False
            if db.execute(
                sa.select(import_jobs.c.job_id).where(
                    import_jobs.c.account == job.account, import_jobs.c.job_name == job.job_name
                )
            ).first():
                raise NameTaken(f"A model import job named {job.job_name!r} already exists. Choose another jobName.")
            pending = sa.select(import_jobs.c.job_id).where(
                import_jobs.c.account == job.account,
                import_jobs.c.model_name == job.model_name,
                import_jobs.c.phase.not_in(ENDED),
            )
            existing = sa.select(imported_models.c.model_id).where(
                imported_models.c.account == job.account, imported_models.c.model_name == job.model_name
            )
            if db.execute(pending).first() or db.execute(existing).first():
                raise NameTaken(
                    f"An imported model named {job.model_name!r} already exists or is being imported. "
                    "Choose another importedModelName or delete that model first."
                )
            db.execute(import_jobs.insert().values(**asdict(job)))
            tags = attachments.tag_map(job.request.get("jobTags", ()))
            attachments.put_tags(db, job.account, import_job_resource(job.job_id), tags)
        return job, True

    def job_of_token(self, account: str, client_token: str) -> ImportJob | None:
        """The job that was created with this token; None when there is none."""
        with self._engine.connect() as db:
            row = _of_token(db, account, client_token)
        return None if row is None else _job(row)

    def forget_job(self, job_id: JobId) -> None:
        """Take back a job that was stored and not admitted."""
        with self._engine.begin() as db:
            account = db.execute(sa.select(import_jobs.c.account).where(import_jobs.c.job_id == job_id)).scalar_one()
            attachments.drop(db, account, import_job_resource(job_id))
            db.execute(import_jobs.delete().where(import_jobs.c.job_id == job_id))

    def update_job(self, job_id: JobId, **values: Any) -> None:
        with self._engine.begin() as db:
            db.execute(import_jobs.update().where(import_jobs.c.job_id == job_id).values(**values))

    def job(self, account: str, identifier: str) -> ImportJob:
        """The job with this ARN or name. Raises JobNotFound."""
        job_id = import_job_id(identifier)
        column = import_jobs.c.job_id == job_id if job_id else import_jobs.c.job_name == identifier
        with self._engine.connect() as db:
            row = db.execute(sa.select(import_jobs).where(import_jobs.c.account == account, column)).one_or_none()
        if row is None:
            raise JobNotFound(f"Could not find model import job {identifier}. Check the job ARN or name.")
        return _job(row)

    def job_of(self, model: ImportedModel) -> ImportJob | None:
        """The job that brought *model*; None when its record is gone."""
        query = sa.select(import_jobs).where(import_jobs.c.job_id == model.job_id)
        with self._engine.connect() as db:
            row = db.execute(query).one_or_none()
        return None if row is None else _job(row)

    def jobs(self, account: str, page: Page) -> list[ImportJob]:
        query = _paged(sa.select(import_jobs).where(import_jobs.c.account == account), import_jobs, "job", page)
        with self._engine.connect() as db:
            return [_job(row) for row in db.execute(query)]

    def unfinished_jobs(self) -> list[ImportJob]:
        """Jobs of every account that have not ended, oldest first: what a start takes up again."""
        query = sa.select(import_jobs).where(import_jobs.c.phase.not_in(ENDED)).order_by(import_jobs.c.created_at)
        with self._engine.connect() as db:
            return [_job(row) for row in db.execute(query)]

    # -- imported models --------------------------------------------------------------------------

    def complete_job(self, model: ImportedModel, job_id: JobId, **values: Any) -> None:
        """Register *model*, with the tags that its job asked for, and end the job in one transaction."""
        asked = sa.select(import_jobs.c.request).where(import_jobs.c.job_id == job_id)
        with self._engine.begin() as db:
            # To the millisecond, which is what the API shows, so that filters agree with it.
            row = {**asdict(model), "created_at": round(model.created_at, 3)}
            db.execute(imported_models.insert().values(**row))
            tags = attachments.tag_map(db.execute(asked).scalar_one().get("importedModelTags", ()))
            attachments.put_tags(db, model.account, imported_model_resource(model.model_id), tags)
            db.execute(import_jobs.update().where(import_jobs.c.job_id == job_id).values(**values))

    def model(self, account: str, identifier: str) -> ImportedModel:
        """The model with this ARN or name. Raises ModelNotFound."""
        model_id = imported_model_id(identifier)
        table = imported_models.c
        column = table.model_id == model_id if model_id else table.model_name == identifier
        with self._engine.connect() as db:
            row = db.execute(sa.select(imported_models).where(table.account == account, column)).one_or_none()
        if row is None:
            raise ModelNotFound(f"Could not find imported model {identifier}. Check the model ARN or name.")
        return _model(row)

    def models(self, account: str, page: Page) -> list[ImportedModel]:
        query = sa.select(imported_models).where(imported_models.c.account == account)
        with self._engine.connect() as db:
            return [_model(row) for row in db.execute(_paged(query, imported_models, "model", page))]

    def all_models(self) -> list[ImportedModel]:
        """Every model of every account: what the serving catalogue starts from."""
        with self._engine.connect() as db:
            return [_model(row) for row in db.execute(sa.select(imported_models))]

    def model_ids(self) -> set[str]:
        """Ids of every model, and of those that unfinished jobs will make."""
        return {model.model_id for model in self.all_models()} | {job.model_id for job in self.unfinished_jobs()}

    def set_dialect(self, account: str, identifier: str, dialect: str | None) -> ImportedModel:
        """The model with its new *dialect*. Raises ModelNotFound."""
        model = self.model(account, identifier)
        with self._engine.begin() as db:
            row = imported_models.c.model_id == model.model_id
            db.execute(imported_models.update().where(row).values(dialect=dialect))
        return replace(model, dialect=dialect)

    def set_engine(self, account: str, identifier: str, engine: str | None) -> ImportedModel:
        """The model put on *engine*; None gives the choice back. Raises ModelNotFound."""
        model = self.model(account, identifier)
        with self._engine.begin() as db:
            row = imported_models.c.model_id == model.model_id
            db.execute(imported_models.update().where(row).values(engine=engine))
        return replace(model, engine=engine)

    def delete_model(self, account: str, model_id: ModelId) -> None:
        with self._engine.begin() as db:
            attachments.drop(db, account, imported_model_resource(model_id))
            db.execute(
                imported_models.delete().where(
                    imported_models.c.account == account, imported_models.c.model_id == model_id
                )
            )
            for table in (cold_starts, model_aliases, model_scaling):
                db.execute(table.delete().where(table.c.model_id == model_id))

    def sweep(self) -> int:
        """Remove what belongs to models that are gone, left by a server killed in between; how many rows."""
        known = sa.select(imported_models.c.model_id)
        with self._engine.begin() as db:
            swept = (
                db.execute(table.delete().where(table.c.model_id.not_in(known)))
                for table in (cold_starts, model_aliases, model_scaling)
            )
            return sum(result.rowcount for result in swept)


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")  # an accepted job survives a power cut, not only a crash
    cursor.execute("PRAGMA busy_timeout=10000")
    cursor.close()


def _name_full_disk(context: sa.engine.ExceptionContext) -> None:
    """SQLite's words for a full disk as our own error: the remedy is the operator's."""
    if "disk is full" in str(context.original_exception):
        raise StorageFull(
            "The registry (outcrop.db) cannot be written: the disk below OUTCROP_HOME is full. Free some space; models "
            "that are imported are served meanwhile."
        ) from context.original_exception


def _paged(query: sa.Select[Any], table: sa.Table, kind: str, page: Page) -> sa.Select[Any]:
    """*query* filtered and ordered by (created_at, id): keyset pages, stable when rows are added meanwhile."""
    created, key, name = table.c.created_at, table.c[f"{kind}_id"], table.c[f"{kind}_name"]
    if page.created_after is not None:
        query = query.where(created > page.created_after)
    if page.created_before is not None:
        query = query.where(created < page.created_before)
    if page.name_contains:
        # LIKE ignores case in SQLite only; lowered, both databases do.
        query = query.where(sa.func.lower(name).contains(page.name_contains.lower(), autoescape=True))
    if page.phases is not None:
        query = query.where(table.c.phase.in_(page.phases))
    if page.after is not None:
        position = sa.tuple_(created, key)
        mark = sa.tuple_(sa.literal(page.after[0]), sa.literal(page.after[1]))
        query = query.where(position > mark if page.ascending else position < mark)
    order = (created.asc(), key.asc()) if page.ascending else (created.desc(), key.desc())
    return query.order_by(*order).limit(page.limit)


def _of_token(db: sa.Connection, account: str, client_token: str) -> Any:
    """The row of the import job that was created with this token."""
    wanted = (import_jobs.c.account == account, import_jobs.c.client_token == client_token)
    return db.execute(sa.select(import_jobs).where(*wanted)).one_or_none()


def _job(row: sa.Row[Any]) -> ImportJob:
    return ImportJob(**_values(row))


def _model(row: sa.Row[Any]) -> ImportedModel:
    return ImportedModel(**_values(row))


def _values(row: sa.Row[Any]) -> dict[str, Any]:
    return {
        str(name): value for name, value in row._mapping.items()
    }  # SQLAlchemy's documented accessor, underscored to stay clear of column names
