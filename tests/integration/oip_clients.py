"""Asks a server by KServe's own client and by Triton's; runs in an environment of its own, where these are installed.

Usage: python oip_clients.py PORT MODEL; prints the scores that each was told, in JSON.
"""

import asyncio
import json
import sys
from urllib.parse import quote

import numpy as np
import tritonclient.http as triton
from kserve import InferenceRESTClient, InferInput, InferRequest
from kserve.inference_client import RESTConfig

COLUMNS = {
    "weight": ("FP64", np.array([180.5, 95.0])),
    "sugar": ("INT64", np.array([11, 7])),
    "organic": ("BOOL", np.array([True, False])),
    "colour": ("BYTES", np.array(["red", "green"], dtype=object)),
    "shape": ("BYTES", np.array(["round", "long"], dtype=object)),
}


async def by_kserve(port: str, model: str) -> list[float]:
    client, base = InferenceRESTClient(RESTConfig(protocol="v2")), f"http://127.0.0.1:{port}"
    assert await client.is_server_live(base)
    assert await client.is_server_ready(base)
    assert await client.is_model_ready(base, quote(model))
    inputs = []
    for name, (kind, values) in COLUMNS.items():
        one = InferInput(name, [2], kind)
        one.set_data_from_numpy(values, binary_data=False)
        inputs.append(one)
    # its request carries the name of the model as it is, its URL as it is quoted
    asked = InferRequest(model_name=model, infer_inputs=inputs, request_id="42")
    answer = await client.infer(base, asked, model_name=quote(model))
    assert answer.id == "42"
    return [float(one) for one in answer.outputs[0].data]


def by_triton(port: str, model: str) -> list[float]:
    client = triton.InferenceServerClient(f"127.0.0.1:{port}")
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(model)
    assert client.get_server_metadata()["name"] == "clearway"
    assert [one["name"] for one in client.get_model_metadata(model)["inputs"]] == list(COLUMNS)
    inputs = []
    for name, (kind, values) in COLUMNS.items():
        one = triton.InferInput(name, [2], kind)
        one.set_data_from_numpy(values, binary_data=False)
        inputs.append(one)
    answer = client.infer(model, inputs, outputs=[triton.InferRequestedOutput("score", binary_data=True)])
    version = answer.get_response()["model_version"]
    again = client.infer(model, inputs, model_version=version[:16])
    assert again.get_response()["model_version"] == version
    inputs[0].set_data_from_numpy(COLUMNS["weight"][1])
    refused = ""
    try:
        client.infer(model, inputs)
    except triton.InferenceServerException as error:
        refused = str(error)
    assert "binary tensor data is not supported" in refused
    return [float(one) for one in answer.as_numpy("score")]


if __name__ == "__main__":
    port, model = sys.argv[1:]
    print(json.dumps({"kserve": asyncio.run(by_kserve(port, model)), "triton": by_triton(port, model)}))
