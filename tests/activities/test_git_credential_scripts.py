"""What puts git's credential into a sandbox and takes it out again, with each kind of sh and with real git."""

from __future__ import annotations

import shutil
import stat
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from activities.git_scripts.credentials import (
    CredentialAnswer,
    Delivery,
    credential_answer,
    install_request,
    remove_request,
)
from activities.git_scripts.frames import ScriptRequest
from tests.activities.shells import Machine, shells_present

TOKEN = "ghs_canary0000000000000000000000000001"
DELIVERY = Delivery("github.test", "x-access-token", TOKEN, "Ada L.", "ada@example.com")


@dataclass
class Home:
    """A sandbox user's home, on a machine whose /dev/shm is no memory."""

    machine: Machine
    shm: Path

    @property
    def path(self) -> Path:
        return self.machine.home

    @property
    def file(self) -> Path:
        return self.path / ".sandhold/git/hosts.yml"

    @property
    def environment(self) -> dict[str, str]:
        return {"PATH": self.machine.path, "HOME": str(self.path), "GIT_CONFIG_NOSYSTEM": "1", **self.machine.env}

    def ask(self, request: ScriptRequest) -> CredentialAnswer:
        script = request.env["SANDHOLD_SCRIPT"].replace("shm=/dev/shm", f"shm={self.shm}")
        credential = request.env.get("SANDHOLD_CREDENTIAL", "").replace("/dev/shm", str(self.shm))
        done = self.run(request.command, {**request.env, "SANDHOLD_SCRIPT": script, "SANDHOLD_CREDENTIAL": credential})
        return credential_answer(request.nonce, done)

    def install(self, number: int = 1, delivery: Delivery = DELIVERY) -> CredentialAnswer:
        return self.ask(install_request(number, delivery))

    def run(self, command: str, env: dict[str, str] | None = None, stdin: str = "") -> str:
        done = subprocess.run(  # noqa: PLW1510 - what fails tells nothing
            [str(Path(self.machine.path.split(":")[0]) / "sh"), "-c", command],
            env={**self.environment, **(env or {})},
            input=stdin,
            capture_output=True,
            text=True,
            cwd=self.path,
            timeout=30,
        )
        return done.stdout

    def filled(self, host: str, protocol: str = "https") -> str:
        """What git finds for a host."""
        return self.run("git credential fill", {"GIT_TERMINAL_PROMPT": "0"}, f"protocol={protocol}\nhost={host}\n\n")

    def holding(self, text: str) -> list[Path]:
        return [
            each
            for each in self.path.rglob("*")
            if each.is_file() and not each.is_symlink() and text.encode() in each.read_bytes()
        ]


@pytest.fixture(params=shells_present())
def home(request: pytest.FixtureRequest, tmp_path: Path) -> Home:
    if not shutil.which("git"):
        pytest.skip("git is not installed")
    shm = tmp_path / "shm"
    shm.mkdir()
    return Home(Machine.made_of(tmp_path, request.param), shm)


def test_git_finds_the_credential_for_its_host_alone(home: Home) -> None:
    answer = home.install()

    assert answer == CredentialAnswer(done=True, place="disk", git="yes")
    assert f"username=x-access-token\npassword={TOKEN}" in home.filled("github.test")
    assert TOKEN in home.filled("GitHub.test:443")
    for other in ("github.test.evil", "sub.github.test", "github.test:8443", "xgithub.test", "github.test."):
        assert TOKEN not in home.filled(other), other
    assert TOKEN not in home.filled("github.test", "http")


def test_the_credential_is_in_one_file_that_nobody_else_may_read(home: Home) -> None:
    home.install()

    assert home.holding(TOKEN) == [home.file]
    assert (home.path / ".config/gh/hosts.yml").resolve() == home.file.resolve()
    assert stat.S_IMODE(home.file.stat().st_mode) == 0o600
    assert stat.S_IMODE(home.file.parent.stat().st_mode) == 0o700


def test_doing_it_again_changes_nothing_but_the_credential(home: Home) -> None:
    home.install()
    settings = (home.path / ".gitconfig").read_text()
    home.install(2, replace(DELIVERY, token="ghs_another"))

    assert (home.path / ".gitconfig").read_text() == settings
    assert "password=ghs_another" in home.filled("github.test")
    assert home.holding(TOKEN) == []


def test_a_change_that_comes_late_is_not_made(home: Home) -> None:
    home.install(1)
    assert home.ask(remove_request(3, "github.test", for_good=False)) == CredentialAnswer(done=True)
    assert home.install(2) == CredentialAnswer(late=True)
    assert home.holding(TOKEN) == []
    assert home.install(3).done, "another attempt of the latest change"
    assert home.ask(remove_request(2, "github.test", for_good=False)) == CredentialAnswer(late=True)
    assert home.file.exists()


def test_after_the_removal_nothing_is_left_but_settings_that_find_nothing(home: Home) -> None:
    home.install()
    home.ask(remove_request(2, "github.test", for_good=False))

    assert home.holding(TOKEN) == []
    assert not (home.path / ".config/gh/hosts.yml").is_symlink()
    assert "password" not in home.filled("github.test")
    home.ask(remove_request(3, "github.test", for_good=True))
    assert "helper" not in (home.path / ".gitconfig").read_text()


def test_other_helpers_do_not_hear_of_it_and_stay_for_other_hosts(home: Home) -> None:
    home.run("git config --global credential.helper store")
    home.install()

    filled = home.filled("github.test")
    home.run("git credential approve", stdin=filled)

    assert TOKEN in filled
    assert not (home.path / ".git-credentials").exists()
    home.run("git credential approve", stdin="protocol=https\nhost=other.test\nusername=u\npassword=p\n\n")
    assert "other.test" in (home.path / ".git-credentials").read_text()


def test_an_author_that_git_knows_is_left_alone(home: Home) -> None:
    home.run("git config --global user.name 'Grace H.'")
    home.install()

    assert home.run("git config user.name").strip() == "Grace H."
    assert home.run("git config user.email").strip() == "ada@example.com"


def test_a_login_of_gh_is_left_alone(home: Home) -> None:
    gh = home.path / ".config/gh/hosts.yml"
    gh.parent.mkdir(parents=True)
    gh.write_text("github.test:\n    oauth_token: theirs\n")
    home.install()
    home.ask(remove_request(2, "github.test", for_good=True))

    assert "theirs" in gh.read_text()


def test_a_folder_that_leads_elsewhere_is_not_written_to(home: Home, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (home.path / ".sandhold").mkdir()
    (home.path / ".sandhold/git").symlink_to(elsewhere)

    assert home.install() == CredentialAnswer(failed="folder")
    assert list(elsewhere.iterdir()) == []
    assert home.ask(remove_request(2, "github.test", for_good=False)).done, "there is nothing of ours"


def test_settings_that_are_locked_are_told(home: Home) -> None:
    (home.path / ".gitconfig.lock").touch()

    assert home.install() == CredentialAnswer(done=True, place="disk", git="locked")


def test_it_is_in_place_where_there_is_no_git(tmp_path: Path) -> None:
    programs = ["id", "mkdir", "chmod", "mv", "rm", "tail", "ln", "readlink", "tr", "sleep"]
    machine = Machine.made_of(tmp_path / "m", "dash", programs=programs)
    home = Home(machine, tmp_path / "shm")

    assert home.install() == CredentialAnswer(done=True, place="disk", git="no")


@pytest.mark.parametrize("token", ["with blank", "new\nline", "quo'te", ""])
def test_no_token_is_delivered_that_would_not_be_read_as_it_is(token: str) -> None:
    with pytest.raises(ValueError, match="characters"):
        Delivery("github.test", "x-access-token", token)


def test_the_programs_hold_no_credential_in_their_arguments() -> None:
    request = install_request(1, DELIVERY)

    assert TOKEN not in request.command
    assert TOKEN not in repr(request)
