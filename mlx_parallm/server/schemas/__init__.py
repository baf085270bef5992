"""The shapes of requests and responses, one noun a module.

Requests are validated with these models. Responses are written by hand for speed (see
`responses.py`); their models document them and are checked against the real answers in tests.
"""
