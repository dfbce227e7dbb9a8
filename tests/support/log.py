"""A report of a run that only keeps what it is told."""


class Log:
    """A report that keeps what it is told."""

    def __init__(self):
        self.lines, self.events, self.epochs = [], [], []

    def progress(self, *args):
        pass

    def say(self, line):
        self.lines.append(line)

    def event(self, name, **fields):
        self.events.append((name, fields))

    def epoch(self, epoch, epochs):
        self.epochs.append(epoch)
