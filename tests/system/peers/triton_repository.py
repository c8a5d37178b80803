"""NVIDIA's client loads and unloads a model: prints the results as JSON. Runs inside .peers/triton."""

import json
import sys

import tritonclient.grpc as triton

address = sys.argv[1]
client = triton.InferenceServerClient(address)


def index() -> list[dict[str, str]]:
    """Return all known versions."""
    return client.get_model_repository_index(as_json=True).get("models", [])


report: dict[str, object] = {"before": index()}
client.unload_model("colours")
report["unloaded"] = [index(), client.is_model_ready("colours"), client.is_server_ready()]
client.load_model("colours")
report["loaded"] = [index(), client.is_model_ready("colours")]
try:
    client.load_model("shapes")
except triton.InferenceServerException as error:
    report["unknown"] = [error.status(), error.message()]
statistics = client.get_inference_statistics("colours", as_json=True)["model_stats"]
report["statistics"] = [[each["name"], each["version"]] for each in statistics]
client.close()
json.dump(report, sys.stdout)
