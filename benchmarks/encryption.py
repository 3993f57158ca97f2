"""What an encrypted sum costs: CPU, bytes, memory and error, against named peers.

    python benchmarks/encryption.py --sizes 10k 100k 1M --sites 10 100 --json out.json
    python benchmarks/encryption.py --quick

Each line is a process of its own, so that its peak memory is its own. `bfv` is what a run with
masks does: long vectors under a lattice mask whose secret is masked and encrypted. `direct` masks
and encrypts the levels themselves, as runs did before. Peers: `platform`
encrypts each LoRA tensor into its own CKKS vector with the settings of NVIDIA FLARE's
homomorphic encryption (TenSEAL, N = 8192, [60, 40, 40], scale 2**40); `packed` is that with all
tensors in one vector, as ours are, so that its ratio is what is left without that packing;
`released` is that
platform's own package, run by the interpreter of an environment that has ``nvflare[HE]``
(``--platform-python``); `masks` adds pairwise masks and encrypts nothing; `fp32` sends the
update as it is.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

BOUND = 0.05
REAL_SITES = 10
VARIANTS = ("bfv-16", "bfv-8", "direct-16", "ckks-16", "platform", "packed", "masks", "fp32")
# Rank and hidden size of the LoRA whose tensors make up a vector of at most this length.
LORA_SHAPES = ((30_000, 8, 384), (300_000, 8, 768), (2_000_000, 16, 2048), (1 << 40, 16, 4096))


def cpu(work: Callable[[], Any]) -> tuple[Any, float]:
    """Run ``work`` and return its result and the CPU seconds it took."""
    start = time.process_time()
    return work(), time.process_time() - start


def updates(length: int, sites: int) -> list[np.ndarray]:
    """Make float32 updates like clipped LoRA updates; at most `REAL_SITES` are distinct."""
    random = np.random.default_rng(0)
    return [
        np.clip(random.normal(0, BOUND / 4, length), -BOUND, BOUND).astype(np.float32)
        for _ in range(min(sites, REAL_SITES))
    ]


def lora_tensors(vector: np.ndarray) -> list[np.ndarray]:
    """Cut a vector into the tensors of a LoRA of about its length."""
    rank, hidden = next((r, h) for limit, r, h in LORA_SHAPES if len(vector) <= limit)
    return np.array_split(vector, max(1, round(len(vector) / (rank * hidden))))


def ours(length: int, sites: int, scheme: str, bits: int) -> dict[str, Any]:
    """Measure this package, masks of the whole cohort included where the scheme has them.

    "direct" is BFV with the levels themselves in its slots.
    """
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    from fedllm.encryption.masks import SiteMasks
    from fedllm.encryption.plan import make_plan
    from fedllm.encryption.quantise import Quantiser
    from fedllm.encryption.schemes import EncryptedSum, PublicRoundKey, SecretRoundKey
    from fedllm.encryption.survivors import MaskScope
    from fedllm.encryption.update import encrypt_update, open_sum
    from fedllm.randomness import RandomStream

    plan = make_plan("ckks" if scheme == "ckks" else "bfv", bits, sites, length, scheme == "bfv")
    if scheme == "direct":
        plan = replace(plan, masked=True)
    quantiser = Quantiser([(length, BOUND)], bits)
    (secret, public), keys_s = cpu(lambda: _keys(SecretRoundKey, PublicRoundKey, plan))
    vectors = updates(length, sites)
    total, client_s, add_s = EncryptedSum(plan, public), [], 0.0
    for vector in vectors:
        random = RandomStream.secure()
        # What masks cost is measured below; adding them is not more work than adding zeros.
        mask = np.zeros(plan.slots, dtype=np.uint64) if plan.masked else None
        encrypt = partial(encrypt_update, vector, plan, quantiser, public, mask, random, "bench")
        blob, seconds = cpu(encrypt)
        client_s.append(seconds)
        add_s += cpu(partial(total.add, blob))[1]
    # Adding costs the same whatever is added; the other sites send encryptions of nothing.
    for _ in range(sites - len(vectors)):
        add_s += cpu(lambda: _add_nothing(total))[1]
    summed, serialise_s = cpu(total.to_bytes)
    opened, decrypt_s = cpu(
        lambda: open_sum(summed, plan, quantiser, secret, len(vectors), statement="bench")
    )
    mask_s = 0.0
    if plan.masked:
        names = tuple(f"site-{i:04d}" for i in range(sites))
        scope = MaskScope("bench", names, plan)
        own, *others = (X25519PrivateKey.generate() for _ in names)
        peers = {
            name: key.public_key().public_bytes_raw()
            for name, key in zip(names[1:], others, strict=True)
        }
        mask_s = cpu(
            lambda: SiteMasks(scope, names[0], own, peers, own_mask=True).mask_for_update()
        )[1]
    return _row(vectors, opened, plan.update_bytes, float(np.median(client_s)), add_s) | {
        "mask_s": mask_s,
        "serialise_sum_s": serialise_s,
        "decrypt_s": decrypt_s,
        "keys_s": keys_s,
    }


def _keys(secret_type: Any, public_type: Any, plan: Any) -> tuple[Any, Any]:
    secret = secret_type.generate(plan)
    return secret, public_type.from_bytes(plan, secret.public_context())


def _add_nothing(total: Any) -> None:
    from fedllm.encryption.schemes import _ciphertexts, hidden_levels

    nothing = bytes(total.plan.update_bytes)
    total._add_residues(list(_ciphertexts(total.plan, nothing)))
    total._hidden += hidden_levels(total.plan, nothing)


def platform(length: int, sites: int, one_vector: bool = False) -> dict[str, Any]:
    """Measure one CKKS vector a tensor, or one of all, with the platform's settings."""
    import tenseal

    secret = tenseal.context(
        tenseal.SCHEME_TYPE.CKKS, 8192, coeff_mod_bit_sizes=[60, 40, 40], n_threads=1
    )
    secret.global_scale = 2.0**40
    # Its sum takes the same ciphertexts again, so a few distinct ones will do.
    vectors = updates(length, min(sites, 3))
    client_s, serialise_s, add_s = [], [], 0.0
    total: list[Any] = []
    for site in range(sites):
        if site < len(vectors):
            tensors = [vectors[site]] if one_vector else lora_tensors(vectors[site])
            encrypt = partial(_each, lambda part: tenseal.ckks_vector(secret, part.tolist()))
            encrypted, seconds = cpu(partial(encrypt, tensors))
            blobs, written = cpu(partial(_each, tenseal.CKKSVector.serialize, encrypted))
            client_s.append(seconds + written)
            serialise_s.append(written)
        arrived, seconds = cpu(partial(_each, partial(tenseal.ckks_vector_from, secret), blobs))
        add_s += seconds
        if total:
            add_s += cpu(partial(_each, tenseal.CKKSVector.add_, total, arrived))[1]
        else:
            total = arrived
    opened, decrypt_s = cpu(lambda: np.concatenate([part.decrypt() for part in total]))
    expected = [vectors[min(site, len(vectors) - 1)] for site in range(sites)]
    size = sum(len(blob) for blob in blobs)
    return _row(expected, opened, size, float(np.median(client_s)), add_s) | {
        "serialise_s": float(np.median(serialise_s)),
        "decrypt_s": decrypt_s,
        "tensors": len(blobs),
    }


def released(python: str, length: int, sites: int) -> dict[str, Any]:
    """Measure the platform's released package with another interpreter."""
    tensors = len(lora_tensors(np.zeros(length, np.float32)))
    script = Path(__file__).with_name("released_platform.py")
    command = [python, str(script), *map(str, (length, sites, tensors))]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        sys.exit(f"{python} cannot run the platform's package: {done.stderr[-500:]}")
    row = json.loads(done.stdout.splitlines()[-1])
    return row | {"variant": "released", "length": length, "sites": sites}


def _each(work: Callable[..., Any], *lists: list[Any]) -> list[Any]:
    return [work(*items) for items in zip(*lists, strict=True)]


def masks(length: int, sites: int) -> dict[str, Any]:
    """Measure pairwise masks alone, at 16 bits."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    from fedllm.encryption.masks import SiteMasks
    from fedllm.encryption.pack import pack, unpack
    from fedllm.encryption.plan import make_plan
    from fedllm.encryption.quantise import Quantiser
    from fedllm.encryption.survivors import MaskScope
    from fedllm.randomness import RandomStream

    plan = replace(make_plan("bfv", 16, sites, length, False), masked=True)
    quantiser = Quantiser([(length, BOUND)], 16)
    vectors = updates(length, sites)
    names = tuple(f"site-{i:04d}" for i in range(sites))
    private = {name: X25519PrivateKey.generate() for name in names}
    public = {name: key.public_key().public_bytes_raw() for name, key in private.items()}
    modulus = np.uint64(plan.plain_modulus)
    # Only the first ten send; the price of masks with all others is added below.
    scope = MaskScope("bench", names[: len(vectors)], plan)
    total, client_s, add_s = np.zeros(plan.slots, np.uint64), [], 0.0

    def masked(name: str, vector: np.ndarray) -> np.ndarray:
        slots = pack(quantiser.quantise(vector, RandomStream.secure()), plan)
        return (slots + _masks_of(SiteMasks, scope, name, private, public)) % modulus

    for name, vector in zip(names, vectors, strict=False):
        encrypted, seconds = cpu(partial(masked, name, vector))
        client_s.append(seconds)
        total, seconds = cpu(partial(lambda a, b: (a + b) % modulus, total, encrypted))
        add_s += seconds * sites / len(vectors)
    client = float(np.median(client_s))
    if sites > len(vectors):
        price = [
            cpu(partial(_masks_of, SiteMasks, cohort, names[0], private, public))[1]
            for cohort in (scope, MaskScope("bench", names, plan))
        ]
        client += price[1] - price[0]
    opened, decrypt_s = cpu(
        lambda: quantiser.dequantise_sum(unpack(total, plan, len(vectors)), len(vectors))
    )
    return _row(vectors, opened, 8 * plan.slots, client, add_s) | {"decrypt_s": decrypt_s}


def _masks_of(site_masks: Any, scope: Any, name: str, private: Any, public: Any) -> np.ndarray:
    peers = {peer: public[peer] for peer in scope.cohort if peer != name}
    return site_masks(scope, name, private[name], peers).mask_for_update()


def fp32(length: int, sites: int) -> dict[str, Any]:
    """Measure float32 in clear."""
    vectors = updates(length, sites)
    blob, client = cpu(vectors[0].tobytes)
    total, add_s = np.zeros(length, np.float32), 0.0
    for site in range(sites):
        blob = vectors[min(site, len(vectors) - 1)].tobytes()
        add_s += cpu(partial(np.add, total, np.frombuffer(blob, np.float32), total))[1]
    expected = [vectors[min(site, len(vectors) - 1)] for site in range(sites)]
    return _row(expected, total, len(blob), client, add_s) | {"decrypt_s": 0.0}


def _row(
    vectors: list[np.ndarray], opened: np.ndarray, size: int, client_s: float, add_s: float
) -> dict[str, Any]:
    exact = np.zeros(len(vectors[0]))
    for vector in vectors:
        exact += vector
    return {
        "client_s": client_s,
        "add_s": add_s,
        "bytes_per_parameter": size / len(exact),
        "times_fp32": size / (4 * len(exact)),
        "largest_error_over_bound": float(np.abs(opened - exact).max() / BOUND),
    }


def measure(variant: str, length: int, sites: int) -> dict[str, Any]:
    """Measure one variant in this process."""
    _silence_tenseal()
    if "-" in variant:
        scheme, _, bits = variant.partition("-")
        row = ours(length, sites, scheme, int(bits))
    else:
        packed = partial(platform, one_vector=True)
        peers = {"platform": platform, "packed": packed, "masks": masks, "fp32": fp32}
        row = peers[variant](length, sites)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return row | {"peak_mb": peak, "variant": variant, "length": length, "sites": sites}


def _silence_tenseal() -> None:
    # TenSEAL warns from C++ about every vector of more than one ciphertext.
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)


def _child(pipe: Any, variant: str, length: int, sites: int) -> None:
    try:
        pipe.send(measure(variant, length, sites))
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {error}")


def in_process(variant: str, length: int, sites: int) -> dict[str, Any]:
    """Measure one variant in a process of its own."""
    spawn = multiprocessing.get_context("spawn")
    ours_end, theirs = spawn.Pipe()
    process = spawn.Process(target=_child, args=(theirs, variant, length, sites))
    process.start()
    theirs.close()
    try:
        row = ours_end.recv()
    except EOFError:
        row = "the process died"
    process.join()
    if isinstance(row, str):
        sys.exit(f"{variant}, {length} parameters, {sites} sites: {row}")
    return row


def size_of(text: str) -> int:
    """Read 10k, 2.5M or a plain number."""
    scale = {"k": 1_000, "M": 1_000_000}.get(text[-1:], 1)
    return math.ceil(float(text.rstrip("kM")) * scale)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--sizes", nargs="+", default=["10k", "100k", "1M", "5M"])
    parser.add_argument("--sites", nargs="+", type=int, default=[10, 100])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=VARIANTS)
    parser.add_argument("--platform-python", help="interpreter with nvflare[HE]")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="2,000 parameters, three sites")
    options = parser.parse_args()
    if options.quick:
        options.sizes, options.sites = ["2k"], [3]
    if not options.platform_python:
        print("released: not measured; --platform-python names an interpreter with nvflare[HE]")
    head = "parameters sites variant    client s  masks s    add s decrypt s  B/param  x fp32"
    print(head + "  peak MB  error/bound")
    rows: list[dict[str, Any]] = []
    for size in options.sizes:
        for sites in options.sites:
            group: dict[str, dict[str, Any]] = {}
            variants = [*options.variants, *(["released"] if options.platform_python else [])]
            for variant in variants:
                length = size_of(size)
                row = group[variant] = (
                    released(options.platform_python, length, sites)
                    if variant == "released"
                    else in_process(variant, length, sites)
                )
                print(
                    f"{size:>10} {sites:5d} {row['variant']:<9} {row['client_s']:9.4f} "
                    f"{row.get('mask_s', 0.0):8.4f} {row['add_s']:8.4f} {row['decrypt_s']:9.4f} "
                    f"{row['bytes_per_parameter']:8.2f} {row['times_fp32']:7.3f} "
                    f"{row['peak_mb']:8.0f}  {row['largest_error_over_bound']:.1e}",
                    flush=True,
                )
            if {"bfv-16", "direct-16"} <= set(group):
                print_against_direct(group["bfv-16"], group["direct-16"])
            for peer in sorted({"platform", "packed", "released"} & set(group)):
                if "bfv-16" in group:
                    print_ratios(group["bfv-16"], group[peer])
            rows += group.values()
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


def print_against_direct(mine: dict[str, Any], direct: dict[str, Any]) -> None:
    """Print what `bfv-16` costs as a part of levels that are masked and encrypted themselves."""
    ratios = {
        "bytes": mine["times_fp32"] / direct["times_fp32"],
        "client CPU, masks included": (mine["client_s"] + mine["mask_s"])
        / (direct["client_s"] + direct["mask_s"]),
        "masks": mine["mask_s"] / direct["mask_s"],
        "add": mine["add_s"] / direct["add_s"],
        "decrypt": mine["decrypt_s"] / direct["decrypt_s"],
    }
    told = ", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items())
    print(f"{'':17}bfv-16 / direct-16: {told}")


def print_ratios(mine: dict[str, Any], peer: dict[str, Any]) -> None:
    """Print how many times less `bfv-16` costs than a peer.

    Masks are part of what a site does, and opening needs a key made for the round, where the
    platform keeps one for all rounds: both count, and the ratio without them follows.
    """
    client, opening = mine["client_s"] + mine["mask_s"], mine["decrypt_s"] + mine["keys_s"]
    print(
        f"{'':17}{peer['variant']} / bfv-16: bytes {peer['times_fp32'] / mine['times_fp32']:.1f}, "
        f"client CPU {peer['client_s'] / client:.1f} "
        f"({peer['client_s'] / mine['client_s']:.1f} without masks), "
        f"add {peer['add_s'] / (mine['add_s'] + mine['serialise_sum_s']):.1f}, "
        f"decrypt {peer['decrypt_s'] / opening:.1f} "
        f"({peer['decrypt_s'] / mine['decrypt_s']:.1f} without the round's key); "
        f"error / bound {mine['largest_error_over_bound']:.0e} here, "
        f"{peer['largest_error_over_bound']:.0e} there"
    )


if __name__ == "__main__":
    main()
