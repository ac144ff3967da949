"""Voiceprints at rest are noise without their keys, and open nowhere but in their own place."""

import base64
import os
import stat
from pathlib import Path

import numpy as np
import pytest

from service.errors import Internal, InvalidRequest
from service.settings import Settings
from service.speakers.vault import KEY_FILE, Vault, key_id
from tests.speakers.world import KEYS, vector_of

OLD, NEW = KEYS
PLACE = "acme/ann/1/sha256:1"


def b64(key: bytes) -> str:
    return base64.b64encode(key).decode()


def test_a_vector_comes_back_from_its_own_place_only() -> None:
    vector = vector_of("ann")
    stored = Vault([OLD]).encrypt(vector, PLACE)
    np.testing.assert_array_equal(Vault([OLD]).decrypt(stored, PLACE), vector)
    for place in ("acme/ann/2/sha256:1", "other/ann/1/sha256:1", ""):
        with pytest.raises(Internal, match="cannot be decrypted"):
            Vault([OLD]).decrypt(stored, place)


def test_nothing_of_it_shows_and_no_two_are_alike() -> None:
    vector = vector_of("ann")
    one, two = (Vault([OLD]).encrypt(vector, PLACE) for _ in range(2))
    for stored in (one, two):
        assert vector.tobytes() not in stored.vector
        assert OLD not in stored.wrapped_key
    assert one.vector != two.vector
    assert one.wrapped_key != two.wrapped_key


@pytest.mark.parametrize("part", ["wrapped_key", "vector"])
def test_what_was_changed_does_not_open(part: str) -> None:
    from dataclasses import replace

    stored = Vault([OLD]).encrypt(vector_of("ann"), PLACE)
    raw = bytearray(getattr(stored, part))
    raw[-1] ^= 1
    with pytest.raises(Internal, match="cannot be decrypted"):
        Vault([OLD]).decrypt(replace(stored, **{part: bytes(raw)}), PLACE)


def test_the_first_key_encrypts_and_all_decrypt() -> None:
    stored = Vault([OLD]).encrypt(vector_of("ann"), PLACE)
    both = Vault([NEW, OLD])
    np.testing.assert_array_equal(both.decrypt(stored, PLACE), vector_of("ann"))
    assert both.encrypt(vector_of("ann"), PLACE).key_id == key_id(NEW) == both.current
    with pytest.raises(Internal, match=f"no key {key_id(OLD)}"):
        Vault([NEW]).decrypt(stored, PLACE)


def test_a_sealed_vector_is_for_its_domain_version_and_service() -> None:
    vector = np.arange(4, dtype=np.float32)
    text = Vault([OLD]).seal("acme", "sha256:1", vector)
    assert Vault([NEW, OLD]).unseal("acme", "sha256:1", text).tolist() == vector.tolist()
    assert Vault([OLD]).seal("acme", "sha256:1", vector) != text
    middle = len(text) // 2
    changed = text[:middle] + ("A" if text[middle] != "A" else "B") + text[middle + 1 :]
    for vault, domain, digest, sealed in (
        (Vault([NEW]), "acme", "sha256:1", text),
        (Vault([OLD]), "other", "sha256:1", text),
        (Vault([OLD]), "acme", "sha256:2", text),
        *[
            (Vault([OLD]), "acme", "sha256:1", wrong)
            for wrong in (
                changed,
                text[:-4],
                text + "AAAA",
                text[:12],
                "",
                "no base 64!",
                "ä",
                text + "!!!!",
                text[:5] + "! !\n" + text[5:],
            )
        ],
    ):
        with pytest.raises(InvalidRequest):
            vault.unseal(domain, digest, sealed)


def test_a_key_file_is_made_once_for_its_user_only(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    first, second = Vault.of(settings), Vault.of(settings)
    assert first.current == second.current
    path = tmp_path / KEY_FILE
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.stat().st_uid == os.geteuid()
    assert os.listdir(tmp_path) == [KEY_FILE]


def test_keys_are_given_by_file_or_variable(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(f"# the new one\n{b64(NEW)}\n\n{b64(OLD)}\n")
    of_file = Vault.of(Settings(data_dir=tmp_path, voiceprint_key_file=path))
    of_variable = Vault.of(Settings(data_dir=tmp_path, voiceprint_keys=f"{b64(NEW)}, {b64(OLD)}"))
    for vault in (of_file, of_variable):
        assert (vault.current, vault.key_ids) == (key_id(NEW), {key_id(NEW), key_id(OLD)})
    assert not (tmp_path / KEY_FILE).exists()
    assert b64(OLD) not in repr(Settings(data_dir=tmp_path, voiceprint_keys=b64(OLD)))


@pytest.mark.parametrize("text", ["short", b64(b"a" * 31), b64(b"a" * 33), "ä"])
def test_what_is_no_key_is_told_without_repeating_it(text: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="32 random bytes") as refused:
        Vault.of(Settings(data_dir=tmp_path, voiceprint_keys=text))
    assert text not in refused.value.detail


@pytest.mark.parametrize("content", [None, "", "# nothing\n"])
def test_a_key_file_without_keys(content: str | None, tmp_path: Path) -> None:
    path = tmp_path / "keys"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InvalidRequest, match="keys"):
        Vault.of(Settings(data_dir=tmp_path, voiceprint_key_file=path))
