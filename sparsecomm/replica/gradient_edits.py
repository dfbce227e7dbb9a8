"""Detects, in the first steps, that a script changes gradients in place between backward and step.

Such a change acts on each rank's own gradient: the mean of clipped gradients is not the clipped mean.
"""

STEPS = 10  # steps that are checked
LINE = ("gradients are changed between backward and step, which acts on each rank's own, before the mean: to clip as one "
        "process with the whole batch does, use optimizer.clip_grad_norm_(…) or clip=…, or optimizer.synchronize() before it")


class Edits:
    """Follows the gradients of `parameters`; what is done to `.grad.data` is not seen."""

    def __init__(self, parameters):
        self.left, self.versions = STEPS, {}
        self.hooks = [p.register_post_accumulate_grad_hook(self._note) for p in parameters if p.requires_grad]

    def _note(self, p):
        self.versions[id(p)] = p.grad._version

    def found(self, parameters) -> bool:
        """Whether a gradient was changed since backward; called at each step, true at most once."""
        if self.left:
            self.left -= 1
            for p in parameters:
                if p.grad is not None and self.versions.get(id(p), p.grad._version) != p.grad._version:
                    self.end()
                    return True
            if not self.left:
                self.end()
        return False

    def end(self):
        """Remove the hooks: no step is checked any more."""
        self.left = 0
        for hook in self.hooks:
            hook.remove()
