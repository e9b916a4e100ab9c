"""Errors about slides and spots; a caller's mistake is a ``ValueError`` or ``RuntimeError``.

::

    PreprocessError
    ├── SlideError              about one slide; carries its name
    │   ├── SlideNotFound       no such file, or not under an allowed root
    │   ├── UnreadableSlide     not a slide, truncated, corrupt, or its reader died
    │   ├── SlideTimeout        reading it took too long, or its file system does not answer
    │   ├── SlideChanged        its files were replaced while they were read
    │   ├── UnknownResolution   a physical unit was asked for and there is no plausible µm/px
    │   └── UnknownTissue       a grid over the tissue was asked for and nobody can tell where that is
    ├── SpotError               a spot file or spot coordinates cannot be used
    └── UnsupportedRequest      this kind of server cannot do what is asked
"""

from __future__ import annotations

import re
from pathlib import PurePath

from m2ost_contract import M2OSTError


class PreprocessError(M2OSTError):
    """Base of every error about slides and spots."""


class SlideError(PreprocessError):
    """Something is wrong with one slide.

    Parameters
    ----------
    slide : str
        The slide as the caller named it.
    message : str
        What is wrong and what to do next.
    """

    def __init__(self, slide: str, message: str) -> None:
        super().__init__(f"{slide}: {message}")
        self.slide = slide
        self.message = message

    def __reduce__(self) -> tuple[type[SlideError], tuple[str, str]]:
        return type(self), (self.slide, self.message)


class SlideNotFound(SlideError):
    """The slide does not exist, or lies outside the allowed roots."""


class UnreadableSlide(SlideError):
    """The file exists but no reader can decode it."""


class SlideTimeout(SlideError):
    """Reading took longer than allowed, or did not get on; nothing is said of the file."""


class SlideChanged(SlideError):
    """The slide's files were replaced while they were read: what was read may be of two contents."""


class UnknownResolution(SlideError):
    """µm/px is needed, and neither the slide nor the caller gives a plausible one."""


class UnknownTissue(SlideError):
    """Tissue is sought and the slide is not one on which it can be told."""


class SpotError(PreprocessError):
    """A spot file or a set of spot coordinates cannot be used."""


class UnsupportedRequest(PreprocessError):
    """What is asked for is not done by this profile of the server; the message says by which."""


_FOLDERS = re.compile(r"(?<![\w/.])/(?:[^\s/'\":;,()]+/)+")


def without_folders(words: str, path: PurePath | None = None) -> str:
    """A library's words about a slide without the folders of this machine, which are nobody's business beyond it.

    Of each absolute path the last part stays. ``path`` is the slide's file, whose own folder may have blanks in its
    name.
    """
    if path is not None and len(path.parts) > 2:
        words = words.replace(f"{path.parent}/", "").replace(str(path.parent), path.parent.name)
    return _FOLDERS.sub("", words)


def answered(slide: str, error: Exception) -> PreprocessError:
    """What is said of an error about a slide, without the frames that it arose in.

    They hold the request and its pixels; and a frame that keeps the error is kept by it, until Python looks for cycles.

    Parameters
    ----------
    slide : str
        As the caller named it.
    error : Exception
        Loses its traceback and its cause, if it is one of ours.

    Returns
    -------
    PreprocessError
        ``error`` itself, or an ``UnreadableSlide`` that names it where it is not one of ours.
    """
    if not isinstance(error, PreprocessError):
        # The system's errors name the file with its folders, beside what is wrong.
        words = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return UnreadableSlide(slide, without_folders(f"unexpected {type(error).__name__}: {words}"))
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)
