"""For tests of supervision trees: virtual time for the core, and the comparison with Erlang/OTP.

``python -m rayvisor.testing.otp PATH...`` runs recorded OTP scenarios through the product's own core.
"""

from __future__ import annotations
