"""`gan-uad report`: one HTML page of what other commands wrote. It computes no metric."""
