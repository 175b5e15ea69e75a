"""`gan-uad report`: one HTML page of the results of other commands. It computes no metric."""
