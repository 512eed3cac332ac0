"""How good a model is: suites over folders of data, and their metrics."""
