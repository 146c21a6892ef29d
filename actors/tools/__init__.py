"""Tools: what a tenant's runs call outside of the platform.

``adapter`` is the port, ``http``, ``payment``, ``email`` and ``model`` implement it, ``config`` says how they are set up,
``catalog`` which kinds there are. ``registry`` holds adapters and their policies, ``runner`` calls them for a tenant and records
it, ``resilient`` puts policies around a plain function, ``egress`` says where a URL may lead.
"""
