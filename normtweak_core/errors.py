"""Errors a caller may catch. Every message says what was required, what was found, what to do."""


class InputError(ValueError):
    """The request cannot be carried out as written: a recipe, a file, a model or a format."""


class HessianError(ArithmeticError):
    """A damped Hessian could not be factorized at any damping that still means something."""


class NonFiniteError(ArithmeticError):
    """A weight, an activation or a loss is NaN or infinite."""


class VerificationError(RuntimeError):
    """An independent reader does not find in the export what was quantized."""


class ProblemError(RuntimeError):
    """The recipe said to fail on this: damping raised, tweak rolled back, layer left float."""
