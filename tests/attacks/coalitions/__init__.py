"""What a coalition learns of single updates, found by trying: the search behind the trust table.

Each honest site is the shipped one, with a ledger, a memory, keys, statements and signatures of its
own, and is taken through every order of moves that a coalition has (`players`): orders to train
under each statement, with parts exchanged; sums to settle on; seeds to reveal, and shares of what
others left to give, on the signatures of all survivors or on others' in their place; another
neighbourhood than its own; a move twice; a ledger or a memory as it was before. Sites hear nothing
of each other but those signatures, so what a run gives the coalition is one path of each site put
together, less the seeds and shares for which a site of the sum never signed. What a site left opens
with as many shares of colluders, and of sites that gave theirs, as it needs.

What is left out is what sites compute of records, and the expansion of seeds: each update and each
seed is an unknown, and every update that was sent is one equation between them, modulo the plain
modulus. A coalition has learned something of a single site when an equation in that site's updates
alone follows (`algebra`). An update counts as the same again where the same batch would be drawn,
and as nothing where the coalition had it made so.

Covered are the coalitions of the coordinator with sites, with and without the key authority, as
long as two honest sites are left. None of the others has more than the coordinator, who relays
everything. An honest authority signs what the shipped one signs. It opens one sum with each key;
here it takes the masks off every sum that the sites agree on, and the coalition reads all updates
by themselves, which is more.

In cohorts with drawn neighbours (`drawing`) sites draw what a test wants, and a coalition says of
each site to others that it drew whom it likes. There an update may show by itself, when its site
drew colluders alone; so what is opened is held against closed sets (`closed_sets`).

Not covered: what follows from the sums themselves (adapters at which one site alone has gradients,
one adapter again with a site fewer), evaluation, runs without masks of sites' own, more statements
than a test names, how long an answer takes, and the mathematics below: X25519, HKDF, AES, Ed25519,
BFV.
"""
