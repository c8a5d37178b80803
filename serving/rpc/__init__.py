"""Every RPC as a function from message to message, and the middleware of all. Knows no transport."""
