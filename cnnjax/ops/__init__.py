"""Operations that know about platforms: oneDNN's on CPUs where `cnnjax-onednn` is installed, XLA's
elsewhere. `using` chooses: `with ops.using('xla'): ...`. `members` chooses how convolutions of many
kernels at once, under `vmap`, are computed."""

from cnnjax.ops import vmapped as vmapped
from cnnjax.ops.activation import gelu as gelu
from cnnjax.ops.batch_norm import batch_norm as batch_norm
from cnnjax.ops.batch_norm import channel_moments as channel_moments
from cnnjax.ops.convolution import conv_general_dilated as conv_general_dilated
from cnnjax.ops.convolution import dot_general as dot_general
from cnnjax.ops.plugin import slow_in_loops as slow_in_loops
from cnnjax.ops.plugin import using as using
from cnnjax.ops.pooling import max_pool as max_pool
from cnnjax.ops.ways import members as members
from cnnjax.ops.ways import picked as picked
