"""A web page over the server's HTTP API, in a process of its own."""
