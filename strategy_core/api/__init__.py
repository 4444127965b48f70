"""The owner's API over HTTP: it puts requests to the services, and holds no rule and no SQL of its own."""
