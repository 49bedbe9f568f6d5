import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cnnjax.errors import UserError
from cnnjax.training import optimizers, schedules

RNG = np.random.default_rng(2)
PARAMS = {
  'stem': {'conv': {'kernel': RNG.normal(size=(3, 3, 2, 5)), 'bias': RNG.normal(size=5)}},
  'norm': {'scale': RNG.normal(size=5), 'bias': RNG.normal(size=5)},
  'head': {'kernel': RNG.normal(size=(5, 3)), 'bias': RNG.normal(size=3)},
}
GRADIENTS = [jax.tree.map(lambda p: RNG.normal(size=p.shape), PARAMS) for _ in range(5)]
RATE, DECAY = 0.05, 0.1


def run(optimizer):
  """The parameters after each update, by the optimizer inside jit with donated state."""

  def step(params, state, gradient):
    updates, state = optimizer.update(gradient, state, params)
    return optax.apply_updates(params, updates), state

  step = jax.jit(step, donate_argnums=(0, 1))
  to_float32 = lambda tree: jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)
  params, path = to_float32(PARAMS), []
  state = optimizer.init(params)
  assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state))
  for gradient in GRADIENTS:
    params, state = step(params, state, to_float32(gradient))
    path.append(jax.device_get(params))
  return path


def by_hand(rule, decay=DECAY):
  """The same in NumPy, float64; `rule(g, p, memory, t, wd) -> update to subtract, at rate 1`."""

  def leaf(path, *values):
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    p, *gradients = values
    memory, trajectory = {}, []
    for t, g in enumerate(gradients, start=1):
      p = p - RATE * rule(g, p, memory, t, decay if name.endswith('kernel') else 0.0)
      trajectory.append(p)
    return np.stack(trajectory)

  stacked = jax.tree_util.tree_map_with_path(leaf, PARAMS, *GRADIENTS)
  return [jax.tree.map(lambda x, t=t: x[t], stacked) for t in range(len(GRADIENTS))]


def assert_close(got, expected, rtol=2e-4, atol=2e-5):
  for a, b in zip(got, expected, strict=True):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), a, b)


def norm(x):
  return np.sqrt((x**2).sum())


def sgd(g, p, memory, t, wd):
  return g + wd * p


def momentum(g, p, memory, t, wd, mu=0.9):
  memory['v'] = mu * memory.get('v', 0) + g + wd * p
  return memory['v']


def nesterov(g, p, memory, t, wd, mu=0.9):
  return g + wd * p + mu * momentum(g, p, memory, t, wd, mu)


def rmsprop(g, p, memory, t, wd, mu=0.5, b2=0.9, eps=1e-8):
  g = g + wd * p
  memory['s'] = b2 * memory.get('s', 0) + (1 - b2) * g**2
  memory['v'] = mu * memory.get('v', 0) + g / (np.sqrt(memory['s']) + eps)
  return memory['v']


def moments(g, memory, t, b1=0.9, b2=0.999, eps=1e-8):
  memory['m'] = b1 * memory.get('m', 0) + (1 - b1) * g
  memory['s'] = b2 * memory.get('s', 0) + (1 - b2) * g**2
  return (memory['m'] / (1 - b1**t)) / (np.sqrt(memory['s'] / (1 - b2**t)) + eps)


def adam(g, p, memory, t, wd):
  return moments(g + wd * p, memory, t)


def adamw(g, p, memory, t, wd):
  return moments(g, memory, t) + wd * p


def lamb(g, p, memory, t, wd):
  update = moments(g, memory, t, eps=1e-6) + wd * p
  return norm(p) / norm(update) * update


def lars(g, p, memory, t, wd):
  g = g + wd * p
  adapted = 0.001 * norm(p) / norm(g) * g if wd else g
  memory['v'] = 0.9 * memory.get('v', 0) + adapted
  return memory['v']


def lion(g, p, memory, t, wd, b1=0.9, b2=0.99):
  m = memory.get('m', 0)
  memory['m'] = b2 * m + (1 - b2) * g
  return np.sign(b1 * m + (1 - b1) * g) + wd * p


def muon(g, p, memory, t, wd, mu=0.95):
  if g.ndim == 1:
    return adamw(g, p, memory, t, wd)
  memory['v'] = mu * memory.get('v', 0) + (1 - mu) * g
  # Nesterov, with each term's bias corrected, then five quintic Newton-Schulz iterations.
  look_ahead = mu * memory['v'] / (1 - mu ** (t + 1)) + (1 - mu) * g / (1 - mu**t)
  x = look_ahead.reshape(-1, g.shape[-1])
  x = x / norm(x)
  for _ in range(5):
    a = x.T @ x
    x = 3.4445 * x + x @ (-4.7750 * a + 2.0315 * a @ a)
  return 0.2 * np.sqrt(max(x.shape)) * x.reshape(g.shape) + wd * p


RULES = [sgd, momentum, nesterov, rmsprop, adam, adamw, lamb, lars, lion, muon]


@pytest.mark.parametrize('rule', RULES, ids=lambda rule: rule.__name__)
def test_follows_the_rule_by_hand_and_decays_only_kernels(rule):
  options = {'momentum': 0.5} if rule is rmsprop else {}
  optimizer = optimizers.create(rule.__name__, RATE, weight_decay=DECAY, **options)
  assert_close(run(optimizer), by_hand(rule))


def test_every_optimizer_has_its_rule_here():
  assert [rule.__name__ for rule in RULES] == list(optimizers.OPTIMIZERS)


@pytest.mark.parametrize(
  ('name', 'options', 'rule'),
  [
    ('nesterov', {'momentum': 0.8}, lambda *args: nesterov(*args, mu=0.8)),
    ('rmsprop', {'b2': 0.99, 'eps': 0.1}, lambda *args: rmsprop(*args, mu=0, b2=0.99, eps=0.1)),
    ('lion', {'b1': 0.8, 'b2': 0.9}, lambda *args: lion(*args, b1=0.8, b2=0.9)),
    (
      'adam',
      {'b1': 0.8, 'b2': 0.9, 'eps': 0.1},
      lambda g, p, memory, t, wd: moments(g + wd * p, memory, t, b1=0.8, b2=0.9, eps=0.1),
    ),
    ('muon', {'momentum': 0.8}, lambda *args: muon(*args, mu=0.8)),
  ],
)
def test_options_reach_the_rule(name, options, rule):
  assert_close(run(optimizers.create(name, RATE, weight_decay=DECAY, **options)), by_hand(rule))


def test_full_batch_gradient_descent_is_plain_sgd():
  assert_close(run(optimizers.create('sgd', RATE)), by_hand(sgd, decay=0.0))


def test_no_decay_takes_regular_expressions_on_paths():
  def decayed(no_decay):
    optimizer = optimizers.create('sgd', 1.0, weight_decay=1.0, no_decay=no_decay)
    params = jax.tree.map(lambda p: jnp.ones(p.shape), PARAMS)
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zero, optimizer.init(params), params)
    leaves = jax.tree_util.tree_leaves_with_path(updates)
    name = lambda path: jax.tree_util.keystr(path, simple=True, separator='/')
    return {name(path) for path, update in leaves if update.any()}

  everything = {
    'stem/conv/kernel', 'stem/conv/bias', 'norm/scale', 'norm/bias', 'head/kernel', 'head/bias'
  }  # fmt: skip
  assert decayed(()) == everything
  assert decayed(optimizers.NO_DECAY) == {'stem/conv/kernel', 'head/kernel'}
  assert decayed(('^head/', 'scale')) == {'stem/conv/kernel', 'stem/conv/bias', 'norm/bias'}
  assert decayed('kernel$') == everything - {'stem/conv/kernel', 'head/kernel'}


def test_clipping_is_by_the_global_norm_and_comes_first():
  first = GRADIENTS[0]
  length = np.sqrt(sum((g**2).sum() for g in jax.tree.leaves(first)))
  clipped = run(optimizers.create('sgd', RATE, weight_decay=DECAY, clip_norm=length / 2))[0]
  expected = jax.tree_util.tree_map_with_path(
    lambda path, p, g: p - RATE * (g / 2 + (DECAY * p if path[-1].key == 'kernel' else 0)),
    PARAMS,
    first,
  )
  assert_close([clipped], [expected])
  loose = run(optimizers.create('sgd', RATE, weight_decay=DECAY, clip_norm=100 * length))
  assert_close(loose, by_hand(sgd))


@pytest.mark.parametrize('name', ['sgd', 'adam', 'lars'])
def test_schedule_counts_updates(name):
  schedule = schedules.create(
    'step', learning_rate=RATE, total_steps=8, boundaries=(3,), factor=0.5
  )
  scheduled, constant = run(optimizers.create(name, schedule)), run(optimizers.create(name, RATE))
  assert_close(scheduled[:3], constant[:3], rtol=1e-6, atol=1e-7)
  update = lambda path: path[3]['head']['kernel'] - path[2]['head']['kernel']
  if name != 'lars':  # its momentum holds steps taken at the old rate
    np.testing.assert_allclose(update(scheduled), update(constant) / 2, rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize('name', ['adamw', 'muon'])
def test_rate_and_decay_may_be_traced(name):
  params = jax.tree.map(lambda p: jnp.asarray(p, jnp.float32), PARAMS)
  gradient = jax.tree.map(lambda g: jnp.asarray(g, jnp.float32), GRADIENTS[0])

  def update(rate, decay):
    optimizer = optimizers.create(name, rate, weight_decay=decay)
    return optimizer.update(gradient, optimizer.init(params), params)[0]

  rates, decays = jnp.asarray([0.1, 0.2]), jnp.asarray([0.0, 0.5])
  got = jax.jit(jax.vmap(update))(rates, decays)
  for i in range(2):
    expected = update(float(rates[i]), float(decays[i]))
    assert_close([jax.tree.map(lambda x, i=i: x[i], got)], [expected], rtol=1e-3)


@pytest.mark.parametrize(
  ('name', 'options', 'message'),
  [
    ('adamm', {}, "optimizer.name='adamm' is unknown: did you mean 'adam"),
    (
      'sgd',
      {'b1': 0.9},
      "optimizer.b1=0.9 is not an option of 'sgd', which takes: weight_decay, no_decay, clip_norm",
    ),
    ('adam', {'momentum': 0.9}, 'which takes: b1, b2, eps, weight_decay'),
    ('lion', {'eps': 1e-8}, "optimizer.eps=1e-08 is not an option of 'lion'"),
    ('adam', {'b1': 1.0}, 'optimizer.b1=1.0 must be a number in [0, 1)'),
    ('adam', {'b2': -0.1}, 'optimizer.b2=-0.1'),
    ('adam', {'eps': 0.0}, 'optimizer.eps=0.0 must be a positive number'),
    ('momentum', {'momentum': 1.5}, 'optimizer.momentum=1.5'),
    ('sgd', {'learning_rate': -0.1}, 'optimizer.learning_rate=-0.1 must be a number, not negative'),
    ('sgd', {'learning_rate': float('nan')}, 'optimizer.learning_rate=nan'),
    ('sgd', {'learning_rate': 'abc'}, "optimizer.learning_rate='abc'"),
    ('sgd', {'weight_decay': -1}, 'optimizer.weight_decay=-1'),
    ('sgd', {'clip_norm': float('inf')}, 'optimizer.clip_norm=inf'),
    ('sgd', {'clip_norm': True}, 'optimizer.clip_norm=True'),
    ('sgd', {'no_decay': ('(',)}, "optimizer.no_decay=('(',) must be regular expressions"),
    ('sgd', {'no_decay': (1,)}, 'optimizer.no_decay=(1,) must be regular expressions'),
  ],
)
def test_mistakes_are_named(name, options, message):
  with pytest.raises(UserError) as error:
    optimizers.create(name, **({'learning_rate': 0.1} | options))
  assert message in str(error.value)


def test_muon_without_optax_support_says_its_version(monkeypatch):
  monkeypatch.delattr(optax.contrib, 'MuonDimensionNumbers')
  with pytest.raises(UserError, match=f'optax {optax.__version__}'):
    optimizers.create('muon', 0.1)


def test_lookahead_goes_half_way_back_after_every_second_update():
  def leaf(p, *gradients):
    slow, fast, trajectory = p, p, []
    for t, g in enumerate(gradients, start=1):
      fast = fast - RATE * g
      if t % 2 == 0:
        slow = fast = (slow + fast) / 2
      trajectory.append(fast)
    return np.stack(trajectory)

  stacked = jax.tree.map(leaf, PARAMS, *GRADIENTS)
  expected = [jax.tree.map(lambda x, t=t: x[t], stacked) for t in range(len(GRADIENTS))]
  assert_close(run(optimizers.create('sgd', RATE, lookahead=2)), expected)


def test_depths_follow_the_blocks():
  tree = {
    'stem': {'conv': {'kernel': 0}},
    'stage1': {'block1': {'conv2': {'kernel': 0}, 'norm': {'scale': 0}}, 'block2': {'a': 0}},
    'stage2': {'downsample': {'kernel': 0}, 'block1': {'a': 0}, 'block10': {'a': 0}},
    'stage10': {'conv1': {'kernel': 0}, 'norm1': {'scale': 0}, 'conv2': {'kernel': 0}},
    'head': {'dense1': {'kernel': 0}, 'dense2': {'kernel': 0}},
  }
  assert optimizers.depths(tree) == {
    'stem': {'conv': {'kernel': 0}},
    'stage1': {'block1': {'conv2': {'kernel': 1}, 'norm': {'scale': 1}}, 'block2': {'a': 2}},
    'stage2': {'downsample': {'kernel': 3}, 'block1': {'a': 4}, 'block10': {'a': 5}},
    'stage10': {'conv1': {'kernel': 6}, 'norm1': {'scale': 6}, 'conv2': {'kernel': 7}},
    'head': {'dense1': {'kernel': 8}, 'dense2': {'kernel': 8}},
  }


def test_layer_decay_slows_the_earlier_blocks():
  slowed = run(optimizers.create('sgd', RATE, layer_decay=0.5))[0]
  plain = run(optimizers.create('sgd', RATE))[0]
  # stem, norm, head: the norm here stands between them
  for name, factor in (('stem', 0.25), ('norm', 0.5), ('head', 1.0)):
    jax.tree.map(
      lambda a, b, start, factor=factor: np.testing.assert_allclose(
        a - start, factor * (b - start), rtol=1e-3, atol=1e-6
      ),
      slowed[name], plain[name], PARAMS[name],
    )  # fmt: skip
