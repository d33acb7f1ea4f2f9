"""What is done: one file per stage of the graph, and the libraries that the stages share."""
