"""The registry of checks and what they say with."""

import contextlib

import botocore.exceptions

CHECKS = []


def check(function):
    """Registers a check: a function of a Context that raises when something is wrong."""
    module = function.__module__.rsplit(".", 1)[-1]
    CHECKS.append((f"{module}.{function.__name__}", function))
    return function


def equal(actual, expected, what=""):
    if actual != expected:
        shown = lambda value: repr(value)[:500]
        raise AssertionError(f"{what}: {shown(actual)}, not {shown(expected)}")


@contextlib.contextmanager
def refused(code, status=None):
    """The block must fail with this S3 error code."""
    try:
        yield
    except botocore.exceptions.ClientError as error:
        equal(error.response["Error"]["Code"], code, str(error))
        if status is not None:
            equal(error.response["ResponseMetadata"]["HTTPStatusCode"], status, str(error))
    else:
        raise AssertionError(f"not refused with {code}")
