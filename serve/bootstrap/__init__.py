"""The only place that opens connections. Every process of a deployment comes here with the settings it inherited.

A module per kind of process: each of the platform's dozen processes loads what it needs itself, and no web framework for
the sake of another.
"""
