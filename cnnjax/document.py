"""An HTML page that needs nothing else: no network, no script.

What enters it from outside (names, paths, configs) is escaped, and the page's own policy forbids
its browser to load or run anything. Readable on a phone and a wide screen, in light and in dark.
"""

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #57606a; --line: #d0d7de;
  --page: #ffffff; --band: #f3f5f8; --link: #0b5cad }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8eb; --soft: #a3abb5; --line: #3a424c;
  --page: #14171c; --band: #1e232a; --link: #79b8ff } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 68rem; padding: 1rem; background: var(--page);
  color: var(--ink); font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere }
h1 { font-size: 1.5rem; line-height: 1.2; margin: .5rem 0 } h2 { font-size: 1.2rem;
  margin: 2rem 0 .5rem; padding-top: .75rem; border-top: 1px solid var(--line) }
p { max-width: 42rem; margin: .5rem 0 } a { color: var(--link) }
nav a { display: inline-block; padding: .35rem .75rem .35rem 0 }
.soft, figcaption { color: var(--soft); font-size: .875rem }
.big { display: flex; flex-wrap: wrap; gap: .25rem 2rem; margin: .75rem 0; padding: 0 }
.big div { display: flex; flex-direction: column-reverse }
.big dt { color: var(--soft); font-size: .875rem } .big dd { margin: 0; font-size: 1.4rem;
  font-variant-numeric: tabular-nums }
.row { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(19rem, 100%), 1fr));
  gap: 1rem; align-items: start }
.pair { display: grid; grid-template-columns: minmax(0, 1fr); gap: 1rem; align-items: start }
@media (min-width: 50rem) { .pair { grid-template-columns: 24rem minmax(0, 1fr) } }
.mistakes { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr));
  gap: 1rem }
figure { margin: 0; min-width: 0 } figure svg { display: block; width: 100%; max-width: 27rem;
  height: auto } svg text { font-family: system-ui, sans-serif !important }
svg * { stroke-linejoin: round; stroke-linecap: butt } svg image, img { image-rendering: pixelated }
.mistakes figure div { display: flex; gap: .25rem }
.mistakes img { width: calc(50% - .125rem); height: auto }
.scroll { overflow: auto; max-height: 32rem; border: 1px solid var(--line); max-width: 100%;
  width: fit-content; margin: .75rem 0 }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums;
  overflow-wrap: normal } caption { text-align: left; padding: .4rem .6rem; color: var(--soft) }
th, td { padding: .3rem .6rem; text-align: right; white-space: nowrap;
  border-top: 1px solid var(--line) } th { font-weight: 600 }
th:first-child, .words td { text-align: left }
.words td { white-space: normal; overflow-wrap: anywhere }
tbody tr:nth-child(odd) { background: var(--band) }
summary { cursor: pointer; padding: .35rem 0 }
:focus-visible { outline: 2px solid var(--link); outline-offset: 2px }
"""
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def page(title: str, sections: Mapping[str, str], *, kind: str, style: str = '') -> str:
  """The whole page.

  Args:
    title: what it is about; escaped here.
    sections: heading, of plain words, to its HTML.
    kind: what the page is, for the browser's title, such as 'report'.
    style: CSS besides that of all pages.
  """
  name = lambda heading: heading.lower().replace(' ', '-')
  links = ' '.join(f'<a href="#{name(heading)}">{heading}</a>' for heading in sections)
  body = '\n'.join(
    f'<section aria-labelledby="{name(heading)}"><h2 id="{name(heading)}">{heading}</h2>\n'
    f'{content}</section>'
    for heading, content in sections.items()
  )
  return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}: {kind}</title>
<style>{_STYLE}{style}</style>
</head>
<body>
<header><h1>{escape(title)}</h1>
<nav aria-label="Sections">{links}</nav></header>
<main>
{body}
</main>
</body>
</html>
"""


def table(
  caption: str, head: Sequence[str], rows: Iterable[Sequence[Any]], *, words: bool = False
) -> str:
  """A table that scrolls within the page, each row under the name in its first cell.

  Args:
    caption: text, escaped here as all cells are.
    head: of the columns; empty for none.
    rows: of as many cells each.
    words: cells hold words, which are broken into lines, not figures.
  """
  top = ''.join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
  lines = ''.join(
    f'<tr><th scope="row">{escape(first)}</th>'
    f'{"".join(f"<td>{escape(cell)}</td>" for cell in rest)}</tr>\n'
    for first, *rest in rows
  )
  return (
    f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(caption)}">'
    f'<table{" class=words" * words}><caption>{escape(caption)}</caption>'
    f'{f"<thead><tr>{top}</tr></thead>" if head else ""}<tbody>\n{lines}</tbody></table></div>\n'
  )


def figure(svg: str, caption: str) -> str:
  """A picture as SVG, which is markup already, over its caption, which is what it is called too."""
  text = escape(caption)
  return (
    f'<figure><div role="img" aria-label="{text}">{svg}</div>'
    f'<figcaption>{text}</figcaption></figure>\n'
  )


def escape(value: Any) -> str:
  """Any value as text of the page, in an element or in a quoted attribute."""
  return html.escape(plain(str(value)))


def plain(text: str, length: int = 10_000) -> str:
  """At most so many characters, and of those that can't be shown, a sign in their place."""
  text = ''.join(c if c.isprintable() else '\ufffd' for c in text)
  end = (length - 1) // 2  # names often differ at their ends alone
  return text if len(text) <= length else f'{text[: length - 1 - end]}…{text[-end:]}'
