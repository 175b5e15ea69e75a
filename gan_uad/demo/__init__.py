"""The demos and the synthetic tissue that they, and the tests, run on."""
