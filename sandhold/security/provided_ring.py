"""A key ring that a deployment brings itself: `SANDHOLD_KEYRING_PROVIDER` names what makes it."""

from __future__ import annotations

import importlib
import inspect

from sandhold.security.errors import KeyRingUnusable, SecurityError
from sandhold.security.key_ring import KeyRing
from sandhold.security.process_secrets import redact_for_log
from sandhold.settings import Settings

_METHODS = ("primary", "wrap", "unwrap")


def provided_ring(provider: str, settings: Settings) -> KeyRing:
    """What the factory `module:factory` makes of the settings.

    Raises KeyRingUnusable when it cannot be imported, fails, or makes no key ring.
    """
    named = f"SANDHOLD_KEYRING_PROVIDER={provider}"
    module_name, _, factory_name = provider.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise KeyRingUnusable(f"{named}: {module_name} cannot be imported: {_shown(error)}") from error
    factory = getattr(module, factory_name, None)
    if not callable(factory):
        what = "is nothing that can be called" if hasattr(module, factory_name) else f"is not in {module_name}"
        raise KeyRingUnusable(f"{named}: {factory_name} {what}")
    try:
        ring = factory(settings)
    except SecurityError:
        raise
    except Exception as error:
        raise KeyRingUnusable(f"{named}: it failed: {_shown(error)}") from error
    if inspect.iscoroutine(ring):
        ring.close()
        raise KeyRingUnusable(
            f"{named}: it is a coroutine function; a plain one is needed, whose ring has async methods"
        )
    lacks = [name for name in _METHODS if isinstance(ring, type) or not callable(getattr(ring, name, None))]
    if lacks:
        raise KeyRingUnusable(
            f"{named}: it returned {_kind(ring)}, which is no key ring: {', '.join(lacks)} "
            f"{'is' if len(lacks) == 1 else 'are'} missing"
        )
    made: KeyRing = ring
    return made


def _kind(ring: object) -> str:
    return f"the class {ring.__name__}" if isinstance(ring, type) else f"a {type(ring).__name__}"


def _shown(error: Exception) -> str:
    return f"{type(error).__name__}: {redact_for_log(str(error))}" if str(error) else type(error).__name__
