"""The page of a report on images: they stand in the page as data, and nothing is fetched from anywhere."""

from stages.page.template import closing, opening

_BODY = """<style>
article h4 { margin: 10px 0 4px; font-size: .85rem; color: var(--soft); font-weight: 600; }
.pictures { display: flex; flex-wrap: wrap; gap: 8px; }
.pictures figure { width: 96px; }
.pictures img { display: block; width: 96px; height: 96px; object-fit: contain; image-rendering: pixelated;
  border-radius: 6px; background: var(--grid); }
.pictures figcaption { font-weight: 400; font-size: .8rem; color: var(--soft); font-variant-numeric: tabular-nums; }
</style>
<main>
<section class="verdict {{ verdict.kind }}" id="verdict">
<h2>{{ verdict.headline }}</h2>
{%- for sentence in verdict.sentences %}<p>{{ sentence }}</p>{% endfor %}
</section>
{{ tiles(verdict.tiles) }}

<section id="images"><h2>Images before and after</h2>
<p>Images of held-out prompts; those one below the other grew from the same noise. Below each stands its reward.</p>
<div class="examples">
{%- for example in grid %}
<article>
<div class="prompt">{{ example.prompt }}</div>
{%- for name, pictures in example.sides %}
<h4>{{ name }}</h4>
<div class="pictures">
{%- for picture in pictures %}
<figure><img src="{{ picture.source }}" alt="{{ name }}: {{ example.prompt }}, image {{ loop.index }}">
<figcaption>{{ picture.reward }}</figcaption></figure>
{%- endfor %}
</div>
{%- endfor %}
</article>
{%- endfor %}
</div>
</section>

"""

IMAGE_PAGE = opening(sources="; img-src data:") + _BODY + closing("diffusion_report")
"""Jinja source of the page; values are escaped where they are put in."""
