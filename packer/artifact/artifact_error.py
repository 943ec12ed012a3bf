"""What reading an artifact may raise, by itself so that every part of the decoder can."""


class ArtifactError(Exception):
    """Bytes that are not an artifact, or a damaged one; names what was found and where."""
