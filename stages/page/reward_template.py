"""The page of a report on a reward model."""

from stages.page.template import closing, opening

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

"""

REWARD_PAGE = opening() + _BODY + closing("reward_report")
"""Jinja source of the page; values are escaped where they are put in."""
