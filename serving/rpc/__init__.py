"""Every RPC as a function from message to message, and what surrounds each call. Knows no wire."""
