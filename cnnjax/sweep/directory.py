"""What a sweep's directory remembers, sweep.json, and the refusal of another sweep's directory."""

import json
import os
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from cnnjax.config import Config, leaves
from cnnjax.errors import UserError
from cnnjax.sweep import space as space_lib
from cnnjax.training import workdir

_FILE = 'sweep.json'
_DEFAULTS = {'sweep.db': 'sqlite:///', 'sweep.journal': 'journal:'}  # by the file in the directory


class Identity(NamedTuple):
  """Which sweep it is, and where its trials are kept.

  Attributes:
    description: space and base config, as JSON has them; a sweep with others is another one.
    name: of the study in the storage.
    storage: URL without a password, or the name of a file of the directory.
    url: of the storage.
  """

  description: dict[str, Any]
  name: str
  storage: str
  url: str


def identify(
  directory: str,
  space: space_lib.Space,
  config: Config,
  *,
  storage: str | None,
  name: str | None,
  workers: int,
) -> Identity:
  """The sweep that the flags mean, which must be the one that the directory holds.

  Args:
    directory: of the sweep; it needn't exist.
    space: validated.
    config: validated; what the trials start from.
    storage: a URL, if one is given. Else that of the directory's sweep; of a new one SQLite for one
      worker, a journal file for several.
    name: of the study, if given. Else that of the directory's sweep, or the directory's own.
    workers: of this process.

  Raises:
    UserError: it is another sweep, or SQLite is to serve several workers.
  """
  description = {'space': space_lib.describe(space), 'config': json.loads(config.to_json())}
  kept = workdir.read_json(directory, _FILE) or {}
  if kept and (said := differing(kept.get('description', {}), description)):
    raise UserError(
      f'--workdir={directory!r} holds another sweep; it {said}: choose another workdir'
    )
  default = 'sweep.db' if workers == 1 else 'sweep.journal'
  new = without_password(storage) if storage else kept.get('storage', default)
  name = name or str(kept.get('name') or os.path.basename(os.path.abspath(directory)))
  for flag, value in (('storage', new), ('name', name)):
    if kept and kept.get(flag) != value:
      raise UserError(
        f'--{flag}={value!r} must be {kept.get(flag)!r}, as --workdir={directory!r} has it'
      )
  prefix = _DEFAULTS.get(new)
  url = f'{prefix}{os.path.join(directory, new)}' if prefix else storage or new
  if url.startswith('sqlite') and workers > 1:
    raise UserError(
      f'--workers={workers} is too many for SQLite ({without_password(url)}), which serves 1: begin'
      ' another workdir with several, or with --storage=journal:FILE'
    )
  return Identity(description, name, new, url)


def differing(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
  """'differs in KEYS (the first was A, is B)', or '' where two descriptions are the same."""
  old, new = dict(leaves(before)), dict(leaves(after))
  keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
  if not keys:
    return ''
  first = keys[0]
  return f'differs in {", ".join(keys)} ({first} was {old.get(first)!r}, is {new.get(first)!r})'


def without_password(url: str) -> str:
  """The URL to be kept; PostgreSQL takes the password from PGPASSWORD or ~/.pgpass as well."""
  url = re.sub(r'(://[^:/@]*):.*@', r'\1@', url)
  return re.sub(r'(?<=[?&])\w*password=[^&]*&?', '', url)


def remember(directory: str, identity: Identity) -> None:
  """Writes sweep.json."""
  path = os.path.join(directory, _FILE)
  kept = {name: value for name, value in identity._asdict().items() if name != 'url'}
  write(path, json.dumps(kept, indent=2) + '\n')


def write(path: str, text: str) -> None:
  """Writes a file, or leaves the old one: never a part of it."""
  partial = f'{path}.partial{os.getpid()}'  # several processes may write the same
  with open(partial, 'w', encoding='utf-8', errors='replace') as file:
    file.write(text)
  os.replace(partial, path)
