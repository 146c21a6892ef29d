"""The doors: HTTP, the command line, settings, and the wiring. Inside the repo, Ray's is ``from ray import serve as ray_serve``."""
