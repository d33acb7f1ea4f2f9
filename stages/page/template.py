"""The page around the charts: markup and styles, with nothing fetched from anywhere and no script."""

STYLE = """
:root {
  color-scheme: light dark;
  --page: #f6f7f9; --card: #ffffff; --ink: #1b2330; --soft: #566072; --rule: #dfe3ea; --grid: #e9ecf1;
  --series-0: #1f5fbf; --series-1: #b4520a; --series-2: #2b7a4b; --accent: #1f5fbf;
  --good: #1d7044; --good-back: #e4f4ea; --bad: #b3261e; --bad-back: #fbe9e7; --unsure: #7a5b00; --unsure-back: #fbf2d7;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #12161d; --card: #1a202a; --ink: #e6eaf1; --soft: #a3aec0; --rule: #323b49; --grid: #2a323f;
    --series-0: #7fb0ff; --series-1: #ffab66; --series-2: #74d49b; --accent: #7fb0ff;
    --good: #74d49b; --good-back: #17301f; --bad: #ff9b92; --bad-back: #3a1d1b;
    --unsure: #f0cf6a; --unsure-back: #352c10;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; scroll-behavior: smooth; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main, header, footer { max-width: 1120px; margin: 0 auto; padding: 0 16px; }
header { padding-top: 28px; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 4px; letter-spacing: -0.01em; }
h2 { font-size: 1.25rem; margin: 0 0 12px; }
h3 { font-size: 1rem; margin: 20px 0 8px; }
p { margin: 0 0 10px; max-width: 78ch; }
.soft { color: var(--soft); }
a { color: var(--accent); }
nav { margin: 12px 0 18px; font-size: .92rem; }
nav a { margin-right: 14px; white-space: nowrap; display: inline-block; }
section { background: var(--card); border: 1px solid var(--rule); border-radius: 12px; padding: 20px;
  margin: 0 0 18px; }
.verdict { border-left: 6px solid var(--soft); }
.verdict h2 { font-size: 1.45rem; line-height: 1.3; }
.better { border-left-color: var(--good); background: var(--good-back); } .better h2 { color: var(--good); }
.worse { border-left-color: var(--bad); background: var(--bad-back); } .worse h2 { color: var(--bad); }
.unsure { border-left-color: var(--unsure); background: var(--unsure-back); } .unsure h2 { color: var(--unsure); }
.note { border-left: 4px solid var(--unsure); background: var(--unsure-back); padding: 8px 12px; border-radius: 6px;
  margin: 10px 0; max-width: 84ch; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; margin: 0 0 18px;
  padding: 0; }
.tiles > div { background: var(--card); border: 1px solid var(--rule); border-radius: 10px; padding: 12px 14px; }
section .tiles > div { background: var(--page); }
.tiles dt { color: var(--soft); font-size: .85rem; }
.tiles dd { margin: 0; }
.tiles .value { font-size: 1.45rem; font-weight: 650; font-variant-numeric: tabular-nums; }
.tiles .range { color: var(--soft); font-size: .85rem; font-variant-numeric: tabular-nums; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 310px), 1fr)); gap: 18px;
  align-items: start; }
figure { margin: 0; max-width: 520px; }
figcaption { font-weight: 600; margin-bottom: 4px; }
svg { display: block; width: 100%; height: auto; overflow: visible; }
svg text { fill: var(--soft); font: 11px system-ui, -apple-system, "Segoe UI", Roboto, Arial, sans-serif; }
svg .label { fill: var(--ink); } svg .strong { fill: var(--ink); font-weight: 650; } svg .axis { fill: var(--soft); }
svg .grid { stroke: var(--grid); } svg .zero { stroke: var(--soft); stroke-dasharray: 4 3; }
svg .line { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
svg .mark { fill: var(--series-0); } svg .whisker { stroke: var(--series-0); stroke-width: 2; }
svg .box { fill: var(--card); stroke: var(--accent); } svg .edge { fill: none; stroke: var(--soft); stroke-width: 1.2; }
svg .series-0 { stroke: var(--series-0); } svg .series-1 { stroke: var(--series-1); stroke-dasharray: 6 3; }
svg .series-2 { stroke: var(--series-2); }
.scroll { overflow-x: auto; } .scroll + p { margin-top: 10px; } .graph { min-width: 780px; }
.legend { font-size: .85rem; color: var(--soft); margin-bottom: 2px; }
.key { margin-right: 14px; }
.swatch { display: inline-block; width: 18px; height: 0; margin-right: 6px; vertical-align: middle;
  border-top: 3px solid; }
.swatch.series-0 { border-color: var(--series-0); }
.swatch.series-1 { border-color: var(--series-1); border-top-style: dashed; }
.swatch.series-2 { border-color: var(--series-2); }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 5px 14px 5px 0; border-bottom: 1px solid var(--rule); vertical-align: top; }
th { font-weight: 600; color: var(--soft); } td.num, th.num { text-align: right; }
.bar { display: flex; height: 14px; border-radius: 7px; overflow: hidden; max-width: 640px; margin: 6px 0 12px;
  background: var(--grid); }
.bar i { display: block; } .kept { background: var(--series-0); } .merged { background: var(--series-2); }
.refused { background: var(--series-1); }
details { margin-top: 14px; } summary { cursor: pointer; color: var(--accent); }
.examples { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr)); gap: 0 32px; }
article { border-top: 1px solid var(--rule); padding: 14px 0; }
.prompt, .text { white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: isolate; }
.prompt { font-weight: 600; margin-bottom: 8px; }
.sides { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 190px), 1fr)); gap: 8px 20px; }
.sides h4 { margin: 0 0 4px; font-size: .85rem; color: var(--soft); font-weight: 600; }
.sides ul { list-style: none; margin: 0; padding: 0; }
.sides li { display: flex; gap: 10px; padding: 3px 0; }
.score { flex: none; min-width: 2.4em; color: var(--soft); font-variant-numeric: tabular-nums; }
.tag { font-size: .8rem; color: var(--soft); font-weight: 400; }
footer { color: var(--soft); font-size: .85rem; padding-bottom: 40px; }
code { font: .88em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; overflow-wrap: anywhere; }
@media print { section { break-inside: avoid; } nav { display: none; } }
"""

_OPENING = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'SOURCES">
<title>{{ title }}</title>
<style>STYLE</style>
</head>
<body>
{%- macro tiles(items) %}
<dl class="tiles">
{%- for tile in items %}
<div><dt>{{ tile.name }}</dt><dd class="value">{{ tile.value }}</dd><dd class="range">{{ tile.detail }}</dd></div>
{%- endfor %}
</dl>
{%- endmacro %}
{%- macro table(head, rows) %}
<div class="scroll" tabindex="0"><table>
<thead><tr>
{%- for cell in head %}<th scope="col"{% if not loop.first %} class="num"{% endif %}>{{ cell }}</th>{% endfor -%}
</tr></thead>
<tbody>
{%- for row in rows %}
<tr>{% for cell in row %}<td{% if not loop.first %} class="num"{% endif %}>{{ cell }}</td>{% endfor %}</tr>
{%- endfor %}
</tbody></table></div>
{%- endmacro %}
<header>
<h1>{{ title }}</h1>
<p class="soft">{{ subtitle }}</p>
<nav aria-label="Sections">
{%- for anchor, name in sections %}<a href="#{{ anchor }}">{{ name }}</a>{% endfor %}
</nav>
</header>
"""


def opening(sources: str = "") -> str:
    """A page up to its sections, with macros for `tiles` and a `table`.

    Args:
        sources: what it may show besides text and drawings, for its content security policy.
    """
    return _OPENING.replace("STYLE", STYLE).replace("SOURCES", sources)


def closing(stage: str) -> str:
    """The end of a page on a training: its curves, what was read, and who made it.

    Args:
        stage: name of the stage that writes the page.
    """
    return _CLOSING.replace("STAGE", stage)


_CLOSING = """<section id="training"><h2>Training</h2>
<p>{{ training.intro }}</p>
<div class="charts">{% for chart in training.charts %}{{ chart }}{% endfor %}</div>
</section>

<section id="inputs"><h2>What was read</h2>
{{ table(["input", "SHA-256"], inputs) }}
</section>
</main>
<footer><p>Made by the stage <code>STAGE</code> of Plumbline. Equal inputs give this page byte for
byte.</p></footer>
</body>
</html>
"""

_BODY = """{%- macro answers(name, samples) %}
<div><h4>{{ name }}</h4><ul>
{%- for sample in samples %}
<li>
{%- if sample.score is not none %}<span class="score">{{ sample.score }}</span>{% endif -%}
<span class="text">{{ sample.text }}</span></li>
{%- endfor %}
</ul></div>
{%- endmacro %}
<main>
<section class="verdict {{ verdict.kind }}" id="verdict">
<h2>{{ verdict.headline }}</h2>
{%- for sentence in verdict.sentences %}<p>{{ sentence }}</p>{% endfor %}
</section>
{{ tiles(verdict.tiles) }}

<section id="results"><h2>Results on held-out prompts</h2>
<p>{{ results.intro }}</p>
<div class="charts">{% for chart in results.charts %}{{ chart }}{% endfor %}</div>
<details><summary>All numbers</summary>
{{ table(["metric", "value", "95 % interval"], results.rows) }}
{%- if results.slice_rows %}
<h3>By slice</h3>
{{ table(["slice", "metric", "value", "95 % interval", "prompts"], results.slice_rows) }}
{%- endif %}
</details>
</section>

<section id="training"><h2>Training</h2>
<p>{{ training.intro }}</p>
{%- for note in training.notes %}<p class="note">{{ note }}</p>{% endfor %}
<div class="charts">{% for chart in training.charts %}{{ chart }}{% endfor %}</div>
</section>

<section id="shift"><h2>How thumbs-up and thumbs-down prompts differ</h2>
{{ tiles(shift.tiles) }}
<p>{{ shift.diagnosis }}</p>
<p>{{ shift.recommendation }}</p>
<p class="soft">{{ shift.reason }}</p>
<div class="charts">{% for chart in shift.charts %}{{ chart }}{% endfor %}</div>
{%- if shift.rows %}
<details><summary>All groups</summary>
{{ table(["group", "rows", "thumbs up", "log-probability per token"], shift.rows) }}
</details>
{%- endif %}
</section>

<section id="answers"><h2>Answers side by side</h2>
<p>{{ answers_intro }}</p>
{%- for group in answer_groups %}
<h3>{{ group.name }}</h3>
<div class="examples">
{%- for example in group.examples %}
<article>
<div class="prompt">{{ example.prompt }}
{%- if example.slice %} <span class="tag">{{ example.slice }}</span>{% endif %}</div>
<div class="sides">{{ answers("Policy", example.policy) }}{{ answers("Start", example.reference) }}</div>
</article>
{%- endfor %}
</div>
{%- endfor %}
</section>

<section id="data"><h2>The data</h2>
<p>{{ data.sentence }}</p>
<div class="bar" role="img" aria-label="{{ data.sentence }}">
{%- for kind, share in data.bar %}<i class="{{ kind }}" style="width:{{ share }}%"></i>{% endfor %}</div>
{{ table(["rows of the log", "count", "share"], data.rows) }}
{%- if data.reasons %}
<h3>Why rows were refused</h3>
{{ table(["reason", "stage", "rows"], data.reasons) }}
<p class="soft">Each of them stands with its file and line in <code>artifacts/rejects</code> and
<code>artifacts/tokenization_rejects</code>.</p>
{%- endif %}
{%- for note in data.notes %}<p>{{ note }}</p>{% endfor %}
</section>

<section id="graph"><h2>The graph that made this</h2>
<div class="scroll" tabindex="0">{{ graph }}</div>
<p class="soft"><code>base_model</code> also feeds every stage that runs the model.</p>
<details><summary>What was read</summary>
{{ table(["input", "SHA-256"], inputs) }}
</details>
</section>
</main>
<footer><p>Made by the stage <code>report</code> of Plumbline. Equal inputs give this page byte for byte.</p></footer>
</body>
</html>
"""

PAGE = opening() + _BODY
"""Jinja source of the page; values are escaped where they are put in."""
