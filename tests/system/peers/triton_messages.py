"""Prints the field numbers of the messages in NVIDIA's client as JSON. Runs inside .peers/triton."""

import json
import sys

from tritonclient.grpc import model_config_pb2, service_pb2

found = {}
waiting = [*service_pb2.DESCRIPTOR.message_types_by_name.values()]
waiting += model_config_pb2.DESCRIPTOR.message_types_by_name.values()
while waiting:
    message = waiting.pop()
    found[message.full_name] = {field.name: [field.number, field.type] for field in message.fields}
    waiting += message.nested_types
for module in (service_pb2, model_config_pb2):
    for enum in module.DESCRIPTOR.enum_types_by_name.values():
        found[enum.full_name] = {value.name: value.number for value in enum.values}
json.dump(found, sys.stdout)
