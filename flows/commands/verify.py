"""`normtweak verify` and `sign`: whether an export is what was quantized, and whose it is."""

import argparse
import os
from pathlib import Path

from flows.commands.command import Command, GivenPath
from flows.commands.execution import logged, of_export, print_line
from flows.commands.failures import EXIT_OK
from flows.commands.first_line import first_line
from flows.reports.terminal import verification_lines
from normtweak_core.errors import InputError
from normtweak_core.export.verification.verify import reader_python, verify_export
from normtweak_core.lazy import lazy
from tasks.engine.environment import REPOSITORY

signing = lazy("normtweak_core.export.verification.signing")
versions = lazy("tasks.registry.signatures")  # with MLflow


def run_verify(options: argparse.Namespace) -> int:
    """Reopen an export with an independent reader and print what was compared."""
    if (options.signature is None) != (options.public_key is None):
        raise InputError("a signature is checked with --signature and --public-key, both of them.")
    with first_line(f"verify {options.export_dir}: opened by a reader without our code"):
        reader = reader_python(options.export_dir, REPOSITORY)

    def work() -> int:
        if options.signature is not None:
            place = Path(options.signature) if options.signature else None
            signed = signing.check_signature(options.export_dir, options.public_key, place)
            print_line(f"signature:         {signed.path}, made with {_key(signed)}")
        found = verify_export(options.export_dir, reader, options.timeout)
        for line in verification_lines(options.export_dir, found):
            print_line(line)
        return EXIT_OK

    return logged("verify", work, terminal=False)


def run_sign(options: argparse.Namespace) -> int:
    """Sign an export, or a version and say so in the registry, and print where that stands."""
    password = None
    if options.password_variable:
        if options.password_variable not in os.environ:
            raise InputError(f"the environment must have {options.password_variable}; it has not.")
        password = os.environ[options.password_variable].encode()

    def in_folder(folder: Path) -> tuple["signing.Signature", Path]:
        signed = signing.sign_export(folder, options.key, password)
        return signed, signed.path

    def work() -> int:
        signed, where = of_export(
            options.export,
            "sign",
            in_folder,
            lambda uri, address: versions.sign_version(uri, address, options.key, password),
        )
        print_line(f"signed {options.export}: {where}, made with {_key(signed)}")
        return EXIT_OK

    return logged("sign", work, terminal=False)


def _key(signed: "signing.Signature") -> str:
    return f"the key SHA-256 {signed.key_sha256}"


def _add_sign(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("export", metavar="EXPORT", help="folder, or models:/NAME/VERSION")
    parser.add_argument(
        "--key", action=GivenPath, required=True, metavar="KEY.pem", help="private elliptic key"
    )
    parser.add_argument(
        "--password-variable", metavar="NAME", help="environment variable with its password"
    )


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "export_dir", action=GivenPath, metavar="EXPORT_DIR", help="folder of an export"
    )
    parser.add_argument("--public-key", action=GivenPath, metavar="KEY.pub", help="of who signed")
    named = "check who signed it too; default: model.sig in the folder"
    parser.add_argument("--signature", nargs="?", const="", metavar="FILE", help=named)
    parser.add_argument(
        "--timeout",
        type=_seconds,
        metavar="SECONDS",
        help="how long the reader may take; default: by the size of the export",
    )


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number of seconds above 0; found {text!r}")
    return seconds


COMMANDS = {
    "verify": Command(
        "Load an export in a fresh process that imports nothing of normtweak, and compare every\n"
        "weight bit for bit, and the logits, with what was quantized. Needs only the folder.",
        [
            "verify .normtweak/exports/llama-w2g64-0123456789ab",
            "verify EXPORT_DIR --signature --public-key key.pub",
        ],
        _add_arguments,
        run_verify,
    ),
    "sign": Command(
        "Sign all files of an export, or of a version, with an elliptic key: model.sig, in\n"
        "Sigstore's format for models, which whoever has the public key checks with\n"
        "`normtweak verify` or `python -m model_signing`. Of a version the registry says so too.",
        [
            "sign .normtweak/exports/llama-w2g64-0123456789ab --key key.pem",
            "sign models:/quickstart-llama-w2g64/1 --key key.pem --password-variable KEY_PASSWORD",
        ],
        _add_sign,
        run_sign,
    ),
}
