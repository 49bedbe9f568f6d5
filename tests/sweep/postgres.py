"""A throw-away PostgreSQL server from Debian's package, on a socket in a temporary folder."""

import contextlib
import os
import pathlib
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator

_FOUND = sorted(
  pathlib.Path('/usr/lib/postgresql').glob('*/bin/postgres'), key=lambda p: int(p.parts[-3])
)
SERVER = _FOUND[-1].parent if _FOUND else None


@contextlib.contextmanager
def server() -> Iterator[str]:
  """Starts a server without TCP and yields the URL of an empty database; the server then ends."""
  assert SERVER
  # It refuses to run as root: then as another user, who must own the folder.
  names = {entry.pw_name for entry in pwd.getpwall()}
  user = None if os.getuid() else ('postgres' if 'postgres' in names else 'nobody')
  with tempfile.TemporaryDirectory(prefix='pg', dir='/tmp') as folder:  # a socket's path is short
    if user:
      shutil.chown(folder, user)
    as_user = {'user': user, 'group': pwd.getpwnam(user).pw_gid, 'extra_groups': []} if user else {}
    options = {'cwd': folder, 'env': {'LC_ALL': 'C'}, 'stdin': subprocess.DEVNULL, **as_user}
    make = ['-U', 'sweep', '-A', 'trust', '-E', 'UTF8', '--no-sync', '-D', 'data']
    subprocess.run(
      [SERVER / 'initdb', *make], check=True, stdout=subprocess.DEVNULL, timeout=120, **options
    )
    with (
      (pathlib.Path(folder) / 'log').open('wb') as log,
      subprocess.Popen(
        [SERVER / 'postgres', '-D', 'data', '-k', folder, '-h', '', '-F'], stderr=log, **options
      ) as process,
    ):
      try:
        ask = [SERVER / 'pg_isready', '-q', '-h', folder]
        while subprocess.run(ask, timeout=60, check=False).returncode:
          assert process.poll() is None, (pathlib.Path(folder) / 'log').read_text()
          time.sleep(0.05)
        yield f'postgresql://sweep@/postgres?host={folder}'
      finally:
        process.send_signal(signal.SIGQUIT)  # at once; what it holds goes with the folder
