"""An address is of a connected host when it is exactly that host by https, and of no other whatever it looks like."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandhold.contracts.errors import ErrorCode
from sandhold.github import AddressRefused, CredentialInAddress, repository_of

HOSTS = ("github.com",)
CLEAN = "https://github.com/owner/repo.git"

CONNECTED = [
    "owner/repo",
    "owner/repo.git",
    "https://github.com/owner/repo",
    "https://github.com/owner/repo.git",
    "https://github.com/owner/repo/",
    "https://github.com/owner/repo.git/",
    "HTTPS://GitHub.COM/owner/repo",
    "https://github.com./owner/repo",
    "https://github.com:443/owner/repo",
    "https://git@github.com/owner/repo",
    "https://octocat@github.com/owner/repo",
    "git@github.com:owner/repo.git",
    "git@GITHUB.com:owner/repo",
    "ssh://git@github.com/owner/repo.git",
    "ssh://git@github.com:22/owner/repo.git",
    # Other characters by which IDNA means the same host: what goes out has it in its one form.
    "https://\uff47\uff49\uff54\uff48\uff55\uff42.com/owner/repo",
    "https://github\u3002com/owner/repo",
]

REFUSED = [
    "",
    "repo",
    "owner/repo/more",
    "/owner/repo",
    "./repo",
    "../repo",
    "owner/..",
    "owner/.",
    "~/repo",
    "-owner/repo",
    "owner/-repo",
    "--upload-pack=touch /tmp/x",
    "--upload-pack=x/y",
    "-oProxyCommand=x/y",
    "ext::sh -c touch% /tmp/x",
    "ext::sh",
    "file:///etc/passwd",
    "file://github.com/owner/repo",
    "git://github.com/owner/repo",
    "git+ssh://git@github.com/owner/repo",
    "ftp://github.com/owner/repo",
    "javascript://github.com/owner/repo",
    "https:github.com/owner/repo",
    "https:/github.com/owner/repo",
    "https:///owner/repo",
    "https://",
    "https://github.com",
    "https://github.com/",
    "https://github.com/owner",
    "https://github.com/owner/repo/tree/main",
    "https://github.com/owner/repo?x=y",
    "https://github.com/owner/repo#main",
    "https://github.com?@evil.example/owner/repo",
    "https://github.com#@evil.example/owner/repo",
    "https://evil.example#@github.com/owner/repo",
    "https://github.com/../evil/repo",
    "https://github.com//owner/repo",
    "https://github.com/owner/%2e%2e",
    "https://github.com/owner/re%00po",
    "https://github.com\\@evil.example/owner/repo",
    "https:\\\\github.com\\owner\\repo",
    "https://github%2ecom/owner/repo",
    "https://%67ithub.com/owner/repo",
    "https://evil.example%2f@github.com/owner/repo",
    "https://github.com%00.evil.example/owner/repo",
    "https://github.com%0a.evil.example/owner/repo",
    "https://github.com\n/owner/repo",
    "https://github.com/owner/repo\nhost=evil.example",
    "https://github.com/owner/repo\r\nX: y",
    "\nhttps://github.com/owner/repo",
    " https://github.com/owner/repo",
    "https://github.com/owner/repo ",
    "https://git hub.com/owner/repo",
    "https://github.com\t/owner/repo",
    "https://github.com\x00/owner/repo",
    "https://github.com\u200b/owner/repo",
    "https://github.com\u202e/owner/repo",
    "https://github\u00ad.com/owner/repo",
    "https://github.com..//owner/repo",
    "https://.github.com/owner/repo",
    "https://github..com/owner/repo",
    "https://github.com../owner/repo",
    "https://-github.com/owner/repo",
    "https://git_hub.com/owner/repo",
    "https://xn--a/owner/repo",
    "https://[::1]/owner/repo",
    "https://[github.com]/owner/repo",
    "https://github.com:0/owner/repo",
    "https://github.com:65536/owner/repo",
    "https://github.com:443x/owner/repo",
    "https://github.com:+443/owner/repo",
    "https://github.com:\u0664\u0664\u0663/owner/repo",
    "https://github.com@evil.example/owner/repo",
    "https://a@b@github.com/owner/repo",
    "https://@github.com/owner/repo",
    "https://evil.example/a/../b",
    "https://evil.example/a/%2e%2e/b",
    "https://evil.example/a/--upload-pack=x/-b",
    "http://github.com",
    "github.com:owner/repo",
    "github.com:x@evil",
    "github.com/owner/repo",
    "git@evil.example:owner/repo",
    "git@github.com.evil.example:owner/repo",
    "git@github.com:owner/repo@evil.example",
    "git@github.com:../../etc/passwd",
    "git@github.com:owner/repo:more",
    "root@github.com:owner/repo",
    "-git@github.com:owner/repo",
    "ssh://github.com/owner/repo",
    "ssh://root@github.com/owner/repo",
    "ssh://git@github.com:2222/owner/repo",
    "ssh://git@evil.example/owner/repo",
    "ssh://-oProxyCommand=x/owner/repo",
    "ssh://git@-oProxyCommand=x/owner/repo",
    "https://github.com/owner/" + "a" * 2000,
]

ELSEWHERE = [
    "http://github.com/owner/repo",
    "https://github.com:8443/owner/repo",
    "https://github.com:80/owner/repo",
    "https://www.github.com/owner/repo",
    "https://api.github.com/owner/repo",
    "https://gist.github.com/owner/repo",
    "https://github.com.evil.example/owner/repo",
    "https://github.com-evil.example/owner/repo",
    "https://evilgithub.com/owner/repo",
    "https://github.co/owner/repo",
    "https://github.comm/owner/repo",
    "https://githib.com/owner/repo",
    "https://glthub.com/owner/repo",
    "https://git.hub.com/owner/repo",
    "https://g\u0456thub.com/owner/repo",  # a Cyrillic i
    "https://githu\u042c.com/owner/repo",
    "https://\u0261ithub.com/owner/repo",  # a Latin script g
    "https://xn--gthub-n4a.com/owner/repo",
    "https://evil.example/github.com/owner/repo",
    "https://evil.example/owner/repo;@github.com",
    "https://evil.example:443/owner/repo",
    "https://git@evil.example/owner/repo",
    "http://127.0.0.1:8080/owner/repo",
    "https://2130706433/owner/repo",
    "https://0x7f.1/owner/repo",
]

WITH_CREDENTIALS = [
    "https://github.com:x@evil.example/owner/repo",
    "https://x:hunter2@github.com/owner/repo",
    "https://:hunter2@github.com/owner/repo",
    "https://hunter2:@github.com/owner/repo",
    "https://x:a@b:hunter2@github.com/owner/repo",
    "https://ghp_hunter2hunter2hunter2hunter2@github.com/owner/repo",
    "https://github_pat_hunter2@github.com/owner/repo",
    "https://x-access-token:ghs_hunter2@github.com/owner/repo",
    "https://" + "hunter2" * 10 + "@github.com/owner/repo",
    "ssh://git:hunter2@github.com/owner/repo",
]


@pytest.mark.parametrize("text", CONNECTED)
def test_ways_to_write_a_repository_of_the_connected_host_come_to_one(text: str) -> None:
    address = repository_of(text, HOSTS)
    assert (address.url, address.host, address.full_name) == (CLEAN, "github.com", "owner/repo")
    assert address.is_connected_host


@pytest.mark.parametrize("text", [each for each in CONNECTED if "@" not in each or each.startswith("https")])
def test_without_a_connection_the_same_address_gets_no_credential(text: str) -> None:
    address = repository_of(text, ())
    assert dataclasses.replace(address, is_connected_host=True) == repository_of(text, HOSTS)
    assert not address.is_connected_host


@pytest.mark.parametrize("text", ["git@github.com:owner/repo", "ssh://git@github.com/owner/repo"])
def test_addresses_of_ssh_are_known_for_connected_hosts_alone(text: str) -> None:
    with pytest.raises(AddressRefused):
        repository_of(text, ())


@pytest.mark.parametrize("text", REFUSED)
def test_hostile_addresses_are_refused(text: str) -> None:
    with pytest.raises(AddressRefused) as refused:
        repository_of(text, HOSTS)
    assert refused.value.error.code is ErrorCode.INVALID_ARGUMENTS
    assert not refused.value.error.retryable


@pytest.mark.parametrize("text", ELSEWHERE)
def test_lookalikes_of_the_connected_host_get_no_credential(text: str) -> None:
    address = repository_of(text, HOSTS)
    assert not address.is_connected_host
    assert address.url.isascii()
    assert "@" not in address.url.partition("://")[2].partition("/")[0]
    assert address.host == address.url.partition("://")[2].partition("/")[0]


@pytest.mark.parametrize("text", WITH_CREDENTIALS)
def test_an_address_with_a_password_is_refused_and_never_repeated(text: str) -> None:
    with pytest.raises(CredentialInAddress) as refused:
        repository_of(text, HOSTS)
    told = refused.value.error.model_dump_json() + str(refused.value)
    assert "hunter2" not in told
    assert "evil" not in told
    assert "connect github" in told


def test_there_are_enough_of_them() -> None:
    assert len({*REFUSED, *ELSEWHERE, *WITH_CREDENTIALS}) >= 40


@pytest.mark.parametrize(
    "text",
    ["ghe.acme.example:8443/owner/repo", "GHE.ACME.EXAMPLE.:8443/owner/repo", "git@ghe.acme.example:8443/owner/repo"],
)
def test_a_host_of_its_own_is_connected_with_its_port(text: str) -> None:
    hosts = ("ghe.acme.example:8443",)
    known = repository_of(f"https://{text.removeprefix('git@')}", hosts)
    assert (known.url, known.is_connected_host) == ("https://ghe.acme.example:8443/owner/repo.git", True)
    assert repository_of("owner/repo", hosts) == known
    assert repository_of("git@ghe.acme.example:owner/repo", hosts) == known
    for other in ("https://ghe.acme.example/owner/repo", "https://ghe.acme.example:8444/owner/repo", CLEAN):
        assert not repository_of(other, hosts).is_connected_host


def test_a_short_name_without_a_connection_is_at_the_deployments_host() -> None:
    address = repository_of("owner/repo", (), "ghe.acme.example")
    assert (address.url, address.is_connected_host) == ("https://ghe.acme.example/owner/repo.git", False)


@pytest.mark.parametrize(
    ("text", "url", "full_name"),
    [
        ("https://gitlab.example/group/sub/repo.git", "https://gitlab.example/group/sub/repo.git", None),
        ("http://git.example:8080/repo.git/", "http://git.example:8080/repo.git", None),
        ("https://me@dev.example/org/project", "https://dev.example/org/project", "org/project"),
        ("https://b\u00fccher.example/a/b", "https://xn--bcher-kva.example/a/b", "a/b"),
        ("https://git.example/a%20b/c", "https://git.example/a%20b/c", None),
    ],
)
def test_other_hosts_keep_their_paths(text: str, url: str, full_name: str | None) -> None:
    address = repository_of(text, HOSTS)
    assert (address.url, address.full_name, address.is_connected_host) == (url, full_name, False)


@given(st.text(max_size=60) | st.from_regex(r"(https?|ssh|git)://[a-z@:.%\\#?/]{0,20}github\.com[@:.%\\#?/a-z]{0,20}"))
def test_whatever_is_taken_is_clean_and_means_the_same_when_it_is_read_again(text: str) -> None:
    try:
        address = repository_of(text, HOSTS)
    except AddressRefused:
        return
    assert repository_of(address.url, HOSTS) == address
    if address.is_connected_host:
        assert address.url == f"https://github.com/{address.full_name}.git"
