"""Packages that only some commands need."""

import importlib

from streammem.errors import BackboneError


def require(extra: str, *packages: str) -> None:
    """Refuse to start without the packages of an extra.

    Raises:
        BackboneError: one is missing; says how to install it.
    """
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            name = {"paho.mqtt.client": "paho-mqtt"}.get(package, package)
            raise BackboneError(
                f"{name} is not installed; run: pip install 'streammem[{extra}]'"
            ) from error
