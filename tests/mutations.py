"""Bytes that were right once: hypothesis strategies."""

from hypothesis import strategies as st

EXTREMES = (b'\0', b'\xff', b'\0\0\0\0', b'\xff\xff\xff\xff', b'\x7f\xff\xff\xff', b'\0\x01\0\0')


@st.composite
def damaged(draw, wholes: list[bytes]) -> bytes:
  """One of `wholes` with bytes replaced, put in, left out, said twice or taken from another."""
  data = draw(st.sampled_from(wholes))
  for _ in range(draw(st.integers(1, 4))):
    at = draw(st.integers(0, len(data)))
    size = draw(st.integers(0, 64) | st.integers(0, len(data)))
    kind = draw(st.sampled_from(('replace', 'insert', 'delete', 'repeat', 'cut', 'splice')))
    new = draw(st.sampled_from(EXTREMES) | st.binary(max_size=16))
    if kind == 'replace':
      data = data[:at] + new + data[at + len(new) :]
    elif kind == 'insert':
      data = data[:at] + new + data[at:]
    elif kind == 'delete':
      data = data[:at] + data[at + size :]
    elif kind == 'repeat':
      data = data[: at + size] + data[at:]
    elif kind == 'cut':
      data = data[:at]
    else:
      data = data[:at] + draw(st.sampled_from(wholes))[at:]
  return data
