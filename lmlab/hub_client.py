"""What is asked of the model hub: which files a repository holds, and their content, through huggingface_hub.

Every file is checked against the hash that the hub states. A download that was cut goes on where it stopped, also in
another process: what came so far stays in `.NAME.part` beside the file.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import unquote, urlsplit

from lmlab.errors import HubError
from lmlab.files import describe_os_error, free_space, is_disk_full, sha256_file
from lmlab.words import one_line, size

WEB_HOSTS = ("huggingface.co", "www.huggingface.co", "hf.co")
MODEL_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?")
COMMIT = re.compile(r"[0-9a-f]{40}")
SECONDS = 20.0  # to wait for the hub's first answer


class Unfinished(HubError):
    """An import that stopped half-way through no fault of the model's: running it again goes on."""


@dataclass(frozen=True)
class HubFile:
    """A file of a repository. sha256: of its content; blob: the hash git gives it. One of the two is known."""

    name: str
    size: int
    sha256: str | None
    blob: str | None

    def matches(self, path: Path) -> bool:
        """Whether the file at `path` has the size and the hash that the hub states. Raises OSError."""
        if path.is_symlink() or not path.is_file() or path.stat().st_size != self.size:
            return False
        if self.sha256 is not None:
            return sha256_file(path) == self.sha256
        return git_blob(path) == self.blob


@dataclass(frozen=True)
class Listing:
    """A repository at one commit: its files by name, and what it says of its licence."""

    model_id: str
    commit: str
    files: dict[str, HubFile]
    license: str | None


def endpoint() -> str:
    """The address of the hub: HF_ENDPOINT, else the public one."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def parse_address(text: str) -> tuple[str, str | None]:
    """A hub id and the revision its web address names. Raises HubError where `text` is neither id nor address."""
    revision = None
    model_id = text
    if "://" in text:
        parts = urlsplit(text)
        if parts.hostname is None or parts.netloc not in (*WEB_HOSTS, urlsplit(endpoint()).netloc):
            raise HubError(
                f"{one_line(text)} is no address of the hub; give ORGANISATION/MODEL, a folder or a .gguf file"
            )
        path = [part for part in parts.path.split("/") if part]
        model_id = "/".join(path[:2])
        if len(path) > 3 and path[2] in ("tree", "blob", "resolve"):
            revision = unquote(path[3])
    if not MODEL_ID.fullmatch(model_id) or ".." in model_id or "--" in model_id:
        raise HubError(
            f"{one_line(text)!r} is neither a hub id like Qwen/Qwen2.5-0.5B, nor its web address, nor a folder or .gguf "
            "file that exists, nor builtin:tiny-qwen"
        )
    return model_id, revision


def look_up(model_id: str, revision: str | None) -> Listing:
    """The files of a repository at a branch, tag or commit (None: its main branch). Raises HubError, Unfinished."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError

    try:
        info = HfApi(endpoint=endpoint(), library_name="lmlab").model_info(
            model_id, revision=revision, files_metadata=True, timeout=SECONDS
        )
    except (HTTPError, OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        refuse(error, model_id, revision)
    if not isinstance(info.sha, str) or not COMMIT.fullmatch(info.sha):
        raise HubError(f"{endpoint()} names no commit for {model_id}; is it a model hub? check HF_ENDPOINT")
    return Listing(model_id, info.sha, listed_files(info.siblings or []), stated_license(info))


def listed_files(siblings: list[Any]) -> dict[str, HubFile]:
    """The files that have a size and a hash, by name; others cannot be checked and do not count."""
    files = {}
    for sibling in siblings:
        sha256 = sibling.lfs.sha256 if sibling.lfs is not None else None
        blob = sibling.blob_id if sha256 is None else None
        known = re.fullmatch(r"[0-9a-f]{64}", str(sha256)) or re.fullmatch(r"[0-9a-f]{40}", str(blob))
        if known and type(sibling.size) is int and sibling.size >= 0:
            files[sibling.rfilename] = HubFile(sibling.rfilename, sibling.size, sha256, blob)
    return files


def stated_license(info: Any) -> str | None:
    """The licence in a model's card or among its tags, None where it states none."""
    card = info.card_data.to_dict() if info.card_data is not None else {}
    stated = card.get("license_name") if card.get("license") == "other" else card.get("license")
    tagged = [tag.removeprefix("license:") for tag in info.tags or [] if str(tag).startswith("license:")]
    named = ", ".join(map(str, stated)) if isinstance(stated, list) else stated or next(iter(tagged), None)
    return None if named is None else one_line(named, 100)


def download(listing: Listing, file: HubFile, folder: Path) -> None:
    """Fetch a file into `folder`, going on with what is there of it, and check it. Raises HubError, Unfinished, WrongHash.

    A part that turns out wrong is removed; one that is merely not whole stays for the next attempt.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import HTTPError
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    part = folder / f".{file.name}.part"
    url = hf_hub_url(listing.model_id, file.name, revision=listing.commit, endpoint=endpoint())
    headers = build_hf_headers(library_name="lmlab")
    try:
        found = get_hf_file_metadata(url, headers=headers, timeout=SECONDS, endpoint=endpoint())
        if found.commit_hash not in (None, listing.commit):
            raise HubError(f"the hub gives {file.name} of another commit than {listing.commit}; import again")
        if urlsplit(found.location).netloc != urlsplit(url).netloc:
            headers.pop("authorization", None)  # the store has its own signature
        with Bounded(part, file.size) as output:
            http_get(
                found.location,
                output,
                resume_size=output.seek(0, os.SEEK_END),
                headers=headers,
                expected_size=file.size,
                displayed_filename=file.name,
            )
        right = file.matches(part)
        if right:
            os.replace(part, folder / file.name)
    except TooLong as error:
        part.unlink(missing_ok=True)
        raise HubError(f"{file.name} of {listing.model_id} is longer than the hub states; nothing was kept") from error
    except (HTTPError, OSError, ValueError) as error:
        refuse(error, listing.model_id, listing.commit, file.name)
    if not right:
        part.unlink()
        raise WrongHash(
            f"{file.name} of {listing.model_id} does not have the hash that the hub states, so it was thrown away; "
            "import again, and if it stays so tell its authors"
        )


class WrongHash(HubError):
    """A file did not have the hash that the hub states."""


class TooLong(Exception):
    """More bytes came than were announced."""


class Bounded(io.FileIO):
    """A file that takes no more than `most` bytes, so that a server cannot fill the disk. Kept from earlier attempts."""

    def __init__(self, path: Path, most: int) -> None:
        path.touch()
        super().__init__(path, "r+b")
        self.most = most
        if self.seek(0, os.SEEK_END) > most:
            self.truncate(0)

    def write(self, data: Any) -> int:
        """Write all of `data`. Raises TooLong, OSError."""
        if self.tell() + len(data) > self.most:
            raise TooLong
        view = memoryview(data)
        while view:
            view = view[super().write(view) or 0 :]
        return len(data)


def git_blob(path: Path) -> str:
    """The hash that git gives a file's content. Raises OSError."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def refuse(error: Exception, model_id: str, revision: str | None, file: str | None = None) -> NoReturn:
    """Raise what a user should read for what the client raised. Says nothing of tokens and headers."""
    from huggingface_hub import errors

    what = f"{file} of {model_id}" if file else model_id
    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None
    if isinstance(error, HubError):
        raise error
    if isinstance(error, errors.GatedRepoError):
        raise HubError(
            f"{model_id} is gated: accept its terms at {endpoint()}/{model_id}, set HF_TOKEN to a token of that account, "
            "and import again"
        ) from error
    if isinstance(error, errors.RevisionNotFoundError):
        raise HubError(
            f"{model_id} has no revision {revision!r}; leave --revision out, or name a branch, tag or commit that it has"
        ) from error
    if isinstance(error, errors.RepositoryNotFoundError):
        raise HubError(
            f"no model {model_id} at {endpoint()}, or it is private; check its spelling, or set HF_TOKEN if it is yours"
        ) from error
    if isinstance(error, errors.OfflineModeIsEnabled):
        raise Unfinished(f"HF_HUB_OFFLINE is set, so {what} cannot be fetched; unset it and import again") from error
    if status in (401, 403):
        raise HubError(f"the hub refuses {what} ({status}); check that HF_TOKEN is valid and may read it") from error
    if status is not None:
        raise Unfinished(f"the hub answers {status} for {what}; run the same import later: it goes on") from error
    if is_disk_full(error):
        raise Unfinished(
            f"the disk is full while fetching {what}; free some space and run the same import again: it goes on"
        ) from error
    if not isinstance(error, OSError | errors.HTTPError):
        raise HubError(
            f"what {endpoint()} answers for {what} cannot be read; is it a model hub? check HF_ENDPOINT"
        ) from error
    if isinstance(error, OSError) and "Consistency check failed" in str(error):
        raise Unfinished(f"{what} came incomplete; run the same import again: it goes on") from error
    reason = describe_os_error(error) if isinstance(error, OSError) else one_line(error, 80)
    raise Unfinished(
        f"{what} cannot be fetched from {endpoint()}: {reason}; check the network, then run the same import again: "
        "it goes on. A local folder or builtin:tiny-qwen needs no network"
    ) from error


def need_space(folder: Path, n_bytes: int, what: str) -> None:
    """Raise HubError where the disk of `folder` has no room for `n_bytes` and a margin."""
    free = free_space(folder)
    if n_bytes + (64 << 20) > free:
        raise HubError(
            f"{what} needs {size(n_bytes)}, the disk has {size(free)} free; free some space, or choose another --models-dir"
        )
