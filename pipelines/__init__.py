"""What runs when: the params model, the graph and its checks, the Prefect flow, the command line."""
