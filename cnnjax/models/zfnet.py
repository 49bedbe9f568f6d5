"""ZFNet: Zeiler & Fergus 2013, "Visualizing and Understanding Convolutional Networks",
arXiv:1311.2901, figure 3.

AlexNet in one tower, its first layer 7 x 7 with stride 2, its second with stride 2. The figure's
map sizes (110, 55, 26, 13, 6) fix the padding that the text leaves out: one pixel around the first
convolution and the first two poolings. The contrast normalisation across feature maps is AlexNet's
local response normalisation, after the pooling as the figure draws it.
"""

from functools import partial

from cnnjax.models.alexnet import AlexNet, Layer
from cnnjax.models.entry import Entry

_LAYERS = (
  Layer(96, 7, 2, padding=1, norm=True, pool=1),
  Layer(256, 5, 2, padding='VALID', norm=True, pool=1),
  Layer(384, 3),
  Layer(384, 3),
  Layer(256, 3, pool=0),
)

VARIANTS = {
  'zfnet': Entry(
    partial(AlexNet, layers=_LAYERS, smallest=53, pool_first=True),
    paper='Zeiler & Fergus 2013, arXiv:1311.2901',
  ),
}
