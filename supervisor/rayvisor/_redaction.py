"""Texts of values without the secrets in them, for everything that is printed, logged or raised.

>>> masked_repr({"model": "m", "hf_token": "hf_123", "env": {"HOME": "/root"}})
"{'model': 'm', 'hf_token': '***', 'env': {'HOME': '***'}}"
>>> masked_text("refused: --api-key sk-123 at https://me:pw@host/")
'refused: --api-key *** at https://***@host/'
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Final

__all__ = ["MASK", "is_secret", "masked_repr", "masked_text"]

MASK: Final = "***"
"""Stands for a masked value."""

_NO_SECRETS: Final = frozenset({"None", "True", "False", "null", "true", "false"})
_DEEPEST: Final = 20
_WORD: Final = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_SECRET_WORD: Final = re.compile(
    r"(.*(password|passwd|passphrase|secret|credential)s?|pwd|pw|pat|"
    r"auth|authorization|bearer|cookies?|dsn|(api|access|secret|private|auth)keys?|.*[a-z]token)"
)
_KEY_OWNERS: Final = frozenset(
    [
        "access",
        "account",
        "admin",
        "api",
        "app",
        "application",
        "auth",
        "client",
        "encryption",
        "hf",
        "hmac",
        "license",
        "master",
        "openai",
        "private",
        "secret",
        "service",
        "shared",
        "signing",
        "ssh",
        "ssl",
        "storage",
        "subscription",
        "tls",
        "token",
        "user",
        "wandb",
        "web",
    ]
)
_NOT_AFTER_TOKEN: Final = frozenset(
    [
        "budget",
        "cls",
        "count",
        "embed",
        "id",
        "ids",
        "length",
        "limit",
        "parallel",
        "pooling",
        "size",
        "strs",
        "threshold",
        "type",
    ]
)
_NOT_BEFORE_TOKEN: Final = frozenset(
    ["bos", "cls", "eos", "mask", "pad", "per", "sep", "special", "stop", "unk"]
)
_TOKENS_OWNERS: Final = frozenset(
    ["access", "api", "auth", "bearer", "hf", "hub", "id", "oauth", "refresh", "secret", "session"]
)
_ENVIRONMENTS: Final = frozenset({"env", "envs", "env vars", "environ", "environment"})

# A name in front of a value: name=value, 'name': 'value', "name": "value", --name value.
_NAME: Final = re.compile(
    r"(?<![\w.-])(?P<name>(?:--?)?[A-Za-z_][\w.-]{0,99}+)(?P<between>"
    r"[\"']?(?:\s{0,3}[=:]\s{0,3}|[ \t]{1,3})|[\"'],\s{0,3})"
)
_VALUE: Final = re.compile(
    r"(?P<scheme>(?:(?:Bearer|Basic)[ \t]{1,3})?)"
    r"(?:[bu]?(?P<quote>[\"'])(?:(?!(?P=quote))[^\\\n]|\\.)*+(?P=quote)?|[^\s,;&\"'()\[\]{}]+)"
)
_USER_IN_URL: Final = re.compile(r"(?<=://)[^\s/@'\"]{1,500}+@")
_ENVIRONMENT_IN_TEXT: Final = re.compile(
    r"(?<![A-Za-z])((?:env|env_vars|environ|environment)[\"']?\s{0,3}[=:]\s{0,3}(?:environ\()?)\{[^{}]*+\}"
)


def is_secret(name: str) -> bool:
    """Whether the value under this name is a secret: a token, a password, a key of an interface, and so on.

    >>> [is_secret(name) for name in ("hf_token", "OPENAI_API_KEY", "apiKey", "max_tokens", "stop_token_ids")]
    [True, True, True, False, False]
    """
    words = [word.lower() for word in _WORD.findall(name)]
    for index, word in enumerate(words):
        before = words[index - 1] if index else ""
        after = words[index + 1] if index + 1 < len(words) else ""
        if _SECRET_WORD.fullmatch(word):
            return True
        if word in {"key", "keys"} and before in _KEY_OWNERS:
            return True
        if word == "token" and after not in _NOT_AFTER_TOKEN and before not in _NOT_BEFORE_TOKEN:
            return True
        if word == "tokens" and before in _TOKENS_OWNERS:
            return True
    return False


def masked_repr(value: object, name: str = "") -> str:
    """Return ``repr(value)`` with its secrets masked; never raises.

    Parameters
    ----------
    value
        Any value. Mappings, sequences and dataclasses are searched, texts too.
    name
        The name, or the dotted path of names, under which the value was found; empty if it has none.
    """
    return _shown(value, hidden=_hides(name), depth=0)


def masked_text(text: str) -> str:
    """Return a text with the secrets in it masked.

    They are found as ``name=value``, ``'name': 'value'``, ``--name value`` and ``https://user:password@host``.
    """
    text = _ENVIRONMENT_IN_TEXT.sub(rf"\1{{{MASK}}}", _USER_IN_URL.sub(f"{MASK}@", text))
    parts: list[str] = []
    done = at = 0
    while found := _NAME.search(text, at):
        at = found.end()
        # In prose, only an option is followed by its value after a blank or a comma.
        pair = "=" in found["between"] or ":" in found["between"] or found["name"].startswith("-")
        value = _VALUE.match(text, at) if pair and is_secret(found["name"]) else None
        if value is None or value[0] in _NO_SECRETS or _is_count(found["name"], value[0]):
            continue
        quote = value["quote"] or ""
        parts += (text[done:at], value["scheme"], quote, MASK, quote)
        done = at = value.end()
    return "".join((*parts, text[done:]))


def _is_count(name: str, value: str) -> bool:
    return value.isdigit() and name.lower().endswith(("token", "tokens"))


def _hides(name: str) -> bool:
    """Whether all that is found under a path of names is masked."""
    # The id of a child is no name of a value.
    parts = re.split(r"[.\[\]]+", re.sub(r"children\[[^\]]*\]", "", name))
    return any(is_secret(part) or _is_environment(part) for part in parts)


def _is_environment(name: str) -> bool:
    return " ".join(_WORD.findall(name)).lower() in _ENVIRONMENTS


def _shown(  # noqa: PLR0911 - one return for each kind of value
    value: object, *, hidden: bool, depth: int
) -> str:
    if value is None or isinstance(value, bool):
        return repr(value)
    if depth > _DEEPEST:
        return "..."
    try:
        if is_dataclass(value) and not isinstance(value, type):
            return _pairs_of(
                type(value).__qualname__,
                {each.name: getattr(value, each.name) for each in fields(value) if each.repr},
                hidden=hidden,
                depth=depth,
            )
        if isinstance(value, Mapping):
            items = ", ".join(
                f"{_shown(name, hidden=False, depth=depth + 1)}: "
                f"{_shown(each, hidden=hidden or (isinstance(name, str) and _hides(name)), depth=depth + 1)}"
                for name, each in value.items()
            )
            return f"{{{items}}}"
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return _pairs_of(
                type(value).__qualname__,
                dict(zip(value._fields, value, strict=True)),
                hidden=hidden,
                depth=depth,
            )
        if isinstance(value, (list, tuple, set, frozenset)):
            return _sequence(value, hidden=hidden, depth=depth)
        if hidden:
            return repr(MASK)
        if type(value) is str:  # the repr of an enum of texts is another
            return repr(_masked_string(value))
        return masked_text(repr(value))
    except Exception as error:  # noqa: BLE001 - the repr of a foreign class may raise anything
        return f"<{type(value).__name__}: no repr, {type(error).__name__}>"


def _pairs_of(kind: str, values: Mapping[str, object], *, hidden: bool, depth: int) -> str:
    shown = (
        f"{name}={_shown(each, hidden=hidden or _hides(name), depth=depth + 1)}"
        for name, each in values.items()
    )
    return f"{kind}({', '.join(shown)})"


def _sequence(value: Iterable[object], *, hidden: bool, depth: int) -> str:
    items: list[str] = []
    follows = False
    for each in value:
        # The words of a command line: an option, and its values up to the next option.
        option = isinstance(each, str) and each.startswith("-")
        items.append(_shown(each, hidden=hidden or (follows and not option), depth=depth + 1))
        if option:
            follows = isinstance(each, str) and "=" not in each and is_secret(each)
    inside = ", ".join(items)
    if isinstance(value, list):
        return f"[{inside}]"
    if isinstance(value, tuple):
        return f"({inside},)" if len(items) == 1 else f"({inside})"
    kind = type(value).__name__
    return f"{{{inside}}}" if items and kind == "set" else f"{kind}({f'{{{inside}}}' if items else ''})"


def _masked_string(text: str) -> str:
    """Return a text, also one that is JSON or an option with its value, with its secrets masked."""
    if text[:1] in {"{", "["}:
        try:
            content = json.loads(text)
        except ValueError:
            return masked_text(text)
        masked = json.dumps(_masked_json(content, hidden=False))
        return text if masked == json.dumps(content) else masked
    return masked_text(text)


def _masked_json(content: object, *, hidden: bool) -> object:
    if isinstance(content, Mapping):
        return {
            name: _masked_json(each, hidden=hidden or _hides(str(name))) for name, each in content.items()
        }
    if isinstance(content, Sequence) and not isinstance(content, str):
        return [_masked_json(each, hidden=hidden) for each in content]
    if content is None or isinstance(content, bool):
        return content
    if hidden:
        return MASK
    return masked_text(content) if isinstance(content, str) else content
