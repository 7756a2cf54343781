"""Keep a pipeline as an MLflow model: ``mlflow_pipeline.py PIPELINE FOLDER``."""

import sys

import joblib
import mlflow.pyfunc


class Scores(mlflow.pyfunc.PythonModel):
    """Answers probabilities: MLflow's own flavour would answer labels."""

    def load_context(self, context):
        self.pipeline = joblib.load(context.artifacts["pipeline"])

    def predict(self, context, model_input, params=None):
        return self.pipeline.predict_proba(model_input)[:, 1]


if __name__ == "__main__":
    mlflow.pyfunc.save_model(
        sys.argv[2], python_model=Scores(), artifacts={"pipeline": sys.argv[1]}, pip_requirements=["mlflow"]
    )
    print("{}")
