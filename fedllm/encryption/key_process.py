"""A round's secret key in a process of its own, which may die without harm.

The operating system takes back and clears all memory of a process that ends, copies inside
TenSEAL included; and should a foreign ciphertext ever crash TenSEAL, the key authority
itself goes on. The process is spawned: TenSEAL contexts do not survive a fork.
"""

from __future__ import annotations

import multiprocessing
from multiprocessing.connection import Connection
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from fedllm.encryption.plan import EncryptionPlan
from fedllm.errors import FedllmError, PeerError, RefusedError

_DONE, _REFUSED, _PEER = b"\0", b"\1", b"\2"
_ERRORS = {_REFUSED: RefusedError, _PEER: PeerError}


class SecretKeyProcess:
    """A `SecretRoundKey` that lives in another process; the same methods.

    Parameters
    ----------
    plan : EncryptionPlan
        Parameters of the round.
    timeout_s : float
        Longest time that one request may take.

    Raises
    ------
    FedllmError
        If the process does not start in time.
    """

    def __init__(self, plan: EncryptionPlan, timeout_s: float = 600.0) -> None:
        self.plan = plan
        self._timeout_s = timeout_s
        spawn = multiprocessing.get_context("spawn")
        self._pipe, child = spawn.Pipe()
        self._process = spawn.Process(target=_serve, args=(child, plan.to_bytes()), daemon=True)
        self._process.start()
        child.close()
        try:
            self._public_context = self._answer()
        except (OSError, EOFError, TimeoutError):
            self.wipe()
            raise FedllmError(
                "the process that holds the round key did not start",
                "check free memory; a program that starts it needs an `if __name__` guard",
            ) from None

    @classmethod
    def generate(cls, plan: EncryptionPlan) -> SecretKeyProcess:
        """Make a fresh key pair in a new process."""
        return cls(plan)

    def __repr__(self) -> str:
        return "SecretKeyProcess(<hidden>)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret round key must not be copied")

    def public_context(self) -> bytes:
        """Return the public key for the sites; see `SecretRoundKey.public_context`."""
        return self._public_context

    def decrypt_sum(self, blob: bytes) -> NDArray[np.uint64]:
        """Open the round's one sum; see `SecretRoundKey.decrypt_sum`.

        Raises
        ------
        PeerError
            If the bytes are no ciphertexts of the plan, or ended the process.
        RefusedError
            If this key has opened a sum or was wiped.
        """
        if not self._process.is_alive():
            raise RefusedError("this round key was wiped", "open a new round with a new key")
        try:
            self._pipe.send_bytes(blob)
            answer = self._answer()
        except TimeoutError:
            self.wipe()
            raise PeerError(
                f"a sum was not opened within {self._timeout_s:.0f} s",
                "repeat the round with a new key",
            ) from None
        except (OSError, EOFError):
            self.wipe()
            raise PeerError(
                "the process that holds the round key died over a sum",
                "repeat the round with a new key",
            ) from None
        return np.frombuffer(answer, dtype="<u8").astype(np.uint64)

    def wipe(self) -> None:
        """End the process, and with it every copy of the secret key."""
        self._pipe.close()
        self._process.kill()
        self._process.join()

    def _answer(self) -> bytes:
        if not self._pipe.poll(self._timeout_s):
            raise TimeoutError
        # Plain bytes, not pickles: the other end may have been taken over.
        answer = self._pipe.recv_bytes()
        status, content = answer[:1], answer[1:]
        if status in _ERRORS:
            message, _, remedy = content.decode(errors="replace").partition("\n")
            raise _ERRORS[status](message, remedy)
        return content


def _serve(pipe: Connection, plan_bytes: bytes) -> None:
    from fedllm.encryption.schemes import SecretRoundKey

    plan = EncryptionPlan.from_bytes(plan_bytes)
    key = SecretRoundKey.generate(plan)
    pipe.send_bytes(_DONE + key.public_context())
    while True:
        try:
            blob = pipe.recv_bytes()
        except (EOFError, OSError):
            return
        try:
            pipe.send_bytes(_DONE + key.decrypt_sum(blob).astype("<u8").tobytes())
        except (RefusedError, PeerError) as error:
            status = _PEER if isinstance(error, PeerError) else _REFUSED
            pipe.send_bytes(status + f"{error.message}\n{error.remedy}".encode())
