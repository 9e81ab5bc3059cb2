"""What MLflow shows of a pipeline run: a parent run, and under it one run per model.

Training stages send their curves while they train (`live`); the last stage makes everything complete from the files
(`complete`), whether the stages ran or DVC restored them. The files are the truth and MLflow gets a copy. This is the
only room that imports MLflow, and only inside functions: the import takes a second.
"""
