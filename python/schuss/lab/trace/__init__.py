"""Experiments that print numbers and draw them: `schuss trace`.

Each is a function that returns its numbers, as a Result, which can print and draw itself.
"""
