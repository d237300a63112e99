"""The live page of a tree: ``rayvisor run --web``, ``rayvisor demo --web``, ``Supervisor.serve_web``.

``server``
    HTTP on a TCP port, with the server and routes of the control socket.
``auth``
    access control: the run's token, the page's own origin, no foreign host name. Pure.
``page.html``, ``page.css``, ``page.js``
    the page; there is no build step, and nothing is loaded from other hosts.
"""
