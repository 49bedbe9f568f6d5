"""Claim 1: a convolution needs a few hundred parameters, a fully connected layer fourteen million.

Command: python -m experiments.claims.sharing --workdir=DIR
Result: from 32x32x3 to 28x28x6 by six 5x5 filters takes 456 parameters (156, where every filter is
counted as 5 * 5 + 1); fully connected 14,450,688 weights. Counted, not drawn: no seeds.
"""

from matplotlib import pyplot as plt
from matplotlib.ticker import EngFormatter

from cnnjax import cli, models
from cnnjax.analysis import ledger
from experiments.claims import claim

NETWORKS = ('lenet5', 'resnet50')
KINDS = {
  'convolution': 'parameters',
  'locally connected': 'locally_connected_parameters',
  'fully connected': 'fully_connected_parameters',
}
ALSO = {
  'its weights alone': 'fully_connected_weights',
  'filters counted as k * k + 1': 'parameters_per_channel_filter',
}


def count(entries):
  """What the layers of a network hold together, in each form."""
  return {kind: sum(getattr(e, field) for e in entries) for kind, field in (KINDS | ALSO).items()}


def main():
  classic = ledger.convolution((32, 32, 3), features=6, kernel_size=(5, 5), padding='VALID')
  print(
    f'fully connected: {classic.fully_connected_weights:,} weights ='
    f' {classic.fully_connected_weights // classic.parameters_per_channel_filter:,} times 156'
    f' = {classic.fully_connected_weights // classic.parameters:,} times 456.\n'
    f'Of the saving, a factor {1 / (1 - classic.sparsity):.2f} is left-out connections'
    f' (sparsity {classic.sparsity:.2%}), a factor {classic.reuse:.0f} is sharing.\n'
  )
  counts = {'the layer': count([classic])}
  for name in NETWORKS:
    known = models.REGISTRY[name]
    entries = ledger.entries(models.create(name, num_classes=known.num_classes), known.image)
    counts[f'{name}, convolutions'] = count([e for e in entries if len(e.kernel) == 4])
    counts[f'{name}, all layers'] = count(entries)
  rows = [
    {
      'what': what,
      **{kind: f'{number:,}' for kind, number in found.items()},
      'saved': f'{found["fully connected"] / found["convolution"]:,.0f} times',
    }
    for what, found in counts.items()
  ]

  short = lambda number: EngFormatter(places=1)(number).replace('.0', '')
  figure, axes = plt.subplots(figsize=(6, 3))
  shown = {what: found for what, found in counts.items() if 'all' not in what}
  for i, kind in enumerate(KINDS):
    places = [x + 0.27 * (i - 1) for x in range(len(shown))]
    bars = axes.bar(places, [found[kind] for found in shown.values()], 0.25, label=kind)
    axes.bar_label(bars, fmt=short, fontsize=7)
  labels = ['six 5x5 filters\non 32x32x3', *(f'{name},\nconvolutions' for name in NETWORKS)]
  axes.set_xticks(range(len(shown)), labels)
  axes.set_yscale('log')
  axes.set_ylabel('parameters (log scale)')
  axes.legend(frameon=False, loc='upper left')
  claim.save('sharing', rows, figure)


if __name__ == '__main__':
  cli.run(main)
