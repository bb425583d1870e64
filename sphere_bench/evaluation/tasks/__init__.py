"""YAML files of lm-eval tasks, and the functions that they name."""
