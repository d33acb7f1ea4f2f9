"""What runs when: the params model, the graph and its checks, the Prefect flow and its deployments, commands."""
