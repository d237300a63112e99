"""Talking to a running tree: HTTP and JSON on a Unix socket that only its user can open.

``sockets``
    where sockets are, which of them are alive, and how one is opened.
``server``, ``http``, ``routes``
    what is answered. Nothing is decided here: routes call the supervisor's public verbs.
``forms``
    pure functions: a tree, records and vLLM's status as JSON.
``client``
    what the commands use.
"""
