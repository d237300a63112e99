"""Interfaces to a running tree. They decide nothing and call the supervisor's public methods only.

``controls``, ``sockets``
    the methods of a supervisor that interfaces may call; finding and claiming Unix sockets.
``http``
    an HTTP server, the routes, and the JSON forms of trees and records.
``control``
    the control socket, which only its user can open, and its client for the commands.
``live``, ``metrics``
    recent history and current state for the live page and ``status --watch``; Prometheus metrics.
``web``, ``publish``
    the live page on a TCP port; records on a ZeroMQ socket.
"""
