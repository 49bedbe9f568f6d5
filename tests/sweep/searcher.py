"""A sweep process that trains nothing: python -m tests.sweep.searcher OWNER TRIALS URL...

It works in every storage at once: adds the budget, then claims and completes. OWNER 'mayfly' does
so twice, takes a third trial and keeps it; any other goes on until nothing waits. A line on its
standard input says when to start, another one when to do more than three trials, and then each one
whose trials to take over.
"""

import sys
import time

from cnnjax.sweep import search, space

SPACE = space.Space(
  {
    'optimizer.name': space.choice('adamw', 'nesterov'),
    'optimizer.learning_rate': space.log_uniform(1e-4, 1e-1),
    'optimizer.momentum': space.uniform(0.8, 0.99, when={'optimizer.name': 'nesterov'}),
  },
  sampler='random',
)


def opened(url):
  return search.open(SPACE, url=url, name='race', description=space.describe(SPACE), seed=3)


def main(owner, trials, *urls):
  studies = [opened(url) for url in urls]
  print('ready', flush=True)
  sys.stdin.readline()
  for study in studies:
    study.add_budget(int(trials))
  done = 0
  while True:
    claims = [study.claim(owner) for study in studies]
    if owner == 'mayfly' and done == 2:
      print('holds', *(claim.slot for claim in claims), flush=True)
      time.sleep(600)
    if done == 3:
      sys.stdin.readline()
    for study, claim in zip(studies, claims, strict=True):
      if claim:
        assert study.beat(claim)
        assert not study.report(claim, 1, 0.5)
        assert study.complete(claim, (claim.values['optimizer.learning_rate'],))
    done += 1
    if not any(claims):
      print('empty', flush=True)
      if not (dead := sys.stdin.readline()):
        break
      for study in studies:
        study.recover(lambda trial, dead=dead: trial.owner == dead.strip())
  for study in studies:
    study.close()


if __name__ == '__main__':
  main(*sys.argv[1:])
