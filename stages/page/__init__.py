"""The report: charts as inline SVG, the page around them, and what each section reads from the metrics."""
