"""Our models as lm-eval asks them, and its tasks."""
