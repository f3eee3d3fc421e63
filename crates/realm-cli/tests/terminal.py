"""Sits at a terminal before `realm chat` and types: tests/chat.rs runs this.

Arguments: the binary, a model that answers "xyz", one that never ends, a folder to work in.
"""

import json
import os
import pty
import re
import select
import signal
import stat
import struct
import sys
import termios
import time
import fcntl

REALM, MODEL, ENDLESS, FOLDER = sys.argv[1:5]
STATE = os.path.join(FOLDER, "state")
PROMPT = "> "
CTRL_A, CTRL_C, CTRL_D, CTRL_K, UP, LEFT, TAB = "\x01", "\x03", "\x04", "\x0b", "\x1b[A", "\x1b[D", "\t"


class Chat:
    """A chat in a pseudo-terminal."""

    def __init__(self, *args, model=MODEL, env=None):
        self.said = ""
        self.seen = 0
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            values = {"PATH": os.environ["PATH"], "TERM": "xterm-256color", "HOME": FOLDER}
            values |= {"XDG_STATE_HOME": STATE, "REALM_THREADS": "2"} | (env or {})
            line = [REALM, "chat", "-m", model, "--temperature", "0", *args]
            # Tests may run under `nohup`, which has hangups ignored; a terminal has not.
            signal.signal(signal.SIGHUP, signal.SIG_DFL)
            os.execve(REALM, line, values)
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 90, 0, 0))

    def type(self, text):
        os.write(self.fd, text.encode())

    def line(self, text):
        self.type(text + "\r")

    def read(self, seconds):
        """What came within this time, if anything; False at the end."""
        if not select.select([self.fd], [], [], seconds)[0]:
            return True
        try:
            data = os.read(self.fd, 65536)
        except OSError:
            return False
        self.said += data.decode(errors="replace")
        return bool(data)

    def expect(self, pattern, seconds=60):
        """Waits for a pattern after the last one that came."""
        end = time.monotonic() + seconds
        while True:
            found = re.compile(pattern).search(self.said, self.seen)
            if found:
                self.seen = found.end()
                return found
            if not self.read(0.1) or time.monotonic() > end:
                raise AssertionError(f"{pattern!r} never came; since the last: {self.said[self.seen:]!r}")

    def prompt(self):
        """Waits for the prompt."""
        self.expect(r">(\x1b\[0m)? ")

    def leaves(self, code=0):
        end = time.monotonic() + 60
        while self.read(0.1):
            assert time.monotonic() < end, f"it does not leave: {self.said[self.seen:]!r}"
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        assert status == code, f"exit code {status}: {self.said!r}"
        assert "panicked" not in self.said, self.said


def saved(chat):
    """The conversation as messages."""
    path = os.path.join(FOLDER, "talk.json")
    chat.line(f"/save {path}")
    chat.expect(r"turns? in ")
    with open(path) as file:
        return [(message["role"], message["content"]) for message in json.load(file)]


def talks_and_leaves():
    chat = Chat()
    chat.expect("/help lists the commands")
    chat.prompt()
    chat.line("hello")
    chat.expect("xyz")
    chat.prompt()
    chat.line("/exit")
    chat.leaves()
    chat = Chat()
    chat.prompt()
    chat.type(CTRL_D)
    chat.leaves()


def lines_are_edited():
    chat = Chat("--no-history")
    chat.prompt()
    chat.type("helo" + LEFT + "l" + CTRL_A + "X")
    chat.line("")
    chat.expect("xyz")
    chat.prompt()
    chat.line("one\\")
    chat.line("two")
    chat.expect("xyz")
    chat.prompt()
    # A pasted text is one message.
    chat.type("\x1b[200~three\nfour\x1b[201~")
    chat.line("")
    chat.expect("xyz")
    chat.prompt()
    asked = [text for role, text in saved(chat) if role == "user"]
    assert asked == ["Xhello", "one\ntwo", "three\nfour"], asked
    chat.prompt()
    chat.line("/he" + TAB)
    chat.expect("/regenerate")
    chat.prompt()
    chat.line("/hlep")
    chat.expect(r"did you mean /help\?")
    chat.prompt()
    chat.type(CTRL_D)
    chat.leaves()


def lines_typed_ahead_wait():
    chat = Chat("--no-history")
    chat.prompt()
    chat.type("line one\rline two\rline three\r")
    for _ in range(3):
        chat.expect("xyz")
    chat.prompt()
    asked = [text for role, text in saved(chat) if role == "user"]
    assert asked == ["line one", "line two", "line three"], asked
    chat.prompt()
    chat.type(CTRL_D)
    chat.leaves()


def an_answer_is_interrupted():
    chat = Chat(model=ENDLESS)
    chat.prompt()
    for _ in range(2):
        chat.line("go on")
        chat.expect("xyzxyz")
        chat.type(CTRL_C)
        chat.expect(r"\(interrupted\)")
        chat.prompt()
    talk = saved(chat)
    assert [role for role, _ in talk] == ["user", "assistant"] * 2, talk
    assert all(text.startswith("xyzxyz") for role, text in talk if role == "assistant")
    chat.prompt()
    chat.line("/stats")
    chat.expect("interrupted")
    chat.prompt()
    chat.type(CTRL_D)
    chat.leaves()


def ctrl_c_at_the_prompt():
    chat = Chat()
    chat.prompt()
    chat.type("never said")
    chat.expect("never said")
    chat.type(CTRL_C)
    chat.prompt()
    assert saved(chat) == []
    chat.prompt()
    chat.type(CTRL_C)
    chat.expect("Ctrl-C again")
    chat.prompt()
    # Not twice in a row.
    chat.line("hello")
    chat.expect("xyz")
    chat.prompt()
    chat.type(CTRL_C)
    chat.expect("Ctrl-C again")
    chat.prompt()
    chat.type(CTRL_C)
    chat.leaves()


def lines_are_remembered():
    for text in ["first line", " a secret", "second line"]:
        chat = Chat()
        chat.prompt()
        chat.line(text)
        chat.expect("xyz")
        chat.prompt()
        chat.type(CTRL_D)
        chat.leaves()
    history = os.path.join(STATE, "realm", "chat_history")
    assert stat.S_IMODE(os.stat(history).st_mode) == 0o600, oct(os.stat(history).st_mode)
    with open(history) as file:
        assert "secret" not in file.read()
    # Rights that it had from elsewhere are taken away.
    os.chmod(history, 0o644)
    chat = Chat()
    chat.prompt()
    assert stat.S_IMODE(os.stat(history).st_mode) == 0o600, oct(os.stat(history).st_mode)
    chat.type(UP + UP)
    chat.expect("first line")
    chat.line("")
    chat.expect("xyz")
    chat.prompt()
    assert saved(chat)[0] == ("user", "first line")
    chat.prompt()
    chat.type(CTRL_D)
    chat.leaves()
    # With another history, or none that can be written, it talks all the same.
    for chat in [Chat("--no-history"), Chat(env={"XDG_STATE_HOME": "/dev/null/x"})]:
        chat.prompt()
        chat.type(UP)
        chat.line("hello")
        chat.expect("xyz")
        chat.prompt()
        chat.type(CTRL_D)
        chat.leaves()


def colours_can_be_turned_off():
    for env, colours in [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)]:
        chat = Chat(env=env)
        chat.expect(PROMPT if not colours else r">\x1b\[0m ")
        chat.line("hello")
        chat.expect("xyz")
        # Typed before there is a prompt, Ctrl-D is lost: it ends no line of an answer.
        chat.prompt()
        chat.type(CTRL_D)
        chat.leaves()
        found = re.search(r"\x1b\[[0-9;]*m", chat.said) is not None
        assert found == colours, (env, chat.said)


def the_window_closes():
    chat = Chat(model=ENDLESS)
    chat.prompt()
    chat.line("go on")
    chat.expect("xyzxyz")
    os.kill(chat.pid, signal.SIGHUP)
    chat.leaves(129)


def signals_give_the_terminal_back():
    for number in [signal.SIGTERM, signal.SIGHUP]:
        chat = Chat("--no-history")
        before = termios.tcgetattr(chat.fd)[3]
        chat.prompt()
        chat.type("half a li")
        chat.expect("half a li")
        edited = termios.tcgetattr(chat.fd)[3]
        assert not edited & termios.ECHO and not edited & termios.ICANON, edited
        os.kill(chat.pid, number)
        chat.leaves(128 + number)
        after = termios.tcgetattr(chat.fd)[3]
        assert after == before, (number, before, after)


def bytes_that_are_no_text_end_no_chat():
    chat = Chat("--no-history")
    chat.prompt()
    chat.line("hello")
    chat.expect("xyz")
    chat.prompt()
    os.write(chat.fd, b"caf\xe9\r")
    chat.expect("no UTF-8")
    chat.prompt()
    assert ("user", "hello") in saved(chat)
    chat.prompt()
    chat.type(CTRL_D)
    chat.leaves()


for test in [
    talks_and_leaves,
    lines_are_edited,
    lines_typed_ahead_wait,
    an_answer_is_interrupted,
    ctrl_c_at_the_prompt,
    lines_are_remembered,
    colours_can_be_turned_off,
    the_window_closes,
    signals_give_the_terminal_back,
    bytes_that_are_no_text_end_no_chat,
]:
    try:
        test()
    except AssertionError as error:
        sys.exit(f"{test.__name__}: {error}")
    print(f"{test.__name__}: ok")
