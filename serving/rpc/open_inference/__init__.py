"""The Open Inference Protocol: tensors, parameters, statistics, shared memory."""
