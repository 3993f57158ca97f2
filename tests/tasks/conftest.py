from support.tokenizers import chat, plain, turns

__all__ = ["chat", "plain", "turns"]
