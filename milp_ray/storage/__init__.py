"""Atomic writes, leases and mirrors: a run on a local or network file system, or at a URL."""

from milp_ray.storage.file_set import FileSet
from milp_ray.storage.files import (
    appending,
    atomic_write,
    can_read,
    check_intact,
    check_log,
    folders_below,
    get_file,
    local_copy,
    names_in,
    pull,
    put_file,
    remove_file,
    remove_folder,
    write_folder,
    write_json,
)
from milp_ray.storage.folder_lock import ensure_held
from milp_ray.storage.local import reading, storage_error, sync_folder, write_synced, writing
from milp_ray.storage.lock_file import LockFile, is_stale
from milp_ray.storage.mirror import Mirror, close_mirrors, location_of, mirror_at, mirror_of
from milp_ray.storage.modes import GROUP, OWNER, follow, make_folder, ownership_fault, readers_of
from milp_ray.storage.objects import temporary_copy
from milp_ray.storage.private_file import NotPrivateError, read_private
from milp_ray.storage.scratch import Scratch
from milp_ray.storage.session import Session, next_session, publish_for
from milp_ray.storage.stale_drafts import clean_up_drafts
from milp_ray.storage.url_driver import driving, remove_run
from milp_ray.storage.urls import has_credentials, is_url, joined, url_fault

__all__ = [
    "GROUP",
    "OWNER",
    "FileSet",
    "LockFile",
    "Mirror",
    "NotPrivateError",
    "Scratch",
    "Session",
    "appending",
    "atomic_write",
    "can_read",
    "check_intact",
    "check_log",
    "clean_up_drafts",
    "close_mirrors",
    "driving",
    "ensure_held",
    "folders_below",
    "follow",
    "get_file",
    "has_credentials",
    "is_stale",
    "is_url",
    "joined",
    "local_copy",
    "location_of",
    "make_folder",
    "mirror_at",
    "mirror_of",
    "names_in",
    "next_session",
    "ownership_fault",
    "publish_for",
    "pull",
    "put_file",
    "read_private",
    "readers_of",
    "reading",
    "remove_file",
    "remove_folder",
    "remove_run",
    "storage_error",
    "sync_folder",
    "temporary_copy",
    "url_fault",
    "write_folder",
    "write_json",
    "write_synced",
    "writing",
]
