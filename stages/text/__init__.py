"""From log rows to token ids: layouts, labels, chat templates, encoding, truncation."""
