"""The attack of Li and Micciancio 2021 on CKKS, for keys of one ciphertext prime.

Decryption gives the real parts of the slots of ``c0 + c1 s``. In the ring they are half of
the polynomial plus its conjugate (X to 1/X), so one opened ciphertext is one linear equation
in s and its conjugate at every point of the transform, and two of them give s.
"""

import numpy as np

from fedllm.encryption.numbers import is_prime


class Ring:
    """Polynomials modulo X**N + 1 and a prime, in Microsoft SEAL's order of the transform."""

    def __init__(self, modulus, degree):
        assert is_prime(modulus) and modulus % (2 * degree) == 1
        self.modulus, self.degree = modulus, degree
        power = (modulus - 1) // (2 * degree)
        root = next(
            r
            for r in (pow(g, power, modulus) for g in range(2, 100))
            if pow(r, degree, modulus) == modulus - 1
        )
        # Microsoft SEAL takes the smallest primitive root of unity.
        square, candidate, self.root = root * root % modulus, root, root
        for _ in range(degree):
            candidate = candidate * square % modulus
            self.root = min(self.root, candidate)
        bits = degree.bit_length() - 1
        self.order = np.array([int(f"{i:0{bits}b}"[::-1], 2) for i in range(degree)])

    def _powers(self, root):
        powers = [1]
        for _ in range(self.degree - 1):
            powers.append(powers[-1] * root % self.modulus)
        return np.array(powers, dtype=object)

    def _cyclic(self, values, powers):
        """Transform by a root whose powers are given; halves like Cooley and Tukey."""
        if len(values) == 1:
            return values
        even = self._cyclic(values[::2], powers[::2])
        odd = self._cyclic(values[1::2], powers[::2])
        twist = powers[: len(odd)] * odd
        return np.concatenate([even + twist, even - twist]) % self.modulus

    def transform(self, coefficients):
        """Values at the odd powers of the root, natural order."""
        twisted = np.array(coefficients, dtype=object) * self._powers(self.root)
        return self._cyclic(twisted % self.modulus, self._powers(self.root**2))

    def inverse(self, values):
        backward = pow(self.root, -1, self.modulus)
        cyclic = self._cyclic(np.array(values, dtype=object), self._powers(backward**2))
        scale = pow(self.degree, -1, self.modulus)
        result = cyclic * self._powers(backward) * scale % self.modulus
        return np.array([v - self.modulus if v > self.modulus // 2 else v for v in result])

    def natural(self, residues):
        """One polynomial of a ciphertext, uint64 (N,), from Microsoft SEAL's bit-reversed order."""
        result = np.empty(self.degree, dtype=object)
        result[self.order] = residues.tolist()
        return result


def exponents(degree):
    """Odd exponent of the root of unity that each slot belongs to."""
    return np.array([pow(3, j, 2 * degree) for j in range(degree // 2)])


def twice_real_part(values, scale, degree):
    """Twice the polynomial whose slots are ``values``, rounded to integers."""
    spectrum = np.zeros(2 * degree)
    spectrum[exponents(degree)] = values
    spectrum[2 * degree - exponents(degree)] = values
    return [round(v) for v in (np.fft.fft(spectrum).real[:degree] * (2 * scale / degree)).tolist()]


def recover_key(ring, ciphertexts, opened, scale):
    """Return the secret polynomial that two ciphertexts and their opened slots imply."""
    q, equations = ring.modulus, []
    for (c0, c1), values in zip(ciphertexts, opened, strict=True):
        right = ring.transform(twice_real_part(values, scale, ring.degree)) - c0 - c0[::-1]
        equations.append((c1, c1[::-1], right % q))
    (a, b, e), (c, d, f) = equations
    determinant = (a * d - b * c) % q
    inverse = np.array([pow(int(x), -1, q) for x in determinant], dtype=object)
    return ring.inverse((e * d - b * f) * inverse % q)


def decode(ring, ciphertext, secret, scale):
    """Open a ciphertext with a recovered secret; returns the slots."""
    c0, c1 = ciphertext
    message = ring.inverse((c0 + c1 * ring.transform(secret)) % ring.modulus)
    points = np.fft.ifft(message.astype(np.float64), 2 * ring.degree) * 2 * ring.degree
    return points.real[exponents(ring.degree)] / scale
