"""The allocator that `python -m cnnjax.main` preloads, from inside a process that has it."""

import os
import subprocess
import sys

import pytest

from cnnjax import memory

PROGRAM = """
import ctypes, os, random, threading
libc = ctypes.CDLL(None)
libc.realloc.restype = ctypes.c_void_p
libc.malloc_usable_size.restype = ctypes.c_size_t
MiB = 1 << 20

def allocate(size, alignment=64):
  place = ctypes.c_void_p()
  status = libc.posix_memalign(ctypes.byref(place), alignment, ctypes.c_size_t(size))
  assert status == 0 and place.value % alignment == 0, status
  return place.value

def free(place):
  libc.free(ctypes.c_void_p(place))

def resident():
  with open('/proc/self/statm') as file:
    return int(file.read().split()[1]) * os.sysconf('SC_PAGE_SIZE')
"""
CASES = {
  'a block is used again for one of about its size': """
a = allocate(64 * MiB)
free(a)
b = allocate(60 * MiB)
assert b == a
c = allocate(60 * MiB)  # the only one is taken
assert c != a
free(b)
assert allocate(16 * MiB) != a  # too wasteful
""",
  'little more than the most in use is kept': """
before = resident()
blocks = [allocate(32 * MiB) for _ in range(10)]
for block in blocks: ctypes.memset(block, 1, 32 * MiB)
for block in blocks: free(block)
large = allocate(300 * MiB)
ctypes.memset(large, 1, 300 * MiB)
assert resident() - before < 1.3 * 320 * MiB, (resident() - before) // MiB
""",
  'reallocated': """
a = allocate(8 * MiB)
ctypes.memset(a, 7, 8 * MiB)
assert libc.malloc_usable_size(ctypes.c_void_p(a)) == 8 * MiB
b = libc.realloc(ctypes.c_void_p(a), ctypes.c_size_t(9 * MiB))
assert ctypes.string_at(b, 8 * MiB) == b'\\7' * (8 * MiB)
free(b)
""",
  "small and oddly aligned ones are the C library's": """
for alignment, size in ((64, 100), (4096, 3 * MiB), (8 * MiB, 5 * MiB)):
  free(allocate(size, alignment))
assert libc.posix_memalign(ctypes.byref(ctypes.c_void_p()), 24, ctypes.c_size_t(8 * MiB)) == 22
""",
  'threads, and children of a process with threads': """
wrong = []
def work(seed):
  rng = random.Random(seed)
  held = []
  for _ in range(300):
    size = rng.randrange(4, 12) * MiB
    place = allocate(size)
    mark = rng.randrange(256)
    ctypes.memset(place, mark, 4096)
    ctypes.memset(place + size - 4096, mark, 4096)
    held.append((place, size, mark))
    if len(held) > 3:
      place, size, mark = held.pop(rng.randrange(4))
      for end in (place, place + size - 4096):
        if ctypes.string_at(end, 4096) != bytes([mark]) * 4096:
          wrong.append(seed)
      free(place)
threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
for thread in threads: thread.start()
for _ in range(20):
  child = os.fork()
  if not child:
    free(allocate(8 * MiB))
    os._exit(0)
  assert os.waitpid(child, 0)[1] == 0
for thread in threads: thread.join()
assert not wrong
""",
}


def environment(monkeypatch):
  monkeypatch.delenv('GLIBC_TUNABLES', raising=False)
  monkeypatch.delenv('LD_PRELOAD', raising=False)
  return memory.environment()


@pytest.mark.parametrize('name', CASES)
def test_allocator(name, monkeypatch):
  variables = environment(monkeypatch)
  if 'LD_PRELOAD' not in variables:
    pytest.skip('cnnjax-onednn is not installed')
  command = [sys.executable, '-W', 'ignore', '-c', PROGRAM + CASES[name]]
  result = subprocess.run(
    command, env=os.environ | variables, capture_output=True, text=True, timeout=120, check=False
  )
  assert result.returncode == 0, result.stderr


@pytest.mark.parametrize('variable', ['GLIBC_TUNABLES', 'LD_PRELOAD'])
def test_what_somebody_has_set_stays(variable, monkeypatch):
  environment(monkeypatch)
  monkeypatch.setenv(variable, '')
  assert memory.environment() == {}
