"""What is shown of a reply, given the text that a model generates."""

from __future__ import annotations

END_OF_THOUGHTS = "</think"


class ReplyText:
    """Takes the text of a reply piece by piece, and returns what is shown of each.

    The blanks at the beginning are not shown. Where the prompt has begun the reply with a block of thoughts, see
    `Template.opening`, the block is shown from its beginning; a block that the prompt has also ended is not shown.
    """

    def __init__(self, opening: str = "", is_verbatim: bool = False):
        """Begins a reply.

        Args:
            opening: the beginning of the reply that the prompt has.
            is_verbatim: whether the text is shown as it is, because blanks at its beginning belong to it.
        """
        is_empty_block = END_OF_THOUGHTS in opening
        self._before = "" if is_empty_block else opening.lstrip()
        self._left_out = ">" if is_empty_block else ""  # the rest of a tag whose end is left to the model
        self._has_text = is_verbatim

    def add(self, piece: str) -> str:
        """What is shown of the next piece; may be empty."""
        if self._has_text or not piece:
            return piece
        shown = piece if self._before else piece.lstrip()
        if shown and self._left_out:
            shown, self._left_out = shown.removeprefix(self._left_out).lstrip(), ""
        self._has_text = bool(shown)
        return self._before + shown
