"""NVIDIA FLARE's homomorphic encryption through its own released package.

    python benchmarks/released_platform.py LENGTH SITES NUMBER_OF_TENSORS

Runs in an environment of its own with ``nvflare[HE]``, which pins another TenSEAL than
fedllm's; `benchmarks/encryption.py --platform-python` starts it and prints its line beside
the others. A site encrypts with the package's `HEModelEncryptor` and writes with its
serialiser, the server reads and adds with its `WeightedAggregationHelper`, and a site opens
the sum with `HEModelDecryptor`; the keys are those of its `HEBuilder`. Prints one line of JSON.
"""

from __future__ import annotations

import json
import logging
import resource
import sys
import time
from functools import partial
from typing import Any

import numpy as np
import tenseal
from nvflare.apis.fl_context import FLContext
from nvflare.app_common.aggregators.weighted_aggregation_helper import WeightedAggregationHelper
from nvflare.app_opt.he import decomposers
from nvflare.app_opt.he.model_decryptor import HEModelDecryptor
from nvflare.app_opt.he.model_encryptor import HEModelEncryptor
from nvflare.fuel.utils import fobs
from nvflare.lighter.impl.he import HEBuilder

BOUND = 0.05


def cpu(work: Any) -> tuple[Any, float]:
    """Run ``work`` and return its result and the CPU seconds it took."""
    start = time.process_time()
    return work(), time.process_time() - start


def measure(length: int, sites: int, tensors: int) -> dict[str, Any]:
    """Carry one round of ``sites`` equal updates through the package."""
    logging.disable(logging.CRITICAL)
    decomposers.register()
    builder, context = HEBuilder(), FLContext()
    builder.initialize(None, None)
    client = tenseal.context_from(builder.get_serialized_context(is_client=True))
    vector = np.clip(np.random.default_rng(0).normal(0, BOUND / 4, length), -BOUND, BOUND)
    parts = np.array_split(vector.astype(np.float32), tensors)
    params = {f"tensor-{i}": part for i, part in enumerate(parts)}
    encryptor = HEModelEncryptor(weigh_by_local_iter=False)
    encryptor.tenseal_context, encryptor.encrypt_layers = client, [True]
    decryptor = HEModelDecryptor()
    decryptor.tenseal_context = client

    client_s = []
    for _ in range(min(sites, 3)):
        (sealed, kinds), encrypted = cpu(lambda: encryptor.encryption(dict(params), context))
        blob, written = cpu(partial(fobs.dumps, sealed))
        client_s.append(encrypted + written)
    helper, add_s = WeightedAggregationHelper(weigh_by_local_iter=False), 0.0
    for site in range(sites):
        arrived, read = cpu(partial(fobs.loads, blob))
        _, added = cpu(partial(helper.add, arrived, 1.0, str(site), 0))
        add_s += read + added
    total, divided = cpu(helper.get_result)
    sent = fobs.dumps(total)
    received = fobs.loads(sent)
    opened, decrypt_s = cpu(lambda: decryptor.decryption(received, kinds, context))
    mean = np.concatenate([np.asarray(opened[name]) for name in params])
    exact = np.concatenate(parts)
    return {
        "client_s": float(np.median(client_s)),
        "add_s": add_s + divided,
        "decrypt_s": decrypt_s,
        "bytes_per_parameter": len(blob) / length,
        "times_fp32": len(blob) / (4 * length),
        "largest_error_over_bound": float(np.abs(mean - exact).max() * sites / BOUND),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "tensors": tensors,
        "nvflare": __import__("nvflare").__version__,
        "tenseal": tenseal.__version__,
    }


if __name__ == "__main__":
    print(json.dumps(measure(*(int(text) for text in sys.argv[1:4]))))
