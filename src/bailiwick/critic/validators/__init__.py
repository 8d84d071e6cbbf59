"""Validators turn generated text (shell, SQL, configuration, code) into facts that policies read: parsers, not patterns.

Empty until a version brings them; a fact that no validator produced is absent, and a policy that needs it denies.
"""
