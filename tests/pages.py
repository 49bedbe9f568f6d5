"""An HTML page read strictly: every element is closed, and nothing is asked of the network."""

import html.parser
import re

_VOID = {'meta', 'img', 'br', 'hr', 'link', 'input'}


class Reader(html.parser.HTMLParser):
  """Collects elements, and asserts that each is closed."""

  def __init__(self, page):
    super().__init__()
    self.open, self.elements, self.text = [], [], []
    self.feed(page)
    self.close()
    assert self.open == []

  def handle_starttag(self, tag, attrs):
    self.elements.append((tag, dict(attrs)))
    if tag not in _VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.elements.append((tag, dict(attrs)))

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    self.text.append(data)


def is_closed(read: Reader, page: str) -> None:
  """Asserts that the page has no script, loads nothing, and links only within itself."""
  assert 'script' not in {tag for tag, _ in read.elements}
  assert "default-src 'none'" in str(read.elements)
  assert not {'xml', 'doctype'} & {tag.lower() for tag in re.findall(r'<[?!](\w+)', page[15:])}
  for _, attributes in read.elements:
    for key in ('src', 'href', 'xlink:href', 'action', 'data'):
      assert attributes.get(key, '#').startswith(('#', 'data:image/')), attributes
    assert not re.search(r'url\((?!#)', attributes.get('style', ''))
  ids = [attributes['id'] for _, attributes in read.elements if 'id' in attributes]
  assert len(ids) == len(set(ids))
  assert {a['href'][1:] for tag, a in read.elements if tag == 'a'} <= set(ids)
