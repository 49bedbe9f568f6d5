"""Tables and paragraphs as text, Markdown and LaTeX."""

import re
from collections.abc import Sequence
from typing import NamedTuple


class Table(NamedTuple):
  """Cells of text, none empty: words in the first column, figures in the others."""

  head: tuple[str, ...]
  rows: list[tuple[str, ...]]


Page = Sequence[Table | str]


def text(page: Page) -> str:
  """Columns with two spaces between them."""

  def written(part: Table | str) -> str:
    if isinstance(part, str):
      return part
    rows = [part.head, *part.rows]
    first, *others = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return '\n'.join(
      '  '.join([row[0].ljust(first), *(c.rjust(w) for c, w in zip(row[1:], others, strict=True))])
      for row in rows
    )

  return '\n\n'.join(map(written, page))


def markdown(page: Page) -> str:
  """Pipe tables."""

  def escape(words: str) -> str:
    return re.sub(r'([\\|*_`<\[\]])', r'\\\1', words)

  def written(part: Table | str) -> str:
    if isinstance(part, str):
      return escape(part)
    head, *rows = [tuple(map(escape, row)) for row in (part.head, *part.rows)]
    rule = ('---', *['---:'] * (len(head) - 1))
    return '\n'.join(f'| {" | ".join(row)} |' for row in (head, rule, *rows))

  return '\n\n'.join(map(written, page))


_TEX = {
  **{character: f'\\{character}' for character in '&%$#_{}'},
  '\\': r'\textbackslash{}',
  '~': r'\textasciitilde{}',
  '^': r'\textasciicircum{}',
  '<': '$<$',
  '>': '$>$',
}


def latex(page: Page) -> str:
  """`tabular` with the rules of the package booktabs."""

  def escape(words: str) -> str:
    escaped = ''.join(_TEX.get(character, character) for character in words)
    return re.sub(r'(?<![\w.-])-(?=\d)', '$-$', escaped)  # a minus, not a hyphen

  def written(part: Table | str) -> str:
    if isinstance(part, str):
      return escape(part)
    head, *rows = [rf'{" & ".join(map(escape, row))} \\' for row in (part.head, *part.rows)]
    begin = rf'\begin{{tabular}}{{l{"r" * (len(part.head) - 1)}}}'
    return '\n'.join(
      [begin, r'\toprule', head, r'\midrule', *rows, r'\bottomrule', r'\end{tabular}']
    )

  return '\n\n'.join(map(written, page))
