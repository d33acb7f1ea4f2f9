"""The rows that methods learn from, and the batches made of them."""
