"""The pipeline as MLServer serves it: a runtime that decodes a table of the V2 protocol."""

import joblib
import numpy as np
from mlserver import MLModel
from mlserver.codecs import NumpyCodec, PandasCodec
from mlserver.types import InferenceRequest, InferenceResponse


class Pipeline(MLModel):
    async def load(self) -> bool:
        self.pipeline = joblib.load(self.settings.parameters.uri)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        table = PandasCodec.decode_request(payload)
        scores = self.pipeline.predict_proba(table)[:, 1]
        output = NumpyCodec.encode_output("scores", np.asarray(scores))
        return InferenceResponse(model_name=self.name, outputs=[output])
