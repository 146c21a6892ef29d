"""What is told of a defect where others read it: in logs, events, messages between processes."""

import traceback


def described(error: BaseException) -> str:
    """Type and place of what raised, without what it says: that may quote a prompt, a name or whatever else was worked on.

    For our own errors (``PlatformError``) take ``str(error)``: what they say was written to be read.
    """
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {_module(frames[-1].filename)}:{frames[-1].lineno} in {frames[-1].name}" if frames else ""
    return f"{type(error).__qualname__}{place}"


def _module(filename: str) -> str:
    """The file in its package; the rest of the path is this machine's affair."""
    return "/".join(filename.rsplit("/", 3)[-3:])
