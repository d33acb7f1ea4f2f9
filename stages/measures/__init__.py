"""Numbers about models with their intervals; computes on what models gave and loads none."""
