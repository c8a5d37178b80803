"""The Python client. It imports nothing from the server."""

from serving.client.client import AsyncClient, Client
from serving.client.images import ClientImage, encode_image
from serving.client.messages import CallFailed, ImageFailure, Label, Prediction

__all__ = [
    "AsyncClient",
    "CallFailed",
    "Client",
    "ClientImage",
    "ImageFailure",
    "Label",
    "Prediction",
    "encode_image",
]
