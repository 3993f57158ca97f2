"""What goes down to the sites, what is trained there, what comes up, and what follows from the sum.

Three spaces, each laid out by a manifest, and nobody outside assumes that they are one:
`AdapterMethod` says what they are and holds the maps between them; `adapter_of` chooses it.
"""

from fedllm.adapters.choice import adapter_of, sent_in_turn
from fedllm.adapters.method import AdapterMethod

__all__ = ["AdapterMethod", "adapter_of", "sent_in_turn"]
