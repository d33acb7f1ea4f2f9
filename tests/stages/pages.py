"""A page as a reader and a browser see it, and text that would be something else on a careless one."""

import re
from html.parser import HTMLParser

ATTACKS = (
    "<script>alert(1)</script>",
    '<img src="https://example.org/x.png" onerror="alert(1)">',
    '"><svg onload=alert(1)>',
    "{{ 7 * 7 }} {% raw %}",
    "<style>body{display:none}</style><!-- ",
    "</title></style></textarea><iframe src=//example.org>",
)


class Page(HTMLParser):
    """Elements with their attributes, the headings, and the text that a reader sees."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.elements, self.words, self.headings = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return "".join(self.words)
