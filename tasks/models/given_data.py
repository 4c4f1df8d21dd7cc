"""What a run reads of the user's texts and data sets: which bytes, or which commit of the hub."""

import hashlib

from normtweak_core.calibration.config import CalibrationConfig, images_of
from normtweak_core.calibration.hub_data import local_data
from normtweak_core.calibration.length import effective_length
from normtweak_core.errors import InputError
from normtweak_core.vision.images import images_content
from tasks.engine.artifacts import file_sha256
from tasks.models.job import Job


def calibration_length(job: Job, config: CalibrationConfig) -> int:
    """Return the tokens per window.

    Raises:
        InputError: More is asked than the model's context holds.
    """
    return effective_length(config.length, job.context)


def data_identity(job: Job, config: CalibrationConfig) -> str:
    """Return what is read of the user's data: a SHA-256, or name@commit of a hub data set.

    Of a folder it is the SHA-256 of the hashes of its files, and of images that of all of them with
    their texts. Empty where nothing is read, since
    the text is written by the model, or drawn.

    Raises:
        InputError: As `content_of`.
    """
    if (images := images_content_of(config)) is not None:
        return images
    content = content_of(job, config)
    if content is None or config.path is None:
        return ""
    is_folder = (path := local_data(config.path)) is not None and path.is_dir()
    return hashlib.sha256(content.encode()).hexdigest() if is_folder else content


def content_of(job: Job, config: CalibrationConfig) -> str | None:
    """Return the hashes of the text or data set that is read; of a hub data set name and commit.

    Raises:
        InputError: The text file does not exist, or no commit is known of a hub data set.
    """
    if config.path is None:
        return None
    path = local_data(config.path)
    if path is None:
        if config.source == "text":
            raise InputError(
                "must be a text file",
                key="calibration.path",
                found=f"{config.path} does not exist",
            )
        return f"{config.path}@{job.data_revision(config.path)}"
    if path.is_file():
        return file_sha256(path)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return ",".join(f"{file.relative_to(path)}={file_sha256(file)}" for file in files)


def images_content_of(config: CalibrationConfig) -> str | None:
    """Return one hash over images and their texts; None where windows are text.

    Raises:
        InputError: One is missing.
    """
    images = images_of(config)
    return None if images is None else images_content(images)


def hub_revision(job: Job, config: CalibrationConfig) -> str | None:
    """Return the commit to read of a hub data set; None for every other source.

    Raises:
        InputError: No commit is known of it.
    """
    if config.source != "dataset" or local_data(config.path) is not None:
        return None
    return job.data_revision(config.path)
