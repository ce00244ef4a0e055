"""What clients may ask of the control plane: bodies read strictly and refused by name.

What this server cannot do (images, volumes, GPUs, address lists, ...) is refused rather than ignored:
a sandbox that quietly lacks what was asked for is worse than none.
"""

from __future__ import annotations

import re
import uuid
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from sandhold.local_daytona.errors import ApiError, bad_request
from sandhold.local_daytona.records import DesiredState, SandboxRecord, State
from sandhold.local_daytona.snapshots import DEFAULT_SNAPSHOT, Snapshot, snapshot_for_create

#: The largest JSON body of the control plane; labels and environment of any sensible size fit.
MAX_BODY_BYTES = 1024 * 1024

MAX_CPU, MAX_MEMORY_GIB, MAX_DISK_GIB = 4, 8, 10

_MARKUP = re.compile(r"</?[a-zA-Z!][^>]*>")
_ADDRESS = re.compile(r"://|\bwww\.", re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")

_INTERVALS = {
    "auto_stop_interval",
    "auto_pause_interval",
    "auto_archive_interval",
    "auto_delete_interval",
    "queue_timeout",
}

Model = TypeVar("Model", bound=BaseModel)


class _Body(BaseModel):
    """JSON types are not converted into each other; unknown fields are ignored, as the provider does."""

    model_config = ConfigDict(strict=True, alias_generator=to_camel, extra="ignore")


class CreateRequest(_Body):
    """The body of `POST /sandbox`. `null` means the same as leaving a field out."""

    name: str | None = None
    snapshot: str | None = None
    user: str | None = None
    env: dict[str, str] | None = None
    labels: dict[str, str] | None = None
    public: bool | None = None
    target: str | None = None
    cpu: int | None = Field(default=None, ge=1, le=MAX_CPU)
    memory: int | None = Field(default=None, ge=1, le=MAX_MEMORY_GIB)
    disk: int | None = Field(default=None, ge=1, le=MAX_DISK_GIB)
    network_block_all: bool | None = None
    auto_stop_interval: int | None = Field(default=None, ge=0)
    auto_pause_interval: int | None = Field(default=None, ge=0)
    auto_archive_interval: int | None = Field(default=None, ge=0)
    auto_delete_interval: int | None = None
    ttl_minutes: int | None = Field(default=None, ge=0)
    queue_timeout: int | None = Field(default=None, ge=1)

    # Known to the provider, impossible here; see `refuse_the_impossible`.
    gpu: int | None = None
    kvm: bool | None = None
    volumes: list[object] | None = None
    secrets: list[object] | None = None
    build_info: dict[str, object] | None = None
    network_allow_list: str | None = None
    domain_allow_list: str | None = None
    outbound_proxy_url: str | None = None
    linked_sandbox: str | None = None

    def refuse_the_impossible(self) -> None:
        """Raise a 400 that names the first thing asked for that this server cannot give."""
        if self.build_info is not None:
            raise bad_request(
                "This local server cannot build images; leave the image out, or choose a size by snapshot"
            )
        for field in (
            "gpu",
            "kvm",
            "volumes",
            "secrets",
            "network_allow_list",
            "domain_allow_list",
            "outbound_proxy_url",
            "linked_sandbox",
        ):
            if getattr(self, field):
                raise bad_request(f"{to_camel(field)} is not supported by this local server")
        if self.user not in (None, "", "daytona"):
            raise bad_request("This local server runs sandboxes as the user daytona only")
        if self.auto_delete_interval == 0 and self.auto_pause_interval:
            raise bad_request("Ephemeral sandboxes cannot have auto-pause enabled")
        for name, value in (self.env or {}).items():
            if not name or "=" in name or "\0" in name or "\0" in value:
                raise bad_request(f"env: {name!r} cannot be an environment variable")

    def chosen_snapshot(self) -> Snapshot:
        """The snapshot to use. Sizes may be given only without one."""
        if self.snapshot is None:
            return DEFAULT_SNAPSHOT
        if any(size is not None for size in (self.cpu, self.memory, self.disk)):
            raise bad_request("Cannot specify Sandbox resources when using a snapshot")
        return snapshot_for_create(self.snapshot)

    def new_record(self, minute: timedelta) -> SandboxRecord:
        """A new sandbox in `creating` as asked for, with the provider's defaults for the rest.

        `minute` is the length of the API's minutes. Raises a 400 for what cannot be.
        """
        self.refuse_the_impossible()
        snapshot = self.chosen_snapshot()
        sandbox_id = str(uuid.uuid4())
        now = datetime.now(UTC)
        record = SandboxRecord(
            id=sandbox_id,
            name=sandbox_id if self.name is None else check_name(self.name),
            state=State.CREATING,
            desired_state=DesiredState.STARTED,
            labels=self.labels or {},
            env=self.env or {},
            snapshot=snapshot.name,
            target=self.target or "local",
            public=bool(self.public),
            network_block_all=bool(self.network_block_all),
            cpu=self.cpu or snapshot.cpu,
            memory=self.memory or snapshot.memory,
            disk=self.disk or snapshot.disk,
            created_at=now,
            updated_at=now,
            last_activity_at=now,
            **self.model_dump(include=_INTERVALS, exclude_none=True),
        )
        record.set_ttl(self.ttl_minutes or 0, minute)
        return record


class LabelsRequest(_Body):
    """The body of `PUT /sandbox/{id}/labels`; the labels replace all earlier ones."""

    labels: dict[str, str]


def check_name(name: str) -> str:
    """The name if it may be one. The provider refuses markup, addresses and control characters; any length
    is fine."""
    if not name.strip():
        raise bad_request("name must not be empty")
    for pattern, what in ((_MARKUP, "HTML"), (_ADDRESS, "URLs"), (_CONTROL, "control characters")):
        if pattern.search(name):
            raise bad_request(f"name must not contain {what}")
    return name


async def read_body(request: web.Request, model: type[Model]) -> Model:
    """The request's JSON body as `model`. Raises a 400 that names the first wrong field, or a 413."""
    if (request.content_length or 0) > MAX_BODY_BYTES:
        raise ApiError(413, f"The body may have at most {MAX_BODY_BYTES} bytes")
    raw = await request.read()
    if len(raw) > MAX_BODY_BYTES:
        raise ApiError(413, f"The body may have at most {MAX_BODY_BYTES} bytes")
    try:
        return model.model_validate_json(raw or b"{}")
    except ValidationError as error:
        raise refusal(error) from error


def refusal(error: ValidationError) -> ApiError:
    """A 400 that names the first wrong field."""
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    return bad_request(f"{where}: {first['msg']}" if where else first["msg"])
