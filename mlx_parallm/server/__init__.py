"""The HTTP side: routes, schemas, the queue, and text in and out."""
