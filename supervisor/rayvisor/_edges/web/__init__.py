"""The live page of a tree: ``rayvisor run --web``, ``rayvisor demo --web``, ``Supervisor.serve_web``.

``server``
    HTTP on a TCP port, on the control socket's server and routes.
``gate``
    who is let in: the run's token, the page's own origin, no foreign host name. Pure.
``page.html``, ``page.css``, ``page.js``
    the page: nothing is built, and nothing comes from elsewhere.
"""
