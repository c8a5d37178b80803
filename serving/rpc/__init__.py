"""RPCs as functions from message to message, and their middleware. Independent of transports."""
