"""The platform's figures, each beside the plainest program that does the same physical work in the same run.

Table of contents: ``runner`` (what `tenantry bench` calls), ``results`` (rows, goals, verdicts), ``programs`` (what is
started, waited for, weighed and ended), ``asks``, ``http_commands`` and ``tenants`` (rows on one running platform), ``starts`` (rows
that start platforms), ``responder``, ``bare_app`` and ``noop_serve`` (the ceilings), ``load`` (the HTTP load generator).
"""
