"""What a pretrained network looks at in two photographs: docs/claims/attribution.jpg.

Command: python -m experiments.claims.attribution --workdir=DIR

scikit-image's cat and coffee as EfficientNet-Lite0 crops them, side by side: how much of each map's
mass lies in the box around the cat's face, and (in brackets) its rank correlation with Grad-CAM.
"""

import jax
import numpy as np
import scipy.stats
from absl import flags
from matplotlib import pyplot
from skimage import data

from cnnjax import cli, pretrained
from cnnjax.analysis import attribution as a
from experiments.claims import claim

CLASSES = {'tabby': 281, 'tiger cat': 282, 'Egyptian cat': 285, 'espresso': 967}
BOX = np.s_[52:223, 31:214]  # rows and columns, both eyes to the chin: 31 % of the image
MAPS = {
  'Grad-CAM': a.grad_cam,
  'Grad-CAM++': lambda *x: a.grad_cam(*x, plus_plus=True),
  'occlusion': lambda *x: a.occlusion(*x, window=96, stride=32, batch_size=12),
  'integrated gradients': lambda *x: abs(a.integrated_gradients(*x).sum(-1)),
  'SmoothGrad': lambda *x: abs(a.smooth_grad(jax.random.key(0), *x)).max(-1),
  'guided backpropagation': lambda *x: abs(a.guided_backprop(*x)).max(-1),
  'saliency': a.saliency,
}


def main() -> None:
  model, variables, info = pretrained.get('tf_efficientnet_lite0')
  images = np.concatenate([info.preprocess(x()) for x in (data.chelsea, data.coffee)], 1)[None]
  found, rows = {}, []
  for name, fn in MAPS.items():
    explain = jax.jit(lambda v, x, y, fn=fn: fn(model, v, x, y)[0])
    rows.append({'share in the box': name})
    for title, label in CLASSES.items():
      found[name, title] = heat = np.asarray(explain(variables, images, np.array([label])))
      rank = scipy.stats.spearmanr(found['Grad-CAM', title].ravel(), heat.ravel())[0]
      rows[-1][title] = f'{heat[BOX].clip(0).sum() / heat.clip(0).sum():.3f} ({rank:.2f})'
  ticks = {'xticks': [], 'yticks': []}
  figure, axes = pyplot.subplots(3, 3, figsize=(9, 5.2), subplot_kw=ticks)
  axes.flat[0].imshow(images[0] * 0.5 + 0.5)
  shown = [('Grad-CAM', 'espresso'), *((name, 'tiger cat') for name in MAPS)]
  for ax, key in zip(axes.flat[1:], shown, strict=True):
    ax.imshow(images[0].mean(-1), 'gray')
    ax.imshow(found[key], 'inferno', alpha=0.65, vmin=0, vmax=np.quantile(found[key], 0.995))
    ax.set_title(': '.join(key))
  for ax in axes.flat:
    ax.add_patch(pyplot.Rectangle((31, 52), 183, 171, fill=False, edgecolor='cyan', linewidth=0.8))
  claim.save('attribution', rows, figure)
  figure.savefig(f'{flags.FLAGS.workdir}/attribution.jpg', dpi=90)


if __name__ == '__main__':
  cli.run(main)
