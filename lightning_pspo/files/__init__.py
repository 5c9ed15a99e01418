"""Files: atomic writing, bounded reading, locks, downloads, JSON Lines and untrusted YAML. Needs no torch."""

from lightning_pspo.files.atomic import (
    PARTIAL,
    DiskFullError,
    as_size,
    existing_part,
    free_bytes,
    is_full,
    new_folder,
    no_follow,
    partial_name,
    remove,
    replacing,
    sync_entry,
    sync_to_disk,
    why_full,
    write_atomically,
)
from lightning_pspo.files.bounded import digest_bounded, lines_of, open_file, read_bounded, read_lines
from lightning_pspo.files.json_lines import COMPRESSED, foreign, open_bytes, read_objects, text_value, unique_keys
from lightning_pspo.files.locks import locked, unlock
from lightning_pspo.files.plain_yaml import check_yaml, parse_yaml, read_yaml, setting_at

__all__ = [
    "COMPRESSED",
    "PARTIAL",
    "DiskFullError",
    "as_size",
    "check_yaml",
    "digest_bounded",
    "existing_part",
    "foreign",
    "free_bytes",
    "is_full",
    "lines_of",
    "locked",
    "new_folder",
    "no_follow",
    "open_bytes",
    "open_file",
    "parse_yaml",
    "partial_name",
    "read_bounded",
    "read_lines",
    "read_objects",
    "read_yaml",
    "remove",
    "replacing",
    "setting_at",
    "sync_entry",
    "sync_to_disk",
    "text_value",
    "unique_keys",
    "unlock",
    "why_full",
    "write_atomically",
]
