"""Typed questions about one input, each answered by a probability for every allowed answer.

A question is a row of the running batch, or several where an answer is longer than a token.
"""
