"""The page of a report on a reward model."""

from stages.page.template import opening

_BODY = """<main>
<section class="verdict {{ verdict.kind }}" id="verdict">
<h2>{{ verdict.headline }}</h2>
{%- for sentence in verdict.sentences %}<p>{{ sentence }}</p>{% endfor %}
</section>
{{ tiles(verdict.tiles) }}

<section id="results"><h2>On held-out pairs</h2>
<div class="charts">{% for chart in results.charts %}{{ chart }}{% endfor %}</div>
{{ table(["metric", "value", "95 % interval"], results.rows) }}
</section>

<section id="training"><h2>Training</h2>
<p>{{ training.intro }}</p>
<div class="charts">{% for chart in training.charts %}{{ chart }}{% endfor %}</div>
</section>

<section id="inputs"><h2>What was read</h2>
{{ table(["input", "SHA-256"], inputs) }}
</section>
</main>
<footer><p>Made by the stage <code>reward_report</code> of Plumbline. Equal inputs give this page byte for
byte.</p></footer>
</body>
</html>
"""

REWARD_PAGE = opening() + _BODY
"""Jinja source of the page; values are escaped where they are put in."""
