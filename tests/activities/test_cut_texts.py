"""What others have said is cut to a length; of a secret in the midst of which that is, nothing is left to be read."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest
from daytona import DaytonaError
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from activities.arrivals import _not_unpacked
from activities.faults import provider_error
from activities.launcher import Refusal, Script, TornAnswer, parse_answer
from activities.launcher.access import torn
from activities.provider import ProviderAccess
from activities.reasons import failure_for
from activities.redactors import Redactors
from activities.refusals import sending_refused, start_refused
from activities.shown_texts import showing
from activities.stream_requests import StreamEnd, StreamRequests
from activities.uploads import FileUploads
from activities.workspaces.entries import readable
from sandhold.contracts.errors import ErrorCode, ProviderFault, ToolFailure, from_provider
from sandhold.contracts.excerpts import CUT, beginning_of, end_of
from sandhold.contracts.steps import CallStep, SandboxRef
from sandhold.contracts.transfers import UploadFile
from sandhold.security.redaction import Redactor
from tests.activities.commands_under_test import SecretsUnderTest

SECRET = "correct horse battery 'staple"
TOKEN = "dtn_" + "0123456789abcdef" * 2
REF = SandboxRef(session_id="s", sandbox_id="box", owner="me", generation=1)
REDACTOR = Redactor({"PW": SECRET})


async def of_a_provider(said: str) -> str:
    return provider_error(DaytonaError(said)).error.message


async def of_a_fault(said: str) -> str:
    return from_provider(ProviderFault(status=500, message=said)).message


async def of_a_launcher(said: str) -> str:
    with pytest.raises(TornAnswer) as told:
        parse_answer("nonce", said)
    return str(told.value)


async def of_a_torn_answer(said: str) -> str:
    return str(torn(said))


async def of_a_refused_start(said: str) -> str:
    return str(start_refused(Refusal("odd", said), Script("true", "/")))


async def of_a_refused_input(said: str) -> str:
    return str(sending_refused(Refusal("folder", said), "c"))


async def of_a_program(said: str) -> str:
    return str(failure_for("file", said))


async def of_tar(said: str) -> str:
    return str(_not_unpacked("/w", StreamEnd(1, said.encode())))


async def of_a_long_name(said: str) -> str:
    return readable(said.encode())


async def of_a_stream(said: str) -> str:
    class Access:
        async def toolbox(self, *_: object, **__: object) -> str:
            return said

    requests = StreamRequests(cast("ProviderAccess", Access()))
    with pytest.raises(ApplicationError) as told:
        await ActivityEnvironment().run(requests.drop, REF, [])
    return told.value.message


async def of_an_upload(said: str) -> str:
    class Files:
        async def find(self, path: str) -> Any:
            raise ToolFailure(ErrorCode.INVALID_ARGUMENTS, said)

    secrets = SecretsUnderTest()
    secrets.known = {"PW": SECRET}
    uploads = FileUploads(cast("Any", None), cast("Any", Files()), REF, "c")
    with showing(Redactors(secrets), [CallStep(ref=REF, call_id="c")]):
        settled = await uploads._settled(0, UploadFile(session_path="a", sandbox_path="b"))
    assert settled.error is not None
    return settled.error.message


PLACES: list[Callable[[str], Awaitable[str]]] = [
    of_a_provider,
    of_a_fault,
    of_a_launcher,
    of_a_torn_answer,
    of_a_refused_start,
    of_a_refused_input,
    of_a_program,
    of_tar,
    of_a_long_name,
    of_a_stream,
    of_an_upload,
]


def parts_in(text: str, secret: str) -> list[str]:
    """What tells of it: five characters in a row, but for those by which a token is known."""
    first = len("dtn_") if secret == TOKEN else 0
    return [secret[at : at + 5] for at in range(first, len(secret) - 4) if secret[at : at + 5] in text]


@pytest.mark.parametrize("secret", [SECRET, TOKEN], ids=["value", "shape"])
@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
async def test_a_secret_in_the_midst_of_which_a_text_is_cut_is_not_told_in_part(
    place: Callable[[str], Awaitable[str]], secret: str
) -> None:
    filler = "-. " * 3000
    length = len(await place(filler))
    cuts = 0
    for before in range(max(0, length - 2 * len(secret) - 100), length + 10):
        said = f"{filler[:before]} {secret} {filler}"
        if place is of_a_program:
            said = said[::-1].replace(secret[::-1], secret)
        told = await place(said)
        cuts += bool(parts_in(told, secret)) and secret not in told
        if place is of_an_upload:
            assert parts_in(told, SECRET) == []
        assert parts_in(REDACTOR.redact_excerpt(told), secret) == []
    cuts_by_itself = place is of_an_upload or (place is of_a_program and secret == TOKEN)
    assert cuts > len(secret) / 3 or cuts_by_itself, "or nothing was cut in its midst"


def test_what_is_cut_says_so_and_is_as_long_as_it_may_be() -> None:
    assert (beginning_of("abcde", 5), beginning_of("abcdef", 5)) == ("abcde", f"abcd{CUT}")
    assert (end_of("abcde", 5), end_of("abcdef", 5)) == ("abcde", f"{CUT}cdef")
    assert [end_of(text, 5) for text in ("ab cdef", "abc def", "abcd ef", "ab c def")] == [
        f"{CUT}cdef",
        f"{CUT}def",
        f"{CUT}ef",
        f"{CUT}def",
    ]


def test_a_secret_with_the_mark_in_it_is_found_as_a_whole() -> None:
    redactor = Redactor({"PW": f"half{CUT}another"})
    assert redactor.redact_excerpt(f"a half{CUT}another b") == "a [redacted:PW] b"
    assert redactor.redact_excerpt(f"a half{CUT} b{CUT}") == f"a [redacted:PW]{CUT} b{CUT}"
    assert redactor.redact_text(f"a half{CUT} b") == f"a half{CUT} b"
