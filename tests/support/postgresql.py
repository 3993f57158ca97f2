"""A PostgreSQL server of one's own, from Debian's packages, on loopback."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.ports import free_port

PASSWORD = "pa55-w@rd/of the nurse"


@contextmanager
def postgresql() -> Iterator[int]:
    """Start a server with the superuser "nurse" and `PASSWORD`; give its port, stop it at the end.

    The test is skipped where the server's programs are not installed.
    """
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        pytest.skip("needs PostgreSQL's server programs: apt-get install postgresql")
    user = "postgres" if os.geteuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="fedllm-postgresql-"))
    port = free_port()

    def run(program: str, *arguments: str) -> None:
        command = [str(found[-1].parent / program), "-D", str(folder / "data"), *arguments]
        done = subprocess.run(
            command, user=user, cwd=folder, capture_output=True, text=True, timeout=900, check=False
        )
        assert done.returncode == 0, done.stderr

    try:
        (folder / "password").write_text(PASSWORD)
        if user:
            # PostgreSQL does not run as root.
            for path in (folder, folder / "password"):
                os.chown(path, pwd.getpwnam(user).pw_uid, -1)
        run("initdb", "-U", "nurse", "-A", "scram-sha-256", "--pwfile", str(folder / "password"))
        options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        log = str(folder / "log")
        run("pg_ctl", "-w", "-l", log, "-o", options, "start")
        try:
            yield port
        finally:
            run("pg_ctl", "-w", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder)
