"""Ctrl-C before a command has begun: one sentence and exit code 130, no traceback of Python's."""

import signal
import subprocess
import sys

import pytest

# As pip writes the command, with a Ctrl-C when a certain module is looked for.
COMMAND = """
import signal, sys
class Pressed:
    def find_spec(name, path=None, target=None):
        if name == {module!r}:
            signal.raise_signal(signal.SIGINT)
sys.meta_path.insert(0, Pressed)
from flows.start import main
sys.exit(main(["--version"]))
"""


def press(module, **options):
    command = [sys.executable, "-c", COMMAND.format(module=module)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


@pytest.mark.parametrize("module", ["flows.cli", "argparse", "flows.commands.command"])
def test_ctrl_c_during_the_imports_ends_in_a_sentence(module):
    done = press(module)
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == "normtweak: interrupted before it began.\n"


def test_a_command_that_is_to_ignore_ctrl_c_goes_on():
    done = press("flows.cli", preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("normtweak ")


def test_after_the_imports_python_hears_ctrl_c_again():
    program = "import signal; import flows.start; print(signal.getsignal(signal.SIGINT).__name__)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "default_int_handler\n"
