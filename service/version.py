"""Which release of the service this is."""

from importlib.metadata import PackageNotFoundError, version


def service_version() -> str:
    """As the package says; "0" in a checkout that is not installed."""
    try:
        return version("ipet-serve")
    except PackageNotFoundError:
        return "0"
