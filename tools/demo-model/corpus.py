"""Reads the corpus: plain text for the model to continue, and conversations for it to answer in.

Held out is every 40th segment of every file, before anything else is made of them: the tokenizer, the
plain text and the conversations of training never see them. `tinyshakespeare.txt` is left out, as it
holds scenes of `shakespeare-complete.txt` a second time.
"""

import re
from pathlib import Path

FILES = ["shakespeare-complete.txt", "pride-and-prejudice.txt", "sherlock-holmes.txt"]
SEGMENT = 8000  # characters
HELD_OUT = 40  # one segment of so many
TURNS = 8  # most speeches of a conversation
SPEECH = 500  # most characters of a speech in a conversation

SPEAKER = re.compile(r"^([A-Z][A-Za-z0-9 ,.'&-]*)\t(.*)$")
SPOKEN = re.compile(r"^([A-Z][A-Za-z0-9 ,.'&-]*):$")


def plays(text):
    """Plays and poems: speakers on a line of their own, without the tabs that set speeches off."""
    lines = []
    for line in text.splitlines():
        speaker = SPEAKER.match(line.rstrip())
        if speaker:
            lines += ["", f"{speaker[1].strip()}:", speaker[2].strip()]
        else:
            lines.append(line.replace("\t", "").rstrip())
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def prose(text):
    """Novels: a paragraph a line, quotation marks and dashes as a keyboard has them."""
    for found, plain in [("“", '"'), ("”", '"'), ("‘", "'"), ("’", "'"), ("_", "")]:
        text = text.replace(found, plain)
    paragraphs = re.split(r"\n\s*\n", text)
    return "\n\n".join(" ".join(part.split()) for part in paragraphs if part.strip())


def segments(text):
    """Pieces of about `SEGMENT` characters, cut between paragraphs."""
    piece = []
    length = 0
    for paragraph in text.split("\n\n"):
        piece.append(paragraph)
        length += len(paragraph) + 2
        if length >= SEGMENT:
            yield "\n\n".join(piece)
            piece, length = [], 0
    if piece:
        yield "\n\n".join(piece)


def read(folder):
    """(training segments, held-out segments)."""
    training, held_out = [], []
    for name in FILES:
        text = (Path(folder) / name).read_text(encoding="utf-8")
        text = plays(text) if name.startswith("shakespeare") else prose(text)
        for at, segment in enumerate(segments(text)):
            (held_out if at % HELD_OUT == HELD_OUT // 2 else training).append(segment)
    return training, held_out


def conversations(segment):
    """Lists of speeches in turn, out of the dialogue of a play."""
    speeches = []
    last = None
    for paragraph in segment.split("\n\n"):
        head, _, speech = paragraph.partition("\n")
        speaker = SPOKEN.match(head)
        speech = re.sub(r"\[[^\]]*\]?", "", speech).strip()
        fits = speaker and 0 < len(speech) <= SPEECH
        if fits and speaker[1] != last and len(speeches) < TURNS:
            speeches.append(speech)
        else:
            if len(speeches) >= 2:
                yield speeches[: len(speeches) // 2 * 2]
            speeches = [speech] if fits else []
        last = speaker[1] if speaker else None
    if len(speeches) >= 2:
        yield speeches[: len(speeches) // 2 * 2]
